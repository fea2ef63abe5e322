"""glue_submission.py: the form of https://gluebenchmark.com/faq, of what sample.py has labelled."""

import sys

import pytest
import torch
from helpers import adapted, draw, write_table
from pyarrow import parquet

import sample
from examples import glue_submission
from lora import save_adapter
from support.errors import InputError, run_main
from support.offline import offline_pair

FILES = {  # by the name of a file: the classes, in the order of their numbers
    "CoLA.tsv": ["unacceptable", "acceptable"],
    "MRPC.tsv": ["not_equivalent", "equivalent"],
    "RTE.tsv": ["entailment", "not_entailment"],
    "MNLI-mm.tsv": ["entailment", "neutral", "contradiction"],
}
SPELT_AS_NUMBERS = ("CoLA.tsv", "MRPC.tsv")


def read(path) -> list[str]:
    """The predictions of a file of the right form."""
    head, *lines = path.read_text().splitlines()
    assert head == "index\tprediction"
    assert [line.split("\t")[0] for line in lines] == [str(n) for n in range(40)]
    return [line.split("\t")[1] for line in lines]


@pytest.mark.parametrize("name", FILES)
def test_answers_are_spelt_as_the_server_wants_them(tmp_path, name):
    classes = FILES[name]
    answers = [classes[row % len(classes)] for row in range(40)]
    columns = {"text": ["a"] * 40, "label": [-1] * 40, "predicted_label": answers}
    for kind in "parquet", "csv", "jsonl":
        out = tmp_path / kind / name
        out.parent.mkdir()
        glue_submission.submit(write_table(tmp_path / f"a.{kind}", columns), str(out))
        numbers = [str(row % len(classes)) for row in range(40)]
        assert read(out) == (numbers if name in SPELT_AS_NUMBERS else answers)


def test_what_sample_labels_is_taken_and_a_score_is_within_the_range(tmp_path, monkeypatch):
    base, reviews = offline_pair()
    rows = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet").slice(0, 40)
    file = write_table(tmp_path / "test.parquet", rows.to_pydict() | {"label": [-1] * 40})
    model = adapted(base, ["query", "value"])
    model.classifier = torch.nn.Linear(384, 1)
    draw(model.classifier, std=5.0)
    model.config.id2label = {0: "LABEL_0"}
    model.config.problem_type = "regression"
    save_adapter(model, tmp_path / "adapter", str(base))
    labelled = tmp_path / "labelled.parquet"
    words = ["--adapter", tmp_path / "adapter", "--file", file, "--prefix", "predicted_"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, [*words, "--out", labelled])])
    run_main(sample.main)
    glue_submission.submit(str(labelled), str(tmp_path / "STS-B.tsv"))
    scores = parquet.read_table(labelled)["predicted_score"].to_numpy()
    assert scores.min() < 0 or scores.max() > 5
    found = [float(answer) for answer in read(tmp_path / "STS-B.tsv")]
    assert found == pytest.approx(scores.clip(0, 5), abs=1e-3)


def test_another_name_or_model_is_refused(tmp_path):
    labels = ["positive", "bad", None]
    table = write_table(tmp_path / "a.parquet", {"text": ["a"] * 3, "predicted_label": labels})
    for out, problem in (
        ("sst2.tsv", "GLUE's files are called CoLA, SST-2"),
        ("SST-2.csv", "GLUE's files are called CoLA, SST-2"),
        ("SST-2.tsv", "row 2 has 'bad', and sst2 takes negative, positive"),
        ("STS-B.tsv", "has no column predicted_score, which stsb takes"),
    ):
        with pytest.raises(InputError, match=problem):
            glue_submission.submit(table, str(tmp_path / out))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
