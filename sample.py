"""Classifies text with a trained adapter.

python sample.py "great film"                     # with out/best, on the base model that it names
python sample.py --file reviews.txt --json        # a text a line, in batches
head reviews.txt | python sample.py -             # the same from standard input
python sample.py                                  # asks for texts
python sample.py --adapter DIR_OR_HUB_ID "great film"
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from bert import BertForSequenceClassification, InputError, OneLineParser, find_file, run_main
from data import encode, load_tokenizer, make_batch
from lora import open_adapter

DEMO = [
    "a gripping, beautifully acted film that stays with you",
    "two hours of my life that nobody will give back",
    "not bad at all, though it takes its time",
    "the plot is thin, the jokes are thinner",
]


@torch.inference_mode()
def classify(model: BertForSequenceClassification, tokenizer, texts: list[str], batch_size: int = 32) -> np.ndarray:
    """Class probabilities (N, C) of N texts, in batches of like length."""
    encoded = encode(tokenizer, [texts])
    order = np.argsort(encoded.lengths, kind="stable")
    result = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        logits = model(*make_batch(encoded, rows, model.config.pad_token_id)[:3])
        result[rows] = logits.softmax(-1).numpy()
    return result


def show(model: BertForSequenceClassification, tokenizer, texts: list[str], as_json: bool) -> None:
    """Prints a line for each text: label, confidence and the text, or as JSON with all probabilities."""
    names = model.config.id2label
    for text, probabilities in zip(texts, classify(model, tokenizer, texts), strict=True):
        best = int(probabilities.argmax())
        if as_json:
            scores = {names[i]: round(float(p), 6) for i, p in enumerate(probabilities)}
            print(json.dumps({"text": text, "label": names[best], "scores": scores}, ensure_ascii=False))
        else:
            print(f"{names[best]:<10} {probabilities[best]:6.1%}  {text}")


def checked(texts: list[str], where: str) -> list[str]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InputError(f"{where} {number} is empty; give a text to classify")
    if not texts:
        raise InputError(f"{where} 1 is missing; give a text to classify")
    return texts


def read_lines(name: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for "-"."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return checked(lines, f"{'standard input' if name == '-' else name}: line")


def prompt(model: BertForSequenceClassification, tokenizer, as_json: bool) -> None:
    print("Type a text, or nothing to leave.", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if not text:
            return
        show(model, tokenizer, [text], as_json)


def parse_arguments():
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help='texts to classify; "-" reads them from standard input'
    )
    parser.add_argument("--file", help="a UTF-8 file with a text a line")
    parser.add_argument("--adapter", help="a directory or a Hub repository (default: out/best)")
    parser.add_argument("--model", help="the base model, if not the one that the adapter names; "
                        "without --adapter, a fine-tuned model to use as it is")  # fmt: skip
    parser.add_argument(
        "--max-length", type=int, help="tokens that a text is cut to (default: all that the model takes)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines, with the probability of every class")
    parser.add_argument("--demo", action="store_true", help="classify a few examples")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    texts = DEMO if arguments.demo else arguments.texts
    if arguments.file or texts == ["-"]:
        texts = read_lines(arguments.file or "-")
    elif texts or not sys.stdin.isatty():
        texts = checked(texts, "text") if texts else read_lines("-")
    adapter = arguments.adapter or ("" if arguments.model else "out/best")
    if adapter == "out/best" and not Path(adapter).exists():
        raise InputError("out/best: no adapter yet; train one with `make train`, or name one with --adapter")
    if adapter and find_file(adapter, "adapter_config.json", required=False) is not None:
        model = open_adapter(adapter, arguments.model)
        base = model.lora_config["base_model_name_or_path"]
    else:  # a whole model, as --rank 0, merging and transformers leave it
        base = adapter or arguments.model
        model = BertForSequenceClassification.from_pretrained(base)
        if model.classifier_is_new:
            raise InputError(f"{base}: has no trained classifier; name an adapter for it with --adapter")
    tokenizer = load_tokenizer(base, arguments.max_length or model.config.max_position_embeddings)
    if texts:
        show(model, tokenizer, texts, arguments.json)
    else:
        prompt(model, tokenizer, arguments.json)


if __name__ == "__main__":
    run_main(main)
