"""All nine tasks of GLUE, from the Hub's schemas to the scores of peft, scikit-learn and scipy."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F
import transformers
from helpers import GLUE_SCHEMAS, losses_beside_peft, saved_base
from pyarrow import parquet

import train
from support.glue import TASKS

# What GLUE reports beside the accuracy, by scikit-learn.
REPORTED = {
    "cola": ("matthews_correlation", sklearn.metrics.matthews_corrcoef),
    "mrpc": ("f1", sklearn.metrics.f1_score),
    "qqp": ("f1", sklearn.metrics.f1_score),
}
WORDS = "the film was good bad dog cat sees never always old new man woman".split()  # noqa: SIM905
SMALL = ["--max-length", 24, "--epochs", 2, "--batch-size", 8, "--lr", 0.02, "--rank", 2]


def write_split(path: Path, task: str, rows: int, seed: int) -> None:
    """A split as the Hub has it: label and idx last, the features in the file's own metadata."""
    columns, names = GLUE_SCHEMAS[task]
    random = np.random.default_rng(seed)
    values = {}
    features = {}
    for column in columns:
        sizes = random.integers(3, 12, rows)
        values[column] = [" ".join(random.choice(WORDS, size)) for size in sizes]
        features[column] = {"dtype": "string", "_type": "Value"}
    if task == "stsb":
        labels = pa.array(random.integers(0, 26, rows) / 5, pa.float32())
        features["label"] = {"dtype": "float32", "_type": "Value"}
    else:
        labels = pa.array(random.integers(0, len(names), rows))
        features["label"] = {"names": names, "_type": "ClassLabel"}
    features["idx"] = {"dtype": "int32", "_type": "Value"}
    table = pa.table(values | {"label": labels, "idx": pa.array(range(rows), pa.int32())})
    told = json.dumps({"info": {"features": features}}).encode()
    parquet.write_table(table.replace_schema_metadata({b"huggingface": told}), path)


@pytest.fixture(scope="module")
def glue_hub(made_once) -> Path:
    """The folder of a repository with all nine tasks."""

    def make(folder: Path) -> None:
        for task in GLUE_SCHEMAS:
            (folder / task).mkdir()
            splits = ["train", "validation", "test"]
            if task == "mnli":
                kinds = ["matched", "mismatched"]
                splits = ["train", *(f"{split}_{kind}" for split in splits[1:] for kind in kinds)]
            for seed, split in enumerate(splits):
                path = folder / task / f"{split}-00000-of-00001.parquet"
                write_split(path, task, rows=24 if seed else 64, seed=seed)

    return made_once("glue-of-words", make)


@torch.no_grad()
def peft_says(adapter: Path, base: Path, rows: list[dict], columns: list[str]) -> torch.Tensor:
    """The logits (N, C) of an adapter in peft on N rows, one at a time."""
    config = transformers.AutoConfig.from_pretrained(adapter)
    opener = transformers.AutoModelForSequenceClassification
    model = opener.from_pretrained(base, config=config, ignore_mismatched_sizes=True)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    settings = {"truncation": True, "max_length": 24, "return_tensors": "pt"}
    logits = []
    for row in rows:
        tokens = tokenizer(*(row[column] for column in columns), **settings)
        logits.append(model(**tokens).logits)
    return torch.cat(logits)


def scores_of(task: str, logits: torch.Tensor, labels: list) -> dict[str, float]:
    """The loss by PyTorch and the scores by scikit-learn and scipy."""
    if task == "stsb":
        predicted = logits[:, 0].double()
        return {
            "loss": F.mse_loss(predicted, torch.tensor(labels, dtype=torch.float64)).item(),
            "pearson": scipy.stats.pearsonr(predicted, labels).statistic,
            "spearman": scipy.stats.spearmanr(predicted, labels).statistic,
        }
    predicted = logits.argmax(-1).numpy()
    scores = {
        "loss": F.cross_entropy(logits, torch.tensor(labels)).item(),
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
    }
    if task in REPORTED:
        name, score = REPORTED[task]
        scores[name] = score(labels, predicted)
    return scores


# Of single texts, of pairs with f1, of two validation splits, of numbers; the others differ from
# these in names.
ALIKE = ("sst2", "qqp", "qnli", "rte", "wnli")
MARKED = [
    pytest.param(task, marks=pytest.mark.slow) if task in ALIKE else task for task in GLUE_SCHEMAS
]


@pytest.mark.parametrize("task", MARKED)
def test_the_name_of_a_task_is_all_it_takes(run, hub, glue_hub, tiny, tmp_path, task):
    columns, names = GLUE_SCHEMAS[task]
    metric = TASKS[task][0]
    out = tmp_path / "out"
    hub.add("datasets/nyu-mll/glue", glue_hub)
    words = ["--data", f"nyu-mll/glue/{task}", "--model", tiny, "--out", out, *SMALL]
    words += ["--dtype", "float32"]  # whatever the CPU has
    done = run("train.py", *words, env=hub.environment)
    assert (done.returncode, done.stderr) == (0, "")
    asked = {path.rpartition("/")[2] for path, _ in hub.served if path.endswith(".parquet")}
    assert len(asked) == (3 if task == "mnli" else 2) and not any("test" in name for name in asked)

    assert f"column {' and '.join(columns)}\n" in done.stdout
    assert "\n       always guessing " in done.stdout
    what = f"classes {', '.join(names)}" if names else "one number, a regression"
    spelt = f"f1 of {names[1]!r}" if metric == "f1" else metric
    assert f"       {what}; best is the model of the best {spelt}\n" in done.stdout

    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if "validation_loss" in line]
    assert len(records) == 2
    kinds = {"": "validation_"}
    if task == "mnli":
        kinds = {"_matched": "validation_", "_mismatched": "validation_mismatched_"}
    expected = {"step": 16}
    for kind, prefix in kinds.items():
        path = glue_hub / task / f"validation{kind}-00000-of-00001.parquet"
        rows = parquet.read_table(path).to_pylist()
        logits = peft_says(out / "final", tiny, rows, columns)
        assert logits.shape == (24, len(names) or 1)
        scores = scores_of(task, logits, labels=[row["label"] for row in rows])
        expected |= {prefix + name: score for name, score in scores.items()}
    assert records[-1] == pytest.approx(expected, abs=1e-5)
    best = max(record[f"validation_{metric}"] for record in records)
    assert f"best validation {spelt} {best:.4f}, kept in" in done.stdout

    config = json.loads((out / "best" / "config.json").read_text())
    assert config["id2label"] == {str(n): name for n, name in enumerate(names or ["LABEL_0"])}
    kind = "single_label_classification" if names else "regression"
    assert (config["problem_type"], config["text_pairs"]) == (kind, len(columns) == 2)

    texts = ["--pair", "the dog", "a cat"] if len(columns) == 2 else ["the dog"]
    said = run("sample.py", "--adapter", out / "best", *texts)
    assert said.returncode == 0, said.stderr
    assert re.match("|".join(names) or r"-?\d+\.\d{3} ", said.stdout)


def test_twenty_steps_of_a_regression_are_transformers(glue_hub, tiny, tmp_path):
    """Its own loss for problem_type "regression", in peft, from the same A, B and classifier."""
    base = tmp_path / "base"
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    saved_base(base, vocab_size=30522, num_labels=1, **still)
    shutil.copy(tiny / "tokenizer.json", base)
    config = train.Config(
        model=str(base),
        data=str(glue_hub / "stsb"),
        epochs=10,
        lr=2e-2,
        dropout=0.0,
        max_length=32,
        device="cpu",
    )
    setup = train.set_up(config)
    assert setup.steps == 20 and setup.train_set.labels.dtype == torch.float32
    ours, expected, their_config = losses_beside_peft(setup, base)
    # transformers itself has gathered this from num_labels=1.
    assert their_config.problem_type == "regression"
    assert np.abs(ours / expected - 1).max() < 1e-5
    assert ours[-2:].mean() < ours[:2].mean() - 2  # something was learnt
