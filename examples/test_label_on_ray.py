"""The real Ray with two actors, of which one is killed: every row as sample.py labels it, once."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

import sample
from bert import BertConfig, BertForSequenceClassification
from data import load_tokenizer
from examples import label_on_ray
from support import base_files
from support.console import run_main
from support.offline import offline_pair

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A random BERT that takes milliseconds, with a real tokenizer, which finds as many reviews bad
    as good."""
    torch.manual_seed(1)
    labels = {0: "bad", 1: "good"}
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    model = BertForSequenceClassification(BertConfig(**small, id2label=labels))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    texts = parquet.read_table(f"{offline_pair()[1]}/validation-00000-of-00001.parquet")[
        "sentence"
    ].to_pylist()
    p = sample.classify(model.eval(), load_tokenizer(offline_pair()[0], 512), texts[:100])  # (N, C)
    with torch.no_grad():
        model.classifier.bias[0] += np.median(np.log(p[:, 1] / p[:, 0]))
    model.save_pretrained(folder := tmp_path_factory.mktemp("model"))
    base_files.copy_tokenizer(offline_pair()[0], folder)
    return str(folder)


@pytest.fixture(scope="session")
def labelled(model, tmp_path_factory) -> tuple[str, list[dict]]:
    """A folder of twelve parquet files of 200 reviews, and what sample.py says of them."""
    folder = tmp_path_factory.mktemp("labelled")
    table = (
        parquet.read_table(f"{offline_pair()[1]}/train-00000-of-00001.parquet")
        .select(["sentence"])
        .slice(0, 2400)
    )
    parquet.write_table(table, folder / "all.parquet")
    (folder / "parts").mkdir()
    for number in range(12):
        parquet.write_table(
            table.slice(number * 200, 200), folder / "parts" / f"{number:02}.parquet"
        )
    words = [
        "sample.py",
        "--model",
        model,
        "--file",
        f"{folder}/all.parquet",
        "--out",
        f"{folder}/o.parquet",
    ]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        run_main(sample.main)
    for number, handler in before.items():
        signal.signal(number, handler)
    rows = parquet.read_table(folder / "o.parquet").to_pylist()
    assert len(rows) == 2400 and len({row["label"] for row in rows}) == 2
    return str(folder / "parts"), rows


def same(found: list[dict], expected: list[dict]) -> None:
    found, expected = (
        sorted(found, key=str),
        sorted(expected, key=str),
    )  # neither Ray nor Spark keeps the order of rows
    assert [row["sentence"] for row in found] == [row["sentence"] for row in expected]
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert (
        max(abs(a["confidence"] - b["confidence"]) for a, b in zip(found, expected, strict=True))
        < 1e-5
    )


@pytest.fixture
def cluster():
    import ray  # late: the other examples need none

    environment = {
        "env_vars": {"PYTHONPATH": f"{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    }
    with tempfile.TemporaryDirectory(
        prefix="ray-"
    ) as folder:  # not pytest's: the names of sockets must be short
        places = {"_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            runtime_env=environment,
            log_to_driver=False,
            **places,
        )
        yield
        ray.shutdown()


def test_two_actors_of_which_one_is_killed(cluster, labelled, model, tmp_path):
    """It dies at its second batch; Ray begins another and gives it the rows that were lost."""
    source, expected = labelled
    flag = tmp_path / "killed"

    class Dying(label_on_ray.Labeller):
        def __call__(self, frame):
            self.count = getattr(self, "count", 0) + 1
            (tmp_path / f"actor-{os.getpid()}").touch()
            while len(list(tmp_path.glob("actor-*"))) < 2:  # until the other one is at work too
                time.sleep(0.05)
            if self.count == 2 and not flag.exists():
                flag.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(frame)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_on_ray, "Labeller", Dying)
        patch.setattr(label_on_ray, "ROWS", 100)
        label_on_ray.label(
            source, str(tmp_path / "out"), 2, 0.5, 0, adapter=model, text_column="sentence"
        )
    assert (
        flag.exists() and len(list(tmp_path.glob("actor-*"))) >= 3
    )  # two, and the one that took the dead one's place
    same(parquet.read_table(tmp_path / "out").to_pylist(), expected)
