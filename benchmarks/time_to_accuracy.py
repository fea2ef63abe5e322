"""Seconds of training until the validation accuracy reaches a mark, for this project and for transformers + peft.

    python benchmarks/time_to_accuracy.py --data SST2_DIR                       # hours: --contenders, --seeds
    python benchmarks/time_to_accuracy.py --data SST2_DIR --contenders ours-1,hf-grouped --seeds 1

A contender is a recipe of its own, trained to its end. All of one seed take turns, --every steps each, so that they
share the machine's good and bad minutes; only these steps count. After its turn each scores the validation split, in
its own time. A mark is reached at the first score that is as high, in a run whose last score is too.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from compare_hf import ask, begin, save_results
from contenders import hf_output

import train
from data import encode, load_task, load_tokenizer, plan_batches
from support.console import run_main
from support.files import InputError, first_line
from support.offline import offline_pair
from support.options import OneLineParser

WARMUP, MAX_LENGTH, WEIGHT_DECAY = 0.06, 128, 0.01


@dataclass
class Recipe:
    epochs: int
    lr: float
    targets: str = "query,value"
    rank: int = 8
    batch_size: int = 32


RECIPES = {  # those of transformers + peft are the common ones, at MiniLM's rate of docs/results.md
    "ours-1": Recipe(epochs=1, lr=2e-3, targets="all-linear"),
    "ours-3": Recipe(epochs=3, lr=1e-3, targets="all-linear"),
    "hf-grouped": Recipe(epochs=3, lr=1e-3),
    "hf-longest": Recipe(epochs=3, lr=1e-3),
}


@dataclass
class Contender:
    """`step` trains on the next batch; `score` is the accuracy on the validation split."""

    steps: int
    step: Callable[[], None]
    score: Callable[[], float]


def build_ours(name: str, s: SimpleNamespace) -> Contender:
    config = train.Config(
        s.model, s.data, device=s.device, seed=s.seed, max_length=MAX_LENGTH, warmup_ratio=WARMUP,
        weight_decay=WEIGHT_DECAY, dtype="float32", compile="no", **asdict(RECIPES[name]))  # fmt: skip
    run = train.set_up(config)
    run.model.train()

    def step() -> None:
        epoch, index = divmod(run.progress.step, run.steps_per_epoch)
        if index == 0:
            run.plan = plan_batches(run.train.lengths, config.batch_size, config.seed, epoch)
        train.train_step(run, run.plan[index])
        run.progress.step += 1

    return Contender(run.steps, step, lambda: train.evaluate(run)["accuracy"])


def build_hf(name: str, s: SimpleNamespace) -> Contender:
    """transformers + peft at their best: tokens ready, fused AdamW, and nothing waits for the loss."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from transformers.trainer_pt_utils import LengthGroupedSampler

    recipe, task, tokenizer = RECIPES[name], load_task(s.data), load_tokenizer(s.model, MAX_LENGTH)
    data, validation = (encode(tokenizer, p.texts, p.labels).to(s.device) for p in (task.train, task.validation))
    torch.manual_seed(s.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(s.model, num_labels=len(task.label_names))
    settings = {"r": recipe.rank, "lora_alpha": 16, "lora_dropout": 0.05, "task_type": "SEQ_CLS"}
    model = get_peft_model(model, LoraConfig(target_modules=recipe.targets.split(","), **settings))
    model.to(s.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.lr, weight_decay=WEIGHT_DECAY, fused=True)
    N, size = len(data.lengths), recipe.batch_size
    steps = recipe.epochs * math.ceil(N / size)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    drawn, waiting = torch.Generator().manual_seed(s.seed), []

    multiple = 8 if s.device == "cuda" else 1

    def step() -> None:
        if not waiting:
            if name == "hf-grouped":  # by transformers' own sampler, as its Trainer does
                order = np.array(list(LengthGroupedSampler(size, lengths=data.lengths.tolist(), generator=drawn)))
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
        for rows in plan_batches(validation.lengths, 64, seed=0, epoch=0):
            output, labels = hf_output(model, validation, rows, multiple)
            right += (output.logits.argmax(-1) == labels).sum().item()
        model.train()
        return right / len(validation.lengths)

    return Contender(steps, step, score)


def work(name: str, s: SimpleNamespace) -> None:
    """Trains --every steps for each line on standard input; answers with their seconds and a score, as JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    try:
        torch.set_num_threads(s.threads)
        contender, done = (build_hf if name.startswith("hf") else build_ours)(name, s), 0
        print(json.dumps({"steps": contender.steps}), file=answers, flush=True)
        for _ in sys.stdin:
            count, begun = min(s.every, contender.steps - done), time.perf_counter()
            for _ in range(count):
                contender.step()
            if s.device == "cuda":
                torch.cuda.synchronize()
            done, seconds = done + count, time.perf_counter() - begun
            answer = {"step": done, "seconds": seconds, "accuracy": contender.score()}
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"}), file=answers, flush=True)


def take_turns(names: list[str], s: SimpleNamespace) -> dict[str, list[dict]]:
    """All answers of each contender, trained to its end."""
    workers, steps, answers = {}, {}, {name: [] for name in names}
    try:
        for name in names:
            workers[name] = begin("time_to_accuracy.py", name, s)
            steps[name] = ask(workers, name)["steps"]
        while waiting := [n for n in names if not answers[n] or answers[n][-1]["step"] < steps[n]]:
            for name in waiting:
                answers[name].append(ask(workers, name, "go\n"))
            standing = [f"{n} {answers[n][-1]['step']}/{steps[n]} {answers[n][-1]['accuracy']:.2%}" for n in waiting]
            print(f"seed {s.seed}: {', '.join(standing)}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return answers


def seconds_to(mark: float, answers: list[dict]) -> float:
    """Training time until the first score of at least `mark`; infinite if the last one is below it."""
    if answers[-1]["accuracy"] < mark:
        return math.inf
    first = next(i for i, answer in enumerate(answers) if answer["accuracy"] >= mark)
    return sum(answer["seconds"] for answer in answers[: first + 1])


def table(found: dict[str, list[list[dict]]], marks: list[float]) -> str:
    """Markdown: of each contender the last accuracy of every seed, and the median time to each mark."""
    head = [f"seconds to {mark:.1%}" for mark in marks]
    lines = [f"| | last accuracy | {' | '.join(head)} | seconds in all |", "| --- " * (len(marks) + 3) + "|"]
    for name, runs in found.items():
        lasts = ", ".join(f"{run[-1]['accuracy']:.2%}" for run in runs)
        reached = [median(seconds_to(mark, run) for run in runs) for mark in marks]
        whole = median(sum(answer["seconds"] for answer in run) for run in runs)
        cells = [f"{seconds:.0f}" if math.isfinite(seconds) else "not reached" for seconds in reached]
        lines.append(f"| {name} | {lasts} | {' | '.join(cells)} | {whole:.0f} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in RECIPES:
        return work(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a data set as train.py's, of single texts (default: the offline reviews)")
    parser.add_argument("--model", help="a directory or a Hub repository (default: MiniLM)")
    parser.add_argument("--contenders", default=",".join(RECIPES), help="(default: %(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="(default: %(default)s)")
    parser.add_argument("--marks", default="0.88,0.895", help="(default: %(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between two scores (default: 100)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    s = SimpleNamespace(**vars(parser.parse_args()))
    names = s.contenders.split(",")
    try:
        seeds, marks = [int(seed) for seed in s.seeds.split(",")], [float(mark) for mark in s.marks.split(",")]
    except ValueError:
        raise InputError("--seeds takes whole numbers and --marks accuracies, as 1,2,3 and 0.88,0.895") from None
    if min(s.every, s.threads) < 1:
        raise InputError("--every and --threads must be at least 1")
    if unknown := [name for name in names if name not in RECIPES]:
        raise InputError(f"--contenders {unknown[0]}: not one of {', '.join(RECIPES)}")
    model, reviews = offline_pair()
    s.model, s.data = s.model or model, s.data or reviews
    found = {name: [] for name in names}
    for s.seed in seeds:
        for name, answers in take_turns(names, s).items():
            found[name].append(answers)
        settings = vars(s) | {"recipes": {name: asdict(RECIPES[name]) for name in names}}
        print(table(found, marks), flush=True)
    save_results("time-to-accuracy", s, settings, runs=found)


if __name__ == "__main__":
    run_main(main)
