"""What many adapters on one base cost: switching, and a batch in which every row has its own.

    python benchmarks/adapters.py       # MiniLM, 2, 4 and 8 adapters, 16 movie reviews in a batch

Each figure is the median of interleaved rounds. "alone" runs the rows of each adapter by
themselves, one batch for each; its logits and those of the mixed batch must agree.
"""

import tempfile
import time
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from compare_hf import save_results

from bert import BertForSequenceClassification
from data import encode, load_data, load_tokenizer, make_batch
from lora import LoRALayer, apply_lora_to_model, save_adapter
from runtime.bank import AdapterBank
from support import hub
from support.errors import InputError, run_main
from support.offline import offline_pair
from support.options import OneLineParser

SETTINGS = [  # of the adapters, in turn
    {"target_modules": ["query", "value"], "rank": 8},
    {"target_modules": "all-linear", "rank": 4},
    {"target_modules": ["key"], "rank": 16},
]
HEAD = """\
| adapters | mixed batch | each alone | mixed is faster by | one adapter for all | switch | load |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def write_adapter(number: int, base: str, folder: str) -> None:
    """A random one of 2, 3 or 4 classes."""
    torch.manual_seed(number)
    label_names = [f"LABEL_{label}" for label in range(2 + number % 3)]
    model = BertForSequenceClassification.from_pretrained(base, label_names)
    apply_lora_to_model(model, **SETTINGS[number % len(SETTINGS)])
    for layer in model.modules():
        if isinstance(layer, LoRALayer):
            torch.nn.init.normal_(layer.lora_B.weight, std=0.05)
    save_adapter(model, folder, base)


def open_bank(base: str, count: int, scratch: str) -> tuple[AdapterBank, list[float]]:
    """A bank of adapters of several shapes, and the seconds that loading each took."""
    bank = AdapterBank(base)
    seconds = []
    for number in range(count):
        folder = f"{scratch}/{number}"
        write_adapter(number, base, folder)
        start = time.perf_counter()
        bank.load(str(number), folder)
        seconds.append(time.perf_counter() - start)
    return bank, seconds


@torch.inference_mode()
def measure(bank: AdapterBank, count: int, batch: tuple, rounds: int) -> dict[str, list[float]]:
    """Seconds for the batch mixed, alone, and through one adapter; and for a switch."""
    names = [str(row % count) for row in range(len(batch[0]))]
    own = {name: [] for name in sorted(set(names))}
    for row, name in enumerate(names):
        own[name].append(row)
    parts = {name: [None if t is None else t[rows] for t in batch] for name, rows in own.items()}

    def alone() -> list:
        results: list = [None] * len(names)
        for name, rows in own.items():
            for row, logits in zip(rows, bank.models[name](*parts[name]), strict=True):
                results[row] = logits
        return results

    work = {
        "mixed": lambda: bank.forward_rows(names, *batch),
        "alone": alone,
        "one adapter for all": lambda: bank.models["0"](*batch),
        "switch": lambda: bank.models[names[1]],
    }
    seconds = {name: [] for name in work}
    for number in range(rounds + 1):
        results = {}
        for name, function in work.items():
            start = time.perf_counter()
            results[name] = function()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
        for a, b in zip(results["mixed"], results["alone"], strict=True):
            if (a - b).abs().max() > 1e-5:
                raise InputError("the mixed batch and each adapter alone do not agree")
    return seconds


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--model", help="a directory or a Hub repository (default: MiniLM)")
    for name, default in ("rows", 16), ("rounds", 20), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    s = SimpleNamespace(**vars(parser.parse_args()), device="cpu")
    torch.set_num_threads(s.threads)
    base, data = offline_pair()
    base = str(hub.folder(s.model or base))
    encoded = encode(load_tokenizer(base, 128), load_data(data).validation.texts)
    by_length = np.argsort(encoded.lengths, kind="stable")
    rows = by_length[len(by_length) // 2 :][: s.rows]
    batch = make_batch(encoded, rows)[:3]
    found = {}
    print(HEAD)
    for count in 2, 4, 8:
        with tempfile.TemporaryDirectory() as scratch:
            bank, loading = open_bank(base, count, scratch)
            seconds = measure(bank, count, batch, s.rounds) | {"load": loading}
        found[count] = seconds
        ms = {name: f"{median(values) * 1e3:.3g} ms" for name, values in seconds.items()}
        ratio = median(a / b for a, b in zip(seconds["alone"], seconds["mixed"], strict=True))
        cells = [ms["mixed"], ms["alone"], f"{ratio:.2f} x", ms["one adapter for all"]]
        print(f"| {' | '.join([str(count), *cells, ms['switch'], ms['load']])} |")
    save_results("adapters", s, vars(s), seconds=found)


if __name__ == "__main__":
    run_main(main)
