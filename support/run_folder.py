"""The directory that a run writes, --out: what may be replaced there, and that only one run is at work in it.

A run's first act is to mark its directory, by a line in `.lock`. In a marked one it replaces what a run writes, by
name and only when told to; in any other one that holds such a name the name is somebody else's, and the run is refused.
"""

import contextlib
import fcntl
import json
import os
import stat
from pathlib import Path

import torch

from support import distributed
from support.base_files import MODEL_FILES
from support.files import InputError, lies_in, listing, temporary_for, write_text
from support.offline import DIRECTORIES
from support.options import Surroundings, read_options, read_toml

MARK = "This directory is train.py's, which may replace its own files in it.\n"
LOCK = ".lock"
SAVED = (*MODEL_FILES, "adapter_config.json", "adapter_model.safetensors", "README.md")
FOLDERS = {"checkpoint": ("checkpoint.safetensors",), "final": SAVED, "best": SAVED}
LOG, OPTIONS, CURVES = "training_log.txt", "config.toml", "training_curves.png"
FILES = (CURVES, LOG, "metrics.jsonl", OPTIONS)
CHECKPOINT = Path("checkpoint") / "checkpoint.safetensors"
LAST = Path("final") / "README.md"  # the last file that a run writes


def written(folder: str = "") -> list[Path]:
    """Every file that a run may write in a folder of --out, or in --out itself, with its temporary one."""
    names = [Path(folder) / name for name in (FOLDERS[folder] if folder else FILES)]
    return [path for name in names for path in (name, temporary_for(name))]


def there(out: Path, names: list[Path]) -> list[Path]:
    return [out / name for name in names if os.path.lexists(out / name)]


# May the run begin?


def refuse_to_overwrite(options: dict) -> None:
    """Raises InputError for a run of these options that would replace what it was not told to, or may not.

    That is what no run wrote, an input of its own, and another run that --overwrite and --resume leave alone.
    """
    if not distributed.is_first():
        return
    out, resume, overwrite = Path(options["out"]), options["resume"], options["overwrite"]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file, not a directory; give another --out")
    for name in ("model", "data", "init_adapter"):
        refuse_input_inside(out, f"--{name.replace('_', '-')}", options[name])
    refuse_foreign(out)
    resumable = (out / CHECKPOINT).exists()
    if ((out / LAST).exists() or ((out / CURVES).exists() and not resumable)) and not overwrite:
        epochs = (
            read_toml(out / OPTIONS).get("epochs")
            if resumable and (out / OPTIONS).exists()
            else None
        )
        if not (resume and type(epochs) is int and options["epochs"] > epochs):
            more = f", --resume with more --epochs than {epochs} goes on with it" if epochs else ""
            raise InputError(
                f"{out} holds a finished run: --overwrite replaces it, another --out keeps it{more}"
            )
    if any(there(out, written(name)) for name in FOLDERS) and not (overwrite or resume):
        raise InputError(
            f"{out} holds an unfinished run: --resume goes on with it, --overwrite starts anew"
        )


def refuse_foreign(out: Path) -> None:
    """Raises InputError, naming it, for what stands in a run's way and that no run wrote."""
    marked = is_marked(out)
    for name in FOLDERS:
        inside = there(out, written(name)) or there(out, [Path(name)])
        if (out / name).is_symlink():
            raise InputError(
                f"{out / name}: a symbolic link, which is not written through; remove it"
            )
        odd = [path for path in inside if path.is_dir() and path.name != name]
        if inside and (not marked or odd or not (out / name).is_dir()):
            raise in_the_way((odd or inside)[0], out)
    for path in there(out, written()):
        if not marked or path.is_dir():
            raise in_the_way(path, out)
    if (
        not marked
        and there(out, [Path(LOCK)])
        and (os.lstat(out / LOCK).st_size or not is_file(out / LOCK))
    ):
        raise in_the_way(out / LOCK, out)


def in_the_way(path: Path, out: Path) -> InputError:
    where = "of its own kind" if is_marked(out) else f"({out / LOCK} does not say so)"
    return InputError(
        f"{path} is in the way, and was not left by a run {where}: move it, or give another --out"
    )


def is_file(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def is_marked(out: Path) -> bool:
    """Whether a run has claimed this directory as its own."""
    try:
        if not is_file(out / LOCK):
            return False
        with open(out / LOCK, "rb") as file:
            text = file.read(len(MARK) + 1)
    except OSError:
        return False
    return text != b"" and MARK.encode().startswith(
        text
    )  # a part of it, where a kill came in between


def refuse_input_inside(out: Path, flag: str, given: str) -> None:
    """Raises InputError if the directory or file `given` as --model, --data, … lies in what a run in `out` replaces."""
    if not given or not os.path.exists(given):
        return
    whole = os.path.abspath(given)
    try:
        whole.encode()  # an adapter names its base so
    except UnicodeEncodeError:
        raise InputError(f"{flag}: {whole!a} is not UTF-8; rename that directory") from None
    links = (
        [path for path in Path(given).iterdir() if path.is_symlink()]
        if os.path.isdir(given)
        else []
    )
    if any(lies_in(path, out / place) for path in (given, *links) for place in (*FOLDERS, *FILES)):
        raise InputError(
            f"{flag} {given} lies in what --out {out} replaces; give another --out, or move it"
        )


# The run begins.


@contextlib.contextmanager
def claimed(options: dict, say):
    """Keeps other runs out of --out inside the block. Yields whether there is a checkpoint to go on from; if not,
    what a former run left is removed, config.toml is written, and say() names what else is in its folders.

    Of several processes the first does all this, and tells the others."""
    out = Path(options["out"])
    if not distributed.is_first():
        yield distributed.from_first(None)
        return
    with claim(out) as lock:
        refuse_to_overwrite(options)  # a run that ended in the meantime
        if not options["overwrite"]:  # else a restart from here would go on with the former run
            distributed.note_begun()
        if not is_marked(out):
            lock.write(MARK)
            lock.flush()
        resuming = options["resume"] and (out / CHECKPOINT).exists() and not options["overwrite"]
        if not resuming:
            write_options(
                options
            )  # before the old checkpoint goes: what is resumed after a kill is refused, or this
            left = clear(out)
            if left:
                say(f"left as it is, as no run wrote it: {listing([str(path) for path in left])}")
        distributed.note_begun()
        yield distributed.from_first(lambda: resuming)


def claim(out: Path):
    """Keeps a second run out of `out` for as long as the returned file stays open."""
    refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    if (out / LOG).is_symlink():
        raise InputError(f"{out / LOG}: a symbolic link, which is not written through; remove it")
    lock = os.fdopen(os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{out}: another run is at work there; wait for it, or give another --out"
        ) from None
    return lock


def clear(out: Path) -> list[Path]:
    """Removes a former run but for config.toml, file by file, and returns what else lies in its folders.

    The order is one in which a kill in between leaves a run that goes on, or one that starts anew.
    """
    left = []
    for path in there(out, [LAST, Path(CURVES)]):
        path.unlink()
    for name in FOLDERS:
        for path in there(out, written(name)):
            path.unlink()
        if (out / name).is_dir():
            left += sorted((out / name).iterdir())
            if not left or left[-1].parent != out / name:
                (out / name).rmdir()
    for path in there(out, [name for name in written() if name.name != OPTIONS]):
        path.unlink()
    return left


# config.toml.


def write_options(options: dict) -> None:
    """config.toml, from which the run can be repeated, and from which it goes on."""
    if not distributed.is_first():
        return
    out = Path(options["out"])
    (out / LAST).unlink(missing_ok=True)  # from here on the run there is not finished
    threads = torch.get_num_threads()
    head = f"# Repeats this run: to the same bytes on the same kind of CPU with OMP_NUM_THREADS={threads}\n"
    lines = (f"{name} = {toml(value)}\n" for name, value in options.items() if name != "overwrite")
    write_text(out / OPTIONS, head + "".join(lines))


def toml(value) -> str:
    """A value as TOML writes it: JSON's strings, but that no character is two escapes, and DEL is one."""
    return (
        repr(value)
        if type(value) is float
        else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    )


def former_options(config: Surroundings) -> tuple[dict, str]:
    """The options of the run in --out, if `config` is to go on with one, and a line where they are unexpected."""
    return distributed.from_first(lambda: read_former_options(config))


def read_former_options(config: Surroundings) -> tuple[dict, str]:
    path, resumable = Path(config.out) / OPTIONS, (Path(config.out) / CHECKPOINT).exists()
    if (
        not config.resume
        or config.overwrite
        or not is_marked(Path(config.out))
        or not path.exists()
    ):
        return {}, ""
    former = read_options(type(config), str(path))
    offline = former.get("offline_fallback", False) and str(former.get("model")) in DIRECTORIES
    if offline and not resumable:
        return {}, ""  # nothing is lost if the Hub is asked again
    notice = (
        "this run began with the Hub out of reach: it does NOT train bert-base-uncased on SST-2"
        if offline
        else ""
    )
    return {
        name: value for name, value in former.items() if name not in ("out", "resume", "overwrite")
    }, notice
