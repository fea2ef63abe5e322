"""Runs train.py with every setting and seed that a TOML file lists, and draws a table of each group
and one picture.

    python experiments/run.py experiments/reviews.toml             # hours; --dry-run says how many
    python experiments/run.py experiments/sst2.toml --jobs 2       # two runs at once, half the cores each

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
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ideas

from support.console import run_main
from support.files import InputError, first_line, read_json, write_json, write_text, written_whole
from support.offline import DIRECTORIES, offline_pair
from support.options import OneLineParser, deciding_options, flag, read_toml
from support.run_folder import LAST, OPTIONS
from support.tables import find_split, read_table
from train import Config

DONE = "result.json"
MEASURED = ("accuracy", "loss", "stored", "trained", "seconds", "bytes")
BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    StopIteration,
    OverflowError,
    RecursionError,
)


# What is to be run.


def options_of(setting: dict) -> dict:
    """All that decides a run of such a setting: train.py's options, but model, data and seed, and
    `ideas`.

    Raises InputError for a setting that cannot be had.
    """
    if not isinstance(setting, dict):
        raise InputError(f"{setting!r:.80} is not a table of options")
    allowed = deciding_options(Config()) | {"ideas": ""}
    for name in ("model", "data", "seed"):  # the runner gives these
        del allowed[name]
    if odd := [name for name in setting if name not in allowed]:
        raise InputError(f"{odd[0]!r} is no option that a setting can have")
    if not isinstance(words := setting.get("ideas", ""), str):
        raise InputError(f"ideas {words!r:.80} is not a text")
    config = Config(**{name: value for name, value in setting.items() if name != "ideas"})
    found = ideas.parsed(words.split(), config.rank, config.init_adapter)
    chosen = {"ideas": " ".join(ideas.spelled(found))} | deciding_options(config)
    return {name: value for name, value in chosen.items() if name in allowed}


def what_differs(setting: dict, common: dict) -> dict:
    """A setting by what it changes beside `common`: each option in its own type, and all in one
    order."""
    reference, options = (
        options_of(common),
        options_of(common | setting if isinstance(setting, dict) else setting),
    )
    return {name: value for name, value in options.items() if value != reference[name]}


def named(setting: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items()) or "the default"


@dataclass
class Plan:
    """A TOML file of experiments."""

    seeds: list
    groups: list  # of tables with a title and settings, which the plan then holds as pairs
    common: dict = field(default_factory=dict)
    model: str = ""  # else the offline one
    data: str = ""  # else the offline reviews
    rows: int = 0  # of the training split; 0: all
    seconds: float = 300  # of the cores' time that a run is taken to need, until one is measured

    def __post_init__(self):
        whole = lambda value: type(value) is int and 0 <= value < 2**63
        if not (isinstance(self.seeds, list) and all(whole(seed) for seed in self.seeds)):
            raise InputError("seeds is not a list of whole numbers")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise InputError("seeds holds no number, or one twice")
        if not (whole(self.rows) and type(self.seconds) in (int, float) and 0 < self.seconds < 1e9):
            raise InputError("rows and seconds are numbers, seconds above 0")
        if not all(isinstance(value, str) for value in (self.model, self.data)) or not isinstance(
            self.common, dict
        ):
            raise InputError("model and data are strings, common a table")
        self.common = what_differs(self.common, {})
        try:
            groups = [(str(group["title"]), list(group["settings"])) for group in self.groups]
        except (KeyError, TypeError):
            raise InputError("groups is not a list of tables with a title and settings") from None
        self.groups = [
            (title, [what_differs(s, self.common) for s in settings]) for title, settings in groups
        ]

    @property
    def settings(self) -> dict[str, dict]:
        """Every setting by its name, once, the default first."""
        return {
            named(s): s for s in [{}, *itertools.chain(*(settings for _, settings in self.groups))]
        }

    @property
    def shared(self) -> dict:
        """What all runs of a plan have in common: by it a line of runs.jsonl is known to be of this
        plan."""
        model, data = (
            Path(place).name
            for place in (self.model or DIRECTORIES[0], self.data or DIRECTORIES[1])
        )
        return {"model": model, "data": data, "rows": self.rows} | self.common


def read_plan(path: Path, data: str | None) -> Plan:
    """A TOML file of experiments, on `data` if that is given. Raises InputError if it is none."""
    found = read_toml(path)
    try:
        if odd := found.keys() - {f.name for f in fields(Plan)}:
            raise InputError(f"{sorted(odd)[0]!r} is none of its words")
        if missing := {"seeds", "groups"} - found.keys():
            raise InputError(f"{sorted(missing)[0]!r} is missing")
        return Plan(**found | ({"data": data} if data else {}))
    except InputError as error:
        raise InputError(f"{path}: not a list of experiments: {error}") from None


def prepare_data(plan: Plan, out: Path) -> tuple[str, str]:
    """The directories of the base and of the data; of a data set with `rows` a fixed part of its
    training split."""
    from pyarrow import parquet

    model, data = (plan.model, plan.data) if plan.model and plan.data else offline_pair()
    model, data = plan.model or model, plan.data or data
    if not plan.rows:
        return model, data
    if Path(data).is_file():
        raise InputError(
            f"{data}: a file; `rows` takes a part of the training split of a directory or of the Hub"
        )
    folder = out / f"{Path(data).name}-{plan.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    for split in "train", "validation":
        table, _ = read_table(find_split(data, split))
        if split == "train":
            table = table.take(
                np.sort(np.random.default_rng(0).permutation(len(table))[: plan.rows])
            )
        with written_whole(folder / f"{split}.parquet") as temporary:
            parquet.write_table(table, temporary)
    return model, str(folder)


# The runs.


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / name.replace("/", "∕") / str(seed)


def command(plan: Plan, setting: dict, seed: int, out: Path, model: str, data: str) -> list[str]:
    options = plan.common | setting
    words = options.pop("ideas", "").split()
    flags = [f"{flag(name)}={value}" for name, value in options.items()]
    script = ROOT / ("experiments/ideas.py" if words else "train.py")
    places = [f"--model={model}", f"--data={data}", f"--out={out}", f"--seed={seed}"]
    return [sys.executable, str(script), *words, *places, *flags, "--resume"]


def start(words: list[str], out: Path, environment: dict[str, str]) -> None:
    """One run to its end; leaves the time its cores worked and its peak of memory; unknown of a run
    in two parts.

    The cores' time, not the clock's: it is much the same beside other work.
    """
    resumed, log = (out / "checkpoint").exists(), out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, env=os.environ | environment)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise InputError(f"{log}: a run ended early: {last[0] if last else 'it said nothing'}")
    unit = 1 if sys.platform == "darwin" else 1024
    measured = {"seconds": used.ru_utime + used.ru_stime, "bytes": used.ru_maxrss * unit}
    write_json(out / DONE, dict.fromkeys(measured) if resumed else measured)


def numbers(run: dict) -> dict:
    """What was measured of a run. Raises ValueError for what is no such number."""
    for name in MEASURED:
        value, most = run[name], 1 if name == "accuracy" else 2**63
        unknown = value is None and name in ("loss", "seconds", "bytes")
        if not unknown and not (type(value) in (int, float) and 0 <= value <= most):
            raise ValueError(f"{name} is {value!r:.40}")
    return {name: run[name] for name in MEASURED}


def result(plan: Plan, setting: dict, seed: int, out: Path) -> dict:
    """What a finished run left: accuracy at its end, parameters trained, size of the adapter,
    seconds, memory.

    Raises InputError if it is the run of another plan.
    """
    try:
        ran = asdict(Config()) | read_toml(out / OPTIONS) | {"ideas": ideas.words_of(out)}
        ran |= {name: Path(ran[name]).name for name in ("model", "data")}
        asked = options_of(plan.common | setting) | {"seed": seed, "model": plan.shared["model"]}
        asked["data"] = f"{plan.shared['data']}-{plan.rows}" if plan.rows else plan.shared["data"]
        if others := [name for name, value in asked.items() if ran[name] != value]:
            name = others[0]
            raise InputError(
                f"{out}: a run with {name} {ran[name]}, not {asked[name]}; give another --out, or move it"
            )
        records = [
            json.loads(line)
            for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        log = (out / "training_log.txt").read_text(encoding="utf-8")
        weights = next((out / "final").glob("*model.safetensors"))
        last = next(record for record in reversed(records) if "validation_accuracy" in record)
        told = {"accuracy": last["validation_accuracy"], "loss": last["validation_loss"]}
        trained = re.search(r"^total .*?([\d,]+) trained", log, re.MULTILINE)[1]
        told |= {"stored": weights.stat().st_size, "trained": int(trained.replace(",", ""))}
        measured = (
            read_json(out / DONE) if (out / DONE).exists() else {}
        )  # the runner was killed before it wrote them
        return numbers(told | {name: measured.get(name) for name in ("seconds", "bytes")})
    except BROKEN as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{out}: not a finished run with accuracies ({why:.200}); move it away"
        ) from None


def finished(plan: Plan, out: Path, known: Path | None) -> dict[tuple[str, int], dict]:
    """The results by setting and seed: of the runs under `out`, and the lines of `known`. Raises
    InputError."""
    there = {}
    try:
        for line in map(
            json.loads, known.read_text(encoding="utf-8").splitlines() if known else ()
        ):
            if line["shared"] != plan.shared:
                raise InputError(
                    f"{known}: of other experiments, with {line['shared']}, not {plan.shared}"
                )
            setting, seed = what_differs(line["setting"], plan.common), line["seed"]
            if type(seed) is not int:
                raise ValueError(f"seed is {seed!r:.40}")
            there[named(setting), seed] = {"setting": setting} | numbers(line)
    except BROKEN as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{known}: not the runs.jsonl of such experiments ({why:.200})") from None
    for (name, setting), seed in itertools.product(plan.settings.items(), plan.seeds):
        folder = folder_of(out, name, seed)
        if (folder / DONE).exists() or (folder / LAST).exists():
            there[name, seed] = {"setting": setting} | result(plan, setting, seed, folder)
    return there


def run_all(plan: Plan, left: list[tuple[str, int]], out: Path, jobs: int) -> None:
    """Every run that is left, so many at once. The first that fails ends it, as soon as those
    beside it are done."""
    model, data = prepare_data(plan, out)
    slots = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = gpus or [str(number) for number in range(torch.cuda.device_count())]

    def one(job: tuple[str, int]) -> None:
        (name, seed), slot = job, slots.get()
        environment = {"OMP_NUM_THREADS": str(threads_of(jobs))}
        if jobs > 1 and torch.cuda.device_count():
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        folder = folder_of(out, name, seed)
        print(f"{name}, seed {seed}", flush=True)
        try:
            start(
                command(plan, plan.settings[name], seed, folder, model, data), folder, environment
            )
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, job) for job in left]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()


def threads_of(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


# The table and the picture.

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
}  # Student's t


def against(results: list[dict], default: list[dict]) -> str:
    """How far the mean accuracy is from the default's, if chance alone gives so much in less than 5
    of 100 cases."""
    if results is default or len(results) < 2:  # of one seed nobody knows the noise
        return "–"
    ours, theirs = ([100 * run["accuracy"] for run in runs] for runs in (results, default))
    gained = statistics.mean(ours) - statistics.mean(theirs)
    error = ((statistics.variance(ours) + statistics.variance(theirs)) / len(ours)) ** 0.5
    beyond = abs(gained) > T95.get(2 * len(ours) - 2, 2.1) * error
    return f"{gained:+.2f}" if beyond else "within the noise"


def row(setting: dict, results: list[dict], default: list[dict]) -> str:
    """A line of the table."""
    accuracies = [100 * run["accuracy"] for run in results]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""

    def middle(name: str, unit: int) -> str:
        values = [run[name] for run in results if run[name] is not None]
        return f"{statistics.median(values) / unit:,.0f}" if values else "–"

    shown = [
        f"{statistics.mean(accuracies):.2f}{spread}",
        against(results, default),
        f"{results[0]['trained']:,}",
        # fmt: skip
        f"{results[0]['stored'] / 1e6:,.2f}",
        middle("seconds", 1),
        middle("bytes", 2**20),
    ]
    return f"| {named(setting)} | " + " | ".join(shown) + " |"


HEAD = """\
| setting | accuracy, % | against the default | trained | MB stored | core seconds | MiB of memory |
| --- | --- | --- | ---: | ---: | ---: | ---: |
"""


def summarise(plan: Plan, runs: dict[tuple[str, int], dict], out: Path) -> str:
    """The table of all settings of which every seed is finished, and the picture."""
    lines = [{"shared": plan.shared, "seed": seed} | run for (_, seed), run in runs.items()]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "runs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    every = {
        name: [runs[name, seed] for seed in plan.seeds if (name, seed) in runs]
        for name in plan.settings
    }
    found = {name: results for name, results in every.items() if len(results) == len(plan.seeds)}
    if "the default" not in found:
        return "no table yet: it compares with the default, of which not every seed is finished\n"
    groups = [
        (title, [s for s in settings if named(s) in found]) for title, settings in plan.groups
    ]
    groups = [(title, settings) for title, settings in groups if settings not in ([], [{}])]
    if not groups:
        return "no table yet: of no setting beside the default is every seed finished\n"
    text = ""
    for title, settings in groups:
        rows = (row(setting, found[named(setting)], found["the default"]) for setting in settings)
        text += f"\n{title}\n\n{HEAD}" + "".join(f"{line}\n" for line in rows)
    write_text(out / "table.md", text)
    draw(groups, found, out)
    return text


def draw(groups: list, found: dict, out: Path) -> None:
    """A panel for each group: the accuracy of each seed as a point, the mean as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(3 * len(groups), 4), sharey=True, layout="constrained"
    )
    for axis, (title, settings) in zip(np.atleast_1d(axes), groups, strict=True):
        points = [[100 * run["accuracy"] for run in found[named(setting)]] for setting in settings]
        for place, values in enumerate(points):
            axis.plot([place] * len(values), values, "o", color="0.6", markersize=4)
        axis.plot(
            range(len(points)),
            [statistics.mean(values) for values in points],
            "_",
            markersize=14,
            color="C0",
        )
        labels = [
            name if len(name := named(setting)) < 48 else f"{name[:45]}…" for setting in settings
        ]
        axis.set_xticks(range(len(points)), labels, rotation=60, ha="right", fontsize=7)
        axis.set_title(title.replace("$", r"\$"), fontsize=9)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("validation accuracy, %")
    figure.savefig(out / "picture.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "plan", type=Path, nargs="?", default=Path(__file__).with_name("reviews.toml")
    )
    parser.add_argument("--data", help="where the data set lies, instead of what the file names")
    parser.add_argument(
        "--out", type=Path, help="where the runs go (default: out-experiments/ and the plan's name)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at once; each gets its share of the cores, or a GPU",
    )
    parser.add_argument(
        "--known", type=Path, help="the runs.jsonl of another machine: runs not to be done again"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="list what is still to be run, and do nothing"
    )
    instead.add_argument(
        "--table", action="store_true", help="draw table and picture of what is finished"
    )
    arguments = parser.parse_args()
    plan, out, jobs = read_plan(arguments.plan, arguments.data), arguments.out, arguments.jobs
    out = out or ROOT / "out-experiments" / arguments.plan.stem
    if jobs < 1:
        raise InputError(f"--jobs {jobs} is not at least 1")
    runs = finished(plan, out, arguments.known)
    left = [run for run in itertools.product(plan.settings, plan.seeds) if run not in runs]
    each = statistics.median(
        [run["seconds"] for run in runs.values() if run["seconds"]] or [plan.seconds]
    )
    cores = min(jobs * threads_of(jobs), os.cpu_count() or 1)
    hours = len(left) * each / 3600 / (jobs if torch.cuda.is_available() else cores)
    counted = f"{len(plan.settings)} settings, {len(plan.seeds)} seeds: {len(left)} runs are left"
    print(f"{counted}, of {each:.0f} core seconds, {hours:.1f} hours", flush=True)
    if arguments.dry_run:
        print("".join(f"{name}, seed {seed}\n" for name, seed in left), end="")
        return
    if arguments.table and not runs:
        raise InputError(f"{out}: no finished run there; --out says where they are")
    if left and not arguments.table:
        try:
            run_all(plan, left, out, jobs)
        except BaseException:
            with contextlib.suppress(InputError):  # there is another to be told
                print(summarise(plan, finished(plan, out, arguments.known), out), end="")
            raise
        runs = finished(plan, out, arguments.known)
    print(summarise(plan, runs, out), end="")


if __name__ == "__main__":
    run_main(main)
