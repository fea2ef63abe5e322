"""What a run tells people: its head with the table of parameters, the curves, the model card."""

import json
import shlex
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora import fully_trained
from runtime.run_folder import deciding
from support import files, options
from support.errors import first_line, plain
from support.tasks import metric_in_words

FEW_STEPS = 100


def summary(setup) -> str:
    """What is trained on what, what a constant answer would score, the table of parameters."""
    config = setup.config
    task, place = setup.task, setup.placement
    train = setup.train_set.labels.cpu()
    validation = setup.validation_set.labels.cpu()
    guess, scores = task.constant_scores(train, validation)
    dtype = str(place.dtype).removeprefix("torch.")
    lines = [
        f"model  {config.model} on {place.device.type} in {dtype}, {place.why}",
        f"data   {config.data}, column {' and '.join(setup.data.columns)}",
        f"       {len(train):,} sentences to train on, {len(validation):,} to validate on",
        f"       {task.describe()}; best is the model of the best {metric_in_words(task)}",
        f"       always guessing {guess} would give {spell(scores)}",
        *parameter_table(setup.model, config),
    ]
    if setup.steps < FEW_STEPS:
        first = ", the first of them at a rate of 0" if config.warmup_ratio else ""
        hint = "more --epochs, or a smaller --batch-size, take more"
        lines.append(f"note: {setup.steps} steps in all are few{first}: {hint}")
    return "\n".join(map(plain, lines))


def spell(scores: dict[str, float]) -> str:
    """Scores with four digits; a count, as of steps, as it is."""
    texts = [score if isinstance(score, int) else f"{score:.4f}" for score in scores.values()]
    return "  ".join(f"{name} {text}" for name, text in zip(scores, texts, strict=True))


def parameter_table(model, config) -> list[str]:
    """The numbers in BERT, in LoRA and in what is trained in full, and what becomes of them."""
    states = {
        "BERT": "frozen" if config.rank else "trained",
        "LoRA": f"trained: rank {config.rank} on {config.targets}",
    }
    for name in fully_trained(model) if config.rank else ["classifier"]:
        is_new = name in model.newly_initialized and not config.init_adapter
        states[name] = "trained, newly initialized" if is_new else "trained"
    sizes = Counter()
    for name, parameter in model.named_parameters():
        part = name.rpartition(".")[0]
        if part not in states:
            part = "LoRA" if ".lora." in name else "BERT"
        sizes[part] += parameter.numel()
    total = sizes.total()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes["total"] = total
    states["total"] = f"{trained:,} trained, {trained / total:.2%}"
    return [f"{part:<10} {sizes[part]:>12,}  {states[part]}" for part in states if part in sizes]


def plot_curves(history: list[dict], metric: str, path: Path) -> str:
    """Loss and metric against the step, as a PNG. Returns why matplotlib cannot draw, or ""."""

    def paint(*axes) -> None:
        for axis, name in zip(axes, ("loss", metric), strict=True):
            for split, style in ("train", {"color": "0.6"}), ("validation", {"marker": "o"}):
                key = f"{split}_{name}"
                points = [(record["step"], record[key]) for record in history if key in record]
                if points:  # a step has no scores
                    axis.plot(*zip(*points, strict=True), label=split, **style)
            axis.set(xlabel="step", title=name, xlim=(0, 1.03 * history[-1]["step"]))
            axis.legend()
            axis.grid(alpha=0.3)

    return draw(path, paint)


def draw(path: Path, paint: Callable) -> str:
    """A PNG of what paint(left, right) draws. Returns why matplotlib cannot draw, or ""."""
    try:
        from matplotlib.figure import Figure  # late, as it takes a second to import

        figure = Figure(figsize=(10, 4), layout="constrained")
        paint(*figure.subplots(1, 2))
        with files.written_whole(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that its font lacks
            figure.savefig(temporary, format="png", dpi=120)
    except Exception as error:  # whatever its own files or settings lead to
        return f"no {path.name}: matplotlib says {first_line(error)}"
    return ""


def validation_scores(history: list[dict]) -> dict[str, float]:
    """Those of the last evaluation, the loss first."""
    last = [record for record in history if "validation_loss" in record][-1]
    return {key.removeprefix("validation_"): last[key] for key in last if key != "step"}


CARD = """\
---
{metadata}
---
`{config.model}`, fine-tuned on `{config.data}` with {method}; {step} of {steps} steps.
Validation: {scores}; the best is that of the best {metric}.

    {command}
    {use}

```python
{usage}
```
"""
ADAPTER_USAGE = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

config = AutoConfig.from_pretrained({name!r})  # the names of the classes
base = AutoModelForSequenceClassification.from_pretrained({base!r}, config=config)
model = PeftModel.from_pretrained(base, {name!r})"""
MODEL_USAGE = "transformers.pipeline('text-classification', model={name!r})"


def write_card(setup, folder: Path, history: list[dict]) -> None:
    """A README.md for the model in `folder`, as the Hub reads it, with the last scores.

    `setup` is a train.Setup; its first validation text is the example.
    """
    config = setup.config
    local = {}  # what lies on this machine: the folders above it are nobody else's business
    for option in ("model", "data", "init_adapter", "validation"):
        path = Path(getattr(config, option) or "nowhere")
        if path.exists():
            local[option] = path.absolute().name
    config = replace(config, **local)
    defaults = deciding(type(config))
    changed = {name: v for name, v in deciding(config).items() if v != defaults[name]}
    base = config.model.partition("@")[0]
    data_set = "/".join(config.data.partition("@")[0].split("/")[:2])  # without its folder
    name = config.hub_model_id or "/".join(folder.absolute().parts[-2:])
    scores = validation_scores(history)
    method = "every weight trained"
    usage = MODEL_USAGE
    if config.rank:
        usage = ADAPTER_USAGE
        method = f"LoRA (rank {config.rank}, alpha {config.alpha:g}, on {config.targets})"
    metadata = {
        "base_model": "" if "model" in local else base,
        "datasets": [] if "data" in local else [data_set],
        "library_name": "peft" if config.rank else "transformers",
        "license": config.license,
        "metrics": [score for score in scores if score != "loss"],
        "pipeline_tag": "text-classification",
    }
    given = [f"{key}: {json.dumps(value)}" for key, value in metadata.items() if value]
    words = [plain(" ".join(part.split()))[:200] for part in setup.data.validation.texts[0]]
    if len(words) == 2:
        words.insert(0, "--pair")
    text = CARD.format(
        metadata="\n".join(given),
        config=config,
        method=method,
        step=history[-1]["step"],
        steps=setup.steps,
        scores=spell(scores),
        metric=metric_in_words(setup.task),
        command=shlex.join(["python", "train.py", *options.as_flags(changed)]),
        use=shlex.join(["python", "sample.py", "--adapter", name, *words]),
        usage=usage.format(name=name, base=base),
    )
    files.write_text(folder / "README.md", text)
