"""Breaks training, labelling and merging on purpose, in real processes, and looks at what is left.

    python tests/faults.py                   # every fault, many minutes
    python tests/faults.py --quick           # a few of each, as continuous integration does
    python tests/faults.py --only "disk"     # those with this in their names

Each process is a forked child of this one, which has imported PyTorch already, and works on a
random BERT of two layers and 200 real sentences. A fault passes if the same command then leaves,
byte for byte, what it leaves where nothing disturbs it; if every error is one line on standard
error with exit status 2; and if a start that is refused changes nothing.
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
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TORCH_CPP_LOG_LEVEL": "FATAL"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._dynamo  # this and some of the next: what each child would otherwise import late
from helpers import TINY
from huggingface_hub import EvalResult, ModelCardData  # noqa: F401
from matplotlib import pyplot
from pyarrow import csv, json, parquet  # noqa: F401
from tokenizers.implementations import BertWordPieceTokenizer

import bert
import sample
import train
from runtime import adapters, labelling  # noqa: F401
from support import errors, pieces
from support.offline import offline_pair

torch.set_num_threads(1)
pieces.PIECE = 16
HOME = Path(tempfile.mkdtemp(prefix="faults-"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHECKPOINT = Path("checkpoint", "checkpoint.safetensors")
LOOSE = ("training_log.txt", ".lock")  # which tell how often and when a run was begun

# What is disturbed: a program and its arguments, to which the path of what it makes is added; the
# name of that; and the folder in which it finds itself. The same command goes on after any fault.
OPTIONS = ["--model", HOME / "base", "--data", HOME / "reviews.parquet", "--device", "cpu"]
OPTIONS += ["--max-length", 32, "--epochs", 2, "--batch-size", 32, "--lr", 1e-2]
OPTIONS += ["--save-every", 2, "--eval-every", 4, "--log-every", 3]
LABEL = ["--model", HOME / "base", "--file", HOME / "reviews.parquet", "--prefix", "p_", "--out"]
MERGE = ["merge", HOME / "a training" / "out" / "best"]
SUBJECTS = {
    "a training": (train, [*OPTIONS, "--resume", "--out"], "out", None),
    "a training gone on with": (train, [*OPTIONS, "--resume", "--out"], "out", "half"),
    "more epochs": (train, [*OPTIONS, "--epochs", 3, "--resume", "--out"], "out", "a training"),
    "a labelling": (sample, LABEL, "out.csv", None),
    "a merge": (adapters, MERGE, "merged", None),
}
WHOLE = {}  # what each leaves where nothing disturbs it
SECONDS = {}  # that it takes


# Processes.


def start(name: str, out: Path, *more, inside=None) -> tuple[int, int]:
    """Forks a child that runs a subject after inside(): its id, and its standard error's pipe."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 0
    program, words = SUBJECTS[name][:2]
    try:
        signal.alarm(120)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(write, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = [f"{program.__name__}.py", *map(str, [*words, out, *more])]
        if inside:
            inside()
        errors.run_main(program.main)
    except SystemExit as stop:
        status = stop.code or 0
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def finish(child: tuple[int, int]) -> tuple[int, str]:
    """Waits for a child: its exit status, or minus the signal that ended it, and what it said."""
    status = os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1])
    with open(child[1], errors="replace") as said:
        return status, said.read()


def go(name: str, out: Path, *more, inside=None) -> tuple[int, str]:
    return finish(start(name, out, *more, inside=inside))


def is_line(result: tuple[int, str], pattern: str = "") -> bool:
    """Whether a process ended as an error should: status 2, and one line with the pattern in it."""
    status, said = result
    is_one = re.fullmatch(r"error: [^\n]+\n", said) and "report it" not in said
    return bool(status == 2 and is_one and re.search(pattern, said))


def show(result: tuple[int, str]) -> str:
    lines = result[1].strip().splitlines() or ["no line"]
    return f"exit {result[0]}, {lines[-1][:200]!r}"


# What is left.


def begin(name: str) -> Path:
    """A folder of its own for a subject: the path of what is to be made in it."""
    _, _, made, former = SUBJECTS[name]
    place = Path(tempfile.mkdtemp(dir=HOME))
    if former:
        shutil.copytree(HOME / former, place, dirs_exist_ok=True)
    return place / made


def contents(place: Path) -> dict[str, bytes]:
    """The bytes of every file, hidden ones too, except those in LOOSE.

    A checkpoint counts as there or not: safetensors shuffles its header. Going on shows that it is
    whole.
    """
    files = [path for path in place.rglob("*") if path.is_file() and path.name not in LOOSE]
    found = {str(path.relative_to(place)): path.read_bytes() for path in files}
    return {name: b"" if name.endswith(CHECKPOINT.name) else found[name] for name in found}


def difference(place: Path, whole: dict[str, bytes]) -> str:
    """Which files are not as in `whole`, or "" if all are."""
    found = contents(place)
    names = sorted(found.keys() | whole.keys())
    odd = [name for name in names if found.get(name) != whole.get(name)]
    return f"missing, left over or different: {', '.join(odd)}" if odd else ""


def gone_on(name: str, out: Path) -> str:
    """Gives the command again, and says what is wrong with the result, or "" if all is well."""
    begun = (out / CHECKPOINT).exists() and not (out / "final" / "README.md").exists()
    log = out / "training_log.txt"
    before = log.read_text() if begun else ""
    result = go(name, out)
    if result != (0, "") and not is_line(result, "is there already"):
        return f"going on: {show(result)}"
    if begun and "resuming at" not in log.read_text().removeprefix(before):
        return "began anew, though there was a checkpoint"
    return difference(out.parent, WHOLE[name])


# Faults inside a child.


def at_change(place: Path, n: int, act):
    """inside(): act() before the n-th change of a file there, as Python's audit reports them."""
    changes = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
    count = itertools.count(1)
    fsync = os.fsync

    def note(path: str) -> None:
        is_here = path.startswith(str(place)) or path[:1] != "/"  # as shutil.rmtree's are
        if is_here and next(count) == n:
            act()

    def hook(event: str, arguments: tuple) -> None:
        if event in changes and isinstance(arguments[0], str | Path):
            is_read = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if not is_read:
                note(str(arguments[0]))

    def noted_fsync(file: int) -> None:
        note(str(place))
        fsync(file)

    def inside() -> None:
        os.fsync = noted_fsync
        sys.addaudithook(hook)

    return inside


def at_step(n: int, act):
    """inside(): act() before the n-th step of a training."""
    train_step = train.train_step

    def changed(setup, rows, step):
        if step == n - 1:
            act()
        return train_step(setup, rows, step)

    return functools.partial(setattr, train, "train_step", changed)


def die(number=signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def fill_disk(then=signal.SIG_IGN) -> None:
    """From here on no file grows beyond 64 bytes: a write is cut there, and `then` follows."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, then)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def be_nobody() -> None:
    if os.geteuid() == 0:  # who may write everywhere
        os.seteuid(65534)


# The faults. Each yields (what was done, what went wrong or "").


def at_every_change(name: str, act, ends, quick: bool):
    """One process after the other meets a fault at its first, second, … change, until one has none.

    `ends` is the pattern of an error's line, or the statuses with which it may end without one.
    """
    stride = 41 if quick else 1
    for n in itertools.count(1 + DRAW.randrange(stride // 4 + 1), stride):
        out = begin(name)
        result = go(name, out, inside=at_change(out.parent, n, act))
        if result[0] == 0:
            return
        fine = is_line(result, ends) if isinstance(ends, str) else result in [(s, "") for s in ends]
        yield f"at change {n}", gone_on(name, out) if fine else show(result)


def at_random(quick: bool):
    for name, i in itertools.product(SUBJECTS, range(2 if quick else 30)):
        number = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[i % 3]
        after = DRAW.uniform(0, 1.2 * SECONDS[name])
        out = begin(name)
        child = start(name, out)
        time.sleep(after)
        os.kill(child[0], number)
        result = finish(child)
        # A KeyboardInterrupt in the middle of PyTorch's own code may become another error.
        fine = result in [(status, "") for status in (0, -number, 128 + number)] or is_line(result)
        trouble = gone_on(name, out) if fine else show(result)
        yield f"{name}, {number.name} after {after:.2f} s", trouble


def two_together(name: str, out: Path, after: float | None = None, victim: int = 0) -> list:
    """How two processes end that torchrun would start; after some seconds one may be killed.

    The other one then ends by itself, or is ended, as torchrun does it.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    environment |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = []
    for rank in "01":
        environment |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        inside = functools.partial(os.environ.update, environment.copy())
        children.append(start(name, out, inside=inside))
    if after is not None:
        for pause, number in (after, victim), (0.5, 1 - victim):
            time.sleep(pause)
            os.kill(children[number][0], signal.SIGKILL)
    return [finish(child) for child in children]


def one_of_two(quick: bool):
    for name in "a training", "a labelling":
        whole = begin(name)
        assert two_together(name, whole) == [(0, "")] * 2
        for victim in [0, 1] * (1 if quick else 10):
            out = begin(name)
            after = DRAW.uniform(0, 1.2 * SECONDS[name])
            other = two_together(name, out, after, victim)[1 - victim]
            trouble = "" if other[0] in (0, -9) or is_line(other, "was lost") else show(other)
            again = max(two_together(name, out))
            if again != (0, "") and not is_line(again, "is there already"):
                trouble += f" going on: {show(again)}"
            trouble = trouble or difference(out.parent, contents(whole.parent))
            yield f"{name}, process {victim} after {after:.2f} s", trouble


def races(quick: bool):
    """Two processes are given the same command, one a little later."""
    for name in [*SUBJECTS][:4] * (1 if quick else 10):
        out = begin(name)
        first = start(name, out)
        time.sleep(DRAW.uniform(0, SECONDS[name] / 2))
        second = start(name, out)
        results = sorted([finish(first), finish(second)])
        fine = results[0] == (0, "") and (results[1] == (0, "") or is_line(results[1]))
        yield name, difference(out.parent, WHOLE[name]) if fine else " ".join(map(show, results))


def everything(place: Path) -> dict:
    """All files, folders and links, except the empty file by which a run keeps others out."""
    found = {}
    for path in place.rglob("*"):
        link = os.readlink(path) if path.is_symlink() else None
        found[path] = link or (path.read_bytes() if path.is_file() else None)
    return {path: found[path] for path in found if path.name != ".lock"}


def refused(name: str, out: Path, *more, inside=None) -> str:
    before = everything(out.parent)
    result = go(name, out, *more, inside=inside)
    is_same = everything(out.parent) == before
    return "" if is_line(result) and is_same else f"the same: {is_same}, {show(result)}"


def put(path: Path, kind: str) -> None:
    """Something of somebody else's."""
    if kind == "link":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        path.write_text("mine")


def refusals(quick: bool):
    """What existed stays as it is."""
    half = "a training gone on with"
    options = ("--no-resume", "--lr=1", "--rank=4", "--metric=pearson", "--data=no", "--model=no")
    for name, option in itertools.product((half, "more epochs"), options):
        yield f"{name} {option}", refused(name, begin(name), option)
    for damaged in "config.toml", CHECKPOINT:
        out = begin(half)
        os.truncate(out / damaged, 10)
        yield f"half of {damaged}", refused(half, out)
    for name in "a training", "a labelling", "a merge":
        for kind in "file", "folder", "link":
            out = begin(name)
            put(out, kind)
            yield f"{name}, where a {kind} is", refused(name, out)
        out = begin(name)
        out.parent.chmod(0o555)
        yield f"{name}, read-only", refused(name, out, inside=be_nobody)


def steps(quick: bool):
    """There is no memory for a step, or its loss is not finite."""
    name = "a training"
    for n in (7,) if quick else (1, 2, 7, 12):
        out = begin(name)
        result = go(name, out, inside=at_step(n, functools.partial(torch.empty, 2**50)))
        fine = is_line(result, "out of memory.*--batch-size")
        yield f"no memory at step {n}", gone_on(name, out) if fine else show(result)
    result = go(name, begin(name), "--lr", 1e38, "--warmup-ratio", 0.2)
    yield "no finite loss", "" if is_line(result, "step.*learning rate") else show(result)


KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)
AT_CHANGES = {
    "SIGKILL at every change": (die, KILLED),
    "SIGTERM at every change": (functools.partial(die, signal.SIGTERM), STOPPED),
    "killed in every write": (functools.partial(fill_disk, signal.SIG_DFL), KILLED),
    "disk full at every write": (fill_disk, "File too large|No space left"),
}
FAULTS = {
    f"{name}: {what}": functools.partial(at_every_change, name, *how)
    for name, (what, how) in itertools.product(SUBJECTS, AT_CHANGES.items())
}
FAULTS |= {
    "a signal at a random moment": at_random,
    "one of two processes killed": one_of_two,
    "two at once": races,
    "a start that is refused": refusals,
    "no memory or no number in a step": steps,
}


def write_inputs() -> None:
    """200 reviews, and a random base with the letters and the words in them."""
    reviews = next(Path(offline_pair()[1]).glob("train-*.parquet"))
    table = parquet.read_table(reviews).slice(0, 200)
    parquet.write_table(table, HOME / "reviews.parquet")
    words = " ".join(table["sentence"].to_pylist()).lower().split()
    vocabulary = [*dict.fromkeys([*SPECIAL, *map(chr, range(33, 127)), *sorted(words)])]
    torch.manual_seed(0)
    config = bert.BertConfig(**TINY | {"vocab_size": len(vocabulary)})
    bert.BertForSequenceClassification(config).save_pretrained(HOME / "base")
    (HOME / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertWordPieceTokenizer(str(HOME / "vocab.txt"))
    tokenizer.save(str(HOME / "base" / "tokenizer.json"))


def prepare() -> None:
    """The inputs, a run that was killed in the middle, and what each subject leaves undisturbed."""
    HOME.chmod(0o755)
    pyplot.figure().savefig(HOME / "fonts.png")  # draws on a cache that then is every child's
    write_inputs()
    killed = go("a training", HOME / "half" / "out", inside=at_step(8, die))
    assert killed == (-signal.SIGKILL, ""), show(killed)
    for name in SUBJECTS:
        out = begin(name)
        begun = time.monotonic()
        result = go(name, out)
        assert result == (0, ""), show(result)
        SECONDS[name] = time.monotonic() - begun
        WHOLE[name] = contents(out.parent)
        out.parent.rename(HOME / name)


def check(name: str, quick: bool) -> tuple[int, list[tuple[str, str]], float]:
    """Tries one fault: how often, what failed, and the seconds it took."""
    global DRAW
    DRAW = random.Random(name)
    begun = time.monotonic()
    done = [*FAULTS[name](quick=quick)]
    bad = [(what, trouble) for what, trouble in done if trouble]
    return len(done), bad, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few of each fault")
    parser.add_argument("--only", default="", metavar="WORD", help="those with this in their names")
    arguments = parser.parse_args()
    prepare()
    names = [name for name in FAULTS if arguments.only in name]
    failed = 0
    print(f"{'fault':<52} | times | result")
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        results = pool.imap(functools.partial(check, quick=arguments.quick), names)
        for name, (count, bad, seconds) in zip(names, results, strict=True):
            failed += len(bad)
            result = f"{len(bad)} FAILED" if bad else "passed"
            print(f"{name:<52} | {count:>5} | {result}, {seconds:.0f} s", flush=True)
            for what, trouble in bad[:12]:
                print(f"    {what}: {trouble}".replace(str(HOME), "HOME"), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
