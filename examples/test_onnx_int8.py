"""onnx_int8.py: what ONNX says of the file, and whether the table is true."""

import re

import onnx
import pytest

from data import load_task, load_tokenizer
from examples import onnx_int8
from lora import open_adapter
from sample import classify
from support.files import InputError
from support.offline import offline_pair


def test_table_and_file(review_adapter, held_out, exported):
    folder, said = exported
    graph = onnx.load(folder / "model_quantized.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert (
        operators.count("MatMulInteger") == 6 * 6 + 1 + 1
    )  # six in a layer, the pooler, the classifier
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^(\S.*?) +([\d.]+) +([\d.]+)% +(\d+)$", said, re.MULTILINE)
    }
    assert list(rows) == ["sample.py, merged", "ONNX Runtime", "ONNX Runtime, int8"]
    sizes = [float(size) for size, _, _ in rows.values()]
    assert sizes[1:] == [
        round((folder / name).stat().st_size / 1e6, 1)
        for name in ("model.onnx", "model_quantized.onnx")
    ]
    assert sizes[2] < 0.28 * sizes[0]
    ours, exact, int8 = (float(accuracy) for _, accuracy, _ in rows.values())
    reviews = load_task(held_out).validation
    p = classify(
        open_adapter(review_adapter),
        load_tokenizer(offline_pair()[0]),
        reviews.texts[0].to_pylist(),
    )
    assert ours == exact == round(100 * (p.argmax(-1) == reviews.labels).mean(), 1) > 65
    assert abs(int8 - exact) <= 4
    assert all(int(speed) > 0 for _, _, speed in rows.values())


def test_says_what_comes_first(tmp_path):
    with pytest.raises(InputError, match=r"has no model.onnx; make it with"):
        onnx_int8.quantise(tmp_path)
