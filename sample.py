"""Classifies text with a trained adapter.

    python sample.py "great film"                     # with out/best, on the base model that it names
    python sample.py --file reviews.txt --json        # one text per line, in batches
    head reviews.txt | python sample.py -             # the same from standard input
    python sample.py --pair "He slept." "He is awake."    # for an adapter of pairs, as RTE's; in files a tab between
    python sample.py --file reviews.parquet --text-column review --out labelled.parquet     # a table of any size
    python sample.py                                  # asks for texts; /adapter NAME switches, exit leaves
    python sample.py --adapter out/best --adapter you/bert-lora-cola "great film"

With several adapters every text is answered by each.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from bert import BertForSequenceClassification
from data import Encoded, encode, load_tokenizer, make_batch
from lora import merge_lora_weights, open_adapter
from support import adapter_files, distributed, hub
from support.console import plain, prompt, run_main
from support.files import InputError
from support.options import OneLineParser
from support.texts import (
    batches_by_length,
    checked_texts,
    columns,
    fields,
    fitting,
    given_texts,
    parse,
)


def classify(model: BertForSequenceClassification, tokenizer: Tokenizer, texts: list) -> np.ndarray:
    """Class probabilities (N, C), or a regression's numbers (N, 1), of N texts or pairs of two."""
    return probabilities(model, encode(tokenizer, columns(texts)))


@torch.inference_mode()
def probabilities(
    model: BertForSequenceClassification, texts: Encoded, batch_tokens: int = 0
) -> np.ndarray:
    """The same of encoded texts, computed where the model is, in batches of similar length."""
    weight, batches = model.classifier.weight, batches_by_length(texts.lengths, batch_tokens)
    texts, pad_id = texts.to(weight.device), model.config.pad_token_id
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        logits = torch.cat(
            [model(*make_batch(texts, rows, pad_id)[:3]) for rows in batches]
        ).float()  # (N, C)
    result = np.empty((len(texts.lengths), model.config.num_labels), dtype=np.float32)
    answers = logits if model.config.problem_type == "regression" else logits.softmax(-1)
    result[np.concatenate(batches)] = answers.cpu()  # only here a GPU is waited for
    if not np.isfinite(result).all():
        raise InputError(
            "the model gives no finite numbers: its weights, or its adapter's, are damaged"
        )
    return result  # (N, C)


def open_model(
    name: str, bases: dict, base: str | None = None, max_length: int | None = None
) -> tuple:
    """The model and the tokenizer of an adapter, or of a whole model as --rank 0 and transformers leave it.

    `bases` holds the base models by name: each is in memory once, however many adapters stand on it.
    """
    if hub.find_file(name, "adapter_config.json", required=False) is not None:
        base = base or adapter_files.named_base(name)
        if base not in bases:
            bases[base] = BertForSequenceClassification.from_pretrained(base)
        model = open_adapter(name, bases[base])
    elif base:
        raise InputError(f"{name}: a whole model and no adapter, which needs no --model")
    else:
        base, model = name, BertForSequenceClassification.from_pretrained(name)
        if model.new_modules:
            raise InputError(
                f"{name}: has no trained classifier; name an adapter for it with --adapter"
            )
    return model, load_tokenizer(base, max_length or model.config.max_position_embeddings)


def show(models: dict[str, tuple], texts: list[str], as_json: bool) -> None:
    """Prints a line for each text and model: label, confidence, text, or of a regression a number; or all as JSON."""
    taken = {name: fitting(texts, model.config, name) for name, (model, _) in models.items()}
    answers = {
        name: classify(model, tokenizer, taken[name]) for name, (model, tokenizer) in models.items()
    }
    for row in range(len(texts)):
        for name, (model, _) in models.items():
            probabilities, labels = answers[name][row], model.config.id2label  # (C,)
            best, text, several = (
                int(probabilities.argmax()),
                fields(taken[name][row]),
                len(models) > 1,
            )
            number = model.config.problem_type == "regression"
            if as_json:
                scores = {labels[i]: round(float(p), 6) for i, p in enumerate(probabilities)}
                line = {"adapter": name} if several else {}
                answer = {
                    "label": labels[best],
                    "confidence": scores[labels[best]],
                    "scores": scores,
                }
                line |= text | ({"score": scores[labels[0]]} if number else answer)
                print(json.dumps(line, ensure_ascii=False))
            else:
                shown = f"{name}: " * several + " | ".join(text.values())
                answer = (
                    f"{probabilities[0]:<17.3f}"
                    if number
                    else f"{labels[best]:<10} {probabilities[best]:6.1%}"
                )
                print(plain(f"{answer}  {shown}"))


def main() -> None:
    distributed.start()  # torchrun may label one table by several processes
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help='a text to classify; "-" reads standard input'
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar="TEXT",
        help="two texts, for an adapter of pairs",
    )
    parser.add_argument(
        "--file",
        help="a UTF-8 file with a text a line, or with the two of a pair and a tab between",
    )
    more = "a directory or a Hub id (default: out/best); may be repeated"
    parser.add_argument("--adapter", action="append", help=more)
    parser.add_argument(
        "--model", help="another base than the adapter names; alone: a fine-tuned model as it is"
    )
    positions = "tokens that a text is cut to (default: all the model's positions)"
    parser.add_argument("--max-length", type=int, help=positions)
    parser.add_argument(
        "--json", action="store_true", help="print JSON lines, with the probability of every class"
    )
    parser.add_argument("--demo", action="store_true", help="classify a few examples")
    arguments = parse(parser)
    if arguments.max_length is not None and not 3 <= arguments.max_length < 2**31:
        raise InputError(f"--max-length {arguments.max_length} is not at least 3 and below 2**31")
    table = arguments.out is not None
    texts = (
        []
        if table
        else given_texts(arguments.texts, arguments.pair, arguments.file, arguments.demo)
    )
    names = arguments.adapter or ([arguments.model] if arguments.model else ["out/best"])
    if names == ["out/best"] and not Path("out/best").exists():
        raise InputError(
            "out/best: no adapter yet; train one with `make train`, or name one with --adapter"
        )
    bases = {}
    base = arguments.model if arguments.adapter else None
    open_named = lambda name: open_model(name, bases, base, arguments.max_length)
    models = {name: open_named(name) for name in names}
    if table:
        from support import labelling  # late: Arrow takes a while to import

        return labelling.run(
            arguments, *models[names[0]], merge_lora_weights, encode, probabilities
        )
    if texts:
        return show(models, texts, arguments.json)

    def switch(name: str) -> None:
        nonlocal models
        models = {name: open_named(name)}

    prompt(lambda text: show(models, checked_texts([text]), arguments.json), switch)


if __name__ == "__main__":
    run_main(main)
