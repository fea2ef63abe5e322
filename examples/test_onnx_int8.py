"""onnx_int8.py: what ONNX says of the file, and whether the table is true."""

import re

import onnx
import pytest

from data import load_data
from examples import onnx_int8
from sample import classify, open_model
from support.errors import InputError


def test_table_and_file(review_adapter, held_out, exported):
    folder, said = exported
    graph = onnx.load(folder / "model_quantized.onnx").graph
    operators = [node.op_type for node in graph.node]
    # Six in a layer, the pooler, the classifier.
    assert operators.count("MatMulInteger") == 6 * 6 + 1 + 1
    rows = re.findall(r"^(\S.*?) +([\d.]+) +([\d.]+)% +(\d+)$", said, re.MULTILINE)
    assert [row[0] for row in rows] == ["sample.py, merged", "ONNX Runtime", "ONNX Runtime, int8"]
    sizes = [float(row[1]) for row in rows]
    for size, name in zip(sizes[1:], ("model.onnx", "model_quantized.onnx"), strict=True):
        assert size == round((folder / name).stat().st_size / 1e6, 1)
    assert sizes[2] < 0.28 * sizes[0]
    ours, exact, int8 = (float(row[2]) for row in rows)
    reviews = load_data(held_out)
    answers = classify(open_model(review_adapter), reviews.validation.texts)
    truth = [reviews.task.names[label] for label in reviews.validation.labels]
    right = sum(answer["label"] == label for answer, label in zip(answers, truth, strict=True))
    assert ours == exact == round(100 * right / len(truth), 1) > 65
    assert abs(int8 - exact) <= 4
    assert all(int(row[3]) > 0 for row in rows)


def test_says_what_comes_first(tmp_path):
    with pytest.raises(InputError, match=r"has no model.onnx; .* makes it"):
        onnx_int8.quantise(tmp_path)
