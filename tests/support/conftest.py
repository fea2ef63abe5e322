"""What the tests of the Hub and of the offline pair share: a Hub on 127.0.0.1 for the client of
this very process."""

import shutil
import time
from pathlib import Path

import pytest
from helpers import TINY
from hub_server import PATTERN, Hub
from huggingface_hub import close_session, constants
from pyarrow import parquet

from bert import BertConfig, BertForSequenceClassification
from support import hub as hub_module


def forget() -> None:
    """What this process has found out about the Hub so far."""
    close_session()
    hub_module.snapshot.cache_clear()
    hub_module.out_of_reach.cache_clear()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, and this process's client pointed at it, with an empty cache, and patient without
    waiting."""
    with Hub() as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + PATTERN,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "AGENT_HARNESSES_PATH": str(tmp_path / "harnesses"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        hub.forget = forget
        forget()
        yield hub
        forget()


@pytest.fixture(scope="session")
def base(minilm, made_once) -> Path:
    """A random BERT with a real tokenizer, as `tiny`, made without transformers."""

    def make(folder: Path) -> None:
        config = BertConfig(**TINY | {"vocab_size": 30522})
        BertForSequenceClassification(config).save_pretrained(folder)
        shutil.copy(f"{minilm}/tokenizer.json", folder)

    return made_once("random-base", make)


@pytest.fixture(scope="session")
def sst2(reviews, made_once) -> Path:
    """A data set of 64 and 8 reviews that passes for GLUE: the folder around sst2/."""

    def make(folder: Path) -> None:
        (folder / "sst2").mkdir()
        for split, rows in ("train", 64), ("validation", 8):
            name = f"{split}-00000-of-00001.parquet"
            table = parquet.read_table(f"{reviews}/{name}").slice(0, rows)
            parquet.write_table(table, folder / "sst2" / name)

    return made_once("sst2-of-reviews", make)


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """What points the client of another process at the Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
        "no_proxy": "127.0.0.1",
    }
