"""Classifies text with a trained adapter.

    python sample.py "great film"                     # with out/best, on the base model that it names
    python sample.py --file reviews.txt --json        # a text a line, in batches
    head reviews.txt | python sample.py -             # the same from standard input
    python sample.py                                  # asks for texts
    python sample.py --adapter out/best --adapter you/bert-lora-cola "great film"

With several adapters every text is answered by each.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from bert import BertForSequenceClassification, InputError, OneLineParser, find_file, run_main
from data import encode, load_tokenizer, make_batch
from lora import AdapterBank, adapter_base

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


class Answers:
    """The models to ask, by the names they were given, and how to print what they say."""

    def __init__(self, names: list[str], base: str | None, max_length: int | None, as_json: bool):
        self.base, self.max_length, self.as_json = base, max_length, as_json
        self.banks: dict[str, AdapterBank] = {}  # a base is in memory once, however many adapters stand on it
        self.models = {name: self.open(name) for name in names}

    def open(self, name: str):
        """The model and the tokenizer of an adapter, or of a whole model as --rank 0 and transformers leave it."""
        if find_file(name, "adapter_config.json", required=False) is not None:
            base = self.base or adapter_base(name)
            if base not in self.banks:
                self.banks[base] = AdapterBank(base)
            model = self.banks[base].load(name, name)
        else:
            base, model = name, BertForSequenceClassification.from_pretrained(name)
            if model.new_modules:
                raise InputError(f"{name}: has no trained classifier; name an adapter for it with --adapter")
        return model, load_tokenizer(base, self.max_length or model.config.max_position_embeddings)

    def show(self, texts: list[str]) -> None:
        """Prints a line for each text and model: label, confidence, text; or JSON with every probability."""
        answers = {name: classify(*self.models[name], texts) for name in self.models}
        for row, text in enumerate(texts):
            for name, (model, _) in self.models.items():
                probabilities, labels = answers[name][row], model.config.id2label
                best = int(probabilities.argmax())
                several = len(self.models) > 1
                if self.as_json:
                    scores = {labels[i]: round(float(p), 6) for i, p in enumerate(probabilities)}
                    line = {"adapter": name} if several else {}
                    line |= {"text": text, "label": labels[best], "confidence": scores[labels[best]], "scores": scores}
                    print(json.dumps(line, ensure_ascii=False))
                else:
                    print(f"{labels[best]:<10} {probabilities[best]:6.1%}  " + f"{name}: " * several + text)

    def prompt(self) -> None:
        print("Type a text; /adapter NAME switches; Ctrl-D leaves.", file=sys.stderr)
        while True:
            try:
                text = input("> ").strip()
                if text.startswith("/adapter "):
                    name = text.removeprefix("/adapter ").strip()
                    self.models = {name: self.open(name)}
                elif text:
                    self.show(checked([text], "text"))
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
            except EOFError:
                print(file=sys.stderr)
                return


def checked(texts: list[str], where: str) -> list[str]:
    """The texts, or InputError for one that is empty or no Unicode."""
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InputError(f"{where} {number} is empty; give a text to classify")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where} {number} is not UTF-8 text")
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
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    return checked(lines, f"{'standard input' if name == '-' else name}: line")


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT", help='a text to classify; "-" reads standard input')
    parser.add_argument("--file", help="a UTF-8 file with a text a line")
    parser.add_argument(
        "--adapter", action="append", help="a directory or a Hub id (default: out/best); may be repeated"
    )
    parser.add_argument("--model", help="another base than the adapter names; alone: a fine-tuned model as it is")
    parser.add_argument(
        "--max-length", type=int, help="tokens that a text is cut to (default: all the model's positions)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines, with the probability of every class")
    parser.add_argument("--demo", action="store_true", help="classify a few examples")
    arguments = parser.parse_args()
    if arguments.max_length is not None and arguments.max_length < 3:
        raise InputError(f"--max-length {arguments.max_length} is not at least 3")
    texts = DEMO if arguments.demo else arguments.texts
    if arguments.file or texts == ["-"]:
        texts = read_lines(arguments.file or "-")
    elif texts or not sys.stdin.isatty():
        texts = checked(texts, "text") if texts else read_lines("-")
    names = arguments.adapter or ([arguments.model] if arguments.model else ["out/best"])
    if names == ["out/best"] and not Path("out/best").exists():
        raise InputError("out/best: no adapter yet; train one with `make train`, or name one with --adapter")
    answers = Answers(names, arguments.model, arguments.max_length, arguments.json)
    if texts:
        answers.show(texts)
    else:
        answers.prompt()


if __name__ == "__main__":
    run_main(main)
