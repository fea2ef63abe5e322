"""What --gradient-checkpointing saves and costs: trainings on texts of 512 tokens, in turn.

    python benchmarks/recomputing.py                                       # MiniLM, batches of 32
    python benchmarks/recomputing.py --targets all-linear --batch-size 8   # options of train.py

Each training is a process of its own, whose peak of memory the operating system tells.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyarrow import Table, parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from support.offline import offline_pair

UNIT = 2**30 if sys.platform == "darwin" else 2**20  # of ru_maxrss, in a GiB


def write_long_texts(reviews: str, folder: str, texts: int) -> None:
    """Reviews of one kind put together, 60 of them, which is more than 512 tokens."""
    rows = parquet.read_table(next(Path(reviews).glob("train-*.parquet"))).to_pylist()
    for split, count in ("train", texts), ("validation", 8):
        long = []
        for label in "negative", "positive":
            parts = [row["sentence"] for row in rows if row["label"] == label]
            for start in range(count // 2):
                text = " ".join(parts[start : start + 60])
                long.append({"sentence": text, "label": label})
        parquet.write_table(Table.from_pylist(long), Path(folder, f"{split}.parquet"))


def measure(words: list[str]) -> tuple[float, float]:
    """Seconds and peak GiB of train.py with these words."""
    begun = time.monotonic()
    command = [sys.executable, ROOT / "train.py", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"train.py ended with {status}"
    return time.monotonic() - begun, used.ru_maxrss / UNIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=128, help="to train on, once")
    parser.add_argument("--rounds", type=int, default=2)
    given, more = parser.parse_known_args()
    model, reviews = offline_pair()
    with tempfile.TemporaryDirectory() as scratch:
        write_long_texts(reviews, scratch, given.texts)
        words = ["--model", model, "--data", scratch, "--max-length", "512", "--epochs", "1", *more]
        for number in range(given.rounds):
            for name, flag in ("kept", []), ("computed again", ["--gradient-checkpointing"]):
                out = f"{scratch}/out-{name}-{number}"
                seconds, peak = measure([*words, "--out", out, *flag])
                print(f"{name:<15} peak {peak:6.2f} GiB, {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
