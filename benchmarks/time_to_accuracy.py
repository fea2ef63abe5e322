"""Seconds of training until the validation accuracy reaches a mark, beside transformers + peft.

    python benchmarks/time_to_accuracy.py --data SST2_DIR --jobs 2                      # hours
    python benchmarks/time_to_accuracy.py --data SST2_DIR --contenders ours-2,hf-grouped --seeds 1

A contender is a recipe of its own, trained to its end once for each seed and scored every --every
steps. A mark is reached at the first score that is as high, in a run whose last score is too. At
which step that happens does not depend on the machine, so these trainings may share it, --jobs at
once; a finished one stands under --out and is not done again. How long a step takes is measured
afterwards: all contenders take turns of --every steps with --threads cores, --rounds times, while
nothing else works. Seconds are steps times the median of their seconds. Take multiples of 50 for
--every: transformers' sampler sorts 50 batches at a time, so that parts of these are long or short.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from compare_hf import ask, begin, end, save_results, turn
from contenders import hf_output

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

import ideas

import train
from data import encode, load_data, load_tokenizer
from support import hub
from support.errors import InputError, first_line, run_main
from support.files import write_json
from support.offline import offline_pair
from support.options import OneLineParser

WEIGHT_DECAY = 0.01


@dataclass
class Recipe:
    epochs: int
    lr: float
    targets: str = "query,value"
    dtype: str = "float32"
    dropout: float = 0.05
    ideas: str = ""  # words of experiments/ideas.py
    rank: int = 8
    batch_size: int = 32
    warmup_ratio: float = 0.06
    steps_of: str = ""  # whose steps to a mark stand for this one's, which is only timed


# Those of transformers + peft are the common ones, at MiniLM's rate of docs/results.md. Padding
# changes no number, and a batch padded to its longest sentence is as good as one of similar lengths
# (benchmarks/shuffling.py), but its step takes more than twice as long.
RECIPES = {
    "ours-2": Recipe(
        epochs=2,
        lr=1.5e-3,
        targets="all-linear",
        dtype="bfloat16",
        dropout=0.0,
        ideas="base_dropout=0 average=0.98",
        batch_size=64,
    ),
    "ours-3": Recipe(epochs=3, lr=1e-3, targets="all-linear", dtype="bfloat16"),
    "hf-grouped": Recipe(epochs=3, lr=1e-3),
    "hf-longest": Recipe(epochs=3, lr=1e-3, steps_of="hf-grouped"),
}


@dataclass
class Contender:
    """`step` trains on the next batch; `score` is the accuracy on the validation split."""

    steps: int
    step: Callable[[], None]
    score: Callable[[], float]


def build_ours(name: str, s: SimpleNamespace) -> Contender:
    recipe = asdict(RECIPES[name])
    del recipe["steps_of"]
    config = ideas.Config(
        model=s.model,
        data=s.data,
        device=s.device,
        seed=s.seed,
        max_length=s.max_length,
        weight_decay=WEIGHT_DECAY,
        compile="no",
        **recipe,
    )
    setup = ideas.set_up(config)
    setup.model.train()
    batches = planned_batches(setup)

    def step() -> None:
        number, rows = next(batches)
        train.train_step(setup, rows, number)

    def score() -> float:
        return train.evaluate(setup, setup.validation_set)[0]["accuracy"]

    return Contender(setup.steps, step, score)


def planned_batches(setup: train.Setup) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each step, and its rows."""
    config = setup.config
    numbers = itertools.count()
    for epoch in range(config.epochs):
        lengths = setup.train_set.lengths
        for rows in train.plan_batches(lengths, config.batch_size, config.seed, epoch):
            yield next(numbers), rows


def build_hf(name: str, s: SimpleNamespace) -> Contender:
    """transformers + peft at their best: tokens ready, fused AdamW, and nothing waits for the
    loss; on CUDA in bfloat16, as ours."""
    import transformers
    from peft import LoraConfig, get_peft_model

    recipe = RECIPES[name]
    base = hub.folder(s.model)
    tokenizer = load_tokenizer(base, s.max_length)
    task = load_data(hub.data_folder(s.data))
    multiple = 8 if s.device == "cuda" else 1
    data, validation = (
        encode(tokenizer, split.texts, split.labels).to(s.device, multiple=multiple)
        for split in (task.train, task.validation)
    )
    torch.manual_seed(s.seed)
    opener = transformers.AutoModelForSequenceClassification
    model = opener.from_pretrained(base, num_labels=len(task.task.names))
    config = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=recipe.targets.split(","),
        r=recipe.rank,
        lora_alpha=16,
        lora_dropout=recipe.dropout,
    )
    model = get_peft_model(model, config).to(s.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.lr, weight_decay=WEIGHT_DECAY, fused=True)
    steps = recipe.epochs * math.ceil(len(data.lengths) / recipe.batch_size)
    warmup = math.ceil(recipe.warmup_ratio * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    batches = their_batches(data.lengths, recipe.batch_size, s.seed, name == "hf-grouped")

    autocast = torch.autocast(s.device, torch.bfloat16, enabled=s.device == "cuda")

    def step() -> None:
        with autocast:
            output, _ = hf_output(model, data, next(batches))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def score() -> float:
        model.eval()
        right = 0
        for rows in train.plan_batches(validation.lengths, 64, seed=0, epoch=0):
            with autocast:
                output, labels = hf_output(model, validation, rows)
            right += (output.logits.argmax(-1) == labels).sum().item()
        model.train()
        return right / len(validation.lengths)

    return Contender(steps, step, score)


def their_batches(
    lengths: np.ndarray, size: int, seed: int, is_grouped: bool
) -> Iterator[np.ndarray]:
    """The rows of batch after batch: grouped by transformers' own sampler, or simply shuffled."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    N = len(lengths)
    drawn = torch.Generator().manual_seed(seed)
    while True:
        if is_grouped:
            sampler = LengthGroupedSampler(size, lengths=lengths.tolist(), generator=drawn)
            order = np.array([*sampler])
        else:
            order = torch.randperm(N, generator=drawn).numpy()
        yield from np.split(order, range(size, N, size))


def work(name: str, s: SimpleNamespace) -> None:
    """Trains --every steps for each line on standard input; answers with their mean seconds, or to
    "score" a score."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer

    def answer(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        torch.set_num_threads(s.threads)
        contender = build_hf(name, s) if name.startswith("hf") else build_ours(name, s)
        answer(steps=contender.steps)
        done = 0
        for line in sys.stdin:
            count = min(s.every, contender.steps - done)
            begun = time.perf_counter()
            for _ in range(count):
                contender.step()
            if s.device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
            done += count
            if line == "score\n":
                answer(step=done, accuracy=contender.score())
            else:
                answer(seconds=seconds / max(1, count))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {first_line(error)}")


def identity(name: str, s: SimpleNamespace) -> dict:
    """What decides a training's scores."""
    read = {"data": Path(s.data).name, "model": Path(s.model).name, "max_length": s.max_length}
    return {"recipe": asdict(RECIPES[name]), "every": s.every} | read


def train_once(name: str, s: SimpleNamespace) -> list[dict]:
    """The scores of one training to its end, {"step", "accuracy"}; those under --out if it is
    there."""
    file = Path(s.out) / f"{name}-{s.seed}.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["of"] != identity(name, s):
            raise InputError(f"{file}: of another training, {kept['of']}; give another --out")
        return kept["scores"]
    workers = {name: begin("time_to_accuracy.py", name, s)}
    scores = []
    try:
        steps = ask(workers, name)["steps"]
        while not scores or scores[-1]["step"] < steps:
            scores.append(ask(workers, name, "score\n"))
            standing = f"{scores[-1]['step']}/{steps}  {scores[-1]['accuracy']:.2%}"
            print(f"{name}, seed {s.seed}: {standing}", file=sys.stderr, flush=True)
    finally:
        end(workers)
    write_json(file, {"of": identity(name, s), "scores": scores})
    return scores


def seconds_a_step(names: list[str], s: SimpleNamespace) -> dict[str, list[float]]:
    """Of each contender the mean seconds of a step in every round; what is before the first is not
    counted."""
    workers = {}
    seconds = {name: [] for name in names}
    try:
        for name in names:
            workers[name] = begin("time_to_accuracy.py", name, s)
            steps = ask(workers, name)["steps"]
            if steps < (s.rounds + 1) * s.every:
                wanted = f"--rounds {s.rounds} of --every {s.every}"
                raise InputError(f"{name}: {steps} steps are too few for {wanted}")
            ask(workers, name, "go\n")
        for number in range(s.rounds):
            for name in turn(names, number):
                seconds[name].append(ask(workers, name, "go\n")["seconds"])
            rates = ", ".join(f"{name} {1000 * seconds[name][-1]:.0f} ms" for name in names)
            print(f"a step, round {number + 1}/{s.rounds}: {rates}", file=sys.stderr, flush=True)
    finally:
        end(workers)
    return seconds


def steps_to(mark: float, scores: list[dict]) -> float:
    """Steps until the first score of at least `mark`; infinite if the last one is below it."""
    if scores[-1]["accuracy"] < mark:
        return math.inf
    return next(score["step"] for score in scores if score["accuracy"] >= mark)


def table(
    found: dict[str, list[list[dict]]], seconds: dict[str, list[float]], marks: list[float]
) -> str:
    """Markdown: of each contender the last accuracy of every seed, and the median steps and seconds
    to each mark."""
    to_marks = "".join(f" steps, seconds to {mark:.1%} |" for mark in marks)
    lines = [f"| | last accuracy | ms a step |{to_marks}"]
    lines.append("| --- " * (len(marks) + 3) + "|")
    for name, runs in found.items():
        each = median(seconds[name])
        lasts = ", ".join(f"{run[-1]['accuracy']:.2%}" for run in runs)
        if RECIPES[name].steps_of:
            lasts = f"as {RECIPES[name].steps_of}"
        cells = [name, lasts, f"{1000 * each:.0f}"]
        for mark in marks:
            steps = median(steps_to(mark, run) for run in runs)
            reached = f"{steps:.0f}, {steps * each:.0f}"
            cells.append(reached if math.isfinite(steps) else "not reached")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> SimpleNamespace:
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--data", help="as train.py's, of single texts (default: the offline reviews)")
    add("--model", help="a directory or a Hub repository (default: MiniLM)")
    add("--contenders", default=",".join(RECIPES), help="(default: %(default)s)")
    add("--seeds", default="1,2,3", help="(default: %(default)s)")
    add("--marks", default="0.88,0.895", help="(default: %(default)s)")
    add("--every", type=int, default=100, help="steps between two scores (default: 100)")
    add("--max-length", type=int, default=128, help="tokens that a text is cut to (default: 128)")
    add("--threads", type=int, default=2, help="(default: 2)")
    add("--jobs", type=int, default=1, help="trainings at once; each has a share of --threads")
    add("--rounds", type=int, default=5, help="turns in which steps are timed (default: 5)")
    add("--out", default="out-time-to-accuracy", help="(default: %(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    s = SimpleNamespace(**vars(parser.parse_args()))
    if min(s.every, s.threads, s.jobs, s.rounds) < 1:
        raise InputError("--every, --threads, --jobs and --rounds must be at least 1")
    for name in s.contenders.split(","):
        if name not in RECIPES:
            raise InputError(f"--contenders {name}: not one of {', '.join(RECIPES)}")
    model, reviews = offline_pair()
    s.model = s.model or model
    s.data = s.data or reviews
    return s


def numbers(text: str, kind: type) -> list:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        usual = "as 1,2,3 and 0.88,0.895"
        problem = "--seeds takes whole numbers and --marks accuracies"
        raise InputError(f"{problem}, {usual}") from None


def train_all(names: list[str], seeds: list[int], s: SimpleNamespace) -> dict[str, list]:
    """The scores of each contender with each seed, --jobs at once."""
    share = vars(s) | {"threads": max(1, s.threads // s.jobs)}
    trained = {name: RECIPES[name].steps_of or name for name in names}
    with ThreadPoolExecutor(s.jobs) as pool:
        begun = {}
        for seed in seeds:
            for name in dict.fromkeys(trained.values()):
                settings = SimpleNamespace(**share | {"seed": seed})
                begun[name, seed] = pool.submit(train_once, name, settings)
        return {name: [begun[of, seed].result() for seed in seeds] for name, of in trained.items()}


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in RECIPES:
        work(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
        return
    s = parse_arguments()
    names = s.contenders.split(",")
    seeds = numbers(s.seeds, int)
    marks = numbers(s.marks, float)
    recipes = {name: asdict(RECIPES[name]) for name in names}
    settings = vars(s) | {"out": Path(s.out).name, "recipes": recipes}
    Path(s.out).mkdir(parents=True, exist_ok=True)
    found = train_all(names, seeds, s)
    s.seed = seeds[0]
    seconds = seconds_a_step(names, s)
    print(table(found, seconds, marks))
    save_results("time-to-accuracy", s, settings, scores=found, seconds_a_step=seconds)


if __name__ == "__main__":
    run_main(main)
