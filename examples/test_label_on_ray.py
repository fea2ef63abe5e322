"""The real Ray with two actors, one of which is killed: every row as sample.py labels it, once."""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

import sample
from bert import BertConfig, BertForSequenceClassification
from data import batches_by_length, encode, load_tokenizer, predict
from examples import label_on_ray
from support.errors import run_main
from support.offline import offline_pair

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A random BERT that takes milliseconds, with a real tokenizer. It finds half the reviews
    bad."""
    base, reviews = offline_pair()
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        id2label={0: "bad", 1: "good"},
        model_max_length=12,  # which Ray, Spark and sample.py cut the reviews to
    )
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    table = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet").slice(0, 100)
    texts = [(text,) for text in table["sentence"].to_pylist()]
    encoded = encode(load_tokenizer(base, 12), texts)
    batches = batches_by_length(encoded.lengths)
    logits = predict(model, encoded, batches, torch.autocast("cpu", enabled=False))  # (N, 2)
    with torch.no_grad():
        model.classifier.bias[0] += (logits[:, 1] - logits[:, 0]).median()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    shutil.copy(f"{base}/tokenizer.json", folder)
    return str(folder)


@pytest.fixture(scope="session")
def labelled(model, tmp_path_factory) -> tuple[str, list[dict]]:
    """A folder of twelve parquet files of 200 reviews, and what sample.py says of them."""
    folder = tmp_path_factory.mktemp("labelled")
    table = parquet.read_table(f"{offline_pair()[1]}/train-00000-of-00001.parquet")
    table = table.select(["sentence"]).slice(0, 2400)
    source = folder / "all.parquet"
    target = folder / "out.parquet"
    parquet.write_table(table, source)
    (folder / "parts").mkdir()
    for number in range(12):
        part = table.slice(number * 200, 200)
        parquet.write_table(part, folder / "parts" / f"{number:02}.parquet")
    words = ["--model", model, "--file", str(source), "--out", str(target)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sample.py", *words])
        run_main(sample.main)
    rows = parquet.read_table(target).to_pylist()
    assert len(rows) == 2400 and len({row["label"] for row in rows}) == 2
    longest = [(max((row["sentence"] for row in rows), key=len),)]
    cut, uncut = (sample.open_model(model, max_length=length) for length in (None, 512))
    answers = [sample.classify(each, longest)[0]["confidence"] for each in (cut, uncut)]
    assert abs(answers[0] - answers[1]) > 1e-4
    return str(folder / "parts"), rows


def assert_same_rows(found: list[dict], expected: list[dict]) -> None:
    """Neither Ray nor Spark keeps their order."""
    assert len(found) == len(expected)
    for ours, theirs in zip(sorted(found, key=str), sorted(expected, key=str), strict=True):
        assert ours["sentence"] == theirs["sentence"]
        assert ours["label"] == theirs["label"]
        assert abs(ours["confidence"] - theirs["confidence"]) < 1e-5


@pytest.fixture
def cluster():
    import ray  # late: the other examples need none

    variables = {"PYTHONPATH": f"{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # Not pytest's folder: the names of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


def test_two_actors_and_one_is_killed(cluster, labelled, model, tmp_path, monkeypatch):
    """It dies at its second batch; Ray starts another and gives it the rows that were lost."""
    source, expected = labelled
    flag = tmp_path / "killed"

    class Dying(label_on_ray.Labeller):
        def __call__(self, frame):
            self.count = getattr(self, "count", 0) + 1
            (tmp_path / f"actor-{os.getpid()}").touch()
            while len([*tmp_path.glob("actor-*")]) < 2:  # until the other one is at work too
                time.sleep(0.05)
            if self.count == 2 and not flag.exists():
                flag.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(frame)

    monkeypatch.setattr(label_on_ray, "Labeller", Dying)
    monkeypatch.setattr(label_on_ray, "ROWS", 100)
    out = str(tmp_path / "out")
    resources = {"actors": 2, "cpus": 0.5, "gpus": 0}
    label_on_ray.label(source, out, **resources, adapter=model, text_column="sentence")
    assert flag.exists()
    # Two, and the one that took the dead one's place.
    assert len([*tmp_path.glob("actor-*")]) >= 3
    assert_same_rows(parquet.read_table(out).to_pylist(), expected)
