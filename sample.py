"""Classifies text with a trained adapter.

    python sample.py "great film"                     # with out/best, on the base that it names
    python sample.py --file reviews.txt --json        # one text per line, in batches
    head reviews.txt | python sample.py -             # the same from standard input
    python sample.py --pair "He slept." "He is awake."    # for an adapter of pairs, as RTE's
    python sample.py --file reviews.parquet --text-column review --out labelled.parquet
    python sample.py --file test.csv --score              # how good it is, and its mistakes
    python sample.py                                  # asks for texts; /adapter NAME switches
    python sample.py --adapter out/best --adapter you/bert-lora-cola "great film"

With several adapters every text is answered by each. From Python:

    model = open_model("out/best")
    classify(model, [("great film",)])  # [{"label": "positive", "confidence": 0.98, ...}]
"""

from support import errors

errors.explain_from_here(__name__)  # the imports take a second, in which much can go wrong

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bert import BertForSequenceClassification
from data import encode, load_tokenizer
from runtime import adapters, devices, texts, whole_table
from support import parallel
from support.errors import InputError
from support.options import OneLineParser
from support.tasks import Task, task_of


@dataclass
class Model:
    """What answers, under the name that the user gave it."""

    name: str
    network: BertForSequenceClassification
    tokenizer: Tokenizer
    task: Task
    placement: devices.Placement

    @property
    def takes_pairs(self) -> bool:
        return bool(self.network.config.text_pairs)


def open_model(
    name: str,
    base="",
    max_length=None,
    device="cpu",
    dtype="float32",
    bases=None,
    merge=False,
    threshold=None,
) -> Model:
    """The Model of an adapter in its base, or of a whole model.

    `name` is a directory or `owner/name[@revision]`; `base` is another base than the adapter's.
    `bases` holds base models by name: each is in memory once, for all adapters on it. To `merge`
    an adapter makes many answers faster. Of several labels a text those above the `threshold` are
    given, 0.5 if it is None.
    """
    network, source = adapters.open_any(name, base, bases)
    tokenizer = load_tokenizer(source, adapters.text_length(network.config, source, max_length))
    network.requires_grad_(False)
    notes = adapters.merge_if_plain(network) if merge else []
    placement = devices.place(network, device=device, dtype=dtype)
    for note in notes + placement.notes:
        print(note, file=sys.stderr)
    return Model(
        name=name,
        network=network,
        tokenizer=tokenizer,
        task=task_of(network.config, threshold),
        placement=placement,
    )


def classify(model: Model, inputs: list[texts.Text]) -> list[dict]:
    """The answers to N texts, each a tuple of one string, or of the two of a pair.

    An answer has the label, its confidence and the scores of all classes, or of a regression the
    score. Raises InputError for pairs where the model takes single texts, and the reverse.
    """
    texts.refuse_other_kind(model.name, model.network.config, inputs)
    logits = texts.compute_logits(model, encode(model.tokenizer, inputs))  # (N, C)
    return [model.task.answer(row) for row in logits]


def show(models: list[Model], inputs: list[texts.Text], as_json: bool) -> None:
    """Prints a line for each text and model."""
    answers = [classify(model, inputs) for model in models]
    for text, *its_answers in zip(inputs, *answers, strict=True):
        for model, answer in zip(models, its_answers, strict=True):
            fields = {"adapter": model.name} if len(models) > 1 else {}
            if as_json:
                fields |= zip(("text", "text_pair"), text, strict=False)  # as in HF's pipelines
                line = json.dumps(fields | answer, ensure_ascii=False)
            else:
                said = ": ".join([*fields.values(), " | ".join(text)])
                line = f"{model.task.as_text(answer)}  {said}"
            print(errors.plain(line))


def parse():
    """The command line. Raises InputError for what is no option."""
    parser = OneLineParser(description=__doc__)
    one = parser.add_mutually_exclusive_group().add_argument
    one("texts", nargs="*", metavar="TEXT", default=[], help='to classify; "-": standard input')
    one("--pair", nargs=2, action="append", metavar="TEXT", help="two texts, for a model of pairs")
    one("--file", help="texts, one a line, a pair with a tab between; or a table to label or score")
    add = parser.add_argument
    add("--adapter", action="append", help="a directory or Hub id (default: out/best); repeatable")
    add("--model", default="", help="another base than the adapter's; alone: a fine-tuned model")
    add("--max-length", type=int, help="tokens that a text is cut to (default: as in training)")
    add("--json", action="store_true", help="print JSON lines, with every class's probability")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], help="(default: cpu; of a table auto)")
    add("--dtype", choices=["auto", *devices.DTYPES], help="(default: float32; of a table auto)")
    add("--threshold", type=float, help="of several labels those above it are given (default: 0.5)")
    whole_table.add_options(parser)
    return parser.parse_args()


def main() -> None:
    parallel.start()  # torchrun may label one table by several processes
    given = parse()
    work = whole_table.choose_work(given)
    names = given.adapter or [given.model or "out/best"]
    if names == ["out/best"] and not Path("out/best").is_dir():
        raise InputError("out/best: no adapter yet; `make train`, or name one with --adapter")
    settings = {
        "base": given.model if given.adapter else "",
        "max_length": given.max_length,
        "device": given.device or ("auto" if work else "cpu"),
        "dtype": given.dtype or ("auto" if work else "float32"),
        "bases": {},
        "merge": bool(work),
        "threshold": given.threshold,
    }
    models = [open_model(name, **settings) for name in names]
    if work:
        work(models[0], given)
    elif inputs := texts.read(given, models[0].takes_pairs):
        show(models, inputs, given.json)
    else:
        for line in texts.typed():
            with texts.forgiven():
                command, _, name = line.partition(" ")
                if command == "/adapter":
                    models = [open_model(name.strip(), **settings)]
                else:
                    text = texts.split_line(line, models[0].takes_pairs)
                    show(models, texts.checked([text]), given.json)


if __name__ == "__main__":
    errors.run_main(main)
