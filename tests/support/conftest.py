"""What the tests of the Hub and of the offline pair share: a Hub on 127.0.0.1 for the client of
this very process."""

import time
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import PATTERN, Hub
from huggingface_hub import constants
from pyarrow import parquet

from support.hub import out_of_reach


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, and the client of this process pointed at it, with an empty cache, and patient without
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
        huggingface_hub.close_session()
        out_of_reach.cache_clear()
        yield hub
        out_of_reach.cache_clear()
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def sst2(reviews, tmp_path_factory) -> Path:
    """A data set of 64 and 8 reviews that passes for GLUE."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "sst2").mkdir()
    for split, rows in ("train", 64), ("validation", 8):
        name = f"{split}-00000-of-00001.parquet"
        parquet.write_table(
            parquet.read_table(f"{reviews}/{name}").slice(0, rows), folder / "sst2" / name
        )
    return folder


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """What points the client of another process at the Hub."""
    switches = {
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
        "no_proxy": "127.0.0.1",
    }
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **switches}
