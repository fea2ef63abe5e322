"""What a run tells people: its head with the table of parameters, the curves, the model card."""

import io
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data import padding_fraction, plan_batches
from lora import fully_trained
from support import files, options
from support.errors import first_line, plain

# The head.


def summary(setup) -> str:
    """What is trained on what, what a constant answer would score, the table of parameters."""
    config = setup.config
    task = setup.task
    lengths = setup.train_set.lengths
    plan = plan_batches(lengths, config.step_size, config.seed, epoch=0)
    padding = padding_fraction(lengths, plan, setup.placement.multiple)
    train = setup.train_set.labels.cpu().numpy()
    validation = setup.validation_set.labels.cpu().numpy()
    sizes = f"{len(train):,} sentences to train on, {len(validation):,} to validate on"
    metric = task.metric.replace("_", " ")
    if task.metric == "f1":
        metric = f"f1 of {task.names[1]}"
    guess, scores = task.constant_scores(train, validation)
    scores = "  ".join(f"{name.replace('_', ' ')} {score:.4f}" for name, score in scores.items())
    lines = [
        f"model  {config.model} on {setup.placement.device.type}",
        f"data   {config.data}, column {' and '.join(setup.columns)}",
        f"       {sizes}; padding {padding:.2%} of the tokens",
        f"       {task.describe()}; best is the model of the best {metric}",
        f"       always guessing {guess} would give {scores}",
    ]
    return "\n".join([plain(line) for line in lines] + parameter_table(setup))


def parameter_table(setup) -> list[str]:
    """How many parameters there are in BERT, in LoRA and in each layer that is trained in full."""
    model = setup.model
    config = setup.config
    full = fully_trained(model)
    sizes = dict.fromkeys(["BERT", "LoRA", *sorted(full)], 0)
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        part = "LoRA" if ".lora." in name else layer if layer in full else "BERT"
        sizes[part] += parameter.numel()
    trained = sum(parameter.numel() for parameter in setup.trained.values())
    total = sum(sizes.values())
    states = dict.fromkeys(full, "trained")
    if not config.init_adapter:
        states |= dict.fromkeys(model.newly_initialized, "trained, newly initialized")
    states["BERT"] = "frozen" if sizes["LoRA"] else "trained"
    states["LoRA"] = f"trained: rank {config.rank} on {config.targets}"
    states["total"] = f"{trained:,} trained, {trained / total:.2%}"
    sizes["total"] = total
    return [f"{part:<10} {size:>12,}  {states[part]}" for part, size in sizes.items() if size]


# The curves.


def plot_curves(history: list[dict], path: Path, say: Callable[[str], None]) -> None:
    """Loss and score against the step, for training and validation, as a PNG.

    Where matplotlib cannot draw, because of its own files or settings, it says why.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # one that it does not know is refused
    picture = io.BytesIO()
    try:
        draw_curves(history, picture)
    except Exception as error:
        say(f"no {path.name}: matplotlib says {first_line(error)}")
    else:
        with files.written_whole(path) as temporary:
            temporary.write_bytes(picture.getvalue())
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend


def draw_curves(history: list[dict], picture: io.BytesIO) -> None:
    from matplotlib.figure import Figure  # late, as it takes a second to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    names = [*validation_scores(history)][:2]  # the loss, and the first score
    styles = {"train": {"color": "0.6", "linewidth": 1}, "validation": {"marker": "o"}}
    for axis, name in zip(figure.subplots(1, 2), names, strict=True):
        for split, style in styles.items():
            key = f"{split}_{name}"
            records = [record for record in history if key in record]
            if records:  # single steps of a regression have no score
                steps = [record["step"] for record in records]
                axis.plot(steps, [record[key] for record in records], label=split, **style)
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(picture, format="png", dpi=120)


def validation_scores(history: list[dict]) -> dict[str, float]:
    """Those of the last evaluation, the loss first."""
    last = [record for record in history if "validation_loss" in record][-1]
    return {name.removeprefix("validation_"): last[name] for name in last if name != "step"}


# The model card.

PEFT_USAGE = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

config = AutoConfig.from_pretrained({name})  # the names of the classes
base = AutoModelForSequenceClassification.from_pretrained({base}, config=config)
model = PeftModel.from_pretrained(base, {name})"""
PIPELINE_USAGE = """\
from transformers import pipeline

classify = pipeline("text-classification", model={name})"""


def example(pairs: bool | None) -> str:
    """A text, or a pair, to try a model on, as words of a command line."""
    return '--pair "He slept well." "He was awake."' if pairs else '"great film"'


def write_card(config, folder: Path, history: list[dict], steps: int, columns: list[str]) -> None:
    """A README.md for the model in `folder`, as the Hub reads it, with the last scores.

    `columns` are those of the texts. What lies on this machine goes by its own name, without the
    folders above it, which are nobody else's business.
    """
    sources = {option: getattr(config, option) for option in ("model", "data", "init_adapter")}
    here = {option: path for option, path in sources.items() if os.path.exists(path)}
    names = {option: Path(path).absolute().name for option, path in here.items()}
    config = replace(config, **names)
    scores = validation_scores(history)
    base = config.model if "model" in here else config.model.partition("@")[0]
    name = config.hub_model_id or public_name(folder)
    usage = PEFT_USAGE if config.rank else PIPELINE_USAGE
    usage = usage.format(name=quote(name), base=quote(base))
    method = "every weight trained"
    if config.rank:
        method = f"LoRA (rank {config.rank}, alpha {config.alpha:g}, on {config.targets})"
    taken = f"{history[-1]['step']} of {steps} steps"
    rows = [f"| {score.replace('_', ' ')} | {scores[score]:.4f} |\n" for score in scores]
    text = f"""---
{card_metadata(config, here, base, scores)}
---
`{config.model}`, fine-tuned on `{config.data}` with {method}; {taken}.

| validation | |
| --- | --- |
{"".join(rows)}
    {shlex.join(["python", "train.py", *options.changed_flags(config)])}
    python sample.py --adapter {shlex.quote(name)} {example(len(columns) == 2)}

```python
{usage}
```
"""
    files.write_text(folder / "README.md", text)


def quote(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def public_name(folder: Path) -> str:
    """The path by which a card names its folder; it tells nothing of the machine."""
    is_outside = folder.is_absolute() or ".." in folder.parts
    return "/".join(folder.absolute().parts[-2:]) if is_outside else str(folder)


def card_metadata(config, here: dict, base: str, scores: dict[str, float]):
    """The head of a card: what was trained on what, and how good it is; files `here` are not named.

    The scores on MNLI's second split are left out, which are none of the Hub's metrics.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores = {name: scores[name] for name in scores if not name.startswith("mismatched_")}
    source = config.data if "data" in here else config.data.partition("@")[0]
    task = Path(source).name
    data: dict[str, Any] = {
        "task_type": "text-classification",
        "dataset_type": task,
        "dataset_name": task,
    }
    results = []
    for name, score in scores.items():
        results.append(EvalResult(**data, metric_type=name, metric_value=round(score, 4)))
    return ModelCardData(
        base_model=None if "model" in here else base,
        datasets=None if "data" in here else ["/".join(source.split("/")[:2])],
        library_name="peft" if config.rank else "transformers",
        license=config.license or None,
        pipeline_tag="text-classification",
        metrics=[name for name in scores if name != "loss"],
        model_name=config.hub_model_id or f"{Path(base).name}-{task}",
        eval_results=results,
    )
