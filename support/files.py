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
    """Yields a temporary path; the file or folder that the block makes there becomes `path`.

    It replaces what was at `path`, of a folder the files of the same names; for a `new` one there
    must be nothing, or InputError is raised.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    if new:
        refuse_existing(path)
    remove(temporary)  # a killed process left it, or it is a link, which would be written through
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                with open(file, "r+b") as opened:  # Windows syncs no file that is open to read
                    os.fsync(opened.fileno())
        if new:
            refuse_existing(path)
        if path.is_dir():
            for file in temporary.iterdir():
                os.replace(file, path / file.name)
        else:
            os.replace(temporary, path)
    finally:
        remove(temporary)


def refuse_existing(path: str | Path) -> None:
    if os.path.lexists(path):
        raise InputError(f"{path}: is there already; give another name, or remove it")


def refuse_unwritable(path: Path) -> None:
    """Raises InputError where a new file cannot be put: better before the work."""
    refuse_existing(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # which a link or a file survives
    path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. Raises InputError for anything else."""
    with reading(path):
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def locked(folder: Path):
    """A context in which no other process is for this folder. Raises InputError if one is."""
    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder}: another process is writing there; wait for it") from None
