"""The folder of a run, --out, in which nothing is ever replaced that is not the run's own."""

import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runtime import adapters
from support import errors, files, offline, options, parallel
from support.errors import InputError
from support.options import option

OPTIONS = "config.toml"
LOG = "training_log.txt"
METRICS = "metrics.jsonl"
CHECKPOINT = Path("checkpoint", "checkpoint.safetensors")
LAST = Path("final", "README.md")  # the last file that a run writes
OTHER = "give another --out"
HEAD = "# --config repeats this run.\n"  # so begins config.toml, which tells a run's folder


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
    values = asdict(config)
    del values["out"], values["resume"]
    files.write_text(Path(config.out, OPTIONS), HEAD + options.write_toml(values))


def former_options(cls: type[Any], given: dict) -> dict:
    """With --resume the options of the run in --out, if there is one."""
    out = Path(given.get("out", cls.out))
    if not given.get("resume") or not is_run(out):
        return {}
    return options.read_toml(cls, out / OPTIONS)


def complete(cls: type[Any], given: dict) -> tuple[Any, str]:
    """The options of a run, of which `given` were asked for, and what the user should know of them.

    The later one wins: the defaults of `cls`, those of this start, the former run's, those given,
    those that --init-adapter decides.
    """
    given = parallel.broadcast(lambda: former_options(cls, given)) | given
    of_start = {"processes": parallel.SIZE}
    notice = ""
    if given.get("offline_fallback") and not given.keys() & {"model", "data"}:
        fallback, notice = parallel.broadcast(offline.official_or_offline)
        of_start |= fallback
    return cls(**of_start | given | adapters.options_of(given)), notice


def check(config) -> None:
    """Raises InputError unless --out is new or empty, or holds a run to go on with."""
    out = Path(config.out)
    names = sorted(path.name for path in out.glob("[!.]*"))
    if names and not is_run(out):
        raise InputError(f"{out} holds {errors.listing(names)}, and no run: {OTHER}")
    if not config.resume and {"best", "checkpoint"} & {*names}:
        ways = f"--resume goes on with it; or {OTHER}, or rm -r {shlex.quote(config.out)}"
        raise InputError(f"{out} holds a run: {ways}")
    if (out / LAST).exists() and not (out / CHECKPOINT).exists():
        raise InputError(f"{out} holds a finished run without its checkpoint: {OTHER}")


def check_early(config) -> None:
    """Raises InputError at once for what would be refused once all is read, or trained."""
    if config.push_to_hub:
        adapters.check_push(config)
    parallel.broadcast(lambda: check(config))
