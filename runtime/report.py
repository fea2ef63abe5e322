"""What a run tells people: its head with the table of parameters, the curves, the model card."""

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

from runtime.run_folder import deciding
from support import files, options
from support.errors import first_line, plain


def summary(setup) -> str:
    """What is trained on what, what a constant answer would score, the table of parameters."""
    config = setup.config
    task = setup.task
    train = setup.train_set.labels.cpu().numpy()
    validation = setup.validation_set.labels.cpu().numpy()
    guess, scores = task.constant_scores(train, validation)
    lines = [
        f"model  {config.model} on {setup.placement.device.type}",
        f"data   {config.data}, column {' and '.join(setup.columns)}",
        f"       {len(train):,} sentences to train on, {len(validation):,} to validate on",
        f"       {task.describe()}; best is the model of the best {task.metric}",
        f"       always guessing {guess} would give {spell(scores)}",
        *parameter_table(setup.model),
    ]
    return "\n".join(map(plain, lines))


def spell(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {score:.4f}" for name, score in scores.items())


def parameter_table(model) -> list[str]:
    """The numbers in BERT, in LoRA, in the classifier, and how many of them are trained."""
    sizes = Counter()
    trained = Counter()
    for name, parameter in model.named_parameters():
        part = "LoRA" if ".lora." in name else name.partition(".")[0]
        for each in (part, "total"):
            sizes[each] += parameter.numel()
            trained[each] += parameter.numel() * parameter.requires_grad
    rows = []
    for part, size in reversed(sizes.most_common()):
        share = trained[part] / size
        rows.append(f"{part:<10} {size:>12,}  {trained[part]:,} trained, {share:.2%}")
    return rows


def plot_curves(history: list[dict], path: Path) -> str:
    """Loss and score against the step, as a PNG. Returns why matplotlib cannot draw, or ""."""
    names = [*validation_scores(history)][:2]  # the loss, and the first score
    try:
        from matplotlib.figure import Figure  # late, as it takes a second to import

        figure = Figure(figsize=(10, 4), layout="constrained")
        for axis, name in zip(figure.subplots(1, 2), names, strict=True):
            for key in f"train_{name}", f"validation_{name}":
                points = [(r["step"], r[key]) for r in history if key in r]
                axis.plot(*zip(*points, strict=True), marker=".", label=key)
            axis.set(xlabel="step")
            axis.legend()
        with files.written_whole(path) as temporary:
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
Validation: {scores}.

    {command}
    python sample.py --adapter {name}

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


def write_card(config, folder: Path, history: list[dict], steps: int) -> None:
    """A README.md for the model in `folder`, as the Hub reads it, with the last scores."""
    local = {}  # what lies on this machine: the folders above it are nobody else's business
    for option in ("model", "data", "init_adapter"):
        path = Path(getattr(config, option) or "nowhere")
        if path.exists():
            local[option] = path.absolute().name
    config = replace(config, **local)
    defaults = deciding(type(config))
    changed = {name: v for name, v in deciding(config).items() if v != defaults[name]}
    name = config.hub_model_id or "/".join(folder.absolute().parts[-2:])
    scores = validation_scores(history)
    method = "every weight trained"
    usage = MODEL_USAGE
    if config.rank:
        usage = ADAPTER_USAGE
        method = f"LoRA (rank {config.rank}, alpha {config.alpha:g}, on {config.targets})"
    text = CARD.format(
        metadata=card_metadata(config, local, scores),
        config=config,
        method=method,
        step=history[-1]["step"],
        steps=steps,
        scores=spell(scores),
        command=shlex.join(["python", "train.py", *options.as_flags(changed)]),
        name=shlex.quote(name),
        usage=usage.format(name=name, base=config.model.partition("@")[0]),
    )
    files.write_text(folder / "README.md", text)


def card_metadata(config, local: dict, scores: dict[str, float]) -> str:
    """What the Hub sorts models by, as YAML: without the names of what is `local`."""
    names = config.data.partition("@")[0].split("/")
    metadata = {
        "base_model": "" if "model" in local else config.model.partition("@")[0],
        "datasets": [] if "data" in local else ["/".join(names[:2])],
        "library_name": "peft" if config.rank else "transformers",
        "license": config.license,
        "metrics": [*scores],
        "pipeline_tag": "text-classification",
    }
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items() if value)
