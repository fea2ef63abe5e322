"""transformers and peft, asked in a process of their own, so that more than one release of them
can be.

    echo FOLDER | python tests/peers.py   # FOLDER/jobs.json gives FOLDER/answers.json

It goes on so for every line of its input, and says which folder is done. A job is [the name of a
function below, its keyword arguments]; an answer is what the function returned.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers

IDS = [[2, 7, 9, 11, 30, 3], [2, 5, 3, 0, 0, 0]]  # two sentences, the second one padded


def draw(model: torch.nn.Module) -> None:
    """Draws every parameter, so that none is 0 or 1 and drops out of a comparison."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(
                float(name.endswith("LayerNorm.weight")), 0.05, generator=generator
            )


@torch.no_grad()
def logits(model: torch.nn.Module) -> list:
    input_ids = torch.tensor(IDS)
    return (
        model.eval()(input_ids=input_ids, attention_mask=(input_ids > 0).long())
        .logits.float()
        .tolist()
    )


def save_model(
    folder: str,
    kind: str,
    config: dict,
    dtype: str = "float32",
    vocab: list = (),
    rules: dict | None = None,
):
    """A model that transformers saved, with its tokenizer; what it says of IDS, and of a few texts'
    tokens."""
    model = getattr(transformers, kind)(transformers.BertConfig(**config))
    draw(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if vocab:
        Path(folder, "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
        transformers.BertTokenizerFast.from_pretrained(folder, **rules).save_pretrained(folder)
    return logits(model.float()) if kind == "BertForSequenceClassification" else None


def tokens(folder: str, texts: list[str]) -> list:
    return transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]


def train_adapter(base: str, folder: str, settings: dict, **head) -> list:
    """An adapter that peft saved, as after training; `head` has num_labels, and of a regression
    problem_type."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, **head)
    config = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, **settings)
    model = peft.get_peft_model(model, config)
    draw(model)
    model.save_pretrained(folder)
    if head.get("problem_type") == "multi_label_classification":  # which nothing else would tell
        model.config.save_pretrained(folder)
    return logits(model)


def open_adapter(base: str, folder: str) -> list:
    """What an adapter says, the names of its classes, and any warning that opening it gave."""
    said = listen()
    config = transformers.AutoConfig.from_pretrained(folder)
    # the base alone has no classifier, which transformers remarks
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, config=config)
    transformers.logging.set_verbosity_warning()
    said.clear()
    model = peft.PeftModel.from_pretrained(model, folder)
    return [logits(model), list(model.config.id2label.values()), said]


def classify(folder: str, texts: list[str]) -> list:
    said = listen()
    pipe = transformers.pipeline("text-classification", model=folder, device="cpu")
    answers = [
        {entry["label"]: entry["score"] for entry in entries} for entries in pipe(texts, top_k=None)
    ]
    return [answers, [line for line in said if line != "Device set to use cpu"]]


def listen() -> list[str]:
    """A list that gets what transformers, peft and `warnings` say from here on, but for
    deprecations."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    for name in ("transformers", "peft"):
        logging.getLogger(name).handlers = [handler]

    def show(message, category, *_, **__):
        if not issubclass(category, (FutureWarning, DeprecationWarning)):
            said.append(str(message))

    warnings.showwarning = show
    warnings.simplefilter("always")  # also what an earlier job was told
    return said


def versions() -> list[str]:
    return [transformers.__version__, peft.__version__]


if __name__ == "__main__":
    for folder in (Path(line.strip()) for line in sys.stdin):
        jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
        answers = [globals()[name](**arguments) for name, arguments in jobs]
        (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        print("done:", folder, flush=True)
