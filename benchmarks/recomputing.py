"""What --gradient-checkpointing saves and costs: two real trainings on texts of 512 tokens, with it and without.

python benchmarks/recomputing.py                     # MiniLM, batches of 32
python benchmarks/recomputing.py --targets all-linear --batch-size 8
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyarrow import parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from support.offline import offline_pair


def long_texts(folder: Path, texts: int) -> None:
    """Reviews put together until each text has more than 512 tokens."""
    reviews = offline_pair()[1]
    table = parquet.read_table(next(Path(reviews).glob("train-*.parquet")))
    rows = table.to_pylist()
    for split, count in ("train", texts), ("validation", 8):
        parts = {name: [row["sentence"] for row in rows if row["label"] == name] for name in ("negative", "positive")}
        long = [(" ".join(parts[name][i : i + 60]), name) for i in range(count // 2) for name in parts]
        parquet.write_table(
            type(table).from_pylist([{"sentence": text, "label": name} for text, name in long]),
            folder / f"{split}.parquet",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        long_texts(Path(scratch), arguments.texts)
        model = offline_pair()[0]
        base = [sys.executable, ROOT / "train.py", "--model", model, "--data", scratch, "--max-length", "512"]
        for number in range(arguments.rounds):
            for name, flag in ("kept", []), ("computed again", ["--gradient-checkpointing"]):
                out, begun = f"{scratch}/out-{name}-{number}", time.monotonic()
                command = [*base, "--epochs", "1", "--out", out, *more, *flag]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                _, status, used = os.wait4(process.pid, 0)
                assert status == 0, f"{name} ended with {status}"
                seconds, peak = (
                    time.monotonic() - begun,
                    used.ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30),
                )
                print(f"{name:<15} peak {peak:6.2f} GiB, {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
