"""Where a run stands, what it has measured (the lines of metrics.jsonl), and advice where it can go no further."""

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support import distributed
from support.files import InputError, first_line, is_out_of_memory, write_text
from support.glue import OF_NUMBERS


class NotFinite(ArithmeticError):
    """A loss and its step."""


@dataclass
class Progress:
    """With a run's tensors and its random state, all that resuming takes."""

    step: int = 0
    best: float | None = None  # the best validation metric so far
    window: list = field(
        default_factory=list
    )  # [loss sum, correct, sentences] of each step since the last log line
    history: list[dict] = field(default_factory=list)  # the lines of metrics.jsonl

    def settle(self) -> None:
        """Copies the window's losses from the device they were left on. Raises NotFinite for the first that is."""
        self.window = [[float(loss), int(correct), count] for loss, correct, count in self.window]
        for step, (loss, _, _) in enumerate(self.window, self.step - len(self.window)):
            if not math.isfinite(loss):
                raise NotFinite(loss, step)

    def note_training(self, metric: str = "accuracy") -> str:
        """Adds the mean loss and accuracy of the window to the history, begins another, and says them.

        Where the task's `metric` is one of a regression there is no accuracy.
        """
        loss, correct, count = (sum(column) for column in zip(*self.window, strict=True))
        self.window.clear()
        accuracy = {} if metric in OF_NUMBERS else {"train_accuracy": correct / count}
        self.history.append({"step": self.step, "train_loss": loss / count, **accuracy})
        return f"loss {loss / count:.3f}" + (
            f"  accuracy {correct / count:.1%}" if accuracy else ""
        )

    def note_evaluation(self, scores: dict[str, float], metric: str) -> tuple[bool, str]:
        """Adds the scores to the history; returns whether `metric` is the best so far, and the scores as a text."""
        if not math.isfinite(scores["loss"]):
            raise NotFinite(scores["loss"], self.step - 1)
        self.history.append(
            {"step": self.step, **{f"validation_{name}": value for name, value in scores.items()}}
        )
        better = self.best is None or scores[metric] > self.best
        self.best = scores[metric] if better else self.best
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        return better, text + ("  (best so far)" if better else "")

    def write(self, path: Path) -> None:
        if distributed.is_first():
            write_text(path, "".join(json.dumps(record) + "\n" for record in self.history))

    def check(self, steps: int) -> None:
        """Raises ValueError or TypeError for what a run of so many steps cannot have written."""
        if type(self.step) is not int or not 0 < self.step <= steps:
            raise ValueError("step")
        if type(self.best) not in (float, type(None)):
            raise ValueError("best")
        numbers = lambda values: all(type(value) in (int, float) for value in values)
        if type(self.window) is not list or not all(
            len(entry) == 3 and numbers(entry) for entry in self.window
        ):
            raise ValueError("window")
        records = type(self.history) is list and all(
            type(record) is dict for record in self.history
        )
        if not records or not all(
            r["step"] <= self.step and numbers(r.values()) for r in self.history
        ):
            raise ValueError("history")


@contextlib.contextmanager
def advice(progress: Progress, options: dict, learning_rate: Callable[[int], float]):
    """Turns what can end a training into one line that says what to try: a loss that is not finite, too little memory.

    `options` are those of the run, `learning_rate` is a function of the step.
    """
    try:
        yield
    except NotFinite as error:
        loss, step = error.args
        raise InputError(
            f"the loss is {loss} at step {step + 1}, at a learning rate of {learning_rate(step):.2g}: try a lower "
            f"--lr; the best adapter so far and the last checkpoint are kept in {options['out']}"
        ) from None
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(
                f"torch.compile failed: {first_line(error)}; --compile no does without"
            ) from None
        if not is_out_of_memory(error):
            raise
        half, twice = options["batch_size"] // 2, options["grad_accum"] * 2
        same = [f"--batch-size {half} --grad-accum {twice}"] if half else []
        same += [] if options["gradient_checkpointing"] else ["--gradient-checkpointing"]
        ways = [f"{' or '.join(same)}, which trains the same"] if same else []
        ways.append(f"a --max-length below {options['max_length']}")
        raise InputError(
            f"out of memory at step {progress.step + 1}: try {', or '.join(ways)}"
        ) from None
