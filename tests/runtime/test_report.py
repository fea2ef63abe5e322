"""The table of parameters against peft's own count, the card as the Hub's client reads it, the
curves as a picture."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import open_theirs, write_table
from huggingface_hub import ModelCard
from matplotlib import image

import train
from runtime import report
from support.tasks import Classification
from train import Config

HISTORY = [
    {"step": 1, "train_loss": 0.7},
    {"step": 2, "validation_loss": 0.6, "validation_accuracy": 0.75},
]
NUMBERS = [
    {"step": 1, "train_loss": 0.7},
    {"step": 2, "validation_loss": 0.6, "validation_pearson": 0.8, "validation_spearman": 0.7},
]


def card(config: Config, folder: Path, history=HISTORY, text=("It's a film",)) -> ModelCard:
    """What the Hub reads of the model card for `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    task = Classification(["no", "yes"], "f1")
    setup = SimpleNamespace(config=config, steps=2, task=task)
    setup.data = SimpleNamespace(validation=SimpleNamespace(texts=[text]))
    report.write_card(setup, folder, history)
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"))


# The head.


@pytest.mark.parametrize("targets", ["query,value", "all-linear"])
def test_the_table_counts_as_peft_does(tiny, some_reviews, targets):
    import peft

    config = Config(str(tiny), str(some_reviews), targets=targets, max_length=16, device="cpu")
    lines = report.summary(train.set_up(config)).splitlines()
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=targets if targets == "all-linear" else targets.split(","),
    )
    theirs = peft.get_peft_model(open_theirs(tiny, num_labels=2), settings)
    trained, _ = theirs.get_nb_trainable_parameters()
    plain = sum(p.numel() for p in open_theirs(tiny, num_labels=2).parameters())
    table = dict(line.split(maxsplit=1) for line in lines[5:])
    assert table["LoRA"] == f"{trained - 66:,}  trained: rank 8 on {targets}"
    assert table["classifier"] == "66  trained, newly initialized"  # other names
    assert table["BERT"] == f"{plain - 66:,}  frozen"
    assert table["total"].startswith(f"{plain + trained - 66:,}  {trained:,} trained, ")
    assert lines[:4] == [
        f"model  {tiny} on cpu in float32, the usual type there",
        f"data   {some_reviews}, column sentence",
        "       58 sentences to train on, 6 to validate on",
        "       classes negative, positive; best is the model of the best accuracy",
    ]
    few = "note: 6 steps in all are few, the first of them at a rate of 0: more --epochs, "
    assert lines[-1].startswith(few)
    assert lines[4].startswith("       always guessing positive would give accuracy 0.")


def test_the_head_of_a_regression(tiny, tmp_path):
    table = {"text": [f"text {i}" for i in range(40)], "label": [i / 7 for i in range(40)]}
    data = write_table(tmp_path / "table.csv", table)
    config = Config(str(tiny), data, metric="spearman", max_length=16, rank=0, device="cpu")
    lines = report.summary(train.set_up(config)).splitlines()
    assert lines[3] == "       one number, a regression; best is the model of the best spearman"
    assert re.match(r" +always guessing \d\.\d+ would give loss \d.* pearson 0\.0000", lines[4])
    rows = [line.split() for line in lines[5:-1]]  # without the note on few steps
    assert [row[0] for row in rows] == ["BERT", "classifier", "total"]
    assert [row[2] for row in rows[:2]] == ["trained", "trained,"]  # the classifier is new
    assert lines[-2].endswith(" trained, 100.00%")


# The card.


@pytest.mark.parametrize("rank", [8, 0])
def test_the_hub_reads_the_card(tiny, tmp_path, rank):
    data = "nyu-mll/glue/rte@abc"
    config = Config(str(tiny), data, rank=rank, hub_model_id="you/rte", lr=2e-3, license="mit")
    read = card(config, tmp_path)
    assert read.data.library_name == ("peft" if rank else "transformers")
    assert read.data.datasets == ["nyu-mll/glue"]
    assert read.data.base_model is None  # a directory is no base on the Hub
    assert read.data.license == "mit" and read.data.pipeline_tag == "text-classification"
    assert read.data.metrics == ["accuracy"]
    assert "--lr=0.002" in read.text and "--hub-model-id" not in read.text
    assert "loss 0.6000  accuracy 0.7500" in read.text and "; 2 of 2 steps." in read.text
    assert "sample.py --adapter you/rte 'It'\"'\"'s a film'\n" in read.text
    assert "the best is that of the best f1 of 'yes'." in read.text
    assert ("LoRA (rank 8, alpha 16, on query,value)" in read.text) == bool(rank)
    assert ("PeftModel" in read.text) == bool(rank)


def test_the_cards_example_is_a_text_of_the_task(tmp_path):
    """In one line of a shell, whatever stands in it."""
    pair = ("a\n# b\x1b $HOME", "c `d` " + "e" * 300)
    text = card(Config("you/base", "you/data"), tmp_path, text=pair).text
    line = next(line for line in text.splitlines() if "sample.py" in line)
    words = shlex.split(line)
    assert words[4:6] == ["--pair", "a # b\\u001b $HOME"]
    assert words[6].startswith("c `d` eee") and len(words[6]) == 200 and len(words) == 7


def test_the_card_names_a_base_of_the_hub(tmp_path):
    history = [NUMBERS[1] | {"validation_mismatched_pearson": 0.65}]
    read = card(Config("you/base@abc", "nyu-mll/glue/stsb"), tmp_path, history)
    assert read.data.base_model == "you/base" and read.data.license is None
    assert "from_pretrained('you/base', config=config)" in read.text
    assert read.data.metrics == ["pearson", "spearman", "mismatched_pearson"]


@pytest.mark.parametrize("out", ["out", "home/somebody/out", "../somebody/out"])
def test_a_card_names_no_path_of_the_machine(tiny, some_reviews, tmp_path, monkeypatch, out):
    """What lies here goes by its own name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = Path(out, "final")
    if "home" in out:
        folder = folder.absolute()
    held = {"validation": str(some_reviews)}
    read = card(Config(model=str(tiny), data=str(some_reviews), out=out, **held), folder)
    assert "--adapter out/final '" in read.text and "--validation=reviews.csv" in read.text
    assert "from_pretrained(base, 'out/final')" in read.text
    assert f"from_pretrained('{tiny.name}', config=config)" in read.text
    assert "--data=reviews.csv" in read.text
    for private in str(tiny.parent), str(some_reviews.parent), "somebody":
        assert private not in read.content
    assert read.data.base_model is None and read.data.datasets is None


# The curves.


@pytest.mark.parametrize(
    ("history", "metric"),
    [(HISTORY, "accuracy"), (NUMBERS, "spearman")],
    ids=["classes", "numbers"],
)
def test_the_curves_are_a_picture(tmp_path, history, metric):
    assert report.plot_curves(history, metric, tmp_path / "curves.png") == ""
    drawn = image.imread(tmp_path / "curves.png")
    assert drawn.shape[:2] == (480, 1200) and drawn[:, :, :3].min() < 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_curves_that_cannot_be_drawn_cost_a_line_and_not_the_run(run, table, tiny, tmp_path):
    """A real run, with a matplotlib that is none."""
    (tmp_path / "fake").mkdir()
    fake = "raise RuntimeError('built for another Python')"
    (tmp_path / "fake" / "matplotlib.py").write_text(fake)
    small = ["--max-length", 16, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "out"]
    broken = {"PYTHONPATH": str(tmp_path / "fake")}
    done = run("train.py", "--model", tiny, "--data", table, *small, env=broken)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "final" / "README.md").exists()
    assert not (tmp_path / "out" / "training_curves.png").exists()
    said = "no training_curves.png: matplotlib says built for another Python"
    assert said in done.stdout
