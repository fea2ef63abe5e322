"""What is trained on and what is validated on: by files, by a column, or held out."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from support.errors import InputError, listing
from support.tables import SUFFIXES, Rows

# What a split may be called, as a file and in a column.
NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
# A file's, of the Hub also that of a part, in its older data sets with a hash.
FILE = re.compile(
    r"(?P<split>train|validation|dev|val|valid)(_matched)?(?P<other>(_mismatched)?)"
    r"(-(?P<part>\d{5}-of-\d{5})(-[0-9a-f]{16})?)?"
)


def find_splits(path: Path) -> dict[str, list[Path]]:
    """The files of "train", and if there are any of "validation" and "validation_mismatched".

    A single file is "train" alone. Raises InputError for parts that are not there, or twice.
    """
    if path.is_file():
        return {"train": [path]}
    splits = defaultdict(list, train=[])
    parts = defaultdict(list)
    for file in sorted(path.iterdir()):
        name = FILE.fullmatch(file.stem)
        if name and file.suffix in SUFFIXES:
            split = NAMES[name["split"]] + name["other"]
            splits[split].append(file)
            parts[split].append(name["part"] or "00000-of-00001")
    for split, files in splits.items():
        count = len(files)
        if not files or parts[split] != [f"{part:05}-of-{count:05}" for part in range(count)]:
            found = listing([file.name for file in files]) or "none"
            expected = f"one {split}{SUFFIXES[1]}, or all of its parts"
            raise InputError(f"{path}: expected {expected}, found {found}")
    return dict(splits)


def by_column(rows: dict[str, Rows], notes: list[str]) -> dict[str, Rows]:
    """The rows of each split, where those of "train" tell their splits in a column "split".

    Those of its test split are left out; adds to `notes` what was done. Raises InputError for a
    column that names the splits of some rows only.
    """
    train = rows["train"]
    told = [NAMES.get(str(value).strip().lower()) for value in train.splits]
    kinds = "train, validation (or dev, val) or test"
    if not any(told):
        if told:
            notes.append(f"the column split is not used: {train.splits[0]!r:.40} is not {kinds}")
        return rows
    where = f"{train.source}: the column split"
    if None in told:
        row = told.index(None)
        problem = f"has {train.splits[row]!r:.40} in row {train.numbers[row]}"
        raise InputError(f"{where} {problem}, expected {kinds} in every row")
    if "train" not in told:
        raise InputError(f"{where} has no train in any row")
    if "validation" in told and "validation" in rows:
        raise InputError(f"{where} names rows to validate on, and so does a file; keep one")
    counts = [f"{count:,} rows {split}" for split, count in Counter(told).items()]
    unused = "; test is not used" if "test" in told else ""
    notes.append(f"the column split has {', '.join(counts)}{unused}")
    found = rows | {"train": train.select([each == "train" for each in told])}
    if "validation" in told:
        found["validation"] = train.select([each == "validation" for each in told])
    return found


def classes_of(labels: np.ndarray) -> list[list[int]]:
    """The classes of each row, of which a part is held out; numbers are all of one, 0.

    `labels` are classes (N,), or which of several a row has (N, C), where -1 stands for none; or
    the float numbers (N,) of a regression.
    """
    if labels.ndim == 2:
        return [np.flatnonzero(row).tolist() or [-1] for row in labels]
    if labels.dtype == np.int64:
        return labels[:, None].tolist()
    return [[0]] * len(labels)


def hold_out(
    keys: Sequence[Hashable], classes: Iterable[Iterable[int]], fraction: float
) -> np.ndarray:
    """Whether each of N rows is held out (N,): always the same ones.

    About the `fraction` of the different keys of every class, at least one and not all of them; a
    key is on one side. `classes` are those of each row, of which the rarest chooses first, as
    where rows have several (Sechidis et al., 2011, On the Stratification of Multi-Label Data).
    Raises InputError where no class has two different keys.
    """
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    members = defaultdict(set)  # the keys of each class
    classes_of = defaultdict(set)
    for key, of_row in zip(keys, classes, strict=True):
        for each in of_row:
            members[each].add(numbers[key])
            classes_of[numbers[key]].add(each)
    shuffled = np.random.default_rng(0).permutation(len(numbers))
    stay = Counter({each: len(found) for each, found in members.items()})  # keys to train on
    is_held = {}
    for each in sorted(members, key=lambda each: (len(members[each]), each)):
        wanted = max(1, round(fraction * len(members[each])))
        wanted -= sum(is_held.get(number, False) for number in members[each])
        free = [number for number in members[each] if number not in is_held]
        for number in sorted(free, key=shuffled.__getitem__):
            is_held[number] = wanted > 0 and all(stay[other] > 1 for other in classes_of[number])
            if is_held[number]:
                wanted -= 1
                stay.subtract(classes_of[number])
    if not any(is_held.values()):
        hint = "add some, or give --validation"
        raise InputError(f"no class has two different texts, one of them to validate on; {hint}")
    return np.array([is_held[numbers[key]] for key in keys])
