"""What is trained on and what is validated on: by files, by a column, or held out."""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from support.errors import InputError, listing
from support.tables import SUFFIXES, Rows

SPLITS = ("train", "validation", "validation_mismatched")
# In a column.
NAMES = {name: name for name in ("train", "validation", "test")}
NAMES |= {"training": "train", "dev": "validation", "val": "validation", "valid": "validation"}


def find_splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split of SPLITS. A single file is "train" alone. Raises InputError."""
    if path.is_file():
        return {"train": [path]}
    splits = defaultdict(list, train=[])
    for file in sorted(path.iterdir()):
        split = re.sub(r"(_matched)?(-\d{5}-of-\d{5}(-[0-9a-f]{16})?)?$", "", file.stem)
        split = re.sub(r"^(dev|val|valid)(?=_|$)", "validation", split)
        if split in SPLITS and file.suffix in SUFFIXES:
            splits[split].append(file)
    for split, files in splits.items():
        names = [file.name for file in files] or ["none"]
        first = names[0] if files else f"{split}.csv"
        parts = re.search(r"-of-(\d{5})", first)
        numbers = range(int(parts[1])) if parts else [0]
        expected = [re.sub(r"\d{5}-of", f"{number:05}-of", first) for number in numbers]
        if without_hashes(names) != without_hashes(expected):
            raise InputError(f"{path}: expected {listing(expected)}, found {listing(names)}")
    return dict(splits)


def without_hashes(names: list[str]) -> list[str]:
    """Names of files without what the Hub's older data sets have at their ends."""
    return [re.sub(r"-[0-9a-f]{16}(?=\.)", "", name) for name in names]


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
    chosen = [split for split in ("train", "validation") if split in told]
    counts = [f"{told.count(split):,} rows {split}" for split in dict.fromkeys(told)]
    unused = "; test is not used" if "test" in told else ""
    notes.append(f"the column split has {', '.join(counts)}{unused}")
    found = {split: train.select([each == split for each in told]) for split in chosen}
    return rows | found


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
    stay = {each: len(found) for each, found in members.items()}  # keys to train on
    is_held = {}
    for each in sorted(members, key=lambda each: (len(members[each]), each)):
        wanted = max(1, round(fraction * len(members[each])))
        wanted -= sum(is_held.get(number, False) for number in members[each])
        free = [number for number in members[each] if number not in is_held]
        for number in sorted(free, key=shuffled.__getitem__):
            is_held[number] = wanted > 0 and all(stay[other] > 1 for other in classes_of[number])
            if is_held[number]:
                wanted -= 1
                for other in classes_of[number]:
                    stay[other] -= 1
    if not any(is_held.values()):
        hint = "add some, or give --validation"
        raise InputError(f"no class has two different texts, one of them to validate on; {hint}")
    return np.array([is_held[numbers[key]] for key in keys])
