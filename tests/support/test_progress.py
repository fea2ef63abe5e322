"""What a run has measured, and the advice where it can go no further."""

import json

import numpy as np
import pytest
import torch

from support.files import InputError
from support.progress import NotFinite, Progress, advice

OPTIONS = {
    "out": "here",
    "batch_size": 9,
    "grad_accum": 2,
    "max_length": 64,
    "gradient_checkpointing": False,
}


def test_a_line_of_the_log_is_the_mean_over_sentences(tmp_path):
    losses, counts = np.random.default_rng(0).random(5), np.array([4, 4, 4, 4, 1])
    progress = Progress(step=5)
    progress.window = [
        [torch.tensor(x), torch.tensor(1), int(n)] for x, n in zip(losses, counts, strict=True)
    ]
    progress.settle()
    assert all(type(loss) is float and type(correct) is int for loss, correct, _ in progress.window)
    text = progress.note_training()
    assert progress.window == [] and text == f"loss {losses.sum() / 17:.3f}  accuracy {5 / 17:.1%}"
    first = progress.note_evaluation({"loss": 0.5, "accuracy": 0.7}, "accuracy")
    assert first == (True, "loss 0.5000  accuracy 0.7000  (best so far)")
    second = progress.note_evaluation({"loss": 0.4, "accuracy": 0.7}, "accuracy")
    assert second == (False, "loss 0.4000  accuracy 0.7000")
    assert (
        progress.note_evaluation({"loss": 0.6, "accuracy": 0.8}, "accuracy")[0]
        and progress.best == 0.8
    )
    progress.write(tmp_path / "metrics.jsonl")
    progress.window = [[3.0, 0, 4], [1.0, 0, 4]]  # of a regression, which has no accuracy
    assert progress.note_training("spearman") == "loss 0.500" and progress.history.pop() == {
        "step": 5,
        "train_loss": 0.5,
    }
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == progress.history and lines[0]["train_loss"] == pytest.approx(losses.sum() / 17)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_the_step_of_a_loss_that_is_not_finite_is_named(loss):
    progress = Progress(
        step=20, window=[[1.0, 1, 4], [1.0, 1, 4], [torch.tensor(loss), 1, 4], [1.0, 1, 4]]
    )
    with pytest.raises(NotFinite) as error:
        progress.settle()
    assert error.value.args[1] == 18  # steps 16 to 19 are in the window
    line = rf"the loss is {loss} at step 19, .* rate of 0\.18: .*--lr; .* kept in here"
    with pytest.raises(InputError, match=line), advice(progress, OPTIONS, lambda step: step / 100):
        progress.settle()


def test_too_little_memory_gets_advice_and_other_errors_pass():
    line, rate = (
        r"step 6: try --batch-size 4 --grad-accum 4 or --gradient-checkpointing, which .*--max-length below 64",
        lambda step: 0.0,
    )
    with pytest.raises(InputError, match=line), advice(Progress(step=5), OPTIONS, rate):
        torch.empty(2**50)
    least = OPTIONS | {"batch_size": 1, "gradient_checkpointing": True}
    with (
        pytest.raises(InputError, match=r"step 1: try a --max-length below 64$"),
        advice(Progress(), least, rate),
    ):
        torch.empty(2**50)
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        advice(Progress(), OPTIONS, rate),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)
