"""Options: a dataclass becomes the flags of a command line and the keys of a TOML file.

Its field `batch_size: int = option(32, "sentences in a batch", at_least=1)` is --batch-size.
"""

import argparse
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import field, fields
from operator import attrgetter, ge, gt, le, lt
from pathlib import Path
from typing import Any

from support.errors import InputError, reading

LIMITS = {"at_least": ge, "above": gt, "at_most": le, "below": lt}
BOUNDS = {float: math.inf, int: 2**63}


def option(default, help: str, **about):
    """A field of type int, float, str or bool, with its limits, `choices`, and `also` a name."""
    if type(default) in BOUNDS:
        about.setdefault("below", BOUNDS[type(default)])
    return field(default=default, metadata={"help": help} | about)


def check(config) -> None:
    """Raises InputError for a value beyond its limits. Lists of names become "a,b", as of flags."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type is str and not isinstance(value, str):
            value = joined(f.name, value)
            setattr(config, f.name, value)
        for limit, bound in f.metadata.items():
            if limit in LIMITS and not LIMITS[limit](value, bound):
                wanted = f"{limit.replace('_', ' ')} {bound}"
                raise InputError(f"{flag(f.name)} {value!s:.80} is not {wanted}")


def split_list(names: str | Sequence[str]) -> list[str]:
    """The names in "a, b"; a list is one already."""
    if isinstance(names, str):
        return [name.strip() for name in names.split(",") if name.strip()]
    return [*names]


def joined(name: str, values) -> str:
    """A list of names as a flag has them: "a,b". Raises InputError where that is not possible."""
    names = [str(value) for value in values] if isinstance(values, list | tuple) else [","]
    if any("," in name for name in names):
        raise InputError(f"{flag(name)} {values!r:.80}: expected names without commas")
    return ",".join(names)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_flags(values: dict) -> list[str]:
    """The words of a command line that give these options."""
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no-{name}"))
        else:
            words.append(f"{flag(name)}={value}")
    return words


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and its description the first line given."""

    def __init__(self, description: str = "", **settings):
        super().__init__(description=description.partition("\n")[0], allow_abbrev=False, **settings)

    def error(self, message: str):
        raise InputError(f"{message:.300} (--help lists the options)")


def parse(cls: type[Any], arguments: list[str], description: str = "") -> dict:
    """The options of `cls` that a command line and its --config file give; a flag wins.

    Underscores work as dashes do. Raises InputError for a name or a value that is none.
    """
    parser = OneLineParser(description, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="a TOML file of these options; flags win")
    for f in sorted(fields(cls), key=attrgetter("kw_only")):  # those by name alone come last
        about: dict[str, Any] = {"type": f.type, "choices": f.metadata.get("choices")}
        if f.type is bool:
            about = {"action": argparse.BooleanOptionalAction}
        about["help"] = f.metadata["help"]
        if f.default != "":
            about["help"] += f" (default: {f.default})"
        names = [flag(name) for name in (f.name, f.metadata.get("also")) if name]
        parser.add_argument(*names, dest=f.name, **about)
    words = []
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            word = flag(name) + equals + value
        words.append(word)
    given = vars(parser.parse_args(words))
    if "config" in given:
        given = read_toml(cls, given.pop("config")) | given
    return given


def read_toml(cls: type[Any], path: str | Path) -> dict:
    """The options in a TOML file, each read as its flag is. InputError names the file."""
    with reading(path):
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > 2**14:  # tomllib would take minutes, or gigabytes, for some
            raise ValueError("too long for a file of options")
        values = tomllib.loads(text)
        for f in fields(cls):
            if f.type is str and isinstance(values.get(f.name), list | dict):
                values[f.name] = joined(f.name, values[f.name])
        words = as_flags(values)
    try:
        return parse(cls, words)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def write_toml(values: dict) -> str:
    """The values as TOML, which spells them as JSON does."""
    lines = [f"{name} = {json.dumps(v, ensure_ascii=False)}\n" for name, v in values.items()]
    return "".join(lines)
