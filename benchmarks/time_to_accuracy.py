"""Seconds of training until the validation accuracy reaches a mark, for this project and for
transformers + peft.

    python benchmarks/time_to_accuracy.py --data SST2_DIR --jobs 2              # hours: --contenders, --seeds
    python benchmarks/time_to_accuracy.py --data SST2_DIR --contenders ours-2,hf-grouped --seeds 1

A contender is a recipe of its own, trained to its end once for each seed and scored every --every
steps. A mark is reached at the first score that is as high, in a run whose last score is too. At
which step that happens does not depend on the machine, so these trainings may share it, --jobs at
once; a finished one stands under --out and is not done again. How long a step takes is measured
afterwards: all contenders take turns of --every steps with --threads cores, --rounds times, while
nothing else works. Seconds are steps times the median of their seconds. Take multiples of 50 for
--every: transformers' sampler sorts 50 batches at a time, so that parts of these are long or short.
"""

import json
import math
import sys
import time
from collections.abc import Callable
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
from data import encode, load_task, load_tokenizer
from support.console import run_main
from support.files import InputError, first_line, write_json
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
    steps_of: str = (
        ""  # the contender whose steps to a mark stand for this one's, which is only timed
    )


# Those of transformers + peft are the common ones, at MiniLM's rate of docs/results.md. Padding
# changes no number, and a batch padded to its longest sentence is as good as one of similar lengths
# (benchmarks/shuffling.py), but its step takes more than twice as long.
RECIPES = {
    "ours-2": Recipe(
        2, 1.5e-3, "all-linear", "bfloat16", 0.0, "base_dropout=0 average=0.98", batch_size=64
    ),
    "ours-3": Recipe(3, 1e-3, "all-linear", "bfloat16"),
    "hf-grouped": Recipe(3, 1e-3),
    "hf-longest": Recipe(3, 1e-3, steps_of="hf-grouped"),
}


@dataclass
class Contender:
    """`step` trains on the next batch; `score` is the accuracy on the validation split."""

    steps: int
    step: Callable[[], None]
    score: Callable[[], float]


def build_ours(name: str, s: SimpleNamespace) -> Contender:
    settings = {
        key: value
        for key, value in asdict(RECIPES[name]).items()
        if key not in ("steps_of", "ideas")
    }
    ideas.take(RECIPES[name].ideas.split())
    config = train.Config(
        s.model, s.data, device=s.device, seed=s.seed, max_length=s.max_length,
        weight_decay=WEIGHT_DECAY, compile="no", **settings)  # fmt: skip
    run = train.set_up(config)
    run.model.train()

    def step() -> None:
        epoch, index = divmod(run.progress.step, run.steps_per_epoch)
        if index == 0:
            run.plan = train.plan_batches(run.train.lengths, config.batch_size, config.seed, epoch)
        train.train_step(run, run.plan[index])
        run.progress.step += 1

    return Contender(run.steps, step, lambda: train.evaluate(run)["accuracy"])


def build_hf(name: str, s: SimpleNamespace) -> Contender:
    """transformers + peft at their best: tokens ready, fused AdamW, and nothing waits for the
    loss."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from transformers.trainer_pt_utils import LengthGroupedSampler

    recipe, task, tokenizer = (
        RECIPES[name],
        load_task(s.data),
        load_tokenizer(s.model, s.max_length),
    )
    data, validation = (
        encode(tokenizer, p.texts, p.labels).to(s.device) for p in (task.train, task.validation)
    )
    torch.manual_seed(s.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        s.model, num_labels=len(task.label_names)
    )
    settings = {
        "r": recipe.rank,
        "lora_alpha": 16,
        "lora_dropout": recipe.dropout,
        "task_type": "SEQ_CLS",
    }
    model = get_peft_model(model, LoraConfig(target_modules=recipe.targets.split(","), **settings))
    model.to(s.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.lr, weight_decay=WEIGHT_DECAY, fused=True)
    N, size = len(data.lengths), recipe.batch_size
    steps = recipe.epochs * math.ceil(N / size)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, math.ceil(recipe.warmup_ratio * steps), steps
    )
    drawn, waiting = torch.Generator().manual_seed(s.seed), []

    multiple = 8 if s.device == "cuda" else 1

    def step() -> None:
        if not waiting:
            if name == "hf-grouped":  # by transformers' own sampler, as its Trainer does
                order = np.array(
                    list(LengthGroupedSampler(size, lengths=data.lengths.tolist(), generator=drawn))
                )
            else:
                order = torch.randperm(N, generator=drawn).numpy()
            waiting.extend(np.split(order, range(size, N, size))[::-1])
        hf_output(model, data, waiting.pop(), multiple)[0].loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def score() -> float:
        model.eval()
        right = 0
        for rows in train.plan_batches(validation.lengths, 64, seed=0, epoch=0):
            output, labels = hf_output(model, validation, rows, multiple)
            right += (output.logits.argmax(-1) == labels).sum().item()
        model.train()
        return right / len(validation.lengths)

    return Contender(steps, step, score)


def work(name: str, s: SimpleNamespace) -> None:
    """Trains --every steps for each line on standard input; answers with their mean seconds, or to
    "score" a score."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    try:
        torch.set_num_threads(s.threads)
        contender, done = (build_hf if name.startswith("hf") else build_ours)(name, s), 0
        print(json.dumps({"steps": contender.steps}), file=answers, flush=True)
        for line in sys.stdin:
            count, begun = min(s.every, contender.steps - done), time.perf_counter()
            for _ in range(count):
                contender.step()
            if s.device == "cuda":
                torch.cuda.synchronize()
            done, answer = done + count, {"seconds": (time.perf_counter() - begun) / max(1, count)}
            if line == "score\n":
                answer = {"step": done, "accuracy": contender.score()}
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        print(
            json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"}),
            file=answers,
            flush=True,
        )


def identity(name: str, s: SimpleNamespace) -> dict:
    """What decides a training's scores."""
    read = {"data": Path(s.data).name, "model": Path(s.model).name, "max_length": s.max_length}
    return {"recipe": asdict(RECIPES[name]), "every": s.every} | read


def train_once(name: str, s: SimpleNamespace) -> list[dict]:
    """The scores of one training to its end, {"step", "accuracy"}; those that stand under --out if
    it is there."""
    file = Path(s.out) / f"{name}-{s.seed}.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["of"] != identity(name, s):
            raise InputError(f"{file}: of another training, {kept['of']}; give another --out")
        return kept["scores"]
    workers, scores = {name: begin("time_to_accuracy.py", name, s)}, []
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
    workers, seconds = {}, {name: [] for name in names}
    try:
        for name in names:
            workers[name] = begin("time_to_accuracy.py", name, s)
            if (steps := ask(workers, name)["steps"]) < (s.rounds + 1) * s.every:
                raise InputError(
                    f"{name}: {steps} steps are too few for --rounds {s.rounds} of --every {s.every}"
                )
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
    lines = [
        "| | last accuracy | ms a step |"
        + "".join(f" steps, seconds to {mark:.1%} |" for mark in marks)
    ]
    lines.append("| --- " * (len(marks) + 3) + "|")
    for name, runs in found.items():
        trained = RECIPES[name].steps_of
        lasts = (
            f"as {trained}" if trained else ", ".join(f"{run[-1]['accuracy']:.2%}" for run in runs)
        )
        cells = [lasts, f"{1000 * median(seconds[name]):.0f}"]
        for mark in marks:
            steps = median(steps_to(mark, run) for run in runs)
            reached = f"{steps:.0f}, {steps * median(seconds[name]):.0f}"
            cells.append(reached if math.isfinite(steps) else "not reached")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in RECIPES:
        return work(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", help="a data set as train.py's, of single texts (default: the offline reviews)"
    )
    parser.add_argument("--model", help="a directory or a Hub repository (default: MiniLM)")
    parser.add_argument("--contenders", default=",".join(RECIPES), help="(default: %(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="(default: %(default)s)")
    parser.add_argument("--marks", default="0.88,0.895", help="(default: %(default)s)")
    parser.add_argument(
        "--every", type=int, default=100, help="steps between two scores (default: 100)"
    )
    parser.add_argument(
        "--max-length", type=int, default=128, help="tokens that a text is cut to (default: 128)"
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at once, with their share of --threads each"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns in which the steps are timed (default: 5)"
    )
    parser.add_argument("--out", default="out-time-to-accuracy", help="(default: %(default)s)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    s = SimpleNamespace(**vars(parser.parse_args()))
    names = s.contenders.split(",")
    try:
        seeds, marks = (
            [int(seed) for seed in s.seeds.split(",")],
            [float(mark) for mark in s.marks.split(",")],
        )
    except ValueError:
        raise InputError(
            "--seeds takes whole numbers and --marks accuracies, as 1,2,3 and 0.88,0.895"
        ) from None
    if min(s.every, s.threads, s.jobs, s.rounds) < 1:
        raise InputError("--every, --threads, --jobs and --rounds must be at least 1")
    if unknown := [name for name in names if name not in RECIPES]:
        raise InputError(f"--contenders {unknown[0]}: not one of {', '.join(RECIPES)}")
    model, reviews = offline_pair()
    s.model, s.data = s.model or model, s.data or reviews
    Path(s.out).mkdir(parents=True, exist_ok=True)
    settings = vars(s) | {
        "out": Path(s.out).name,
        "recipes": {name: asdict(RECIPES[name]) for name in names},
    }
    share = vars(s) | {"threads": max(1, s.threads // s.jobs)}
    with ThreadPoolExecutor(s.jobs) as pool:
        one = lambda name, seed: train_once(name, SimpleNamespace(**share | {"seed": seed}))
        of = {name: RECIPES[name].steps_of or name for name in names}
        begun = {
            (name, seed): pool.submit(one, name, seed)
            for seed in seeds
            for name in dict.fromkeys(of.values())
        }
        found = {name: [begun[of[name], seed].result() for seed in seeds] for name in names}
    s.seed = seeds[0]
    seconds = seconds_a_step(names, s)
    print(table(found, seconds, marks))
    save_results("time-to-accuracy", s, settings, scores=found, seconds_a_step=seconds)


if __name__ == "__main__":
    run_main(main)
