"""in_browser.py: a real Chromium loads the page from the loopback address, and nothing else."""

import functools
import json
import os
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from examples import in_browser
from support.errors import InputError

TEXTS = ["a gripping, <i>beautifully</i> acted film", "two hours that nobody will give back"]
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js with npm")


def install() -> None:
    if not in_browser.PACKAGES.is_dir():
        npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run([*npm, "--prefix", in_browser.PAGE], check=True, timeout=500)


@pytest.fixture(scope="module")
def site(exported, tmp_path_factory):
    """The folder, and its address."""
    install()
    folder = tmp_path_factory.mktemp("browser") / "site"
    in_browser.build_site(exported[0], folder)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def int8_scores(folder, text: str) -> dict[str, float]:
    """What ONNX Runtime says here of the same file."""
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    encoding = tokenizer.encode(text)
    path = folder / "model" / "model_quantized.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, mask, types = encoding.ids, encoding.attention_mask, encoding.type_ids
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    (logits,) = session.run(["logits"], {name: np.array([row]) for name, row in feed.items()})[0]
    names = json.loads((folder / "model" / "config.json").read_text())["id2label"].values()
    return dict(zip(names, np.exp(logits) / np.exp(logits).sum(), strict=True))


@needs_npm
def test_the_page_answers_in_a_browser(site, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    folder, address = site
    find = functools.partial(browser.find_element, "css selector")
    wait = WebDriverWait(browser, 120)
    browser.get(address)
    wait.until(lambda _: find("button").is_enabled() or find("[role=alert]").text)
    assert not find("[role=alert]").text
    spent = []
    for text in TEXTS * 3:
        find("textarea").clear()
        find("textarea").send_keys(text)
        browser.execute_script("document.querySelector('[role=status]').textContent = ''")
        find("button").click()
        wait.until(lambda _: find("[role=status]").text)
        spent.append(float(find("[role=status]").text.removesuffix(" ms")))
        rows = [bar.text.split("\n") for bar in browser.find_elements("css selector", ".bar")]
        shown = {label: float(percent.rstrip("%")) / 100 for label, percent in rows}
        expected = int8_scores(folder, text)
        assert max(shown, key=shown.get) == max(expected, key=expected.get)
        assert all(abs(shown[label] - expected[label]) < 0.03 for label in expected), shown
    if "SCREENSHOT" in os.environ:
        browser.save_screenshot(os.environ["SCREENSHOT"])
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    fetched = [url for url in browser.execute_script(script) if not url.startswith("blob:")]
    assert len(fetched) >= 6 and all(url.startswith(address) for url in fetched), fetched
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB, {np.median(spent):.1f} ms a text")
    # An image of another place is not fetched: the page's policy holds.
    browser.execute_script("new Image().src = 'http://127.0.0.1:1/x.png'")
    wait.until(lambda _: [e for e in browser.get_log("browser") if "Security" in e["message"]])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r": is not there; `python -m examples.in_browser --help`"):
        in_browser.build_site(tmp_path, tmp_path / "site", packages=tmp_path)
    assert not (tmp_path / "site").exists() and re.search("npm install", in_browser.__doc__)
