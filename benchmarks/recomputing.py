"""What --gradient-checkpointing saves and costs: real trainings on texts of 512 tokens, with it and
without, in turn.

    python benchmarks/recomputing.py                                             # MiniLM, batches of 32
    python benchmarks/recomputing.py --targets all-linear --batch-size 8         # any options of train.py

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


def write_long_texts(reviews: str, folder: Path, texts: int) -> None:
    """Reviews of one kind put together, 60 of them, which is more than 512 tokens."""
    rows = parquet.read_table(next(Path(reviews).glob("train-*.parquet"))).to_pylist()
    for split, count in ("train", texts), ("validation", 8):
        long = []
        for label in ("negative", "positive"):
            parts = [row["sentence"] for row in rows if row["label"] == label]
            long += [
                {"sentence": " ".join(parts[i : i + 60]), "label": label} for i in range(count // 2)
            ]
        parquet.write_table(Table.from_pylist(long), folder / f"{split}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=128, help="to train on, once")
    parser.add_argument("--rounds", type=int, default=2)
    arguments, more = parser.parse_known_args()
    unit = 2**30 if sys.platform == "darwin" else 2**20
    with tempfile.TemporaryDirectory() as scratch:
        model, reviews = offline_pair()
        write_long_texts(reviews, Path(scratch), arguments.texts)
        options = [
            "--model",
            model,
            "--data",
            scratch,
            "--max-length",
            "512",
            "--epochs",
            "1",
            *more,
        ]
        for number in range(arguments.rounds):
            for name, flag in ("kept", []), ("computed again", ["--gradient-checkpointing"]):
                begun, out = time.monotonic(), f"{scratch}/out-{name}-{number}"
                command = [sys.executable, ROOT / "train.py", *options, "--out", out, *flag]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                _, status, used = os.wait4(process.pid, 0)
                assert status == 0, f"{name} ended with {status}"
                seconds, peak = time.monotonic() - begun, used.ru_maxrss / unit
                print(f"{name:<15} peak {peak:6.2f} GiB, {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
