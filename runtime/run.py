"""A run: where it stands, what it says, and how it is gone on with."""

import contextlib
import json
import math
import shlex
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from lora import save_adapter
from runtime import checkpoint, report, run_folder
from runtime.run_folder import CHECKPOINT, LAST, LOG, METRICS
from support import errors, files, hub, parallel
from support.errors import InputError
from support.tasks import metric_in_words
from support.wordpiece import copy_tokenizer

PROGRESS = ("step", "best", "since_best", "history")  # what a checkpoint has of a Run


@contextlib.contextmanager
def open_run(setup):
    """Yields the Run of a train.Setup: a new one, or the one in --out where it was stopped.

    Raises InputError where --out holds anything else, and for processes that were given different
    things.
    """
    facts = checkpoint.describe(setup)
    parallel.same_everywhere(json.dumps(facts))
    N, C = len(setup.validation_set.lengths), setup.model.config.num_labels
    tensors = checkpoint.run_tensors(setup.model, setup.optimizer)
    tensors["best_logits"] = torch.zeros(N, C)
    # Since the last log line: the sum of the losses, and of how many sentences.
    tensors["unlogged"] = torch.zeros(2, device=setup.placement.device)
    run = Run(setup, facts, tensors)
    with contextlib.ExitStack() as stack:

        def take_folder() -> tuple[dict, list[str]]:
            run.out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(run.out))
            run_folder.check(setup.config)
            return checkpoint.restore(run.out / CHECKPOINT, facts, tensors)

        progress, notes = parallel.broadcast(take_folder)
        parallel.broadcast_tensors([*tensors.values()])
        run.begin(progress, notes)
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, run.note_signal))
        yield run


class Run:
    """Where a run stands. Of several processes all know it, and the first prints and writes."""

    def __init__(self, setup, facts: dict, tensors: dict[str, Tensor]):
        self.setup = setup
        self.config = setup.config
        self.out = Path(setup.config.out)
        self.facts = facts  # what the run is, which a checkpoint is compared with
        self.tensors = tensors  # the very ones that it changes
        self.signal = 0  # the one that came to this process
        self.stopped = 0  # the one that came, once all processes know
        self.step = 0
        self.best: list[float] = []  # the best score so far, and its validation loss, negative
        self.since_best = 0  # evaluations since then
        self.history = []  # the lines of metrics.jsonl
        self.done = 0  # sentences since this start
        self.cost = 0.0  # of the last checkpoint, in seconds; all may take a hundredth of the time
        self.begun = self.saved = time.perf_counter()

    def begin(self, progress: dict, notes: list[str]) -> None:
        """Goes on from the progress of a checkpoint, and says so; it is {} where there is none."""
        if scaler := progress.pop("scaler", None):
            self.setup.placement.scaler.load_state_dict(scaler)
        vars(self).update(progress)
        if self.step > self.setup.steps:
            raise InputError(f"{self.out}: that run is at step {self.step}; give more --epochs")
        if self.best and not (self.out / "best").exists():
            raise InputError(f"{self.out}: best/ is gone; put it back, or {run_folder.OTHER}")
        if parallel.is_first():
            (self.out / LAST).unlink(missing_ok=True)  # from here on it is not finished
            run_folder.write_options(self.config)
        if progress:
            self.say(f"resuming at step {self.step} of {self.setup.steps}")
        if self.is_over:
            self.say(f"{self.out} holds a finished run; nothing is left to be trained")
        self.say(*notes)

    def note_signal(self, number: int, _) -> None:
        """The first SIGINT or SIGTERM lets the step be finished; a second one ends it at once."""
        self.signal = number
        if parallel.SIZE == 1:  # torchrun sends each of them twice
            signal.signal(number, signal.SIG_DFL)

    def say(self, *texts: str) -> None:
        """Prints lines, and keeps them in training_log.txt."""
        if not parallel.is_first():
            return
        for text in filter(None, texts):
            errors.say(text)
            with open(self.out / LOG, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text.translate(errors.ESCAPES_IN_LINES) + "\n")

    def count_step(self, loss_sum: Tensor, count: int) -> None:
        """A step has been taken on `count` sentences."""
        self.step += 1
        self.done += count
        self.tensors["unlogged"] += torch.stack([loss_sum, torch.full_like(loss_sum, count)])

    def read_sums(self, *others: float) -> list[float]:
        """Copies the sums from the device. Raises InputError for a loss that is not finite."""
        sums = self.tensors["unlogged"].tolist()
        if not all(map(math.isfinite, [*sums, *others])):
            hint = "try a lower learning rate, --lr"
            kept = f"the best adapter so far is kept in {self.out}" if self.best else "none is kept"
            raise InputError(f"the loss is not finite by step {self.step}: {hint}; {kept}")
        return sums

    def record(self, split: str, scores: dict[str, float]) -> None:
        """Adds scores to the history."""
        scores = {f"{split}_{name}": score for name, score in scores.items()}
        self.history.append({"step": self.step} | scores)

    @property
    def skipped(self) -> int:
        """The steps that AdamW did not take, as a gradient overflowed in float16."""
        if not self.setup.placement.scaler.is_enabled():
            return 0
        taken = next(tensor for name, tensor in self.tensors.items() if name.startswith("step."))
        return self.step - int(taken)

    def log_steps(self) -> None:
        """Says and keeps the mean loss since the last log line, the speed and the time left."""
        loss, count = self.read_sums()
        self.tensors["unlogged"].zero_()
        scores = {"loss": loss / count}
        if self.skipped:
            scores["skipped"] = self.skipped
        self.record("train", scores)
        speed = self.done / (time.perf_counter() - self.begun)
        steps_left = self.setup.steps - self.step
        seconds = steps_left * self.config.step_rows / speed
        where = f"step {self.step}/{self.setup.steps}  {report.spell(scores)}"
        self.say(f"{where}  {speed:.0f} sentences/s  {seconds:.0f} s left")

    @property
    def is_over(self) -> bool:
        """At the last step, at the end of the patience, and when a signal came."""
        patience = self.config.patience or math.inf
        return self.step >= self.setup.steps or self.since_best >= patience or bool(self.stopped)

    def log_scores(self, scores: dict[str, float], logits: Tensor) -> bool:
        """Says and keeps the scores of an evaluation. Returns whether they are the best yet.

        Of equal scores the lower loss is better, and of equal losses the later one: on small data
        many epochs have the same accuracy, and the first of them has hardly begun to learn. The
        logits (N, C) of the best one are kept for the report at the end.
        """
        self.read_sums(scores["loss"])
        self.record("validation", scores)
        result = [scores[self.setup.task.metric], -scores["loss"]]
        is_best = result >= self.best
        self.since_best += 1
        if is_best:
            self.best = result
            self.since_best = 0
            self.tensors["best_logits"].copy_(logits)
        epoch = self.step / self.setup.steps_per_epoch
        hint = "  (best so far)" if is_best else ""
        self.say(f"epoch {epoch:.2f}  validation {report.spell(scores)}{hint}")
        return is_best

    def save_model(self, name: str) -> None:
        """The adapter, or with rank 0 the whole model, and its card, in a folder of the run."""
        if not parallel.is_first():
            return
        config, model = self.config, self.setup.model
        folder = self.out / name
        with files.written_whole(folder) as temporary:
            if config.rank:
                save_adapter(model, temporary, config.model)
            else:
                model.save_pretrained(temporary)
                copy_tokenizer(hub.folder(config.model), temporary, config.max_length)
        report.write_card(self.setup, folder, self.history)

    def save_checkpoint(self, now: bool) -> None:
        """Keeps what resuming takes: now, at a signal, or where it is due."""
        is_due = time.perf_counter() - self.saved > max(20.0, 100 * self.cost)
        if self.config.save_every:
            is_due = self.step % self.config.save_every == 0
        self.stopped, agreed = parallel.all_max(self.signal, int(now or is_due))
        if not agreed and not self.stopped:
            return
        begun = time.perf_counter()
        self.read_sums()
        if parallel.is_first():
            lines = [json.dumps(record) + "\n" for record in self.history]
            files.write_text(self.out / METRICS, "".join(lines))
            progress = {name: getattr(self, name) for name in PROGRESS}
            progress["scaler"] = self.setup.placement.scaler.state_dict()
            checkpoint.write(self.out / CHECKPOINT, self.facts, progress, self.tensors)
        self.saved = time.perf_counter()
        self.cost = self.saved - begun

    def finish(self) -> None:
        """Says the best score and what comes next; after a signal how to go on, and exits."""
        if self.stopped:
            self.say(f"stopped at step {self.step}; the same command with --resume goes on")
            sys.exit(128 + self.stopped)
        if parallel.is_first():
            from runtime import scoring  # late: Arrow takes a while to import

            curves = self.out / "training_curves.png"
            self.say(report.plot_curves(self.history, self.setup.task.metric, curves))
            self.say(scoring.report_run(self.setup, self.tensors["best_logits"], self.out))
        best = self.out / "best"
        longer = f"--epochs {self.config.epochs + 1}"
        if self.step < self.setup.steps:
            since = f"{self.since_best} evaluations without a better one, enough"
            self.say(f"step {self.step}: {since}")
            longer = f"--patience {self.config.patience + 1}"
        self.say(f"to answer: python sample.py --adapter {shlex.quote(str(best))}")
        self.say(f"to train longer: the same command with --resume {longer}")
        self.say("to start anew: the same command with another --out")
        score = f"{metric_in_words(self.setup.task)} {self.best[0]:.4f}"
        self.say(f"best validation {score}, kept in {best}")
        self.save_model("final")  # the last that a run writes
