"""Runs train.py with every setting and seed that a TOML file lists; a table of each group.

    python experiments/run.py experiments/reviews.toml          # hours; --dry-run says how many
    python experiments/run.py experiments/sst2.toml --jobs 2    # two at once, half the cores each

Each run has its own --out under out-experiments/. A finished one is never run again, and one that
was killed goes on from its checkpoint. On a machine with GPUs each of the --jobs has one of its
own. Afterwards, and with --table at any time, table.md, picture.png and runs.jsonl, a line for each
run, stand beside the runs; --known takes such lines from another machine, whose runs then count as
finished. What a run prints and leaves is train.py's own.
"""

import contextlib
import itertools
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ideas

from runtime.run_folder import LAST, LOG, METRICS, OPTIONS, deciding
from support import errors, files, hub, offline, options, splits, tables
from support.errors import InputError, run_main
from support.options import OneLineParser

DONE = "result.json"
MEASURED = ("accuracy", "loss", "stored", "trained", "seconds", "bytes")
MAY_BE_UNKNOWN = ("loss", "seconds", "bytes")
GIVEN = ("model", "data", "seed")  # options that a setting has from the runner
DEFAULT = "the default"


# What is to be run.


def options_of(setting: dict) -> dict:
    """All that decides a run of such a setting: the options of ideas.py, except those GIVEN.

    Raises InputError for a setting that cannot be had.
    """
    if not isinstance(setting, dict):
        raise InputError(f"{setting!r:.80} is not a table of options")
    allowed = [name for name in deciding(ideas.Config) if name not in GIVEN]
    odd = [name for name in setting if name not in allowed]
    if odd:
        raise InputError(f"{odd[0]!r} is no option that a setting can have")
    config = ideas.Config(**options.parse(ideas.Config, options.as_flags(setting)))
    return {"ideas": config.ideas} | {name: getattr(config, name) for name in allowed}


def what_differs(setting: dict, common: dict) -> dict:
    """What a setting changes beside `common`: each option in its own type, all in one order."""
    reference = options_of(common)
    both = common | setting if isinstance(setting, dict) else setting
    return {name: value for name, value in options_of(both).items() if value != reference[name]}


def named(setting: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items()) or DEFAULT


@dataclass
class Plan:
    """A TOML file of experiments. Raises ValueError for what cannot be run."""

    seeds: list
    groups: list  # of tables with a title and settings, which the plan then holds as pairs
    common: dict = field(default_factory=dict)
    model: str = ""  # else the offline one
    data: str = ""  # else the offline reviews
    rows: int = 0  # of the training split; 0: all
    seconds: float = 300  # of the cores' time that a run is taken to need, until one is measured

    def __post_init__(self):
        if not isinstance(self.seeds, list) or not all(map(is_count, self.seeds)):
            raise ValueError("seeds is not a list of whole numbers")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError("seeds holds no number, or one twice")
        if not is_count(self.rows) or not 0 < self.seconds < 1e9:
            raise ValueError("rows and seconds are numbers, seconds above 0")
        self.common = what_differs(self.common, {})
        self.groups = [
            (str(group["title"]), [what_differs(s, self.common) for s in group["settings"]])
            for group in self.groups
        ]

    @property
    def settings(self) -> dict[str, dict]:
        """Every setting by its name, once, the default first."""
        listed = [setting for _, settings in self.groups for setting in settings]
        return {named(setting): setting for setting in [{}, *listed]}

    @property
    def shared(self) -> dict:
        """What all runs of a plan have in common; by it a line of runs.jsonl is known as one."""
        model = Path(self.model or offline.MODEL).name
        data = Path(self.data or offline.DATA).name
        return {"model": model, "data": data, "rows": self.rows} | self.common

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The names of the settings with every seed."""
        return [*itertools.product(self.settings, self.seeds)]


def is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def read_plan(path: Path, data: str | None) -> Plan:
    """A TOML file of experiments, on `data` if that is given. Raises InputError if it is none."""
    try:
        with errors.reading(path):
            found = tomllib.loads(path.read_text(encoding="utf-8"))
            return Plan(**found | ({"data": data} if data else {}))
    except InputError as error:  # perhaps of an option in it
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def prepare_data(plan: Plan, out: Path) -> tuple[str, str]:
    """The base and the data; with `rows` a fixed part of the training split, in a folder."""
    model, data = plan.model, plan.data
    if not model or not data:
        offline_model, offline_data = offline.offline_pair()
        model = model or offline_model
        data = data or offline_data
    if not plan.rows:
        return model, data
    if Path(data).is_file():
        raise InputError(
            f"{data}: a file; `rows` takes a part of the training split of a directory"
        )
    folder = out / f"{Path(data).name}-{plan.rows}"
    take_rows(hub.data_folder(data), plan.rows, folder)
    return model, str(folder)


def take_rows(source: Path, count: int, folder: Path) -> None:
    """Fills the folder with so many rows to train on, always the same ones, in their order."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    found = splits.find_splits(source)
    for split in "train", "validation":
        parts = [tables.Table(path) for path in found[split]]
        table = pa.concat_tables(pa.table(part.read()) for part in parts)
        table = table.replace_schema_metadata(parts[0].schema.metadata)  # the names of the classes
        if split == "train":
            order = np.random.default_rng(0).permutation(len(table))
            table = table.take(np.sort(order[:count]))
        with files.written_whole(folder / f"{split}.parquet") as temporary:
            parquet.write_table(table, temporary)
    return folder


# The runs.


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / name.replace("/", "∕") / str(seed)


def command(plan: Plan, setting: dict, seed: int, out: Path, model: str, data: str) -> list[str]:
    given = plan.common | setting
    script = "experiments/ideas.py" if given.get("ideas") else "train.py"
    given |= {"model": model, "data": data, "out": out, "seed": seed, "resume": True}
    return [sys.executable, str(ROOT / script), *options.as_flags(given)]


def start(words: list[str], out: Path, environment: dict[str, str]) -> None:
    """One run to its end. Leaves the time that its cores worked, and its peak of memory.

    The cores' time, not the clock's: it is much the same beside other work. Of a run in two parts
    neither is known.
    """
    resumed = (out / "checkpoint").exists()
    log = out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, env=os.environ | environment)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        raise InputError(f"{log}: a run ended early: {last}")
    unit = 1 if sys.platform == "darwin" else 1024
    measured = {"seconds": used.ru_utime + used.ru_stime, "bytes": used.ru_maxrss * unit}
    files.write_json(out / DONE, dict.fromkeys(measured) if resumed else measured)


def checked_numbers(run: dict) -> dict:
    """What was measured of a run. Raises ValueError for what is no such number."""
    for name in MEASURED:
        value = run[name]
        most = 1 if name == "accuracy" else 2**63
        is_number = type(value) in (int, float) and 0 <= value <= most
        if not is_number and not (value is None and name in MAY_BE_UNKNOWN):
            raise ValueError(f"{name} is {value!r:.40}")
    return {name: run[name] for name in MEASURED}


def result(plan: Plan, setting: dict, seed: int, out: Path) -> dict:
    """What a finished run left: see MEASURED. Raises InputError if it is another plan's."""
    with errors.reading(out):
        refuse_another_plan(plan, setting, seed, out)
        lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
        last = [line for line in map(json.loads, lines) if "validation_accuracy" in line][-1]
        log = (out / LOG).read_text(encoding="utf-8")
        trained = re.search(r"^total .*?([\d,]+) trained", log, re.MULTILINE)[1]
        weights = next((out / "final").glob("*model.safetensors"))
        found = {
            "accuracy": last["validation_accuracy"],
            "loss": last["validation_loss"],
            "stored": weights.stat().st_size,
            "trained": int(trained.replace(",", "")),
            "seconds": None,
            "bytes": None,
        }
        if (out / DONE).exists():  # else the runner was killed before it wrote them
            found |= files.read_json(out / DONE)
        return checked_numbers(found)


def refuse_another_plan(plan: Plan, setting: dict, seed: int, out: Path) -> None:
    ran = deciding(ideas.Config) | options.read_toml(ideas.Config, out / OPTIONS)
    ran |= {name: Path(ran[name]).name for name in ("model", "data")}
    data = plan.shared["data"]
    asked = options_of(plan.common | setting)
    asked |= {"seed": seed, "model": plan.shared["model"]}
    asked["data"] = f"{data}-{plan.rows}" if plan.rows else data
    for name, value in asked.items():
        if ran[name] != value:
            other = f"a run with {name} {ran[name]}, not {value}"
            raise InputError(f"{out}: {other}; give another --out, or move it")


def finished(plan: Plan, out: Path, known: Path | None) -> dict[tuple[str, int], dict]:
    """The results by setting and seed: of the runs under `out`, and of the lines of `known`."""
    found = {}
    if known:
        with errors.reading(known):
            for line in known.read_text(encoding="utf-8").splitlines():
                run = known_run(plan, json.loads(line))
                found[named(run["setting"]), run["seed"]] = run
    for name, seed in plan.runs:
        folder = folder_of(out, name, seed)
        if (folder / DONE).exists() or (folder / LAST).exists():
            setting = plan.settings[name]
            numbers = result(plan, setting, seed, folder)
            found[name, seed] = {"setting": setting, "seed": seed} | numbers
    return found


def known_run(plan: Plan, line: dict) -> dict:
    if line["shared"] != plan.shared:
        raise ValueError(f"of other experiments, with {line['shared']}, not {plan.shared}")
    if not is_count(line["seed"]):
        raise ValueError(f"seed is {line['seed']!r:.40}")
    setting = what_differs(line["setting"], plan.common)
    return {"setting": setting, "seed": line["seed"]} | checked_numbers(line)


def run_all(plan: Plan, left: list[tuple[str, int]], out: Path, jobs: int) -> None:
    """Every run that is left, so many at once.

    The first that fails ends it, as soon as those beside it are done.
    """
    model, data = prepare_data(plan, out)
    gpus = visible_gpus()
    slots = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def run(name: str, seed: int) -> None:
        slot = slots.get()
        environment = {"OMP_NUM_THREADS": str(threads_of(jobs))}
        if jobs > 1 and gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        folder = folder_of(out, name, seed)
        words = command(plan, plan.settings[name], seed, out=folder, model=model, data=data)
        print(f"{name}, seed {seed}", flush=True)
        try:
            start(words, folder, environment)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, name, seed) for name, seed in left]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()


def visible_gpus() -> list[str]:
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return [name for name in names if name and count] or [str(n) for n in range(count)]


def threads_of(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


# The table and the picture.

# The 97.5th percentile of Student's t, by its degrees of freedom.
T95 = {
    2: 4.303,
    4: 2.776,
    6: 2.447,
    8: 2.306,
    10: 2.228,
    12: 2.179,
    14: 2.145,
    16: 2.120,
    18: 2.101,
}
HEAD = """\
| setting | accuracy, % | against the default | trained | MB stored | core seconds | MiB of memory |
| --- | --- | --- | ---: | ---: | ---: | ---: |
"""


def percents(results: list[dict]) -> list[float]:
    return [100 * run["accuracy"] for run in results]


def against(results: list[dict], default: list[dict]) -> str:
    """How far the mean accuracy is from the default's, if chance alone gives so much in less than 5
    of 100 cases."""
    if results is default or len(results) < 2:  # of one seed nobody knows the noise
        return "–"
    ours = percents(results)
    theirs = percents(default)
    gained = statistics.mean(ours) - statistics.mean(theirs)
    variance = statistics.variance(ours) + statistics.variance(theirs)
    error = (variance / len(ours)) ** 0.5
    is_noise = abs(gained) <= T95.get(2 * len(ours) - 2, 2.1) * error
    return "within the noise" if is_noise else f"{gained:+.2f}"


def row(setting: dict, results: list[dict], default: list[dict]) -> str:
    """A line of the table."""
    accuracies = percents(results)
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    cells = [
        named(setting),
        f"{statistics.mean(accuracies):.2f}{spread}",
        against(results, default),
        f"{results[0]['trained']:,}",
        f"{results[0]['stored'] / 1e6:,.2f}",
        middle(results, "seconds", unit=1),
        middle(results, "bytes", unit=2**20),
    ]
    return f"| {' | '.join(cells)} |"


def middle(results: list[dict], name: str, unit: int) -> str:
    values = [run[name] for run in results if run[name] is not None]
    return f"{statistics.median(values) / unit:,.0f}" if values else "–"


def summarise(plan: Plan, runs: dict[tuple[str, int], dict], out: Path) -> str:
    """The table of all settings with every seed finished; it is kept, and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"shared": plan.shared} | run) + "\n" for run in runs.values()]
    files.write_text(out / "runs.jsonl", "".join(lines))
    found = {}
    for name in plan.settings:
        if all((name, seed) in runs for seed in plan.seeds):
            found[name] = [runs[name, seed] for seed in plan.seeds]
    if DEFAULT not in found:
        return "no table yet: it compares with the default, of which not every seed is finished\n"
    groups = []
    for title, settings in plan.groups:
        settings = [setting for setting in settings if named(setting) in found]
        if any(settings):  # not the default alone
            groups.append((title, settings))
    if not groups:
        return "no table yet: of no setting beside the default is every seed finished\n"
    text = ""
    for title, settings in groups:
        rows = [row(setting, found[named(setting)], found[DEFAULT]) for setting in settings]
        text += f"\n{title}\n\n{HEAD}" + "".join(f"{line}\n" for line in rows)
    files.write_text(out / "table.md", text)
    draw(groups, found, out)
    return text


def draw(groups: list, found: dict[str, list[dict]], out: Path) -> None:
    """A panel for each group: the accuracy of each seed as a point, the mean as a line."""
    from matplotlib.figure import Figure  # late, as it takes a second to import

    figure = Figure(figsize=(3 * len(groups), 4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    axes[0].set_ylabel("validation accuracy, %")
    for axis, (title, settings) in zip(axes, groups, strict=True):
        names = [named(setting) for setting in settings]
        for place, name in enumerate(names):
            points = percents(found[name])
            axis.plot([place] * len(points), points, "o", color="0.6", markersize=4)
            axis.plot(place, statistics.mean(points), "_", color="C0", markersize=14)
        labels = [name if len(name) < 48 else f"{name[:45]}…" for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=7)
        axis.set_title(title.replace("$", r"\$"), fontsize=9)
        axis.grid(alpha=0.3)
    figure.savefig(out / "picture.png", dpi=120)


# The program.


def parse_arguments():
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    here = Path(__file__)
    add("plan", type=Path, nargs="?", default=here.with_name("reviews.toml"))
    add("--data", help="where the data set lies, instead of what the file names")
    add(
        "--out", type=Path, help="where the runs go (default: out-experiments/ and the plan's name)"
    )
    add(
        "--jobs", type=int, default=1, help="runs at once, each with a share of the cores, or a GPU"
    )
    add("--known", type=Path, help="a runs.jsonl of another machine: runs not to be done again")
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--dry-run", action="store_true", help="list what is still to be run, and do nothing")
    instead("--table", action="store_true", help="draw table and picture of what is finished")
    given = parser.parse_args()
    given.out = given.out or ROOT / "out-experiments" / given.plan.stem
    if given.jobs < 1:
        raise InputError(f"--jobs {given.jobs} is not at least 1")
    return given


def say_what_is_left(plan: Plan, runs: dict, left: list, jobs: int) -> None:
    seconds = [run["seconds"] for run in runs.values() if run["seconds"]] or [plan.seconds]
    each = statistics.median(seconds)
    cores = min(jobs * threads_of(jobs), os.cpu_count() or 1)
    at_once = jobs if torch.cuda.is_available() else cores
    hours = len(left) * each / 3600 / at_once
    counted = f"{len(plan.settings)} settings, {len(plan.seeds)} seeds: {len(left)} runs are left"
    print(f"{counted}, of {each:.0f} core seconds, {hours:.1f} hours", flush=True)


def main() -> None:
    given = parse_arguments()
    plan = read_plan(given.plan, given.data)
    runs = finished(plan, given.out, given.known)
    left = [run for run in plan.runs if run not in runs]
    say_what_is_left(plan, runs, left, given.jobs)
    if given.dry_run:
        print("".join(f"{name}, seed {seed}\n" for name, seed in left), end="")
        return
    if given.table and not runs:
        raise InputError(f"{given.out}: no finished run there; --out says where they are")
    if left and not given.table:
        try:
            run_all(plan, left, given.out, given.jobs)
        except BaseException:
            with contextlib.suppress(InputError):  # there is another to be told
                runs = finished(plan, given.out, given.known)
                print(summarise(plan, runs, given.out), end="")
            raise
        runs = finished(plan, given.out, given.known)
    print(summarise(plan, runs, given.out), end="")


if __name__ == "__main__":
    run_main(main)
