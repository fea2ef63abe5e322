"""The table of parameters against peft's own count, the card as the Hub's client reads it, the
curves as a picture."""

from pathlib import Path

import peft
import pytest
from helpers import open_theirs
from huggingface_hub import ModelCard
from matplotlib import image

from lora import trained_whole
from support import report
from train import Config, build_model

HISTORY = [
    {"step": 1, "train_loss": 0.7, "train_accuracy": 0.5},
    {"step": 2, "validation_loss": 0.6, "validation_accuracy": 0.75},
]


@pytest.mark.parametrize("targets", ["query,value", "all-linear"])
def test_the_table_counts_as_peft_does(minilm, targets):
    config = Config(model=minilm, targets=targets, device="cpu")
    model = build_model(config, ["negative", "positive"])
    sizes = {name: (p.numel(), p.requires_grad) for name, p in model.named_parameters()}
    table = report.parameter_table(sizes, trained_whole(model), model.new_modules, 8, "some")
    targets = targets if targets == "all-linear" else targets.split(",")
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets)
    theirs = peft.get_peft_model(open_theirs(minilm, num_labels=2), settings)
    trained, _ = theirs.get_nb_trainable_parameters()
    lines = dict(line.split(maxsplit=1) for line in table.splitlines())
    assert lines["LoRA"] == f"{trained - 770:,}  trained: rank 8 on some"
    assert lines["classifier"] == "770  trained, newly drawn" and lines["BERT"].endswith("frozen")
    assert lines["total"].startswith(f"{22_713_216 + trained:,}  {trained:,} trained, ")


@pytest.mark.parametrize("rank", [8, 0])
def test_the_hub_reads_the_card(minilm, tmp_path, rank):
    config = Config(
        model=minilm, data="nyu-mll/glue/rte@abc", rank=rank, hub_model_id="you/rte", lr=2e-3
    )
    card = ModelCard(report.model_card(config, Path("out/best"), HISTORY, steps=2))
    assert card.data.library_name == ("peft" if rank else "transformers")
    assert (
        card.data.datasets == ["nyu-mll/glue"] and card.data.base_model is None
    )  # a directory is no base on the Hub
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "loss": 0.6,
        "accuracy": 0.75,
    }
    assert (
        "--lr=0.002" in card.text
        and "--hub-model-id" not in card.text
        and "| accuracy | 0.7500 |" in card.text
    )


@pytest.mark.parametrize("out, place", [
    ("out-reviews", "out-reviews/final"), ("runs/7", "runs/7/final"), (".", "final"),
    ("/home/somebody/runs/7", "7/final"), ("../../somebody/7", "7/final"),
])  # fmt: skip
def test_a_card_names_its_place_and_no_path_of_the_machine(tiny, some_reviews, out, place):
    """What lies here goes by its own name, and there is no licence but the one that was told."""
    config = Config(model=str(tiny), data=str(some_reviews), out=out)
    content = report.model_card(config, Path(out) / "final", HISTORY, steps=2)
    card = ModelCard(content)
    assert f"--adapter {place} " in card.text and f'from_pretrained(base, "{place}")' in card.text
    assert (
        f'from_pretrained("{tiny.name}", config=config)' in card.text
        and "--data=reviews.csv" in card.text
    )
    assert (
        str(tiny.parent) not in content
        and str(some_reviews.parent) not in content
        and "somebody" not in content
    )
    assert card.data.base_model is None and card.data.datasets is None and card.data.license is None
    assert (
        ModelCard(report.model_card(Config(license="mit"), Path("x"), HISTORY, 2)).data.license
        == "mit"
    )


def test_the_card_of_another_kind_of_task():
    """Of pairs, what to type has two texts; of MNLI's second split, the scores are in the table
    alone."""
    history = [
        {
            "step": 2,
            "validation_loss": 0.6,
            "validation_pearson": 0.8,
            "validation_mismatched_pearson": 0.7,
        }
    ]
    content = report.model_card(
        Config(data="nyu-mll/glue/stsb"), Path("out/best"), history, 2, ["one", "two"]
    )
    assert 'sample.py --adapter out/best --pair "He slept well." "He was awake."\n' in content
    assert "| mismatched pearson | 0.7000 |" in content
    card = ModelCard(content).data
    assert card.metrics == ["pearson"] and {r.metric_type for r in card.eval_results} == {
        "loss",
        "pearson",
    }


NUMBERS = [
    {"step": 1, "train_loss": 0.7},
    {"step": 2, "validation_loss": 0.6, "validation_pearson": 0.75},
]


@pytest.mark.parametrize("history", [HISTORY, NUMBERS], ids=["classes", "regression"])
def test_the_curves_are_a_picture(tmp_path, history):
    report.plot_curves(history, tmp_path / "curves.png", pytest.fail)
    drawn = image.imread(tmp_path / "curves.png")
    assert drawn.shape[:2] == (480, 1200) and drawn[:, :, :3].min() < 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("broken, drawn", [
    ({"MPLBACKEND": "nonsense"}, True),
    ({"MPLBACKEND": "module://nowhere"}, True),
    ({"MATPLOTLIBRC": "a directory that is not there"}, True),
    ({"PYTHONPATH": "fake"}, False),
])  # fmt: skip
def test_curves_that_cannot_be_drawn_cost_a_line_and_not_the_run(
    run, table, tiny, tmp_path, broken, drawn
):
    """A real run, with a matplotlib that is set up wrongly, or that is none."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "matplotlib.py").write_text(
        "raise RuntimeError('built for another Python')"
    )
    if "PYTHONPATH" in broken:
        broken = {"PYTHONPATH": str(tmp_path / "fake")}
    small = ["--max-length", 16, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "out"]
    done = run("train.py", "--model", tiny, "--data", table, *small, env=broken)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "final" / "README.md").exists()
    assert (tmp_path / "out" / "training_curves.png").exists() == drawn
    assert drawn != (
        "no training_curves.png: matplotlib says built for another Python" in done.stdout
    )
