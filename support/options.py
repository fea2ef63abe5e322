"""Options: a dataclass becomes the flags of a command line and the keys of a TOML file.

Its field `batch_size: int = option(32, "sentences in a batch", at_least=1)` is --batch-size.
"""

import argparse
import json
import math
import operator
import tomllib
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from support.errors import InputError, reading

LIMITS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def option(default, help: str, *, choices=None, also="", decides=True, **limits):
    """A field of type int, float, str or bool, within `limits`: at_least, above, at_most, below.

    `also` is another name that people know it by. It `decides` if the result depends on it.
    """
    about = {"help": help, "choices": choices, "also": also, "decides": decides, "limits": limits}
    return field(default=default, metadata=about)


def check(config) -> None:
    """Makes whole numbers floats in a field of floats. Raises InputError for a wrong value."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type is float and type(value) is int:
            value = float(value)
            setattr(config, f.name, value)
        problem = wrong(f, value)
        if problem:
            raise InputError(f"{flag(f.name)} {value!s:.80} is not {problem}")


def wrong(f, value) -> str:
    """What a value of the field would have to be and is not, or ""."""
    if type(value) is not f.type:
        return f"of type {f.type.__name__}"
    if f.type is float and not math.isfinite(value):
        return "a finite number"
    choices = f.metadata["choices"]
    if choices and value not in choices:
        return f"one of {', '.join(filter(None, choices))}"
    for limit, bound in f.metadata["limits"].items():
        if not LIMITS[limit](value, bound):
            return f"{limit.replace('_', ' ')} {bound}"
    return ""


def split_list(text: str) -> list[str]:
    """The names in "a, b". Raises InputError where one is empty."""
    names = [name.strip() for name in text.split(",")] if text else []
    if not all(names):
        raise InputError(f"{text!r}: an empty place in a list of names; leave that comma out")
    return names


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def flags(f) -> list[str]:
    return [flag(name) for name in (f.name, f.metadata["also"]) if name]


def deciding(config) -> dict:
    """The options on which the result depends."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.metadata["decides"]}


def changed_flags(config) -> list[str]:
    """The flags that, with the defaults, repeat the same training."""
    values = deciding(config)
    default = type(config)  # a dataclass has its defaults as attributes
    return [f"{flag(name)}={v}" for name, v in values.items() if v != getattr(default, name)]


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and its description the first line given."""

    def __init__(self, description: str = "", **settings):
        super().__init__(description=description.partition("\n")[0], allow_abbrev=False, **settings)

    def error(self, message: str):
        raise InputError(f"{message:.300} (--help lists the options)")


def parse(cls: type[Any], arguments: list[str], description: str = "") -> dict:
    """The options of `cls` that a command line and its --config file give; a flag wins.

    Underscores work as dashes do. Raises InputError for an unknown name or an unreadable file.
    """
    parser = OneLineParser(description, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="a TOML file of these options; flags win")
    for f in fields(cls):
        kind: dict[str, Any] = {"type": f.type}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        default = f" (default: {f.default})" if f.default else ""
        parser.add_argument(*flags(f), dest=f.name, help=f.metadata["help"] + default, **kind)
    given = vars(parser.parse_args([with_dashes(argument) for argument in arguments]))
    from_file = read_toml(cls, given.pop("config")) if "config" in given else {}
    return from_file | given


def with_dashes(argument: str) -> str:
    """--batch_size=8 as --batch-size=8."""
    name, equals, value = argument.partition("=")
    return flag(name[2:]) + equals + value if name.startswith("--") else argument


def read_toml(cls: type[Any], path: str | Path) -> dict:
    """The options in a TOML file, under any of the names of their flags, with dashes or not."""
    with reading(path):
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > 2**16:  # tomllib would take minutes for some
            raise ValueError("too long for a file of options")
        found = tomllib.loads(text)
    known = {name: f.name for f in fields(cls) for name in flags(f)}
    options = {}
    for key, value in found.items():
        if flag(key) not in known:
            raise InputError(f"{path}: unknown option {key!r} (--help lists the options)")
        options[known[flag(key)]] = value
    return options


def write_toml(values: dict) -> str:
    """The values as TOML, which spells them as JSON does, except for DEL."""
    lines = [f"{name} = {json.dumps(v, ensure_ascii=False)}\n" for name, v in values.items()]
    return "".join(lines).replace("\x7f", "\\u007f")
