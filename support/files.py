"""Files that are written whole or not at all, JSON, and locks."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from support.errors import InputError, reading


@contextlib.contextmanager
def written_whole(path: str | Path, new: bool = False):
    """Yields a temporary path; what the block writes there replaces `path`, or nothing does."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)  # a killed process left it, or it is a link, which would be written through
    try:
        yield temporary
        sync(temporary)
        if new:
            refuse_existing(path)
        os.replace(temporary, path)
    finally:
        remove(temporary)


def written_new(path: str | Path):
    """The same for a path that must not exist: a file, or a folder that the block makes and fills.

    Raises InputError if there is something at `path`, or comes there during the block.
    """
    refuse_existing(path)
    return written_whole(path, new=True)


def refuse_existing(path: str | Path) -> None:
    if os.path.lexists(path):
        raise InputError(f"{path}: is there already; give another name, or remove it")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the file, or each file in the folder, is on the disk."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with open(file, "r+b") as opened:  # Windows syncs no file that is open to read
                os.fsync(opened.fileno())


def write_text(path: str | Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. Raises InputError for anything else."""
    with reading(path):
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a JSON {type(values).__name__}, expected an object")
    return values


@contextlib.contextmanager
def locked(path: str | Path):
    """Raises InputError if another process is in such a block for this folder or file.

    The lock is .lock in the folder, or .NAME.lock beside the file; it ends with the process.
    """
    path = Path(path)
    lock = FileLock(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{path}: another process is writing there; wait for it") from None
    with held:
        yield
