"""Breaks training on purpose, with real processes, and looks at what is left in --out.

    python tests/faults.py                   # every fault, some minutes
    python tests/faults.py --quick           # a few of each, as continuous integration does
    python tests/faults.py --only "disk"     # one fault, by a word of its name

Each run is a forked child of this process, which has imported PyTorch already, on a random BERT of
two layers and 200 real sentences. A fault passes if going on with --resume leaves, byte for byte,
the files of a run that nothing disturbed, and if every error is one line on standard error with
exit status 2.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._dynamo  # this and the next lines: what each child would otherwise import late
from huggingface_hub import EvalResult, ModelCardData, errors, hf_hub_download  # noqa: F401
from matplotlib import pyplot
from pyarrow import csv, json, parquet  # noqa: F401

import bert
import lora
import sample
import train
from support import labelling as labelling_room
from support.console import run_main
from support.offline import offline_pair

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
HOME = Path(tempfile.mkdtemp(prefix="faults-"))
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
OPTIONS = f"""--model {HOME}/base --data {HOME}/reviews.parquet --device cpu --max-length 32 --epochs 2 --batch-size 32
              --save-every 2 --eval-every 4 --log-every 3""".split()
FORWARD = (
    bert.BertForSequenceClassification,
    "forward",
)  # called in steps 1-4, an evaluation, 5-6, one, 7-8, one, …
LOOSE = {"training_log.txt", "config.toml", ".lock"}  # these say when and how often a run was begun


# Processes.


def start(*arguments, inside=None, program=train) -> tuple[int, int]:
    """Forks a child that runs a program with these arguments, after inside(): its id, and its
    standard error's pipe."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 0
    try:
        signal.alarm(120)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(write, 2)
        sys.argv = [f"{program.__name__}.py", *map(str, arguments)]
        if inside:
            inside()
        run_main(program.main)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(child: tuple[int, int]) -> tuple[int, str]:
    """Waits for a child: its exit status, or minus the signal that ended it, and its standard
    error."""
    status = os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1])
    with open(child[1], errors="replace") as said:
        return status, said.read()


def training(out: Path, *more, inside=None) -> tuple[int, int]:
    return start(*OPTIONS, "--out", out, *more, inside=inside)


def train_in(out: Path, *more, inside=None) -> tuple[int, str]:
    return finish(training(out, *more, inside=inside))


def folder() -> Path:
    return Path(tempfile.mkdtemp(dir=HOME)) / "out"


def half_done(of: str = "half") -> Path:
    """A copy of a run that was killed in the middle, after a checkpoint."""
    return shutil.copytree(HOME / of / "out", folder())


# What must hold.


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a run, hidden ones too, but for those in LOOSE.

    The checkpoint counts as there or not: safetensors shuffles its header. That it is whole,
    resuming shows.
    """
    walked = (
        (Path(where) / name)
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
    )
    files = {str(path.relative_to(folder)): path for path in walked if path.is_file()}
    read = lambda name: b"" if name.endswith("checkpoint.safetensors") else files[name].read_bytes()
    return {name: read(name) for name in files if name not in LOOSE}


def difference(out: Path, reference: dict[str, bytes]) -> str:
    """Which files are not as in the reference, or "" if all are."""
    found = contents(out)
    odd = {
        name: "missing"
        if name not in found
        else "left over"
        if name not in reference
        else "different"
        # fmt: skip
        for name in found.keys() | reference.keys()
        if found.get(name) != reference.get(name)
    }
    return ", ".join(f"{name} is {how}" for name, how in sorted(odd.items()))


def is_line(result: tuple[int, str], words: str = "") -> bool:
    """Whether a run ended as an error should: status 2, and one line that the regular expression
    `words` is in."""
    foreseen = re.fullmatch(r"error: [^\n]+\n", result[1]) and "should not happen" not in result[1]
    return result[0] == 2 and bool(foreseen and re.search(words, result[1]))


def show(result: tuple[int, str]) -> str:
    return f"exit {result[0]}, {' '.join(result[1].strip().splitlines()[-1:])[:230] or 'no line'!r}"


def resumed(out: Path) -> str:
    """Goes on with a run, and says what is wrong with the result, or "" if all is well."""
    begun = (out / "checkpoint" / "checkpoint.safetensors").exists()
    result = train_in(out, "--resume")
    if is_line(result, "finished run") and contents(out) == REFERENCE:
        return ""
    if result[0] == 0 and begun and "resuming" not in (out / "training_log.txt").read_text():
        return "began anew, though there was a checkpoint"
    return difference(out, REFERENCE) if result[0] == 0 else f"resuming: {show(result)}"


def ends_well(out: Path, result: tuple[int, str], name: str, begin) -> str:
    """For a run that found `name` spoilt: it may end with a clear line, or with the right files.

    What was spoilt in the best/ of a half-done run is lost, unless a better one follows.
    """
    if result[0] != 0:
        return "" if is_line(result, f"{name}|finished run") else show(result)
    spare = name if begin is half_done and name.startswith("best") else "nothing"
    return ", ".join(
        x for x in filter(None, difference(out, REFERENCE).split(", ")) if not x.startswith(spare)
    )


# Faults inside a child.


def at_change(out: Path, n: int, act, events: str):
    """inside(): does act() before the n-th of these events on files of `out`, as Python's own audit
    reports them."""

    def inside():
        count, fsync = itertools.count(1), os.fsync

        def hook(event, arguments):
            if event in events.split() and isinstance(arguments[0], (str, Path)):
                path = str(arguments[0])  # a relative one is shutil.rmtree's
                if (path.startswith(str(out)) or not path.startswith("/")) and next(count) == n:
                    act()

        os.fsync = lambda file: (hook("fsync", (str(out),)), fsync(file))
        sys.addaudithook(hook)

    return inside


def at_call(owner, name: str, n: int, act):
    """inside(): the n-th call of a function does act() instead."""

    def inside():
        original, count = getattr(owner, name), itertools.count(1)
        setattr(owner, name, lambda *a, **k: act() if next(count) == n else original(*a, **k))

    return inside


def before_call(owner, name: str, n: int, act):
    """inside(): act() happens before the n-th call of a function; for n = 0 at the very start."""

    def inside():
        original, count = getattr(owner, name), itertools.count(1)
        setattr(
            owner, name, lambda *a, **k: (act() if next(count) == n else None, original(*a, **k))[1]
        )
        act() if n == 0 else None

    return inside


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def no_room(then):
    """act(): no file grows beyond 64 bytes from here on. A write that would is cut there, and
    `then` follows."""

    def act():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, then)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    return act


def fail(error: Exception):
    raise error


# The faults. Each yields (what was done, what went wrong or "").


def killed_at_random(quick):
    for i in range(5 if quick else 50):
        out, after = folder(), DRAW.uniform(0, 1.3 * SECONDS)
        for again in range(1 + i % 2):  # every second one is killed twice
            child = training(out, "--resume")
            time.sleep(after / (1 + again))
            os.kill(child[0], signal.SIGKILL)
            finish(child)
        yield f"after {after:.2f} s", resumed(out)


def stopped(quick):
    for i in range(2 if quick else 20):
        out, number, after = (
            folder(),
            (signal.SIGINT, signal.SIGTERM)[i % 2],
            DRAW.uniform(0, SECONDS),
        )
        child = training(out)
        time.sleep(after)
        os.kill(child[0], number)
        yield f"{number.name} after {after:.2f} s", after_signal(out, finish(child), number)


def torchrun(out: Path, *more) -> subprocess.Popen:
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *more,
    ]
    words += ["train.py", *OPTIONS, "--batch-size=16", "--epochs=40", "--out", out]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, words)], cwd=ROOT, text=True, **pipes)


def workers(pid: int) -> list[int]:
    """The processes that a torchrun has started."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker_killed(quick):
    """Kills one of two processes at random, again and again; torchrun starts both anew, and
    --resume needs no word."""
    whole = folder()
    said = torchrun(whole).communicate(timeout=300)[1]
    assert (whole / "final").exists(), said
    left = 2 if quick else 20
    while left > 0:
        out, kills, delays = folder(), 0, []
        run = torchrun(out, "--max-restarts=20")
        while run.poll() is None and kills < min(left, 5):
            delays.append(f"{(after := DRAW.uniform(0, 8)):.1f}")
            time.sleep(after)
            if found := workers(run.pid):
                os.kill(DRAW.choice(found), signal.SIGKILL)
                kills += 1
        said = run.communicate(timeout=300)[1]
        trouble = (
            f"exit {run.returncode}, {said[-300:]!r}"
            if run.returncode
            else difference(out, contents(whole))
        )
        left -= kills
        yield from [(f"{kills} kills, {', '.join(delays)} s after another", trouble)] * max(
            1, kills
        )


def every_change(quick, act, events, check, stride=23):
    """Runs that meet a fault at the first, second, … change of a file, until one meets none."""
    for n in itertools.count(1 + DRAW.randrange(stride), stride) if quick else itertools.count(1):
        out = folder()
        result = train_in(out, inside=at_change(out, n, act, events))
        if result[0] == 0:
            return
        yield f"at change {n}", check(out, result)


def after_signal(out, result, number=signal.SIGTERM):
    """A run that caught the signal has saved the step that it says it stopped at."""
    if result not in [(0, ""), (128 + number, ""), (-number, "")]:
        return show(result)
    trouble, log = resumed(out), (out / "training_log.txt").read_text()
    steps = re.search(r"stopped at step (\d+).*resuming at step (\d+)", log, re.DOTALL)
    unsaved = steps and steps[1] != steps[2]
    return trouble or (
        f"stopped at step {steps[1]}, but resumed at step {steps[2]}" if unsaved else ""
    )


def after_kill(out, result):
    return resumed(out) if result[0] in (-signal.SIGKILL, -signal.SIGXFSZ) else show(result)


def after_full(out, result):
    left = [name for name in contents(out) if name.rpartition("/")[2].startswith(".")]
    fine = is_line(result, "File too large|No space left")
    return show(result) if not fine else f"left over: {left}" if left else resumed(out)


def killed_in_overwrite(quick):
    """A finished run is to be replaced, and dies at it: no mixture of the two may pass for a
    finished run."""
    for n in range(1, 20, 9 if quick else 1):
        out = half_done("reference")
        train_in(out, "--overwrite", inside=at_change(out, n, die, EVERYTHING))
        result = train_in(out, "--resume")
        if is_line(result, "finished run"):
            result = train_in(out, "--overwrite")
        yield f"at change {n}", difference(out, REFERENCE) if result[0] == 0 else show(result)


def out_of_memory(quick):
    cuda = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 10 MiB free"
    )
    mps = RuntimeError(
        "MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 20 MB on private pool."
    )
    acts = {"CUDA": lambda: fail(cuda), "MPS": lambda: fail(mps), "CPU": lambda: torch.empty(2**50)}
    for name, n in itertools.product(acts, (7,) if quick else (1, 2, 5, 7, 15)):
        out = folder()
        result = train_in(out, inside=at_call(*FORWARD, n, acts[name]))
        good = is_line(result, r"memory.*(--batch-size.*--grad-accum|--max-length)")
        yield f"{name}, forward pass {n}", resumed(out) if good else show(result)


def not_finite(quick):
    for lr in ("1e38",) if quick else ("1e38", "1e30", "1e20"):
        out = folder()
        result = train_in(out, "--lr", lr, "--eval-every", "1", "--warmup-ratio", "0.2")
        asked = finish(start("--adapter", out / "best", "great film", program=sample))
        good = is_line(result, r"step \d+.*learning rate")
        yield (
            f"--lr {lr}",
            show(result) if not good else "" if asked[0] == 0 else f"best: {show(asked)}",
        )
    for n in (5,) if quick else (2, 5, 7, 14):
        out, nan = folder(), torch.tensor(torch.nan, requires_grad=True)
        result = train_in(out, inside=at_call(train.F, "cross_entropy", n, lambda nan=nan: nan * 1))
        good = is_line(result, r"step \d+.*learning rate")
        yield f"loss {n} is NaN", resumed(out) if good else show(result)


def two_at_once(quick):
    for i in range(3 if quick else 20):
        out, children = half_done() if i % 2 else folder(), []
        for pause in (0, DRAW.uniform(0, SECONDS / 2)):
            time.sleep(pause)
            children.append(training(out, "--resume"))
        first, second = sorted(map(finish, children))
        fine = first[0] == 0 and is_line(second, "another run|finished run")
        yield "race", difference(out, REFERENCE) if fine else f"{show(first)}; {show(second)}"


def closed(stream: int):
    os.close(stream)


def full(stream: int):
    os.dup2(os.open("/dev/full", os.O_RDWR), stream)


def left_by_its_reader(stream: int):
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, stream)


def streams(quick):
    """Standard input, output and error that are of no use, from the start or from the middle of the
    training."""
    every = itertools.product(
        (closed, full, left_by_its_reader), ((0,), (1,), (2,), (1, 2), (0, 1, 2)), (0, 1, 5, 9)
    )
    wanted = [(closed, (0, 1, 2), 0), (full, (1,), 5), (left_by_its_reader, (1, 2), 5)]
    for spoil, numbers, n in wanted if quick else every:
        if spoil is closed and n:
            continue  # nobody can do that to a running process
        out, act = (
            folder(),
            lambda spoil=spoil, numbers=numbers: [spoil(number) for number in numbers],
        )
        result = train_in(out, inside=before_call(*FORWARD, n, act))
        trouble = show(result) if result != (0, "") else difference(out, REFERENCE)
        unsaid = (
            ""
            if trouble or "best validation" in (out / "training_log.txt").read_text()
            else "the log lacks lines"
        )
        yield f"{numbers} {spoil.__name__}, before forward pass {n}", trouble or unsaid


def little_memory(quick):
    """A limit on the address space, a few megabytes above what the process has when it starts:
    ulimit -v.

    Arrow and the tokenizer end a process by themselves when they find no memory (SIGABRT): that is
    no line of ours, but nothing may be lost.
    """

    def limited(megabytes: int):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    for megabytes in (0, 2, 60) if quick else (*range(0, 20), *range(20, 200, 10)):
        out = folder()
        result = train_in(out, inside=functools.partial(limited, megabytes))
        if result[0] == 0:
            lost = difference(out, REFERENCE)
            undrawn = "no training_curves.png: " in (out / "training_log.txt").read_text()
            trouble = "" if undrawn and lost == "training_curves.png is missing" else lost
        else:
            theirs = result[0] == -signal.SIGABRT and re.search(
                "bad_alloc|memory allocation of", result[1]
            )
            trouble = resumed(out) if theirs or is_line(result, "memory") else show(result)
        yield f"{megabytes} MB", trouble


FILES = ["config.toml", "metrics.jsonl", "training_log.txt", "training_curves.png", ".lock", "best/config.json",
         "best/adapter_config.json", "best/adapter_model.safetensors", "checkpoint/checkpoint.safetensors"]  # fmt: skip
FOLDERS = ["best", "final", "checkpoint"]


def wrong_kinds(quick):
    """Directories where files should be, and the other way round."""
    out = folder()
    out.write_text("mine")
    for where in (out, out / "deeper"):
        yield (
            "a file for --out",
            "" if is_line(result := train_in(where), str(out)) else show(result),
        )
    for name, begin in itertools.product(FILES + FOLDERS, (folder, half_done)):
        if not quick or (name, begin) in [
            ("config.toml", half_done),
            ("best", folder),
            (".lock", folder),
        ]:
            path = begin() / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if name in FILES else path.write_text("mine")
            out = Path(str(path).removesuffix(f"/{name}"))
            yield (
                f"{name} of the wrong kind, {begin.__name__}",
                ends_well(out, train_in(out, "--resume"), name, begin),
            )


def links(quick):
    """Symbolic links in --out that point out of it, to something or to nothing: what lies there
    stays as it is."""
    names = [*FILES, *FOLDERS, ".config.toml.tmp", "checkpoint/.checkpoint.safetensors.tmp"]
    for name, begin, there in itertools.product(names, (folder, half_done), (True, False)):
        if quick and (name, begin, there) not in [("best", folder, True), (".lock", folder, True)]:
            continue
        out, outside = begin(), folder()
        link, target = out / name, outside / ("target" if there else "elsewhere")
        link.parent.mkdir(parents=True, exist_ok=True)
        outside.mkdir()
        if link.exists():
            link.rename(target)
        elif name in FOLDERS:
            target.mkdir()
            (target / "mine").write_text("mine")
        else:
            target.write_text("mine")
        link.symlink_to(outside / "target")
        before = contents(outside)
        result = train_in(out, "--resume")
        written = difference(outside, before)
        trouble = f"written through: {written}" if written else ends_well(out, result, name, begin)
        yield f"{name} a {'' if there else 'dangling '}link, {begin.__name__}", trouble


MINE = {
    "thesis.txt": b"mine",
    "best/novel.txt": b"mine",
    "checkpoint/old/notes.txt": b"mine",
    "final/.hidden": b"mine",
}


def put(out: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return out


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def foreign_files(quick):
    """What no run left, under a run's names, with every option: named, and left as it is."""
    names = [
        *FILES,
        *(f"{name}/mine" for name in FOLDERS),
        "final/README.md",
        ".config.toml.tmp",
        "final/config.json",
    ]
    for name, options in itertools.product(names, ([], ["--resume"], ["--overwrite"])):
        if not quick or (name, options) == ("best/mine", ["--overwrite"]):
            out = put(folder(), {name: b"mine", "thesis.txt": b"mine"})
            result, kept = (
                train_in(out, *options),
                all_bytes(out) == {name: b"mine", "thesis.txt": b"mine"},
            )
            fine = is_line(
                result, f"{re.escape(str(out))}/{name.removesuffix('/mine')} is in the way"
            )
            yield f"{name} {options}", "" if fine and kept else f"kept {kept}, {show(result)}"


def foreign_files_and_kills(quick):
    """Files put among those of a finished run, which is replaced, and dies at it: they are there
    whatever happens."""
    for n in itertools.count(1 + DRAW.randrange(40), 40) if quick else itertools.count(1):
        out = put(half_done("reference"), MINE)
        result = train_in(out, "--overwrite", inside=at_change(out, n, die, EVERYTHING))
        kept = {name: content for name, content in all_bytes(out).items() if name in MINE} == MINE
        if result[0] != 0:
            again = train_in(out, "--resume")
            again = train_in(out, "--overwrite") if is_line(again, "finished run") else again
            kept = kept and {name: b for name, b in all_bytes(out).items() if name in MINE} == MINE
            right = again[0] == 0 and difference(out, REFERENCE | MINE) == ""
            yield f"at change {n}", "" if kept and right else f"kept {kept}, {show(again)}"
            continue
        yield "no kill", "" if kept else "a file of somebody else's is gone"
        return


def inputs_inside(quick):
    """A base, an adapter or data that lie where the run would write: refused, and as they were."""
    for inside, name in itertools.product(
        ("best", "final", "checkpoint"), ("--model", "--init-adapter", "--data")
    ):
        for options, linked in itertools.product(
            ([], ["--resume"], ["--overwrite"]), (False, True)
        ):
            if quick and (inside, options) != ("best", ["--overwrite"]):
                continue
            out = half_done("reference")
            if name == "--model":
                shutil.copytree(HOME / "base", out / inside, dirs_exist_ok=True)
            elif name == "--init-adapter":
                shutil.copytree(
                    HOME / "reference" / "out" / "best", out / inside, dirs_exist_ok=True
                )
            else:
                shutil.copy(HOME / "reviews.parquet", out / inside / "train.parquet")
                shutil.copy(HOME / "reviews.parquet", out / inside / "validation.parquet")
            link = out.parent / "link"
            link.symlink_to(out / inside)
            before = all_bytes(out)
            result, kept = (
                train_in(out, name, link if linked else out / inside, *options),
                all_bytes(out) == before,
            )
            fine = kept and is_line(result, f"{name} .* lies in what --out")
            what = f"{name} {inside}{', through a link' * linked} {options}"
            yield what, "" if fine else f"kept {kept}, {show(result)}"


def own_config(quick):
    """A finished run is replaced by its own config.toml, and dies at it: the file is always there,
    and whole."""
    for n in range(2, 30, 9) if quick else itertools.count(1):
        out = half_done("reference")
        again = ["--config", out / "config.toml", "--out", out, "--overwrite"]
        result = finish(start(*again, inside=at_change(out, n, die, EVERYTHING)))
        if result[0] == 0:
            return
        if not (out / "config.toml").is_file():
            yield f"at change {n}", "config.toml is gone"
            continue
        alone = finish(start("--resume", "--out", out))
        alone = finish(start(*again)) if is_line(alone, "finished run") else alone
        yield f"at change {n}", difference(out, REFERENCE) if alone[0] == 0 else show(alone)


def more_epochs(quick):
    """A finished run is asked for more epochs, and dies in them: `--resume --out` goes on to the
    same bytes."""
    whole = half_done("reference")
    assert (result := finish(start("--resume", "--out", whole, "--epochs", 3))) == (0, ""), show(
        result
    )
    reference = contents(whole)
    for n in itertools.count(1 + DRAW.randrange(40), 40) if quick else itertools.count(1):
        out = half_done("reference")
        child = start(
            "--resume", "--out", out, "--epochs", 3, inside=at_change(out, n, die, EVERYTHING)
        )
        if finish(child)[0] == 0:
            return
        for options in (
            [],
            ["--epochs", 3],
        ):  # killed before it had begun, it is still the shorter run
            result = finish(start("--resume", "--out", out, *options))
            good = result[0] == 0 or is_line(result, "finished run")
            if not good:
                break
        yield f"at change {n}", difference(out, reference) if good else show(result)


def killed_in_merge(quick):
    """A merged model is replaced by one with other classes, and dies at it: the directory has
    either, or none."""
    home, first = folder().parent, HOME / "reference" / "out" / "best"
    other = shutil.copytree(first, folder())
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace("negative", "bad")
    )

    def merge(adapter, *more, inside=None):
        result = finish(start("merge", adapter, home / "m", *more, inside=inside, program=lora))
        return result, all_bytes(home / "m") if (home / "m").exists() else None

    (done, new), (replaced, old) = merge(first), merge(other, "--overwrite", "--dtype", "float16")
    assert done == replaced == (0, "") and all(
        old[name] != new[name] for name in ("config.json", "model.safetensors")
    )
    for n in range(2, 60, 5) if quick else itertools.count(1):
        result, found = merge(first, "--overwrite", inside=at_change(home, n, die, EVERYTHING))
        if result[0] == 0:
            return
        again, left = merge(other, "--overwrite", "--dtype", "float16"), os.listdir(home)
        whole, clean = found in (old, new, None), again == ((0, ""), old) and left == ["m"]
        yield (
            f"at change {n}",
            "" if whole and clean else f"whole {whole}, left {left}, {show(again[0])}",
        )


def labelling(out: Path, rank=0, size=1, port=0, inside=None) -> tuple[int, int]:
    """Labels the reviews in pieces of 16 rows, as one of the processes that torchrun would
    start."""

    def prepared():
        labelling_room.PIECE = 16
        if size > 1:
            address = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            address["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            here = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)} | here | address
        if inside:
            inside()

    table = ["--file", HOME / "reviews.parquet", "--prefix", "p_", "--out", out]
    return start("--model", HOME / "base", *table, inside=prepared, program=sample)


def labels() -> bytes:
    """What a labelling that nothing disturbs leaves."""
    if not (path := HOME / f"labels-{os.getpid()}.csv").exists():
        assert (result := finish(labelling(path)))[0] == 0, show(result)
    return path.read_bytes()


def labelled(out: Path, reference: bytes) -> str:
    """Goes on with a labelling, and says what is wrong with the result, or "" if all is well."""
    result = finish(labelling(out))
    if result[0] and not (
        is_line(result, "is there already")
        and not (out.parent / f"{out.name}.parts" / "whole").exists()
    ):
        return show(result)
    left = {name for name in os.listdir(out.parent) if name != out.name}
    if result[0] == 0 and left:
        return f"left over: {left}"
    return "" if out.read_bytes() == reference else "another result"


def killed_in_labelling(quick):
    reference = labels()
    for n in itertools.count(1 + DRAW.randrange(29), 29) if quick else itertools.count(1):
        out = folder().with_suffix(".csv")
        result = finish(labelling(out, inside=at_change(out, n, die, EVERYTHING + " os.link")))
        if result[0] == 0:
            return
        yield (
            f"at change {n}",
            labelled(out, reference) if result[0] == -signal.SIGKILL else show(result),
        )


def full_while_labelling(quick):
    reference = labels()
    for n in itertools.count(1 + DRAW.randrange(9), 9) if quick else itertools.count(1):
        out = folder().with_suffix(".csv")
        status, said = finish(labelling(out, inside=at_change(out, n, CUT, WRITES)))
        if status == 0:
            return
        last = said.splitlines()[-1:] or [""]  # above it the bar
        fine = (
            is_line((status, f"{last[0]}\n"), "File too large|No space left") and not out.exists()
        )
        yield f"at change {n}", labelled(out, reference) if fine else show((status, said))


def one_of_two_labelling(quick):
    """Two processes label together. One is killed at some moment, and the other ended, as torchrun
    does it."""
    reference = labels()
    for i in range(2 if quick else 20):
        out, after = folder().with_suffix(".csv"), DRAW.uniform(0, 1.5)
        table = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )  # torchrun's
        children = [labelling(out, rank, 2, table.port) for rank in range(2)]
        time.sleep(after)
        os.kill(children[i % 2][0], signal.SIGKILL)
        time.sleep(0.1)
        os.kill(children[1 - i % 2][0], signal.SIGTERM)
        results = list(map(finish, children))
        other = results[1 - i % 2]
        ended = other[0] in (0, -signal.SIGTERM, 128 + signal.SIGTERM) or (
            other[0] == 2 and "same command" in other[1]
        )
        yield (
            f"process {i % 2} after {after:.2f} s",
            labelled(out, reference) if ended else show(other),
        )


def read_only(quick):
    out = folder()
    out.mkdir()
    mount = (
        ["mount", "-t", "tmpfs", "-o", "ro", "none", out]
        if os.geteuid() == 0 and shutil.which("mount")
        else ["false"]
    )
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        out.chmod(0o555) if not mounted else None
        if os.access(out, os.W_OK):
            print("  a read-only --out: this user can write everywhere, and may mount nothing")
        else:
            result = train_in(out)
            yield (
                "a directory",
                "" if is_line(result, f"{out}.*(Read-only|denied)") else show(result),
            )
    finally:
        subprocess.run(["umount", out], check=True) if mounted else None


EVERYTHING, WRITES = (
    "open fsync os.rename os.remove os.mkdir os.rmdir shutil.rmtree",
    "open os.rename os.mkdir",
)
TERMINATE = functools.partial(die, signal.SIGTERM)
CUT, CUT_AND_DIE = no_room(signal.SIG_IGN), no_room(signal.SIG_DFL)
FAULTS = {
    "SIGKILL at a random moment": killed_at_random,
    "SIGINT or SIGTERM at a random moment": stopped,
    "one of torchrun's two processes killed": worker_killed,
    "SIGTERM at every open of a file": lambda quick: every_change(
        quick, TERMINATE, "open", after_signal, 9
    ),
    "SIGKILL at every open, sync, rename and removal": lambda quick: every_change(
        quick, die, EVERYTHING, after_kill
    ),
    "killed in the middle of every write": lambda quick: every_change(
        quick, CUT_AND_DIE, WRITES, after_kill
    ),
    "disk full at every write": lambda quick: every_change(quick, CUT, WRITES, after_full),
    "killed at the start of --overwrite": killed_in_overwrite,
    "out of memory in a step": out_of_memory,
    "little address space": little_memory,
    "closed and full streams": streams,
    "a loss that is not finite": not_finite,
    "two runs on one --out": two_at_once,
    "files and directories of the wrong kind": wrong_kinds,
    "symbolic links out of --out": links,
    "a read-only --out": read_only,
    "foreign files in --out": foreign_files,
    "foreign files in --out, and kills": foreign_files_and_kills,
    "inputs inside --out": inputs_inside,
    "inputs inside --out: its config.toml, and kills": own_config,
    "more epochs of a finished run, and kills": more_epochs,
    "killed in a merge": killed_in_merge,
    "killed while it labels a table": killed_in_labelling,
    "disk full while it labels a table": full_while_labelling,
    "one of two that label a table killed": one_of_two_labelling,
}


def write_inputs() -> None:
    model, reviews = map(Path, offline_pair())
    torch.manual_seed(0)
    bert.BertForSequenceClassification(
        bert.BertConfig(**SMALL, max_position_embeddings=64)
    ).save_pretrained(HOME / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(model / name, HOME / "base")
    table = parquet.read_table(next(reviews.glob("train-*.parquet"))).slice(0, 200)
    parquet.write_table(table, HOME / "reviews.parquet")
    sys.exit(0)


def prepare() -> None:
    """The base, the data, the run that nothing disturbs, and one that ended in the middle."""
    global REFERENCE, SECONDS
    pyplot.figure().savefig(HOME / "fonts.png")  # draws on a cache that then is every child's
    result = finish(start(inside=write_inputs))
    assert result == (0, ""), show(result)
    begun = time.monotonic()
    result = train_in(HOME / "reference" / "out")
    SECONDS, REFERENCE = time.monotonic() - begun, contents(HOME / "reference" / "out")
    assert result == (0, ""), show(result)
    result = train_in(HOME / "half" / "out", inside=at_call(*FORWARD, 9, die))
    assert result[0] == -signal.SIGKILL and (HOME / "half" / "out" / "checkpoint").exists(), show(
        result
    )


def check(name: str, quick: bool) -> tuple[int, list[tuple[str, str]], float]:
    """Tries one fault: how often, what failed, and the seconds it took."""
    global DRAW
    DRAW, begun = random.Random(name), time.monotonic()
    done = list(FAULTS[name](quick))
    return (
        len(done),
        [(what, trouble) for what, trouble in done if trouble],
        time.monotonic() - begun,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few of each fault")
    parser.add_argument(
        "--only", default="", metavar="WORD", help="the faults whose name holds this word"
    )
    arguments = parser.parse_args()
    prepare()
    names, failed = [name for name in FAULTS if arguments.only in name], 0
    print(f"{'fault':<48} | how often | result")
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        results = pool.imap(functools.partial(check, quick=arguments.quick), names)
        for name, (count, bad, seconds) in zip(names, results, strict=True):
            failed += len(bad)
            result = f"{len(bad)} FAILED" if bad else "passed" if count else "skipped"
            print(f"{name:<48} | {count:>9} | {result}, {seconds:.0f} s")
            for what, trouble in bad[:12]:
                print(f"    {what}: {trouble}".replace(str(HOME), "HOME"), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
