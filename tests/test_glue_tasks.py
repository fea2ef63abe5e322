"""All nine tasks of GLUE, from the Hub's own schemas to the scores that peft, scikit-learn and
scipy find as well."""

import json
import re
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers
from helpers import edit_json, losses_beside_peft
from pyarrow import parquet

import train
from support.glue import TASKS

# What the Hub's files (nyu-mll/glue) tell: the columns, and the names of the classes; STS-B has a
# float32 label.
SCHEMAS = {
    "sst2": (["sentence"], ["negative", "positive"]),
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
    "stsb": (["sentence1", "sentence2"], []),
}
REPORTED = {"cola": ["matthews_correlation"], "mrpc": ["f1"], "qqp": ["f1"]}  # beside the accuracy
WORDS = [
    "the",
    "film",
    "was",
    "good",
    "bad",
    "dog",
    "cat",
    "sees",
    "never",
    "always",
    "old",
    "new",
    "man",
    "woman",
]
SMALL = [
    "--max-length",
    24,
    "--epochs",
    2,
    "--batch-size",
    8,
    "--lr",
    0.02,
    "--rank",
    2,
    "--device",
    "cpu",
]


def write_split(path, task: str, rows: int, seed: int) -> None:
    """A split as the Hub has it: the label last but one, then idx, the features in the file's own
    metadata."""
    columns, names = SCHEMAS[task]
    random = np.random.default_rng(seed)
    texts = {
        column: [" ".join(random.choice(WORDS, random.integers(3, 12))) for _ in range(rows)]
        for column in columns
    }
    labels = (
        random.integers(0, 26, rows) / 5 if task == "stsb" else random.integers(0, len(names), rows)
    )
    if "test" in path.name:
        labels = labels * 0 - 1  # GLUE keeps these to itself
    kind = (
        {"dtype": "float32", "_type": "Value"}
        if task == "stsb"
        else {"names": names, "_type": "ClassLabel"}
    )
    features = {column: {"dtype": "string", "_type": "Value"} for column in columns}
    features |= {"label": kind, "idx": {"dtype": "int32", "_type": "Value"}}
    label = pa.array(labels, pa.float32() if task == "stsb" else pa.int64())
    table = pa.table(texts | {"label": label, "idx": pa.array(range(rows), pa.int32())})
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(table.replace_schema_metadata(told), path)


@pytest.fixture(scope="module")
def glue_hub(tmp_path_factory):
    """The folder of a repository with all nine tasks."""
    folder = tmp_path_factory.mktemp("glue")
    for task in SCHEMAS:
        (folder / task).mkdir()
        kinds = ["_matched", "_mismatched"] if task == "mnli" else [""]
        splits = [
            ("train", 64),
            *((f"{split}{kind}", 24) for split in ("validation", "test") for kind in kinds),
        ]
        for seed, (split, rows) in enumerate(splits):
            write_split(folder / task / f"{split}-00000-of-00001.parquet", task, rows, seed)
    return folder


@torch.no_grad()
def peft_says(folder, base, path, columns) -> tuple[torch.Tensor, np.ndarray]:
    """The logits (N, C) of an adapter in peft on the rows of a parquet file, one at a time, and the
    labels (N,)."""
    rows = parquet.read_table(path).to_pylist()
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, config=config, ignore_mismatched_sizes=True
    )
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokens = [
        tokenizer(*(row[c] for c in columns), truncation=True, max_length=24, return_tensors="pt")
        for row in rows
    ]
    return torch.cat([model(**row).logits for row in tokens]), np.array(
        [row["label"] for row in rows]
    )


def theirs(task: str, logits: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """The loss by PyTorch and the scores by scikit-learn and scipy."""
    if task == "stsb":
        predicted = logits[:, 0].double().numpy()
        return {
            "loss": sklearn.metrics.mean_squared_error(labels, predicted),
            "pearson": scipy.stats.pearsonr(predicted, labels).statistic,
            "spearman": scipy.stats.spearmanr(predicted, labels).statistic,
        }
    predicted, truth = logits.argmax(-1).numpy(), torch.tensor(labels)
    scores = {
        "loss": torch.nn.functional.cross_entropy(logits, truth).item(),
        "accuracy": np.mean(predicted == labels),
    }
    if "f1" in REPORTED.get(task, []):
        scores["f1"] = sklearn.metrics.f1_score(labels, predicted, zero_division=0)
    if "matthews_correlation" in REPORTED.get(task, []):
        scores["matthews_correlation"] = sklearn.metrics.matthews_corrcoef(labels, predicted)
    return scores


# Of single texts, of pairs with f1, of two validation splits, of numbers; the others differ from
# these in names.
ALIKE = {
    task: pytest.param(task, marks=pytest.mark.slow)
    for task in ("sst2", "qqp", "qnli", "rte", "wnli")
}


@pytest.mark.parametrize("task", [ALIKE.get(task, task) for task in SCHEMAS])
def test_the_name_of_a_task_is_all_it_takes(run, hub, glue_hub, tiny, tmp_path, task):
    columns, names = SCHEMAS[task]
    hub.add("datasets/nyu-mll/glue", glue_hub)
    command = [
        "train.py",
        "--data",
        f"nyu-mll/glue/{task}",
        "--model",
        tiny,
        "--out",
        tmp_path / "out",
        *SMALL,
    ]
    done = run(*command, env=hub.environment)
    assert (done.returncode, done.stderr) == (0, "")
    asked = {path.rpartition("/")[2] for path, _ in hub.served if "/datasets/nyu-mll" in path}
    assert not [name for name in asked if name.startswith("test")]
    assert (len(asked) == 2) or task == "mnli", asked  # no other file is looked for
    assert (
        f"column {' and '.join(columns)}\n" in done.stdout
        and "\n       always guessing " in done.stdout
    )
    what = f"classes {', '.join(names)}; " if names else "one number, a regression; "
    by = {"f1": f"f1 of {names[-1:] and names[-1]}"}.get(
        TASKS[task][0], TASKS[task][0].replace("_", " ")
    )
    assert f"{what}best is the model of the best {by}\n" in done.stdout

    lines = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    records = [line for line in lines if "validation_loss" in line]
    assert len(records) == 2
    kinds = (
        {"matched": "validation_", "mismatched": "validation_mismatched_"}
        if task == "mnli"
        else {"": "validation_"}
    )
    expected = {"step": 16}
    for kind, prefix in kinds.items():
        path = glue_hub / task / f"validation{'_' * bool(kind)}{kind}-00000-of-00001.parquet"
        logits, labels = peft_says(tmp_path / "out" / "final", tiny, path, columns)
        assert logits.shape == (24, len(names) or 1)
        expected |= {prefix + name: value for name, value in theirs(task, logits, labels).items()}
    assert records[-1] == pytest.approx(expected, abs=1e-5)
    best = max(record[f"validation_{TASKS[task][0]}"] for record in records)
    assert f"best validation {TASKS[task][0]} {best:.4f}, kept in" in done.stdout

    config = json.loads((tmp_path / "out" / "best" / "config.json").read_text())
    assert config["id2label"] == {str(n): name for n, name in enumerate(names or ["LABEL_0"])}
    assert config.get("problem_type") == (None if names else "regression")

    texts = ["--pair", "the dog", "a cat"] if len(columns) == 2 else ["the dog"]
    said = run("sample.py", "--adapter", tmp_path / "out" / "best", *texts)
    assert said.returncode == 0 and re.match("|".join(names) or r"-?\d+\.\d{3} ", said.stdout), said


@pytest.mark.slow
def test_twenty_steps_of_a_regression_are_transformers(glue_hub, minilm, tmp_path):
    """Its own loss for problem_type "regression", in peft, from the same A, B and classifier."""
    base = tmp_path / "base"
    base.mkdir()
    for name in "config.json", "model.safetensors", "tokenizer.json":
        (base / name).write_bytes(Path(minilm, name).read_bytes())
    edit_json(base / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    data = str(glue_hub / "stsb")
    run = train.set_up(
        train.Config(str(base), data, epochs=10, batch_size=32, lr=2e-3, dropout=0.0, device="cpu")
    )
    assert run.steps == 20 and run.train.labels.dtype == torch.float32
    ours, expected, their_config = losses_beside_peft(run, base)
    assert (
        their_config.problem_type == "regression"
    )  # which transformers itself has gathered from num_labels=1
    assert np.abs(ours / expected - 1).max() < 1e-5
    assert ours[-2:].mean() < ours[:2].mean() - 2  # something was learnt
