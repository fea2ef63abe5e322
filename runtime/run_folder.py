"""The folder of a run, --out, in which nothing is ever replaced that is not the run's own."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from support import errors, files, options, parallel
from support.errors import InputError
from support.options import option

OPTIONS = "config.toml"
LOG = "training_log.txt"
METRICS = "metrics.jsonl"
CHECKPOINT = Path("checkpoint", "checkpoint.safetensors")
LAST = Path("final", "README.md")  # the last file that a run writes
OTHER = "give another --out"
HEAD = "# Repeats this run"  # so begins config.toml, by which a run's folder is known


@dataclass(kw_only=True)
class RunOptions:
    """The options that decide nothing about what is trained."""

    out: str = option("out", "where everything goes", also="output-dir")
    resume: bool = option(False, "go on with the run in --out, if there is one")
    log_every: int = option(20, "steps between log lines", at_least=1)
    save_every: int = option(0, "steps between checkpoints; 0: by time", at_least=0)
    offline_fallback: bool = option(False, "no Hub: MiniLM on movie reviews")
    gradient_checkpointing: bool = option(False, "less memory, more time")
    push_to_hub: bool = option(False, "upload best/ as --hub-model-id")
    hub_model_id: str = option("", "where to push to: owner/name")
    hub_private: bool = option(False, "if that repository is new, make it private")
    license: str = option("", "the adapter's licence, for its model card")

    def __post_init__(self):
        options.check(self)


def deciding(config) -> dict:
    """The options that decide what is trained; of a class, their defaults."""
    others = [f.name for f in fields(RunOptions)]
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in others}


def is_run(out: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    path = out / OPTIONS
    return path.is_file() and path.read_bytes().startswith(HEAD.encode())


def write_options(config) -> None:
    """Writes config.toml, from which a run is repeated, and gone on with."""
    threads = torch.get_num_threads()
    head = f"{HEAD}: to the same bytes on the same kind of CPU with OMP_NUM_THREADS={threads}\n"
    values = asdict(config)
    del values["out"], values["resume"]
    files.write_text(Path(config.out, OPTIONS), head + options.write_toml(values))


def former_options(cls: type[Any], given: dict) -> dict:
    """With --resume the options of the run in --out, if there is one."""
    out = Path(given.get("out", cls.out))

    def read() -> dict:
        is_wanted = given.get("resume") and is_run(out)
        return options.read_toml(cls, out / OPTIONS) if is_wanted else {}

    return parallel.broadcast(read)


def refuse_another_run(path: Path, former: dict, options: dict) -> None:
    """Raises InputError for an option that the `former` run had otherwise; epochs may be added."""
    for name, value in options.items():
        before = former.get(name, value)  # there may be new options since
        if before != value and not (name == "epochs" and before < value):
            what = f"{name} {before!r}, not {value!r}"
            if name.startswith("contents"):
                what = f"other {name}"
            raise InputError(f"{path}: that run was started with {what}; {OTHER}")


def resume_command(config, *more: str) -> str:
    program = ["torchrun", f"--nproc-per-node={parallel.SIZE}"]
    if parallel.SIZE == 1:
        program = [sys.executable]
    return shlex.join([*program, sys.argv[0], "--resume", f"--out={config.out}", *more])


def what_next(config) -> str:
    """What can be done after the finished run in --out; "" where there is something to train.

    Raises InputError where other options are given than that run's.
    """
    out = Path(config.out)
    if not config.resume or not is_run(out) or not (out / LAST).exists():
        return ""
    cls = type(config)
    former = cls(**options.read_toml(cls, out / OPTIONS))
    if config.epochs > former.epochs:
        if not (out / CHECKPOINT).exists():
            raise InputError(f"{out} holds a finished run without its checkpoint: {OTHER}")
        return ""
    refuse_another_run(out, deciding(former), deciding(config))
    log = (out / LOG).read_text(encoding="utf-8").splitlines()
    adapter = shlex.quote(str(out / "best"))
    return (
        f"{out} holds a finished run: {''.join(log[-1:])}\n"
        f"to answer:        python sample.py --adapter {adapter}\n"
        f"to train longer:  {resume_command(config, f'--epochs={former.epochs + 1}')}\n"
        "to start anew:    the same command with another --out"
    )


def check(config) -> None:
    """Raises InputError unless --out is new or empty, or holds a run to go on with."""
    out = Path(config.out)
    names = sorted(os.listdir(out)) if out.exists() else []
    names = [name for name in names if not name.startswith(".")]
    if names and not is_run(out):
        raise InputError(f"{out} holds {errors.listing(names)}, and no run: {OTHER}")
    for name in names:
        if (out / name).is_symlink():
            raise InputError(f"{out / name} is a link, and no run's: move it, or {OTHER}")
    if names and not config.resume:
        state = "a finished" if (out / LAST).exists() else "an unfinished"
        ways = f"--resume goes on with it; or {OTHER}, or rm -r {shlex.quote(config.out)}"
        raise InputError(f"{out} holds {state} run: {ways}")


@contextlib.contextmanager
def claimed(config) -> Iterator[None]:
    """Makes --out this run's alone inside the block; where nothing comes of it, it goes again.

    Raises InputError for a folder in which it may not write.
    """
    check(config)
    out = Path(config.out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out):
        try:
            yield
        finally:
            if not (out / "best").exists() and not (out / CHECKPOINT).exists():
                with contextlib.suppress(OSError):
                    for name in (LOG, METRICS, OPTIONS, ".lock"):
                        (out / name).unlink(missing_ok=True)
                    if is_new:
                        out.rmdir()
