"""A run: where it stands, what it says, and how it is gone on with.

    with claimed(config) as run:  # --out is this run's alone
        run.begin(setup)
        run.note_step(loss_sum, right, count)  # after each step
        run.save_checkpoint(now=False)
"""

import contextlib
import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from runtime import checkpoint, report, run_folder
from runtime.run_folder import CHECKPOINT, LAST, LOG, METRICS
from support import errors, files, parallel
from support.errors import InputError

PROGRESS = ("step", "best", "history", "unlogged")  # what a checkpoint keeps of a Run


@contextlib.contextmanager
def claimed(config):
    """Makes --out this run's alone inside the block, and yields the Run.

    Raises InputError for a folder that may not be written in. Where the run there is finished, it
    says what comes next, and raises SystemExit.
    """
    finished = parallel.broadcast(lambda: run_folder.what_next(config))
    if finished:
        errors.say(finished)
        sys.exit(0)
    run = Run(config)
    with contextlib.ExitStack() as stack:
        folder = run_folder.claimed(config)
        parallel.broadcast(lambda: stack.enter_context(folder))
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, run.note_signal))
        stack.callback(lambda: run.bar.close())
        try:
            yield run
        except Exception as error:
            hint = run.hint(error)
            if hint:
                raise InputError(hint) from error
            raise


class Run:
    """Where a run stands. Of several processes all know it, and the first prints and writes."""

    def __init__(self, config):
        self.config = config
        self.out = Path(config.out)
        self.setup: Any = None  # train.Setup, once it is there
        self.signal = 0  # the one that came to this process
        self.stopped = 0  # the one that came, once all processes know
        self.bar = tqdm(disable=True)
        self.step = 0
        self.best = None  # the best validation score so far
        self.history = []  # the lines of metrics.jsonl
        self.unlogged = []  # of each step since a log line: the sum of losses, right, sentences

    def note_signal(self, number: int, _) -> None:
        """The first SIGINT or SIGTERM lets the step be finished; a second one ends it at once.

        But torchrun sends each of them twice.
        """
        if self.setup is None:
            raise SystemExit(128 + number)
        self.signal = number
        if parallel.SIZE == 1:
            signal.signal(number, signal.SIG_DFL)

    def begin(self, setup) -> None:
        """Takes what is to be trained, and goes on from the checkpoint, if there is one.

        Raises InputError for a checkpoint that is damaged or another run's, and where processes
        were given different options, weights or data.
        """
        self.metadata = checkpoint.describe(setup)
        parallel.same_everywhere(json.dumps(self.metadata["identity"]))
        self.tensors = checkpoint.run_tensors(setup.model, setup.optimizer)
        path = self.out / CHECKPOINT
        former = parallel.broadcast(lambda: checkpoint.restore(path, self.metadata, self.tensors))
        parallel.broadcast_tensors([*self.tensors.values()])
        vars(self).update(former.get("progress", {}))
        self.setup = setup
        self.seed_step()
        if parallel.is_first():
            (self.out / LAST).unlink(missing_ok=True)  # from here on it is not finished
            run_folder.write_options(self.config)
        has_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=setup.steps,
            initial=self.step,
            unit=" steps",
            disable=not (has_terminal and parallel.is_first()),
            dynamic_ncols=True,
        )
        self.begun = self.saved = time.perf_counter()
        self.sentences = 0  # since then
        self.cost = 0.0  # of the last checkpoint, in seconds
        if former:
            notes = checkpoint.changes(former, self.metadata)
            self.say("\n".join([f"resuming at step {self.step} of {setup.steps}", *notes]))

    def seed_step(self) -> None:
        """Lets the random numbers of the next step depend on its number and the process alone."""
        seeds = np.random.SeedSequence([self.config.seed, parallel.RANK, self.step])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def say(self, text: str) -> None:
        """Prints lines, and keeps them in training_log.txt."""
        if text and parallel.is_first():
            self.bar.clear()
            errors.say(text)
            with open(self.out / LOG, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text.translate(errors.ESCAPES_IN_LINES) + "\n")

    def note_step(self, loss_sum: Tensor, right: Tensor, count: int) -> None:
        """A step has been taken on `count` sentences. Nothing here waits for a GPU."""
        self.step += 1
        self.sentences += count
        self.unlogged.append([loss_sum, right, count])
        self.bar.update()
        self.seed_step()

    def read_losses(self) -> None:
        """Copies the losses from the device. Raises InputError for one that is not finite."""
        self.unlogged = [[float(loss), float(right), n] for loss, right, n in self.unlogged]
        first = self.step - len(self.unlogged) + 1
        for step, (loss, _, _) in enumerate(self.unlogged, first):
            self.refuse_infinite(loss, step)

    def refuse_infinite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            hint = f"try a lower learning rate than --lr {self.config.lr:g}"
            kept = f"the best adapter so far and the last checkpoint are kept in {self.out}"
            raise InputError(f"the loss is {loss} at step {step}: {hint}; {kept}")

    def record(self, split: str, scores: dict[str, float]) -> str:
        """Adds scores to the history, and returns them as text."""
        named = {f"{split}_{name}": score for name, score in scores.items()}
        self.history.append({"step": self.step} | named)
        return "  ".join(f"{name} {score:.4f}" for name, score in scores.items())

    def log_steps(self) -> None:
        """Says the mean loss since the last line, how fast it goes, and how long to the end."""
        self.read_losses()
        loss, right, count = (sum(column) for column in zip(*self.unlogged, strict=True))
        self.unlogged = []
        scores = {"loss": loss / count}
        if self.setup.task.step_metric:
            scores[self.setup.task.step_metric] = right / count
        text = self.record("train", scores)
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            speed = self.sentences / (time.perf_counter() - self.begun)
            seconds = (self.setup.steps - self.step) * self.config.step_size / speed
            pace = f"{speed:.0f} sentences/s  {seconds:.0f} s left"
            self.say(f"step {self.step}/{self.setup.steps}  {text}  {pace}")

    def note_scores(self, scores: dict[str, float]) -> bool:
        """Says and keeps the scores of an evaluation. Returns whether they are the best yet."""
        self.read_losses()
        self.refuse_infinite(scores["loss"], self.step)
        text = self.record("validation", scores)
        score = scores[self.setup.task.metric]
        is_best = self.best is None or score > self.best
        if is_best:
            self.best = score
            text += "  (best so far)"
        if parallel.is_first():
            lines = [json.dumps(record) + "\n" for record in self.history]
            files.write_text(self.out / METRICS, "".join(lines))
        self.say(f"epoch {self.step / self.setup.steps_per_epoch:.2f}  validation {text}")
        return is_best

    def save_checkpoint(self, now: bool) -> None:
        """Keeps what resuming takes: now, or where it is due, or at a signal.

        It is due by --save-every, or by default as often as a hundredth of the time allows.
        """
        is_due = time.perf_counter() - self.saved > max(20.0, 100 * self.cost)
        if self.config.save_every:
            is_due = self.step % self.config.save_every == 0
        self.stopped, agreed = parallel.all_max(self.signal, int(now or is_due))
        if agreed or self.stopped:
            begun = time.perf_counter()
            self.read_losses()
            if parallel.is_first():
                progress = {name: getattr(self, name) for name in PROGRESS}
                metadata = self.metadata | {"progress": progress}
                checkpoint.write(self.out / CHECKPOINT, metadata, self.tensors)
            self.saved = time.perf_counter()
            self.cost = self.saved - begun

    def finish(self) -> None:
        """Says the best score and draws the curves; after a signal says how to go on, and exits."""
        if self.stopped:
            command = run_folder.resume_command(self.config)
            self.say(f"stopped at step {self.step} of {self.setup.steps}; to go on: {command}")
            sys.exit(128 + self.stopped)
        if parallel.is_first():
            self.say(report.plot_curves(self.history, self.out / "training_curves.png"))
        metric = self.setup.task.metric
        self.say(f"best validation {metric} {self.best:.4f}, kept in {self.out / 'best'}")

    def hint(self, error: Exception) -> str:
        """What to try where the training can go no further, or "" where that is not known."""
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return f"torch.compile failed: {errors.first_line(error)}; --compile no does without"
        if self.setup is None or not errors.is_out_of_memory(error):
            return ""
        size = max(1, self.config.batch_size // 2)
        batches = self.config.batch_size // size * self.config.grad_accum
        fewer = f"--batch-size {size} --grad-accum {batches}"
        ways = f"{fewer}, --gradient-checkpointing, or a lower --max-length"
        return f"out of memory at step {self.step + 1}: try {ways}"
