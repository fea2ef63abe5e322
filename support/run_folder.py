"""The directory that a run writes, --out: what may be replaced there, and that only one run is at work in it."""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from support.files import InputError, write_text

FOLDERS = ("checkpoint", "final", "best")
LOG = "training_log.txt"
FILES = ("training_curves.png", LOG, "metrics.jsonl", "config.toml")
CHECKPOINT = Path("checkpoint") / "checkpoint.safetensors"
LAST = Path("final") / "README.md"  # the last file that a run writes


def refuse_to_overwrite(out: Path, resume: bool, overwrite: bool) -> None:
    """Raises InputError if `out` holds a run that these two options do not allow to change."""
    if (out / LAST).exists() and not overwrite:
        raise InputError(f"{out} holds a finished run: --overwrite replaces it, another --out keeps it")
    if (out / "checkpoint").exists() and not (overwrite or resume):
        raise InputError(f"{out} holds an unfinished run: --resume goes on with it, --overwrite starts anew")


@contextlib.contextmanager
def claimed(out: Path, resume: bool, overwrite: bool):
    """Keeps other runs out of `out` inside the block. Yields whether there is a checkpoint to go on from; if not,
    what a former run left is removed."""
    with claim(out):
        refuse_to_overwrite(out, resume, overwrite)  # a run that ended in the meantime
        resuming = resume and (out / CHECKPOINT).exists() and not overwrite
        if not resuming:
            clear(out)
        yield resuming


def claim(out: Path):
    """Keeps a second run out of `out` for as long as the returned file stays open."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (*FOLDERS, LOG):
        if (out / name).is_symlink():
            raise InputError(f"{out / name}: a symbolic link, which is not written through; remove it")
    lock = os.fdopen(os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{out}: another run is at work there; wait for it, or give another --out") from None
    return lock


def clear(out: Path) -> None:
    """Removes a former run, in an order in which a kill in between leaves a whole run, or one that starts anew."""
    (out / LAST).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def write_options(out: Path, options: dict) -> None:
    """config.toml, from which the run can be repeated."""
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in options.items() if name != "overwrite")
    write_text(out / "config.toml", "".join(lines))
