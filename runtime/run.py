"""A run: where it stands, what it says, and how it is gone on with.

with claimed(config) as run:  # --out is this run's alone
    run.begin(setup)
    run.resume()
    run.note_step(loss_sum, right, count)  # after each step
    run.save_checkpoint(now=False)
"""

import contextlib
import json
import math
import os
import shlex
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
from runtime.run_folder import CHECKPOINT, CURVES, LAST, LOG, METRICS
from support import errors, files, parallel
from support.errors import InputError

PROGRESS = ("step", "best", "history", "unlogged")  # what a checkpoint keeps of a Run


@contextlib.contextmanager
def claimed(config):
    """Makes --out this run's alone inside the block, and yields the Run.

    Where the block ends before anything of worth is written, what was made here goes again. Raises
    InputError for a folder that may not be written in. Says what comes next and raises SystemExit
    where the run there is finished. Of several processes the first does all this.
    """
    finished = parallel.broadcast(lambda: run_folder.what_next(config))
    if finished:
        if parallel.is_first():
            errors.say(finished)
        sys.exit(0)
    with contextlib.ExitStack() as stack:
        run = Run(config)
        run.resuming = parallel.broadcast(lambda: run_folder.claim(config, stack))
        for number in (signal.SIGINT, signal.SIGTERM):
            former = signal.signal(number, run.note_signal)
            stack.callback(signal.signal, number, former)
        try:
            yield run
        except Exception as error:
            advice = run.advice(error)
            if advice:
                raise InputError(advice) from error
            raise
        finally:
            run.bar.close()


class Run:
    """Where a run stands. Of several processes all know it, and the first prints and writes."""

    def __init__(self, config):
        self.config = config
        self.out = Path(config.out)
        self.resuming = False  # whether there is a checkpoint
        self.setup: Any = None  # train.Setup, once it is there
        self.stopped = 0  # the signal that came
        self.signal = 0  # the same, before the other processes know
        self.bar = tqdm(disable=True)
        self.step = 0
        self.best = None  # the best validation score so far
        self.history = []  # the lines of metrics.jsonl
        self.unlogged = []  # of each step since a log line: the sum of losses, right, sentences

    def note_signal(self, number: int, _) -> None:
        """The first SIGINT or SIGTERM lets the step be finished; a second one ends it at once.

        Under torchrun a second one is nothing: it sends on what the whole group has got already.
        """
        if self.setup is None:
            raise SystemExit(128 + number)
        self.signal = number
        is_sent_on = "TORCHELASTIC_RUN_ID" in os.environ
        signal.signal(number, signal.SIG_IGN if is_sent_on else signal.SIG_DFL)

    def begin(self, setup) -> None:
        """Takes what is to be trained, with the same parameters in all processes.

        Raises InputError if they were given different options, weights or data.
        """
        self.metadata = checkpoint.describe(setup)
        parallel.same_everywhere(json.dumps(self.metadata["identity"]))
        parallel.broadcast_tensors([p.detach() for p in setup.trained.values()])
        self.draw_own()
        self.trained = setup.trained
        self.setup = setup

    def draw_own(self) -> None:
        """Begins other random numbers in each process except the first, whose numbers go on."""
        if parallel.RANK:
            seeds = np.random.SeedSequence([self.config.seed, parallel.RANK, self.step])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one, as if the run had never stopped.

        Raises InputError for a checkpoint that is damaged, or another run's.
        """
        if self.resuming:
            tensors = checkpoint.run_tensors(self.trained, self.setup.optimizer)
            path = self.out / CHECKPOINT
            former = checkpoint.restore(path, self.metadata, self.config, tensors)
            vars(self).update(former["progress"])
            if former["processes"] <= parallel.RANK:
                self.draw_own()
            notes = checkpoint.changes(former, self.metadata)
            self.say("\n".join([f"resuming at step {self.step} of {self.setup.steps}", *notes]))
        if parallel.is_first():
            (self.out / LAST).unlink(missing_ok=True)  # from here on it is not finished
            run_folder.write_options(self.config)
        has_terminal = sys.stderr is not None and sys.stderr.isatty()
        sentences = len(self.setup.train_set.lengths)
        epoch, index = divmod(self.step, self.setup.steps_per_epoch)
        self.bar = tqdm(
            total=self.config.epochs * sentences,
            initial=epoch * sentences + index * self.config.step_size,
            unit=" sentences",
            disable=not (has_terminal and parallel.is_first()),
            dynamic_ncols=True,
        )
        self.begun = self.saved = time.perf_counter()
        self.sentences = 0  # since then
        self.cost = 0.0  # of the last checkpoint, in seconds

    # What it says.

    def say(self, text: str) -> None:
        """Prints lines, and keeps them in training_log.txt."""
        if text and parallel.is_first():
            self.bar.clear()
            errors.say(text)
            with open(self.out / LOG, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text.translate(errors.ESCAPES_IN_LINES) + "\n")

    def note_step(self, loss_sum: Tensor, right: Tensor, count: int) -> None:
        """A step has been taken on `count` sentences. Nothing here waits for a GPU.

        On a CPU a loss that is not finite raises InputError at once, else when losses are read.
        """
        self.step += 1
        self.sentences += count
        self.unlogged.append([loss_sum, right, count])
        self.bar.update(count)
        if loss_sum.device.type == "cpu":
            self.read_losses()

    def read_losses(self) -> None:
        """Copies the losses from the device. Raises InputError for the first that is not finite."""
        self.unlogged = [[float(loss), float(right), n] for loss, right, n in self.unlogged]
        first = self.step - len(self.unlogged) + 1
        for step, (loss, _, _) in enumerate(self.unlogged, first):
            self.refuse_infinite(loss, step)

    def refuse_infinite(self, loss: float, step: int) -> None:
        if math.isfinite(loss):
            return
        rate = self.setup.optimizer.param_groups[0]["lr"]
        where = f"at step {step}, at a learning rate of {rate:.2g}"
        kept = f"the best adapter so far and the last checkpoint are kept in {self.out}"
        raise InputError(f"the loss is {loss} {where}: try a lower --lr; {kept}")

    def log_steps(self, steps: int, step_metric: str | None) -> None:
        """Says the mean loss since the last line, how fast it goes, and how long to the end."""
        self.read_losses()
        loss, right, count = (sum(column) for column in zip(*self.unlogged, strict=True))
        self.unlogged = []
        record = {"step": self.step, "train_loss": loss / count}
        text = f"loss {loss / count:.3f}"
        if step_metric:
            record[f"train_{step_metric}"] = right / count
            text += f"  {step_metric} {right / count:.1%}"
        self.history.append(record)
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            speed = self.sentences / (time.perf_counter() - self.begun)
            seconds = (steps - self.step) * self.config.step_size / speed
            pace = f"{speed:.0f} sentences/s  {seconds:.0f} s left"
            self.say(f"step {self.step}/{steps}  {text}  {pace}")

    def note_scores(self, scores: dict[str, float], metric: str, epoch: float) -> bool:
        """Says and keeps the scores of an evaluation. Returns whether `metric` is the best yet."""
        self.read_losses()
        self.refuse_infinite(scores["loss"], self.step)
        record = {f"validation_{name}": score for name, score in scores.items()}
        self.history.append({"step": self.step, **record})
        is_best = self.best is None or scores[metric] > self.best
        if is_best:
            self.best = scores[metric]
        if parallel.is_first():
            lines = [json.dumps(record) + "\n" for record in self.history]
            files.write_text(self.out / METRICS, "".join(lines))
        text = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
        best = "  (best so far)" if is_best else ""
        self.say(f"epoch {epoch:.2f}  validation {text}{best}")
        return is_best

    def finish(self, metric: str) -> None:
        """Draws the curves, and says the best score."""
        if parallel.is_first():
            report.plot_curves(self.history, self.out / CURVES, self.say)
        self.say(f"best validation {metric} {self.best:.4f}, kept in {self.out / 'best'}")

    def say_how_to_go_on(self, steps: int) -> int:
        """For a run that a signal stopped. Returns the exit status."""
        several = ["torchrun", f"--nproc-per-node={parallel.SIZE}"]
        program = several if parallel.SIZE > 1 else [sys.executable]
        words = [*program, sys.argv[0], "--resume", f"--out={self.config.out}"]
        self.say(f"stopped at step {self.step} of {steps}; to go on: {shlex.join(words)}")
        return 128 + self.stopped

    def advice(self, error: Exception) -> str:
        """What to try where the training can go no further, or "" where that is not known."""
        config = self.config
        if self.setup is None:
            return ""
        if errors.is_out_of_memory(error):
            ways = [f"a --max-length below {config.max_length}"]
            if not config.gradient_checkpointing:
                ways.insert(0, "--gradient-checkpointing")
            if config.batch_size > 1:
                halves = f"--batch-size {config.batch_size // 2}"
                ways.insert(0, f"{halves} --grad-accum {config.grad_accum * 2}")
            return f"out of memory at step {self.step + 1}: try {', or '.join(ways)}"
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return f"torch.compile failed: {errors.first_line(error)}; --compile no does without"
        return ""

    def save_checkpoint(self, now: bool) -> None:
        """Keeps what resuming takes: now, or where it is due, or at a signal.

        It is due by --save-every, or by default as often as a hundredth of the time allows.
        """
        is_due = time.perf_counter() - self.saved > max(20.0, 100 * self.cost)
        if self.config.save_every:
            is_due = self.step % self.config.save_every == 0
        self.stopped, agreed = parallel.all_max(self.signal, int(now or is_due))
        if not agreed and not self.stopped:
            return
        self.read_losses()
        begun = time.perf_counter()
        tensors = checkpoint.run_tensors(self.trained, self.setup.optimizer)
        tensors |= checkpoint.random_states(self.setup.placement.device.type)
        if parallel.is_first():
            progress = {name: getattr(self, name) for name in PROGRESS}
            metadata = self.metadata | {"progress": progress}
            checkpoint.write(self.out / CHECKPOINT, metadata, tensors)
        self.saved = time.perf_counter()
        self.cost = self.saved - begun
