"""What a run measures and says, and the hint where it can go no further."""

import json
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from runtime.run import Run
from support.errors import InputError


@pytest.fixture
def run(tmp_path) -> Run:
    """A run in its training, of 8 steps, without a model."""
    setup = SimpleNamespace(
        config=train.Config(out=str(tmp_path)),
        task=SimpleNamespace(metric="accuracy"),
        placement=SimpleNamespace(scaler=torch.amp.GradScaler("cpu", enabled=False)),
        steps=8,
        steps_per_epoch=4,
    )
    tensors = {"best_logits": torch.zeros(3, 2), "unlogged": torch.zeros(2)}
    return Run(setup, {}, tensors)


def note(run: Run, loss: float, count: int = 4) -> None:
    run.count_step(torch.tensor(loss), count)


def test_a_line_of_the_log_is_the_mean_over_sentences(run, capsys):
    losses = np.random.default_rng(0).random(5)
    for loss, count in zip(losses, (4, 4, 4, 4, 1), strict=True):
        note(run, loss, count=count)
    run.log_steps()
    mean = losses.sum() / 17
    assert run.history == [{"step": 5, "train_loss": pytest.approx(mean)}]
    said = capsys.readouterr().out
    line = rf"step 5/8  loss {mean:.4f}  \d+ sentences/s  \d+ s left\n"
    assert re.fullmatch(line, said) and (run.out / "training_log.txt").read_text() == said
    note(run, 6.0)
    run.log_steps()  # none of the former steps
    assert run.history[1:] == [{"step": 6, "train_loss": 1.5}]


def test_the_best_evaluation_has_the_highest_score_then_the_lowest_loss_and_is_the_last(run):
    run.step = 3
    scores = [(0.5, 0.7), (0.6, 0.7), (0.4, 0.7), (0.4, 0.7), (0.1, 0.6), (0.6, 0.8)]
    best = []
    for number, (loss, score) in enumerate(scores[:-1]):
        logits = torch.full((3, 2), float(number))
        best.append(run.log_scores({"loss": loss, "accuracy": score}, logits))
    assert best == [True, False, True, True, False] and run.best == [0.7, -0.4]
    assert (run.tensors["best_logits"] == 3).all()
    assert run.log_scores({"loss": 0.6, "accuracy": 0.8}, logits) and run.best == [0.8, -0.6]
    run.save_checkpoint(now=True)
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history and len(lines) == 6
    assert lines[5] == {"step": 3, "validation_loss": 0.6, "validation_accuracy": 0.8}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_kept(run, loss):
    line = r"the loss is not finite by step 2: try a lower learning rate, --lr; none is kept$"
    note(run, loss)
    note(run, 1.0)
    for keep in run.log_steps, lambda: run.save_checkpoint(now=True):
        with pytest.raises(InputError, match=line):
            keep()
    run.tensors["unlogged"].zero_()
    with pytest.raises(InputError, match=line):
        run.log_scores({"loss": loss, "accuracy": 0.5}, torch.ones(3, 2))
    assert not run.best and not run.history and not [*run.out.iterdir()]


def test_what_steers_a_terminal_is_shown(run, capsys):
    run.say("naïve \x1b[31mred\x9b\nsecond")
    said = "naïve \\u001b[31mred\\u009b\nsecond\n"
    assert capsys.readouterr().out == said
    assert (run.out / "training_log.txt").read_text(encoding="utf-8") == said


def test_a_checkpoint_is_due(run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("runtime.run.time.perf_counter", lambda: now[0])
    run.saved = 0.0
    run.config.save_every = 3
    path = run.out / "checkpoint" / "checkpoint.safetensors"

    def is_saved(seconds: float) -> bool:
        now[0] = seconds
        path.unlink(missing_ok=True)
        run.save_checkpoint(now=False)
        return path.exists()

    assert [is_saved(0) for run.step in range(1, 7)] == [False, False, True] * 2
    run.config.save_every = 0  # from now on after 20 seconds, or a hundred times what saving takes
    assert not is_saved(19) and is_saved(21)
    run.cost = 1.0
    assert not is_saved(120) and is_saved(122)
    run.signal = 15  # it came in this step
    assert is_saved(123) and run.stopped == 15


# What ends a run.


def out_of_memory(*_):
    torch.empty(2**50)


def not_compiled(*_):
    raise torch._dynamo.exc.InternalTorchDynamoError("no compiler\nand more")


@pytest.mark.parametrize(
    "fails, problem",
    [
        (out_of_memory, "try a smaller --rank, --batch-size or --max-length, --gradient-check"),
        (not_compiled, "torch.compile failed: no compiler; --compile no does without"),
        (lambda *_: {}["b"], "KeyError: 'b'. Please report it"),
    ],
    ids=["memory", "compile", "unforeseen"],
)
def test_a_first_step_that_fails_is_one_line_and_stands_in_no_way(
    refused, quick, tiny, some_reviews, tmp_path, monkeypatch, fails, problem
):
    """The same command works again, without --resume: nothing of worth is there."""
    import torch._dynamo  # noqa: F401

    words = ["--model", tiny, "--data", some_reviews, "--max-length", 16]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", fails)
        assert problem in refused(*words, "--out", tmp_path / "out")
    quick(tmp_path / "out")


def test_a_run_gives_the_signals_back(quick, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    quick(tmp_path / "out")
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
