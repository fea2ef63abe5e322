"""What several tests of the examples share: adapters of the reviews, and ONNX files of one."""

import contextlib
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import float32_on_every_cpu  # noqa: F401
from pyarrow import csv, parquet
from torch import nn

import train
from lora import save_adapter
from support.errors import run_main
from support.offline import offline_pair


@pytest.fixture(scope="session")
def review_adapter(tmp_path_factory) -> str:
    """One that has seen 1,280 reviews: enough to be right more often than not."""
    base, reviews = offline_pair()
    folder = tmp_path_factory.mktemp("adapter")
    table = parquet.read_table(f"{reviews}/train-00000-of-00001.parquet")
    csv.write_csv(table.slice(0, 1280), folder / "few.csv")
    settings = {"lr": 2e-3, "device": "cpu", "max_length": 32}
    config = train.Config(model=base, data=str(folder / "few.csv"), **settings)
    setup = train.set_up(config)
    setup.model.train()
    order = np.random.default_rng(0).permutation(len(setup.train_set.lengths))
    for step, rows in enumerate(np.array_split(order, 36)):
        train.train_step(setup, rows, step)
    save_adapter(setup.model, folder / "adapter", base)
    return str(folder / "adapter")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory) -> str:
    """200 of the held-out reviews, from the shortest to the longest."""
    table = parquet.read_table(f"{offline_pair()[1]}/validation-00000-of-00001.parquet")
    order = np.argsort([len(text) for text in table["sentence"].to_pylist()])
    folder = tmp_path_factory.mktemp("held out")
    for split in "train", "validation":
        parquet.write_table(table.take(order[::5]), folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="session")
def exported(review_adapter, held_out, tmp_path_factory) -> tuple[Path, str]:
    """The folder that both programs leave, and what they print."""
    from examples import export_onnx, onnx_int8  # late: the other tests need no ONNX

    folder = tmp_path_factory.mktemp("onnx") / "onnx"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        for module in export_onnx, onnx_int8:
            patch.setattr(module, "offline_pair", lambda: (None, held_out))
            patch.setattr(module.logging, "disable", lambda level: None)
            rounds = ["--rounds=1"] if module is onnx_int8 else []
            patch.setattr(sys, "argv", [module.__name__, review_adapter, str(folder), *rounds])
            run_main(module.main)
    return folder, said.getvalue()


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> dict[str, str]:
    """Two of different ranks, targets and classes."""
    from helpers import adapted  # late: transformers takes seconds to import

    base = offline_pair()[0]
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"two": (["query", "value"], 4, 2), "three": ("all-linear", 2, 3)}
    for name, (targets, rank, C) in kinds.items():
        model = adapted(base, targets, rank=rank)
        model.config.id2label = dict(enumerate(["bad", "good", "<b>so-so</b>"][:C]))
        model.classifier = nn.Linear(384, C)
        generator = torch.Generator().manual_seed(C)
        nn.init.normal_(model.classifier.weight, std=0.3, generator=generator)  # decided
        model.config.model_max_length = 24 if name == "two" else None
        save_adapter(model, folder / name, base)
    return {name: str(folder / name) for name in kinds}


@pytest.fixture
def browser(tmp_path):
    """A Chromium without a window, in a folder of its own; it keeps what a page says."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    size, folder = "--window-size=760,540", f"--user-data-dir={tmp_path}"
    for argument in "--headless=new", "--no-sandbox", size, folder:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        yield browser
