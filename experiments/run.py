"""Runs train.py with every setting and seed that a TOML file lists, and draws one table and one picture of all.

    python experiments/run.py experiments/reviews.toml             # hours; --dry-run says how many
    python experiments/run.py experiments/sst2.toml --jobs 2       # two runs at once, half the cores each

Each run has its own --out under out-experiments/. A finished one is never run again, and one that was killed goes on
from its checkpoint. On a machine with GPUs, --jobs takes one for each run. Afterwards, and with --table at any time,
table.md, picture.png and runs.jsonl, a line for each run, stand beside the runs; --known takes such lines from another
machine, whose runs then count as finished. Everything here is train.py's own: what it prints, and what it leaves.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from support.console import run_main
from support.files import InputError, write_json, write_text
from support.offline import offline_pair
from support.tables import find_split, read_table

DONE = "result.json"


def read_plan(path: Path) -> dict:
    """A TOML file of experiments. Raises InputError if it is none."""
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
        plan["groups"] = [(group["title"], list(group["settings"])) for group in plan["groups"]]
        plan.setdefault("common", {})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of experiments ({type(error).__name__}: {error})") from None
    return plan


def prepare_data(plan: dict, out: Path) -> tuple[str, str]:
    """The directories of the base and of the data; of a data set with `rows` a fixed part of its training split."""
    from pyarrow import parquet

    model, reviews = offline_pair()
    model, data = plan.get("model", model), plan.get("data", reviews)
    if not (rows := plan.get("rows")):
        return model, data
    folder = out / f"{Path(data).name}-{rows}"
    for split in "train", "validation":
        if not (file := folder / f"{split}.parquet").exists():
            folder.mkdir(parents=True, exist_ok=True)
            table, _ = read_table(find_split(data, split))
            if split == "train":
                table = table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:rows]))
            parquet.write_table(table, file)
    return model, str(folder)


def named(setting: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items()) or "the default"


def command(plan: dict, setting: dict, seed: int, out: Path, model: str, data: str) -> list[str]:
    options = plan["common"] | setting
    ideas = options.pop("ideas", "").split()
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    script = ROOT / ("experiments/ideas.py" if ideas else "train.py")
    places = [f"--model={model}", f"--data={data}", f"--out={out}", f"--seed={seed}"]
    return [sys.executable, str(script), *places, *flags, *ideas]


def start(words: list[str], out: Path, environment: dict[str, str]) -> None:
    """One run to its end; leaves the time its cores worked and its peak of memory; unknown of a run in two parts.

    The cores' time, not the clock's: it is much the same beside other work.
    """
    resumed, log = (out / "checkpoint").exists(), out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as said:
        process = subprocess.Popen([*words, "--resume"], stdout=said, stderr=said, env=os.environ | environment)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise InputError(f"{log}: a run ended early; its last lines say why")
    unit = 1 if sys.platform == "darwin" else 1024
    measured = {"seconds": used.ru_utime + used.ru_stime, "bytes": used.ru_maxrss * unit}
    write_json(out / DONE, dict.fromkeys(measured) if resumed else measured)


def result(out: Path) -> dict:
    """What a finished run left: accuracy at its end, parameters trained, size of the adapter, seconds, memory."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = re.search(r"^total .*?([\d,]+) trained", (out / "training_log.txt").read_text(), re.MULTILINE)[1]
    weights = next((out / "final").glob("*model.safetensors"))
    last = next(record for record in reversed(records) if "validation_accuracy" in record)
    told = {"accuracy": last["validation_accuracy"], "loss": last["validation_loss"], "stored": weights.stat().st_size}
    return told | {"trained": int(trained.replace(",", ""))} | json.loads((out / DONE).read_text())


T95 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306}  # Student's t by degrees of freedom; two and two seeds have 2


def row(setting: dict, results: list[dict], default: list[dict]) -> str:
    """A line of the table. A difference is called so where chance alone gives it in less than 5 of 100 cases."""
    of = lambda name, results: [100 * r[name] if name == "accuracy" else r[name] for r in results if r[name]]
    spread = lambda values: statistics.stdev(values) if len(values) > 1 else float("nan")
    ours, theirs = of("accuracy", results), of("accuracy", default)
    gained = statistics.mean(ours) - statistics.mean(theirs)
    error = (spread(ours) ** 2 / len(ours) + spread(theirs) ** 2 / len(theirs)) ** 0.5
    beyond = abs(gained) > T95.get(len(ours) + len(theirs) - 2, 2) * error
    alone = min(len(ours), len(theirs)) < 2  # of one seed nobody knows the noise
    against = "–" if results is default or alone else f"{gained:+.2f}" if beyond else "within the noise"
    seconds, memory = (of(name, results) for name in ("seconds", "bytes"))
    middle = lambda values, unit: f"{statistics.median(values) / unit:,.0f}" if values else "–"
    mean = f"{statistics.mean(ours):.2f}" + f" ± {spread(ours):.2f}" * (len(ours) > 1)
    shown = [mean, against, f"{results[0]['trained']:,}",
             f"{results[0]['stored'] / 1e6:,.2f}", middle(seconds, 1), middle(memory, 2**20)]  # fmt: skip
    return f"| {named(setting)} | " + " | ".join(shown) + " |"


HEAD = """\
| setting | accuracy, % | against the default | trained | MB stored | core seconds | MiB of memory |
| --- | --- | --- | ---: | ---: | ---: | ---: |
"""


def shared(plan: dict) -> dict:
    """What all runs of a plan have in common: by it a line of runs.jsonl is known to be of this plan."""
    return {"data": Path(plan.get("data", "the offline reviews")).name, "rows": plan.get("rows")} | plan["common"]


def finished(plan: dict, settings: dict[str, dict], out: Path, known: Path | None) -> dict[tuple[str, int], dict]:
    """The results by setting and seed: of the runs under `out`, and the lines of `known`. Raises InputError."""
    there, fields = {}, ("accuracy", "loss", "stored", "trained", "seconds", "bytes")
    try:
        for line in map(json.loads, known.read_text(encoding="utf-8").splitlines() if known else ()):
            if line["shared"] != shared(plan):
                raise InputError(f"{known}: of other experiments, with {line['shared']}, not {shared(plan)}")
            there[named(line["setting"]), line["seed"]] = {field: line[field] for field in fields}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{known}: not the runs.jsonl of such experiments ({type(error).__name__}: {error})") from None
    folders = {(name, seed): out / name / str(seed) for name in settings for seed in plan["seeds"]}
    return there | {run: result(folder) for run, folder in folders.items() if (folder / DONE).exists()}


def summarise(plan: dict, settings: dict[str, dict], runs: dict[tuple[str, int], dict], out: Path) -> str:
    """The table of all settings of which every seed is finished, and the picture."""
    of = lambda name, seed: {"shared": shared(plan), "setting": settings[name], "seed": seed}
    lines = [of(*run) | result for run, result in runs.items() if run[0] in settings]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "runs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    every = {name: [runs[name, seed] for seed in plan["seeds"] if (name, seed) in runs] for name in settings}
    found = {name: results for name, results in every.items() if len(results) == len(plan["seeds"])}
    if "the default" not in found:
        return "no setting is finished yet"
    text, default = "", found["the default"]
    for title, settings in plan["groups"]:
        if not (there := [setting for setting in settings if named(setting) in found]) or there == [{}]:
            continue
        text += f"\n{title}\n\n{HEAD}" + "".join(row(s, found[named(s)], default) + "\n" for s in there)
    write_text(out / "table.md", text)
    draw([(title, [s for s in settings if named(s) in found]) for title, settings in plan["groups"]], found, out)
    return text


def draw(groups: list, found: dict, out: Path) -> None:
    """A panel for each group: the accuracy of each seed as a point, the mean as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(groups), figsize=(3 * len(groups), 4), sharey=True, layout="constrained")
    for axis, (title, settings) in zip(np.atleast_1d(axes), groups, strict=True):
        points = [[100 * r["accuracy"] for r in found[named(setting)]] for setting in settings]
        for place, values in enumerate(points):
            axis.plot([place] * len(values), values, "o", color="0.6", markersize=4)
        axis.plot(range(len(points)), [statistics.mean(values) for values in points], "_", markersize=14, color="C0")
        labels = [name if len(name := named(setting)) < 48 else f"{name[:45]}…" for setting in settings]
        axis.set_xticks(range(len(points)), labels, rotation=60, ha="right", fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("validation accuracy, %")
    figure.savefig(out / "picture.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan", type=Path, nargs="?", default=Path(__file__).with_name("reviews.toml"))
    parser.add_argument("--data", help="where the data set lies, instead of what the file names")
    parser.add_argument("--out", type=Path, help="where the runs go (default: out-experiments/ and the plan's name)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; each gets its share of the cores, or a GPU")
    parser.add_argument("--dry-run", action="store_true", help="say what is still to be run, and do nothing")
    parser.add_argument("--table", action="store_true", help="draw table and picture of what is finished")
    parser.add_argument("--known", type=Path, help="the runs.jsonl of another machine: runs not to be done again")
    arguments = parser.parse_args()
    plan = read_plan(arguments.plan)
    if arguments.data:
        plan["data"] = arguments.data
    out, seeds = arguments.out or ROOT / "out-experiments" / arguments.plan.stem, plan["seeds"]
    settings = {named(s): s for s in [{}, *itertools.chain(*(settings for _, settings in plan["groups"]))]}
    runs = finished(plan, settings, out, arguments.known)
    left = [(setting, seed) for name, setting in settings.items() for seed in seeds if (name, seed) not in runs]
    each = statistics.median([r["seconds"] for r in runs.values() if r["seconds"]] or [plan.get("seconds", 300)])
    hours = len(left) * each / arguments.jobs / 3600
    print(
        f"{len(settings)} settings, {len(seeds)} seeds: {len(left)} runs are left, of {each:.0f} s, {hours:.1f} hours"
    )
    if arguments.table or arguments.dry_run:
        return print(summarise(plan, settings, runs, out) if arguments.table else "", end="")
    model, data = prepare_data(plan, out)
    threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    slots, places = threading.local(), itertools.count()

    def one(job: tuple) -> None:
        slots.number = getattr(slots, "number", None) or next(places) + 1
        environment = {"OMP_NUM_THREADS": threads}
        if arguments.jobs > 1 and (gpus := torch.cuda.device_count()):
            environment["CUDA_VISIBLE_DEVICES"] = str((slots.number - 1) % gpus)
        setting, seed = job
        folder = out / named(setting) / str(seed)
        print(f"{named(setting)}, seed {seed}", flush=True)
        start(command(plan, setting, seed, folder, model, data), folder, environment)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, left))
    print(summarise(plan, settings, finished(plan, settings, out, arguments.known), out))


if __name__ == "__main__":
    run_main(main)
