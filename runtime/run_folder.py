"""The folder of a run, --out, in which nothing is ever replaced that is not the run's own."""

import contextlib
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from runtime import checkpoint, report
from support import errors, files, options, parallel
from support.errors import InputError

FOLDERS = ("best", "final", "checkpoint")
OPTIONS, LOG, METRICS = "config.toml", "training_log.txt", "metrics.jsonl"
CURVES = "training_curves.png"
CHECKPOINT = Path("checkpoint", "checkpoint.safetensors")
LAST = Path("final", "README.md")  # the last file that a run writes
OTHER = "give another --out"
HEAD = "# Repeats this run"  # so begins config.toml, by which a run's folder is known


def is_run(out: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    path = out / OPTIONS
    return path.is_file() and path.read_bytes().startswith(HEAD.encode())


def is_finished(out: Path) -> bool:
    return is_run(out) and (out / LAST).exists()


def former_options(cls: type[Any], given: dict) -> dict:
    """With --resume the options of the run in --out, if there is one."""
    out = Path(given.get("out", cls.out))

    def read() -> dict:
        if not given.get("resume") or not is_run(out):
            return {}
        found = options.read_toml(cls, out / OPTIONS)
        found.pop("out", None)  # it may have been moved
        return found

    return parallel.broadcast(read)


def write_options(config) -> None:
    """config.toml, from which a run is repeated, and gone on with."""
    threads = torch.get_num_threads()
    head = f"{HEAD}: to the same bytes on the same kind of CPU with OMP_NUM_THREADS={threads}\n"
    values = asdict(config)
    del values["resume"]
    files.write_text(Path(config.out, OPTIONS), head + options.write_toml(values))


def check(config) -> None:
    """Raises InputError unless --out is new or empty, or holds a run to go on with."""
    out = Path(config.out)
    names = sorted(os.listdir(out)) if out.exists() else []
    names = [name for name in names if name not in (".lock", f".{OPTIONS}.tmp")]
    if not names:
        return
    if not is_run(out):
        raise InputError(f"{out} holds {errors.listing(names)}, and no run: {OTHER}")
    for name in (*FOLDERS, OPTIONS, LOG, METRICS, CURVES):
        path = out / name
        is_ours = path.is_dir() if name in FOLDERS else path.is_file()
        if os.path.lexists(path) and (path.is_symlink() or not is_ours):
            raise InputError(f"{path} was left by no run: move it, or {OTHER}")
    if not config.resume:
        other = f"{OTHER}, or rm -r {shlex.quote(config.out)}"
        if is_finished(out):
            raise InputError(f"{out} holds a finished run: {other}")
        raise InputError(f"{out} holds an unfinished run: --resume goes on with it; or {other}")


def what_next(config) -> str:
    """What can be done after the finished run in --out; "" if it is unfinished or to go on.

    Raises InputError where other options are given than that run's.
    """
    cls = type(config)
    out = Path(config.out)
    if not config.resume or not is_finished(out):
        return ""
    former = cls(**options.read_toml(cls, out / OPTIONS))
    if config.epochs > former.epochs:
        if not (out / CHECKPOINT).exists():
            raise InputError(f"{out} holds a finished run without its checkpoint: {OTHER}")
        return ""
    wanted = options.deciding(config)
    checkpoint.refuse_another_run(out, options.deciding(former), wanted, config)
    log = (out / LOG).read_text(encoding="utf-8").splitlines()
    best = [line for line in log if line.startswith("best validation")]
    pairs = files.read_json(out / "best" / "config.json").get("text_pairs")
    adapter = where = ""
    if config.out != cls.out:
        adapter = f" --adapter {shlex.quote(str(out / 'best'))}"
        where = f" --out {shlex.quote(config.out)}"
    return (
        f"{out} holds a finished run: {''.join(best[-1:])}\n"
        f"to answer:        python sample.py{adapter} {report.example(pairs)}\n"
        f"to train longer:  python train.py --resume{where} --epochs {former.epochs + 1}\n"
        "to start anew:    the same command with another --out"
    )


def claim(config, stack: contextlib.ExitStack) -> bool:
    """Makes --out this run's until the stack ends. Returns whether there is a checkpoint."""
    out = Path(config.out)
    check(config)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(files.locked(out))
    if not is_run(out):
        stack.callback(remove_worthless, out, made)
        write_options(config)
    return (out / CHECKPOINT).exists()


def remove_worthless(out: Path, made: list[Path]) -> None:
    """Removes what a start wrote that came to nothing, and the folders that it made."""
    if (out / "best").exists() or (out / CHECKPOINT).exists():
        return
    with contextlib.suppress(OSError):
        for name in (OPTIONS, LOG, METRICS, ".lock"):
            (out / name).unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
