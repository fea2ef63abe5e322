"""Options: a dataclass becomes the flags of a command line and the keys of a TOML file.

    @dataclass
    class Config:
        epochs: int = option(3, "passes over the training data", AT_LEAST_1, also="num-epochs")

is --epochs and --num-epochs on the command line, and `epochs = 3` in the file.
"""

import argparse
import difflib
import math
import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from support.devices import chosen
from support.files import InputError, first_line
from support.offline import found_again

AT_LEAST_0 = ("at least 0", lambda value: value >= 0)
AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
AT_LEAST_3 = ("at least 3", lambda value: value >= 3)
ABOVE_0 = ("above 0", lambda value: 0 < value < math.inf)
DIRECTORY = ("the name of a directory", lambda value: bool(value.strip("/")))
BELOW_1 = ("at least 0 and below 1", lambda value: 0 <= value < 1)
FRACTION = ("from 0 to 1", lambda value: 0 <= value <= 1)
INT64 = ("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)


def option(default, help: str, allowed=None, also: str = ""):
    """A field of a dataclass of options.

    `help` is its flag's; `allowed` says which values it takes: a list, or one of the pairs above; `also` is another
    name that people know it by.
    """
    if isinstance(allowed, list):
        allowed = (f"one of {', '.join(allowed)}", allowed.__contains__)
    return field(default=default, metadata={"help": help, "allowed": allowed, "also": also})


@dataclass(kw_only=True)
class Surroundings:
    """The options around a training. None decides what is trained; offline_fallback sets others that do."""

    out: str = option("out", "where everything goes", DIRECTORY, also="output-dir")
    save_every: int = option(
        0, "steps between checkpoints; 0: as often as a hundredth of the time allows", AT_LEAST_0
    )
    resume: bool = option(False, "go on with the run in --out, if there is one, by its own options")
    overwrite: bool = option(False, "replace the run in --out")
    offline_fallback: bool = option(
        False, "where the Hub is out of reach, train MiniLM on movie reviews instead"
    )
    gradient_checkpointing: bool = option(
        False, "compute the layers again in the backward pass: less memory, as exact"
    )
    push_to_hub: bool = option(
        False, "upload the best adapter to the Hub afterwards, as --hub-model-id"
    )
    hub_model_id: str = option("", "where to push to: owner/name")
    hub_private: bool = option(False, "if that repository is new, make it private")
    license: str = option(
        "", "the adapter's licence, for its model card, as the Hub spells it: apache-2.0, mit"
    )

    def __post_init__(self):
        check_options(self)


def check_options(config) -> None:
    """Raises InputError for a value of another type than its field's, or one that it does not take."""
    for f in fields(config):
        value, allowed = getattr(config, f.name), f.metadata["allowed"]
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise InputError(f"{flag(f.name)} is a number of more than 64 bits")
        if f.type is float and type(value) is int:
            setattr(config, f.name, value := float(value))
        if type(value) is not f.type:
            raise InputError(f"{f.name} must be of type {f.type.__name__}, not {shown(value)}")
        if f.type is float and not math.isfinite(value):
            raise InputError(f"{flag(f.name)} {value} is not a finite number")
        if f.type is str and any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{flag(f.name)} {value!a:.400} is not UTF-8; give another name")
        if f.type is str and "\0" in value:
            raise InputError(f"{flag(f.name)} {value!r:.80} holds a NUL character")
        if allowed and not allowed[1](value):
            raise InputError(
                f"{flag(f.name)} {value if value != '' else repr(value)} is not {allowed[0]}"
            )


def shown(value) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # thousands of digits
        return f"a {type(value).__name__} with too long a number"


def listed(text: str) -> list[str]:
    """The parts of an option that is a list: "a, b" is a and b. Raises InputError where one is empty."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(parts):
        raise InputError(
            f"{text!r}: an option's list of names with an empty place in it; leave that comma out"
        )
    return parts


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def deciding_options(config: Surroundings) -> dict:
    """The options that decide what is trained: all but those of Surroundings."""
    around = {f.name for f in fields(Surroundings)}
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in around}


def identity(config: Surroundings, device: str) -> dict:
    """What must be the same for a run to be the same: the options that decide, as what they come to on this device.

    log_every decides no number but in what is said.
    """
    deciding = deciding_options(config) | {"device": device}
    deciding.pop("log_every", None)
    for name in ("dtype", "compile"):
        deciding[name] = chosen(deciding[name], device)
    for name in ("model", "data", "init_adapter"):
        deciding[name] = (
            os.path.realpath(deciding[name]) if os.path.exists(deciding[name]) else deciding[name]
        )
    return deciding


def changed_flags(config: Surroundings) -> list[str]:
    """The flags that, with the defaults, repeat the same training."""
    defaults = {f.name: f.default for f in fields(config)}
    return [
        f"{flag(name)}={value}"
        for name, value in deciding_options(config).items()
        if value != defaults[name]
    ]


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as all others are."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str):
        raise InputError(f"{message:.300} (--help lists the options)")


def parse_options(cls: type, arguments: list[str], description: str | None = None) -> dict:
    """The options of the dataclass `cls` that a command line and its --config file give; a flag wins over the file.

    Underscores work as dashes do. Raises InputError for an unknown name or an unreadable file.
    """
    parser = OneLineParser(description=description and description.partition("\n")[0])
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file of these options; a flag given beside it wins"
    )
    for f in sorted(fields(cls), key=lambda f: f.kw_only):  # those of Surroundings last
        names = [flag(name) for name in (f.name, f.metadata["also"]) if name]
        kind = {"type": f.type, "metavar": f.type.__name__.upper()}
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else kind
        shown = f" (default: {f.default})" if f.default not in ("", False) else ""
        parser.add_argument(
            *names, dest=f.name, default=None, help=f.metadata["help"] + shown, **kind
        )
    dashed = [a.partition("=") for a in arguments]
    dashed = [
        (a.replace("_", "-") if a.startswith("--") else a) + equals + value
        for a, equals, value in dashed
    ]
    given = {
        name: value for name, value in vars(parser.parse_args(dashed)).items() if value is not None
    }
    path = given.pop("config", None)
    return (read_options(cls, path) if path else {}) | given


def read_toml(path: str | Path) -> dict:
    """What a TOML file says, where that is no longer than options are."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > 2**16:  # tomllib would take minutes for some
            raise ValueError("it is too long for one of options")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file ({first_line(error)})") from None


def read_options(cls: type, path: str) -> dict:
    """The options in a TOML file, under any of the names of their flags, with dashes or underscores."""
    known = {f.name: f.name for f in fields(cls)}
    known |= {
        f.metadata["also"].replace("-", "_"): f.name for f in fields(cls) if f.metadata["also"]
    }
    options = {}
    for key, value in read_toml(path).items():
        name = known.get(key.replace("-", "_"))
        if not name:
            close = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"{path}: unknown option {key!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
        if name in options:
            raise InputError(
                f"{path}: {key!r} gives {flag(name)} a second time; keep one of the two"
            )
        options[name] = found_again(value) if isinstance(value, str) and value else value
    return options
