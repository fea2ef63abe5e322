"""The table of parameters against peft's own count, the card as the Hub's client reads it, the
curves as a picture."""

from pathlib import Path

import pytest
from helpers import open_theirs, write_table
from huggingface_hub import ModelCard
from matplotlib import image

import train
from runtime import report
from train import Config

HISTORY = [
    {"step": 1, "train_loss": 0.7, "train_accuracy": 0.5},
    {"step": 2, "validation_loss": 0.6, "validation_accuracy": 0.75},
]
NUMBERS = [
    {"step": 1, "train_loss": 0.7},
    {"step": 2, "validation_loss": 0.6, "validation_pearson": 0.8, "validation_spearman": 0.7},
]


def card(config: Config, folder: Path, history=HISTORY, columns=("text",)) -> ModelCard:
    """What the Hub reads of the model card for `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    report.write_card(config, folder, history, steps=2, columns=list(columns))
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"))


# The head.


@pytest.mark.parametrize("targets", ["query,value", "all-linear"])
def test_the_table_counts_as_peft_does(minilm, some_reviews, targets):
    import peft

    setup = train.set_up(Config(minilm, str(some_reviews), targets=targets, device="cpu"))
    lines = report.summary(setup).splitlines()
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=targets if targets == "all-linear" else targets.split(","),
    )
    theirs = peft.get_peft_model(open_theirs(minilm, num_labels=2), settings)
    trained, _ = theirs.get_nb_trainable_parameters()
    table = dict(line.split(maxsplit=1) for line in lines[5:])
    assert table["LoRA"] == f"{trained - 770:,}  trained: rank 8 on {targets}"
    assert table["classifier"] == "770  trained, newly initialized"
    assert table["BERT"] == "22,713,216  frozen"
    assert table["total"].startswith(f"{22_713_216 + trained:,}  {trained:,} trained, ")
    assert lines[0] == f"model  {minilm} on cpu"
    assert lines[1] == f"data   {some_reviews}, column sentence"
    assert lines[2].startswith("       58 sentences to train on, 6 to validate on; padding ")
    assert lines[3] == "       classes negative, positive; best is the model of the best accuracy"
    assert lines[4].startswith("       always guessing negative would give accuracy 0.")


def test_the_head_of_a_regression(tiny, tmp_path):
    table = {"text": [f"text {i}" for i in range(40)], "label": [i / 7 for i in range(40)]}
    data = write_table(tmp_path / "table.csv", table)
    config = Config(str(tiny), data, metric="spearman", max_length=16, rank=0, device="cpu")
    lines = report.summary(train.set_up(config)).splitlines()
    assert lines[3] == "       one number, a regression; best is the model of the best spearman"
    assert lines[4].startswith("       always guessing the mean, ")
    assert " would give loss " in lines[4] and "pearson 0.0000" in lines[4]
    assert lines[5].startswith("BERT") and lines[5].endswith("  trained")
    assert not any(line.startswith("LoRA") for line in lines)
    assert lines[-1].endswith(" trained, 100.00%")


# The card.


@pytest.mark.parametrize("rank", [8, 0])
def test_the_hub_reads_the_card(minilm, tmp_path, rank):
    config = Config(minilm, "nyu-mll/glue/rte@abc", rank=rank, hub_model_id="you/rte", lr=2e-3)
    read = card(config, tmp_path)
    assert read.data.library_name == ("peft" if rank else "transformers")
    assert read.data.datasets == ["nyu-mll/glue"]
    assert read.data.base_model is None  # a directory is no base on the Hub
    results = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert results == {"loss": 0.6, "accuracy": 0.75}
    assert "--lr=0.002" in read.text and "--hub-model-id" not in read.text
    assert "| accuracy | 0.7500 |" in read.text and "; 2 of 2 steps." in read.text
    assert ("LoRA (rank 8, alpha 16, on query,value)" in read.text) == bool(rank)


@pytest.mark.parametrize(
    "out, name",
    [
        ("out-reviews", "out-reviews/final"),
        ("runs/7", "runs/7/final"),
        (".", "final"),
        ("home/somebody/runs/7", "7/final"),
        ("../somebody/7", "7/final"),
    ],
)
def test_a_card_names_no_path_of_the_machine(tiny, some_reviews, tmp_path, monkeypatch, out, name):
    """What lies here goes by its own name; the licence is the one that is given."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = Path(out, "final")
    if "home" in out:
        folder = folder.absolute()
    config = Config(model=str(tiny), data=str(some_reviews), out=out)
    read = card(config, folder)
    assert f"--adapter {name} " in read.text and f'from_pretrained(base, "{name}")' in read.text
    assert f'from_pretrained("{tiny.name}", config=config)' in read.text
    assert "--data=reviews.csv" in read.text
    for private in str(tiny.parent), str(some_reviews.parent), "somebody":
        assert private not in read.content
    assert read.data.base_model is None and read.data.datasets is None
    assert read.data.license is None
    assert card(Config(license="mit"), folder).data.license == "mit"


def test_the_card_of_another_kind_of_task(tmp_path):
    """What to type has two texts; the scores of MNLI's second split are in the table alone."""
    history = [NUMBERS[1] | {"validation_mismatched_pearson": 0.65}]
    config = Config(data="nyu-mll/glue/stsb", hub_model_id="you/stsb")
    read = card(config, tmp_path, history, ["one", "two"])
    assert 'sample.py --adapter you/stsb --pair "He slept well." "He was awake."\n' in read.text
    assert "| mismatched pearson | 0.6500 |" in read.text
    assert read.data.metrics == ["pearson", "spearman"]
    assert {result.metric_type for result in read.data.eval_results} == {
        "loss",
        "pearson",
        "spearman",
    }


# The curves.


@pytest.mark.parametrize("history", [HISTORY, NUMBERS], ids=["classes", "regression"])
def test_the_curves_are_a_picture(tmp_path, history):
    report.plot_curves(history, tmp_path / "curves.png", pytest.fail)
    drawn = image.imread(tmp_path / "curves.png")
    assert drawn.shape[:2] == (480, 1200) and drawn[:, :, :3].min() < 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
    "broken, is_drawn",
    [
        ({"MPLBACKEND": "nonsense", "MATPLOTLIBRC": "a directory that is not there"}, True),
        ({"PYTHONPATH": "fake"}, False),
    ],
)
def test_curves_that_cannot_be_drawn_cost_a_line_and_not_the_run(
    run, table, tiny, tmp_path, broken, is_drawn
):
    """A real run, with a matplotlib that is set up wrongly, or that is none."""
    (tmp_path / "fake").mkdir()
    fake = "raise RuntimeError('built for another Python')"
    (tmp_path / "fake" / "matplotlib.py").write_text(fake)
    if "PYTHONPATH" in broken:
        broken = {"PYTHONPATH": str(tmp_path / "fake")}
    small = ["--max-length", 16, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "out"]
    done = run("train.py", "--model", tiny, "--data", table, *small, env=broken)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "final" / "README.md").exists()
    assert (tmp_path / "out" / "training_curves.png").exists() == is_drawn
    said = "no training_curves.png: matplotlib says built for another Python"
    assert (said in done.stdout) != is_drawn
