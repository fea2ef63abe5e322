"""The figures of sample.py --score beside scikit-learn's, from the answers of transformers."""

import json
import sys
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from helpers import adapted, draw, inputs, open_theirs, write_table
from matplotlib import image
from pyarrow import csv, parquet

import sample
from lora import save_adapter
from runtime import adapters, report, scoring
from support.errors import run_main
from support.tasks import Classification, MultiLabel, Regression

NAMES = ["bad", "so-so", "good"]


@torch.no_grad()
def make_adapter(folder, base, names: list[str], pairs=False, problem_type=None) -> str:
    """An adapter of random A and B, whose answers are of several classes."""
    model = adapted(base, ["query", "value"])
    model.classifier = torch.nn.Linear(model.config.hidden_size, len(names))
    draw(model.classifier, std=5.0)
    length = 40 if pairs else 20
    input_ids, mask = inputs(model.config.vocab_size, [length] * 200)
    types = (torch.arange(length) >= 20).long().expand_as(input_ids)
    model.classifier.bias -= model(input_ids, mask, types).mean(0)
    model.config.id2label = dict(enumerate(names))
    model.config.problem_type = problem_type
    model.config.text_pairs = pairs
    save_adapter(model, folder, str(base))
    return str(folder)


@pytest.fixture(scope="session")
def of_three(tiny, made_once) -> str:
    return str(made_once("scored-of-three", lambda folder: make_adapter(folder, tiny, NAMES)))


@pytest.fixture(scope="session")
def sentences(reviews) -> list[str]:
    rows = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet")
    return rows["sentence"].to_pylist()[:60]


@pytest.fixture
def says(monkeypatch, capsys):
    """What sample.py prints with these arguments, without the notes."""

    def says(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
        run_main(sample.main)
        says.noted = capsys.readouterr()
        return says.noted.out

    return says


@pytest.fixture
def fails(says, refusal):
    """The one line with which sample.py refuses these arguments."""
    return partial(refusal, says)


@pytest.fixture(scope="session")
def logits(of_three, tiny, made_once, sentences):
    """Those of transformers, with the merged weights, a text at a time."""
    folder = made_once("scored-merged", lambda folder: adapters.merge(of_three, folder / "m"))
    return their_logits(folder / "m", [(text,) for text in sentences])


def their_logits(folder, given: list[tuple]) -> np.ndarray:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = open_theirs(folder)
    settings = {"truncation": True, "max_length": 40, "return_tensors": "pt"}
    with torch.inference_mode():
        rows = [model(**tokenizer(*text, **settings)).logits for text in given]
    return torch.cat(rows).double().numpy()


def expected_report(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> dict:
    """The same figures by scikit-learn."""
    classes = range(len(names))
    predicted = logits.argmax(-1)
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    right = predicted == labels
    bins = np.ceil(probabilities.max(-1) * 15)
    distances = [
        abs(right[bins == b].mean() - probabilities.max(-1)[bins == b].mean()) * (bins == b).mean()
        for b in set(bins)
    ]
    each = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    kinds = ("precision", "recall", "f1", "support")
    return {
        "rows": len(labels),
        "loss": sklearn.metrics.log_loss(labels, probabilities, labels=classes),
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro"),
        "calibration_error": sum(distances),
        "classes": {
            name: dict(zip(kinds, figures, strict=True))
            for name, figures in zip(names, np.array(each).T.tolist(), strict=True)
        },
        "confusion": sklearn.metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def assert_same(found: dict, expected: dict) -> None:
    """Counts and what follows from them to 1e-12, what probabilities decide to 1e-5."""
    assert found.keys() - {"calibration"} == expected.keys()
    for name, value in expected.items():
        if name == "classes":
            assert list(found[name]) == list(value)
            for of_class, figures in value.items():
                assert found[name][of_class] == pytest.approx(figures, abs=1e-12)
        elif name == "confusion":
            assert found[name] == value
        else:
            bound = 1e-5 if name in ("loss", "calibration_error") else 1e-12
            assert found[name] == pytest.approx(value, abs=bound), name


LABELS = {
    "all classes": [0, 1, 2],
    "a class that never occurs": [0, 2],
    "one class alone": [1],
}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("classes", LABELS.values(), ids=LABELS)
def test_all_figures_are_those_of_sklearn(
    says, of_three, sentences, logits, tmp_path, suffix, classes
):
    labels = np.random.default_rng(0).choice(classes, len(sentences))
    table = {"text": sentences, "label": [NAMES[label] for label in labels]}
    file = write_table(tmp_path / f"test.{suffix}", table)
    found = json.loads(says("--adapter", of_three, "--file", file, "--score", "--json"))
    assert_same(found, expected_report(logits, labels, NAMES))
    assert says.noted.err == ""
    assert len(set(logits.argmax(-1))) == 3


def test_one_row(says, of_three, sentences, logits, tmp_path):
    file = write_table(tmp_path / "one.csv", {"text": sentences[:1], "label": ["good"]})
    found = json.loads(says("--adapter", of_three, "--file", file, "--score", "--json"))
    assert_same(found, expected_report(logits[:1], np.array([2]), NAMES))


def test_what_is_printed(says, of_three, sentences, logits, tmp_path):
    """The rows that are shown are those of the highest loss, with which --out begins."""
    labels = np.random.default_rng(0).integers(0, 3, len(sentences))
    table = {"review": sentences, "stars": [NAMES[label] for label in labels]}
    file = write_table(tmp_path / "test.csv", table)
    words = ["--file", file, "--text-column", "review", "--label-column", "stars", "--score"]
    out = tmp_path / "scored.csv"
    shown = says("--adapter", of_three, *words, "--out", out).splitlines()
    expected = expected_report(logits, labels, NAMES)
    for name in "accuracy", "macro_f1", "calibration_error":
        assert f"{name:<17}  {expected[name]:.4f}" in shown
    for name, figures in expected["classes"].items():
        line = next(line for line in shown if line.startswith(f"{name} "))
        rounded = [f"{figures[kind]:.4f}" for kind in ("precision", "recall", "f1")]
        assert line.split() == [name, *rounded, str(int(figures["support"]))]
    start = shown.index("a row for each label, a column for each answer:") + 2
    counts = [line.split() for line in shown[start : start + 3]]
    assert counts == [
        [n, *map(str, row)] for n, row in zip(NAMES, expected["confusion"], strict=True)
    ]

    rows = sorted(csv.read_csv(out).to_pylist(), key=lambda row: row["row"])
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    assert [row["text"] for row in rows] == sentences
    assert [row["label"] for row in rows] == table["stars"]
    assert [row["answer"] for row in rows] == [NAMES[n] for n in logits.argmax(-1)]
    assert [row["confidence"] for row in rows] == pytest.approx(probabilities.max(-1), abs=1e-5)
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-5)
    worst = [line.split() for line in shown[-10:]]
    order = np.argsort(-losses)[:10]
    assert [int(words[0]) - 1 for words in worst] == order.tolist()
    assert [words[1] for words in worst] == [NAMES[labels[row]] for row in order]
    assert [words[2] for words in worst] == [NAMES[logits[row].argmax()] for row in order]


# Which label is which class.


def with_names(path, given: list[str], labels: list[int], names: list[str]) -> str:
    """A parquet file as the Hub has it: numbers, and their names in the schema."""
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"text": given, "label": labels})
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def test_the_names_of_a_file_are_in_its_own_order(says, of_three, sentences, logits, tmp_path):
    """Its number 0 is the model's class 2."""
    labels = np.random.default_rng(0).integers(0, 3, len(sentences))
    file = with_names(tmp_path / "a.parquet", sentences, (2 - labels).tolist(), NAMES[::-1])
    found = json.loads(says("--adapter", of_three, "--file", file, "--score", "--json"))
    assert_same(found, expected_report(logits, labels, NAMES))
    assert says.noted.err == ""


def test_numbers_are_those_of_the_classes_and_a_note_says_so(
    says, of_three, sentences, logits, tmp_path
):
    """Never by the order in which a file has them: here it has 1 and 2 alone."""
    labels = np.random.default_rng(0).integers(1, 3, len(sentences))
    file = write_table(tmp_path / "a.csv", {"text": sentences, "label": labels.tolist()})
    found = json.loads(says("--adapter", of_three, "--file", file, "--score", "--json"))
    assert_same(found, expected_report(logits, labels, NAMES))
    assert says.noted.err == f"note: {file}: the labels are taken as numbers of bad, so-so, good\n"


def test_numbers_that_are_names_are_names(says, tiny, sentences, tmp_path):
    """Of the classes "1", "2" and "3" label 1 is the first, and 0 is none."""
    stars = make_adapter(tmp_path / "stars", tiny, ["1", "2", "3"])
    file = write_table(tmp_path / "a.csv", {"text": sentences, "label": ["1", "3"] * 30})
    found = json.loads(says("--adapter", stars, "--file", file, "--score", "--json"))
    assert [figures["support"] for figures in found["classes"].values()] == [30, 0, 30]


def test_a_model_without_names(says, fails, tiny, sentences, tmp_path):
    unnamed = make_adapter(tmp_path / "unnamed", tiny, ["LABEL_0", "LABEL_1", "LABEL_2"])
    numbers = write_table(tmp_path / "n.csv", {"text": sentences, "label": [0, 1, 2] * 20})
    words = write_table(tmp_path / "w.csv", {"text": sentences, "label": NAMES * 20})
    told = with_names(tmp_path / "t.parquet", sentences, [0, 1, 2] * 20, NAMES)
    common = ["--adapter", unnamed, "--score", "--json", "--file"]
    found = json.loads(says(*common, numbers))
    assert says.noted.err == ""
    assert json.loads(says(*common, told)) == found
    assert "'bad', expected one of LABEL_0, LABEL_1, LABEL_2; --label" in fails(*common, words)
    named = json.loads(says(*common, words, "--label-names", "bad,so-so,good"))
    assert named["confusion"] == found["confusion"] and list(named["classes"]) == NAMES


@pytest.mark.parametrize("label, said", [
    ("Good", "row 3 has the label 'Good', expected one of bad, so-so, good"),
    ("3", "row 3 has the label '3', expected one of bad"),
    ("-1", "row 3 has the label '-1', expected one of bad"),
    ("", "row 3"),
])  # fmt: skip
def test_a_label_that_the_model_does_not_know(fails, of_three, sentences, tmp_path, label, said):
    labels = ["good"] * 60
    labels[2] = label
    file = write_table(tmp_path / "a.csv", {"text": sentences, "label": labels})
    out = tmp_path / "scored.csv"
    error = fails("--adapter", of_three, "--file", file, "--score", "--out", out)
    assert said in error and file in error and not out.exists()


# Other kinds of model.


def test_pairs_and_a_whole_model(says, fails, tiny, sentences, tmp_path):
    of_pairs = make_adapter(tmp_path / "pairs", tiny, ["same", "other"], pairs=True)
    adapters.merge(of_pairs, tmp_path / "merged")
    labels = np.random.default_rng(0).integers(0, 2, 30)
    pairs = list(zip(sentences[:30], sentences[30:], strict=True))
    table = {"sentence1": sentences[:30], "sentence2": sentences[30:]}
    named = {"label": [("same", "other")[label] for label in labels]}
    file = write_table(tmp_path / "pairs.parquet", table | named)
    expected = expected_report(their_logits(tmp_path / "merged", pairs), labels, ["same", "other"])
    for model in ["--adapter", of_pairs], ["--model", tmp_path / "merged"]:
        found = json.loads(says(*model, "--file", file, "--score", "--json"))
        assert_same(found, expected)
    says("--adapter", of_pairs, "--file", file, "--score", "--out", tmp_path / "scored.csv")
    rows = csv.read_csv(tmp_path / "scored.csv").to_pylist()
    assert [(row["text"], row["text_pair"]) for row in rows] == [pairs[r["row"] - 1] for r in rows]
    words = ["--adapter", of_pairs, "--file", file, "--score", "--text-column", "sentence1"]
    assert "classifies pairs of texts" in fails(*words)


def test_a_regression(says, tiny, sentences, tmp_path):
    import scipy.stats

    of_numbers = make_adapter(tmp_path / "n", tiny, ["LABEL_0"], problem_type="regression")
    adapters.merge(of_numbers, tmp_path / "merged")
    predicted = their_logits(tmp_path / "merged", [(text,) for text in sentences])[:, 0]
    for labels in predicted + np.random.default_rng(0).normal(0, 1, 60), np.full(60, 2.5):
        labels = labels.round(3)
        file = write_table(tmp_path / "n.csv", {"text": sentences, "label": labels})
        found = json.loads(says("--adapter", of_numbers, "--file", file, "--score", "--json"))
        assert found["rows"] == 60
        theirs = sklearn.metrics.mean_squared_error(labels, predicted)
        assert found["loss"] == pytest.approx(theirs, rel=1e-5)
        theirs = sklearn.metrics.mean_absolute_error(labels, predicted)
        assert found["mean_absolute_error"] == pytest.approx(theirs, rel=1e-5)
        if np.ptp(labels):
            theirs = scipy.stats.pearsonr(labels, predicted).statistic
            assert found["pearson"] == pytest.approx(theirs, abs=1e-5)
            assert found["spearman"] == pytest.approx(
                scipy.stats.spearmanr(labels, predicted).statistic, abs=1e-3
            )
        else:
            assert found["pearson"] == found["spearman"] == 0
    lines = says("--adapter", of_numbers, "--file", file, "--score").splitlines()
    assert lines[-11].split() == ["row", "label", "answer", "loss", "text"]


WAYS = {  # to write sets of labels: the table, and the options
    "lists": (".parquet", []),
    "lists of json": (".jsonl", []),
    "separated": (".csv", ["--label-separator", ";"]),
    "a column each": (".csv", ["--label-columns", "insult,threat,toxic"]),  # in another order
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantile", [None, 0.75])
def test_several_labels_a_text(says, tiny, sentences, tmp_path, way, quantile):
    """The labels by their names, whatever order the file has them in; all by sklearn."""
    names = ["toxic", "insult", "threat"]
    kind = "multi_label_classification"
    several = make_adapter(tmp_path / "several", tiny, names, problem_type=kind)
    adapters.merge(several, tmp_path / "merged")
    logits = their_logits(tmp_path / "merged", [(text,) for text in sentences])
    probabilities = torch.from_numpy(logits).sigmoid().numpy()  # (N, C)
    threshold = 0.5 if quantile is None else np.quantile(probabilities, quantile)
    predicted = probabilities > threshold
    assert (threshold == 0.5) == np.array_equal(predicted, probabilities > 0.5)
    labels = np.random.default_rng(0).random((60, 3)) < 0.4  # (N, C)
    suffix, options = WAYS[way]
    given = [[name for name, has in zip(names, row, strict=True) if has] for row in labels]
    column = {"label": given}
    if way == "separated":
        column = {"label": [" ; ".join(row) for row in given]}
    if way == "a column each":
        column = {name: labels[:, n].astype(int) for n, name in enumerate(names)}
    file = write_table(tmp_path / f"test{suffix}", {"text": sentences} | column)
    words = ["--adapter", several, "--file", file, "--score", *options]
    if threshold != 0.5:
        words += ["--threshold", repr(float(threshold))]
    found = json.loads(says(*words, "--json"))
    each = sklearn.metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    kinds = ("precision", "recall", "f1", "support")
    for name, figures in zip(names, np.array(each).T.tolist(), strict=True):
        expected = dict(zip(kinds, figures, strict=True))
        assert found["classes"][name] == pytest.approx(expected, abs=1e-12)
    for average in "macro", "micro":
        theirs = sklearn.metrics.f1_score(labels, predicted, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(theirs, abs=1e-12)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, predicted)
    losses = [sklearn.metrics.log_loss(labels[:, c], probabilities[:, c]) for c in range(3)]
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    says(*words, "--out", tmp_path / "scored.csv")
    rows = csv.read_csv(tmp_path / "scored.csv").to_pylist()
    rows.sort(key=lambda row: row["row"])
    assert [(row["label"] or "").split(",") for row in rows] == [row or [""] for row in given]
    answers = [",".join(np.array(names)[row]) for row in predicted]
    assert [row["answer"] or "" for row in rows] == answers


def test_one_label_where_several_are_meant_and_the_reverse(fails, of_three, tiny, tmp_path):
    several = make_adapter(
        tmp_path / "several", tiny, NAMES, problem_type="multi_label_classification"
    )
    one = write_table(tmp_path / "one.csv", {"text": ["a", "b"], "label": ["good", "bad"]})
    both = write_table(tmp_path / "all.jsonl", {"text": ["a"], "label": [["good", "bad"]]})
    said = fails("--adapter", several, "--file", one, "--score")
    assert "row 1 has the label 'good', and no list of labels; see --label-separator" in said
    said = fails("--adapter", of_three, "--file", both, "--score")
    assert "row 1 has the label ['good', 'bad'], but the model gives one class a text" in said
    said = fails("--adapter", of_three, "--threshold", "0.3", "great film")
    assert "--threshold: is of several labels a text, and not of classes bad, so-so, good" in said
    assert "--threshold 1.5: expected" in fails("--adapter", several, "--threshold", "1.5", "great")


def test_several_labels_from_a_table_to_a_report(run, tiny, sentences, refused, tmp_path):
    """Trained, scored, gone on with; and no going on with one class a text."""
    names = ["toxic", "insult", "threat"]
    sets = [[name for bit, name in enumerate(names) if number >> bit & 1] for number in range(8)]
    table = {"text": sentences, "label": [sets[number % 8] for number in range(60)]}
    file = write_table(tmp_path / "table.jsonl", table)
    small = ["--epochs", 1, "--max-length", 16, "--model", tiny, "--data", file]
    done = run("train.py", *small, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (
        "any of the labels insult, threat, toxic; best is the model of the best macro_f1"
        in done.stdout
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["classes"]) == sorted(names)
    assert f"best validation macro_f1 {report['macro_f1']:.4f}, kept" in done.stdout
    best = tmp_path / "out" / "best"
    done = run("sample.py", "--adapter", best, "--file", file, "--score", "--json")
    assert done.returncode == 0, done.stderr
    classes = json.loads(done.stdout)["classes"]
    assert [classes[name]["support"] for name in names] == [30, 30, 28]
    done = run("train.py", *small, "--init-adapter", best, "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    one = write_table(tmp_path / "one.csv", table | {"label": sorted(names) * 20})
    words = [*small[:-1], one, "--init-adapter", best, "--out", tmp_path / "other"]
    assert "is of multi_label_classification, and the data of single_label" in refused(*words)


def test_a_threshold_decides_which_labels_are_given(says, tiny, tmp_path):
    several = make_adapter(
        tmp_path / "several", tiny, NAMES, problem_type="multi_label_classification"
    )
    for threshold in 0.5, 0.01, 0.99:
        words = ["--adapter", several, "--json", "--threshold", threshold, "a great film"]
        answer = json.loads(says(*words))
        above = [name for name, score in answer["scores"].items() if score > threshold]
        assert answer["label"] == above and list(answer["scores"]) == NAMES


def test_more_classes_than_are_shown(says, tiny, sentences, tmp_path):
    names = [f"class {n}" for n in range(21)]
    many = make_adapter(tmp_path / "many", tiny, names)
    file = write_table(tmp_path / "a.csv", {"text": sentences, "label": names[:20] * 3})
    assert "a column for each answer" not in says("--adapter", many, "--file", file, "--score")
    found = json.loads(says("--adapter", many, "--file", file, "--score", "--json"))
    assert len(found["confusion"]) == 21


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--score"], "--score takes a whole --file, and one --adapter"),
        (["--score", "great film"], "--score takes a whole --file, and one --adapter"),
        (["--file", "{file}", "--label-column", "a"], "--label-column goes with --score alone"),
        (["--file", "{file}", "--score", "--label-column", "a"], "no column a among text, label"),
        (["--file", "{file}", "--score", "--out", "{file}"], "is there already"),
        (["--file", "{file}", "--score", "--out", "a.tsv"], "--score the name must end in .csv"),
        (["--file", "{file}", "--score", "--prefix", "a_"], "--prefix goes with --out alone"),
        (
            ["--file", "{file}", "--score", "--label-names", "a,b"],
            "so-so, good (3), and the data a, b (2)",
        ),
        (["--file", "{file}", "--score", "--label-names", "a,a,b"], "and the data a, b (2)"),
        (["--file", "{file}", "--score", "--label-names", "a,b,c"], "has the classes bad"),
        (["--file", "{file}", "--score", "--label-columns", "bad"], "the model has the labels bad"),
        (["--file", "{file}", "--score", "--out", "no/a.csv"], "no/a.csv: there is no folder no"),
        (["--file", "{file}"], "--out labels it, and --score scores it"),
        (["--file", "nowhere.csv", "--score"], "nowhere.csv: cannot be read"),
    ],
    ids=range(14),
)
def test_bad_arguments_are_one_line(fails, of_three, tmp_path, arguments, problem):
    file = write_table(tmp_path / "a.csv", {"text": ["a", "b"], "label": ["good", "bad"]})
    words = [word.format(file=file) for word in arguments]
    assert problem in fails("--adapter", of_three, *words)


# At the end of a training.


def test_a_run_ends_with_the_report_of_its_best(quick, says, tiny, sentences, tmp_path, capsys):
    """As --score says it of best/ and the held-out rows, whatever the last weights say."""
    labels = [NAMES[number % 3] for number in range(60)]
    data = tmp_path / "data"
    data.mkdir()
    write_table(data / "train.csv", {"text": sentences, "label": labels})
    held = {"text": [f"{text}!" for text in sentences[::-1]], "label": labels[::-1]}
    file = write_table(data / "validation.csv", held)
    out = tmp_path / "out"
    quick(out, "--data", data, "--epochs", "3", "--lr", "0.05", "--eval-every", "1")
    log = capsys.readouterr().out
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if "validation" in line]
    best = json.loads((out / "report.json").read_text())
    assert best["loss"] in [record["validation_loss"] for record in records[:-1]]  # not the last
    assert best["accuracy"] == max(record["validation_accuracy"] for record in records)
    words = ["--adapter", out / "best", "--file", file, "--max-length", 16, "--score"]
    found = json.loads(says(*words, "--json"))
    del found["calibration"], best["calibration"]
    assert_same(found, best)

    says(*words, "--out", tmp_path / "scored.csv")
    expected = csv.read_csv(tmp_path / "scored.csv").to_pylist()
    rows = csv.read_csv(out / "validation_predictions.csv").to_pylist()
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in expected], abs=1e-5)
    assert [r["row"] for r in sorted(rows, key=lambda r: r["row"])] == [*range(1, 61)]
    by_number = {row["row"]: row for row in expected}
    for row in rows:
        theirs = by_number[row["row"]]
        assert (row["text"], row["label"]) == (theirs["text"], theirs["label"])
        assert row["answer"] == theirs["answer"]
    assert "best/ on the validation rows:\nrows " in log
    assert f"macro_f1           {best['macro_f1']:.4f}\n" in log
    drawn = image.imread(out / "report.png")
    assert drawn.shape[:2] == (480, 1200) and drawn[:, :, :3].min() < 0.5


PICTURES = {
    "classes": (Classification(NAMES), 3, torch.arange(40) % 3),
    "one row": (Classification(NAMES), 3, torch.tensor([1])),
    "a formula": (Classification(["$x^2$", "$", "\x1b", "很好"]), 4, torch.arange(40) % 4),
    "many classes": (Classification([f"class {n}" for n in range(200)]), 200, torch.arange(40)),
    "sets of labels": (MultiLabel(NAMES), 3, torch.eye(3).repeat(9, 1)),
    "numbers": (Regression(["LABEL_0"]), 1, torch.arange(40.0)),
    "the same number": (Regression(["LABEL_0"]), 1, torch.ones(40)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PICTURES)
def test_every_report_is_a_picture_and_a_text(tmp_path, name):
    task, C, labels = PICTURES[name]
    logits = torch.randn(len(labels), C, generator=torch.Generator().manual_seed(0))
    given = [("a text\nof two \x1b lines",)] * len(labels)
    figures, table = scoring.assess(task, given, logits, labels)
    assert report.draw(tmp_path / "report.png", partial(scoring.paint, figures, table)) == ""
    drawn = image.imread(tmp_path / "report.png")
    for half in drawn[:, :600, :3], drawn[:, 600:, :3]:
        assert half.min() < 0.5
    shown = scoring.as_text(figures, table)
    assert "\x1b" not in shown and "of two \\u001b lines" in shown
    losses = table["loss"].to_pylist()
    assert losses == sorted(losses, reverse=True)
    assert sorted(table["row"].to_pylist()) == [*range(1, len(labels) + 1)]
