"""What a run tells people: the table of parameters, the curves, the model card."""

import io
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from support.console import plain
from support.files import first_line, written_whole
from support.glue import OF_NUMBERS, by_guessing
from support.options import Surroundings, changed_flags


def data_lines(
    model: str,
    device,
    data: str,
    columns: list[str],
    classes: list[str],
    metric: str,
    train: np.ndarray,
    validation: np.ndarray,
    padding: float,
) -> str:
    """What is trained on what, what decides which model is best, and how many sentences there are.

    `columns` are those of the texts, `train` and `validation` the labels (N,), `padding` is a fraction of the tokens.
    """
    sizes = f"{len(train):,} sentences to train on, {len(validation):,} to validate on"
    by = f"f1 of {plain(classes[1])}" if metric == "f1" else metric.replace("_", " ")
    shown = ", ".join(map(plain, classes[:10])) + (
        f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    )
    shown = "one number, a regression" if metric in OF_NUMBERS else f"classes {shown}"
    return (
        f"model  {model} on {device}\n"
        f"data   {data}, column {' and '.join(map(plain, columns))}\n"
        f"       {sizes}; padding {padding:.2%} of the tokens\n"
        f"       {shown}; best is the model of the best {by}\n"
        f"       {by_guessing(metric, train, validation, classes)}\n"
    )


def parameter_table(
    parameters: dict[str, tuple[int, bool]],
    whole: set[str],
    drawn: tuple[str, ...],
    rank: int,
    targets: str,
) -> str:
    """How many parameters stand in BERT, in LoRA, and in the layers that are trained `whole`, some newly `drawn`.

    `parameters` has by name the size of each, and whether it is trained.
    """
    parts = dict.fromkeys(["BERT", "LoRA", *sorted(whole)], 0)
    for name, (size, _) in parameters.items():
        layer = name.rpartition(".")[0]
        parts[layer if layer in whole else "LoRA" if ".lora." in name else "BERT"] += size
    total, trained = (
        sum(parts.values()),
        sum(size for size, is_trained in parameters.values() if is_trained),
    )
    states = {name: "trained, newly drawn" if name in drawn else "trained" for name in whole}
    states |= {
        "BERT": "frozen" if parts["LoRA"] else "trained",
        "LoRA": f"trained: rank {rank} on {targets}",
    }
    states["total"] = f"{trained:,} trained, {trained / total:.2%}"
    rows = (parts | {"total": total}).items()
    return "\n".join(f"{name:<10} {size:>12,}  {states[name]}" for name, size in rows if size)


def plot_curves(history: list[dict], path: Path, say: Callable[[str], None]) -> None:
    """Loss and accuracy, or of a regression pearson, against the step, for training and validation, as a PNG.

    If they cannot be drawn, because of matplotlib's own files or settings, say(why): no reason to lose a training.
    """
    try:
        picture = draw_curves(history)
    except Exception as error:
        return say(f"no {path.name}: matplotlib says {first_line(error)}")
    with written_whole(path) as temporary:
        temporary.write_bytes(picture)


def draw_curves(history: list[dict]) -> bytes:
    backend = os.environ.pop(
        "MPLBACKEND", None
    )  # matplotlib refuses one that it does not know; a file needs none
    try:
        from matplotlib.figure import Figure  # late, as it takes a second to import
    finally:
        os.environ |= {"MPLBACKEND": backend} if backend else {}
    figure = Figure(figsize=(10, 4), layout="constrained")
    score = "accuracy" if any("validation_accuracy" in record for record in history) else "pearson"
    for axis, name in zip(figure.subplots(1, 2), ("loss", score), strict=True):
        for split, style in (
            ("train", {"color": "0.6", "linewidth": 1}),
            ("validation", {"color": "C0", "marker": "o"}),
        ):
            records = [record for record in history if f"{split}_{name}" in record]
            if records:  # a regression has no pearson of single steps
                axis.plot(
                    [r["step"] for r in records],
                    [r[f"{split}_{name}"] for r in records],
                    label=split,
                    **style,
                )
        axis.set(xlabel="step", title=name)
        axis.legend()
        axis.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def model_card(
    config: Surroundings, folder: Path, history: list[dict], steps: int, columns: list[str] = ()
) -> str:
    """A README.md for the model in `folder`, as the Hub reads it, with the scores of the last evaluation.

    `config` has the run's options, `history` the lines of metrics.jsonl, `columns` are those of the texts. What lies on
    this machine goes by its own name, without the directories above it, which are nobody else's business.
    """
    sources = {name: getattr(config, name) for name in ("model", "data", "init_adapter")}
    local = {
        name: os.path.basename(os.path.abspath(path))
        for name, path in sources.items()
        if os.path.exists(path)
    }
    config = replace(config, **local)
    options, flags = asdict(config), changed_flags(config)
    last = [record for record in history if "validation_loss" in record][-1]
    scores = {
        name.removeprefix("validation_"): value for name, value in last.items() if name != "step"
    }
    base, rank = (
        options["model"] if "model" in local else options["model"].partition("@")[0],
        options["rank"],
    )
    lora = f"LoRA (rank {rank}, alpha {options['alpha']:g}, on {options['targets']})"
    name = options["hub_model_id"] or place(folder)
    usage = (PEFT_USAGE if rank else PIPELINE_USAGE).format(
        name=json.dumps(name, ensure_ascii=False), base=json.dumps(base, ensure_ascii=False)
    )
    example = '--pair "He slept well." "He was awake."' if len(columns) == 2 else '"great film"'
    table = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in scores.items()
    )
    return f"""---
{card_metadata(options, local, base, scores)}
---
`{options["model"]}`, fine-tuned on `{options["data"]}` with {lora if rank else "every weight trained"}; \
{last["step"]} of {steps} steps.

| validation | |
| --- | --- |
{table}

    {shlex.join(["python", "train.py", *flags])}
    python sample.py --adapter {shlex.quote(name)} {example}

```python
{usage}
```
"""


def place(folder: Path) -> str:
    """How a card names the directory that it lies in: a path that tells nothing of the machine."""
    outside = folder.is_absolute() or ".." in folder.parts
    return "/".join(Path(os.path.abspath(folder)).parts[-2:]) if outside else str(folder)


def card_metadata(options: dict, local: dict, base: str, scores: dict[str, float]):
    """The card's head, which the Hub reads: what was trained on what, and how good it is; what is `local` it lacks."""
    from huggingface_hub import EvalResult, ModelCardData

    scores = {
        name: value for name, value in scores.items() if not name.startswith("mismatched_")
    }  # no metric's name
    source = options["data"] if "data" in local else options["data"].partition("@")[0]
    task = Path(source).name
    result = {"task_type": "text-classification", "dataset_type": task, "dataset_name": task}
    return ModelCardData(
        base_model=None if "model" in local else base,
        datasets=None if "data" in local else ["/".join(source.split("/")[:2])],
        library_name="peft" if options["rank"] else "transformers",
        license=options["license"] or None,
        pipeline_tag="text-classification",
        metrics=[name for name in scores if name != "loss"],
        model_name=options["hub_model_id"] or f"{Path(base).name}-{task}",
        eval_results=[
            EvalResult(**result, metric_type=n, metric_value=round(v, 4)) for n, v in scores.items()
        ],
    )


PEFT_USAGE = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

config = AutoConfig.from_pretrained({name})  # the names of the classes
base = AutoModelForSequenceClassification.from_pretrained({base}, config=config)
model = PeftModel.from_pretrained(base, {name})"""
PIPELINE_USAGE = """\
from transformers import pipeline

classify = pipeline("text-classification", model={name})"""
