"""What a run measures and says, and the advice where it can go no further."""

import json
import re
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from runtime.run import Run
from support.errors import InputError


@pytest.fixture
def run(tmp_path) -> Run:
    """A run in its training, at a learning rate of 0.18, without a model."""
    run = Run(train.Config(out=str(tmp_path), batch_size=4, max_length=64))
    group = {"lr": 0.18}
    run.setup = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[group]))
    run.begun = run.sentences = 0
    return run


def note(run: Run, loss: float, right: int = 1, count: int = 4) -> None:
    run.note_step(torch.tensor(loss), torch.tensor(float(right)), count)


def test_a_line_of_the_log_is_the_mean_over_sentences(run, capsys):
    losses = np.random.default_rng(0).random(5)
    for loss, count in zip(losses, (4, 4, 4, 4, 1), strict=True):
        note(run, loss, count=count)
    run.log_steps(7, "accuracy")
    mean = losses.sum() / 17
    assert run.history == [
        {"step": 5, "train_loss": pytest.approx(mean), "train_accuracy": pytest.approx(5 / 17)}
    ]
    line = rf"step 5/7  loss {mean:.3f}  accuracy 29\.4%  \d+ sentences/s  \d+ s left\n"
    said = capsys.readouterr().out
    assert re.fullmatch(line, said) and (run.out / "training_log.txt").read_text() == said
    note(run, 6.0)
    run.log_steps(7, None)  # of a regression: no accuracy, and none of the former steps
    assert run.history[1:] == [{"step": 6, "train_loss": 1.5}]
    assert capsys.readouterr().out.startswith("step 6/7  loss 1.500  ")


def test_the_best_evaluation_is_the_first_of_the_highest_score(run, capsys):
    scores = [{"loss": 0.5, "accuracy": 0.7}, {"loss": 0.4, "accuracy": 0.7}]
    scores += [{"loss": 0.6, "accuracy": 0.8}]
    run.step = 3
    assert [run.note_scores(s, "accuracy", epoch=1.5) for s in scores] == [True, False, True]
    assert run.best == 0.8
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1.50  validation loss 0.5000  accuracy 0.7000  (best so far)",
        "epoch 1.50  validation loss 0.4000  accuracy 0.7000",
        "epoch 1.50  validation loss 0.6000  accuracy 0.8000  (best so far)",
    ]
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history and len(lines) == 3
    assert lines[2] == {"step": 3, "validation_loss": 0.6, "validation_accuracy": 0.8}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_the_step_of_a_loss_that_is_not_finite_is_named(run, loss):
    line = (
        rf"the loss is {loss} at step {{}}, at a learning rate of 0\.18: try a lower --lr; .* in "
    )
    note(run, 1.0)
    with pytest.raises(InputError, match=line.format(2)):
        note(run, loss)
    run.step = 20  # as on a GPU, where losses are read late: these are of the steps 17 to 20
    run.unlogged = [[torch.tensor(x), torch.tensor(1.0), 4] for x in (1.0, 1.0, loss, 1.0)]
    with pytest.raises(InputError, match=line.format(19)):
        run.read_losses()
    run.unlogged = []
    with pytest.raises(InputError, match=line.format(20)):
        run.note_scores({"loss": loss, "accuracy": 0.5}, "accuracy", epoch=1.0)
    assert run.best is None and not (run.out / "metrics.jsonl").exists()


def test_what_steers_a_terminal_is_shown(run, capsys):
    run.say("naïve \x1b[31mred\x9b\nsecond")
    said = "naïve \\u001b[31mred\\u009b\nsecond\n"
    assert capsys.readouterr().out == said
    assert (run.out / "training_log.txt").read_text(encoding="utf-8") == said


# Where it can go no further.


def out_of_memory(*_):
    torch.empty(2**50)


def test_too_little_memory_gets_advice(run):
    run.step = 5
    try:
        out_of_memory()
    except RuntimeError as error:
        tried = "try --batch-size 2 --grad-accum 2, or --gradient-checkpointing, "
        most = "or a --max-length below 64"
        assert run.advice(error) == f"out of memory at step 6: {tried}{most}"
        run.config.batch_size, run.config.gradient_checkpointing = 1, True
        assert run.advice(error) == "out of memory at step 6: try a --max-length below 64"
        run.setup = None  # the set-up has advice of its own
        assert run.advice(error) == ""


def test_other_errors_pass(run):
    assert run.advice(RuntimeError("shapes cannot be multiplied")) == ""
    assert run.advice(InputError("out of memory")) == ""


def not_compiled(*_):
    raise torch._dynamo.exc.InternalTorchDynamoError("no compiler\nand more")


@pytest.mark.parametrize(
    "fails, problem",
    [
        (out_of_memory, "out of memory at step 1: try --batch-size 8 --grad-accum 2, or"),
        (not_compiled, "torch.compile failed: no compiler; --compile no does without"),
        (lambda *_: {}["b"], "KeyError: 'b'. Please report it"),
    ],
    ids=["memory", "compile", "unforeseen"],
)
def test_a_first_step_that_fails_is_one_line_and_leaves_nothing(
    refused, tiny, some_reviews, tmp_path, monkeypatch, fails, problem
):
    import torch._dynamo  # noqa: F401

    monkeypatch.setattr(train, "train_step", fails)
    words = ["--model", tiny, "--data", some_reviews, "--max-length", 16, "--batch-size", 16]
    monkeypatch.setattr(sys, "stdout", open("/dev/null", "w"))  # noqa: SIM115
    assert problem in refused(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_gives_the_signals_back(quick, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    quick(tmp_path / "out")
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
