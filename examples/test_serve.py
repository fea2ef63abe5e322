"""serve.py and gather.py in a process of their own: over HTTP, by a browser, by bad clients."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from helpers import ROOT
from prometheus_client.parser import text_string_to_metric_families
from pyarrow import parquet

from examples import serve
from sample import classify, open_model
from support.offline import offline_pair

MINILM, REVIEWS = offline_pair()
LABELS = {"two": ["bad", "good"], "three": ["bad", "good", "<b>so-so</b>"]}
TEXTS = parquet.read_table(f"{REVIEWS}/validation-00000-of-00001.parquet")["sentence"].to_pylist()


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


class Server:
    """`python -m examples.serve`, from its first answer on."""

    def __init__(self, adapters: dict[str, str], *options: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        named = [f"{name}={folder}" for name, folder in adapters.items()]
        words = [MINILM, *named, f"--port={self.port}", *options]
        command = [sys.executable, "-m", "examples.serve", *words]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
        # A pipe could fill up, and the server would wait for its reader.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=self.log)
        for _ in range(600):
            time.sleep(0.1)
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.said()
        raise TimeoutError

    def ask(self, adapter: str, texts: list[str]) -> httpx.Response:
        question = {"adapter": adapter, "texts": texts}
        return httpx.post(f"{self.url}/classify", json=question, timeout=60)

    def measured(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics").text
        values = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "le" not in sample.labels:
                    values[sample.name + sample.labels.get("status", "")] = sample.value
        return values

    def said(self) -> str:
        self.process.wait(timeout=60)
        self.log.seek(0)
        return self.log.read()


@pytest.fixture(scope="module")
def server(adapters):
    server = Server(adapters)
    yield server
    server.process.terminate()
    assert "Traceback" not in server.said()


def probabilities(adapter: str, texts: list[str]) -> np.ndarray:
    """What sample.py answers (N, C)."""
    answers = classify(open_model(adapter), [(text,) for text in texts])
    return np.array([[*answer["scores"].values()] for answer in answers])


@pytest.fixture(scope="module")
def expected(adapters) -> dict[str, np.ndarray]:
    """The answers of sample.py to the first 64 held-out reviews."""
    return {name: probabilities(folder, TEXTS[:64]) for name, folder in adapters.items()}


def test_many_askers_get_the_answers_of_sample(server, expected):
    """128 requests at once, for two adapters, one text each; far fewer passes answer them."""
    before = server.measured()
    questions = [(name, i) for i in range(64) for name in ("two", "three")]
    with ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(server.ask, name, [TEXTS[i]]) for name, i in questions]
    for (name, i), answer in zip(questions, asked, strict=True):
        assert answer.result().status_code == 200
        scores = answer.result().json()[0]
        assert list(scores) == LABELS[name]
        assert np.abs(np.array([*scores.values()]) - expected[name][i]).max() < 1e-5
    after = server.measured()
    passes = after["bert_lora_batch_texts_count"] - before["bert_lora_batch_texts_count"]
    assert after["bert_lora_batch_texts_sum"] - before["bert_lora_batch_texts_sum"] == 128
    assert passes <= 64
    assert after["bert_lora_answers_total200"] - before.get("bert_lora_answers_total200", 0) >= 128
    assert after["bert_lora_seconds_count"] > after["bert_lora_answers_total200"] - 2


def test_several_texts_in_one_request(server, expected):
    answers = server.ask("three", TEXTS[:32]).json()
    found = np.array([[*scores.values()] for scores in answers])  # (N, C)
    assert np.abs(found - expected["three"][:32]).max() < 1e-5


def test_long_texts_are_cut_as_in_the_training(server, adapters):
    """Up to 600 tokens, for an adapter that was trained on 24 and one that does not say."""
    words = ["film", "good", "bad", "it", "is", "not", "a"]
    texts = [" ".join((words * 90)[:count]) for count in (3, 22, 23, 30, 250, 520, 600)]
    for name in "two", "three":
        answers = server.ask(name, texts).json()
        found = np.array([[*scores.values()] for scores in answers])  # (N, C)
        assert np.abs(found - probabilities(adapters[name], texts)).max() < 1e-5
    whole = classify(open_model(adapters["two"], max_length=512), [(text,) for text in texts])
    answers = server.ask("two", texts).json()
    differences = [
        abs(ours["good"] - answer["scores"]["good"])
        for ours, answer in zip(answers, whole, strict=True)
    ]
    assert max(differences[:2]) < 1e-5 and min(differences[3:]) > 1e-4


def test_the_other_answers(server):
    assert httpx.get(f"{server.url}/adapters").json() == LABELS
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    metrics = httpx.get(f"{server.url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    page = httpx.get(f"{server.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text  # nothing from elsewhere
    assert httpx.get(f"{server.url}/page/style.css").status_code == 200
    assert httpx.get(f"{server.url}/page/%2e%2e/serve.py").status_code == 404


def good(adapter="two", texts=("great film",)) -> dict:
    return {"adapter": adapter, "texts": list(texts)}


BAD = {  # a body, and a word of the answer
    "no JSON": ('{"adapter": ', "JSON"),
    "another type": ('{"adapter": "two", "texts": "great film"}', "valid list"),
    "no texts": ('{"adapter": "two"}', "required"),
    "not a number": ('{"adapter": "two", "texts": [NaN]}', "valid string"),
    "half a character": ('{"adapter": "two", "texts": ["\\ud800"]}', "valid string"),
    "none": (json.dumps(good(texts=[])), "at least 1"),
    "too many": (json.dumps(good(texts=["film"] * 33)), "at most 32"),
    "no name": ('{"adapter": 2, "texts": ["great film"]}', "valid string"),
    "empty": (json.dumps(good(texts=["a film", " "])), "text 2 is empty"),
    "no such adapter": (json.dumps(good(adapter="../two")), "no such adapter"),
    "too large": (json.dumps(good(texts=["x" * 2**16])), "65536"),
    "nested": ("[" * 30000, "body"),
    "bytes": (b"\xff\xfe\x00", "body"),
}


def test_a_thousand_bad_requests(server):
    """Of thirteen kinds, from eight clients at once: each gets a line that says why, none a 500."""
    kinds = [*BAD] * 77
    statuses = {"too large": 413, "nested": 400, "bytes": 400}
    headers = {"Content-Type": "application/json"}

    def send(kind: str) -> httpx.Response:
        return client.post("/classify", content=BAD[kind][0], headers=headers)

    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, kinds))
    assert len(answers) == 1001
    for kind, answer in zip(kinds, answers, strict=True):
        assert answer.status_code == statuses.get(kind, 422), (kind, answer.text)
        detail = answer.json()["detail"]
        assert BAD[kind][1] in detail and "\n" not in detail and len(detail) < 200, (kind, detail)
    assert server.ask("two", ["great film"]).status_code == 200
    assert not [name for name in server.measured() if name.startswith("bert_lora_answers_total5")]


def test_bad_clients(server):
    """What is no HTTP, a body without its length, one that breaks off, another method and path."""

    def say(raw: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(raw)
            return connection.recv(100)

    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert b" 400 " in say(b"\x00\x01\x02\r\n\r\n")
    assert b" 400 " in say(head + b"Content-Length: -5\r\n\r\n")
    assert b" 413 " in say(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + b'Content-Length: 500\r\n\r\n{"adapter"')
    assert httpx.get(f"{server.url}/classify").status_code == 405
    assert httpx.get(f"{server.url}/../../etc/passwd").status_code == 404
    assert httpx.get(f"{server.url}/docs").status_code == 404
    assert server.ask("two", ["great film"]).status_code == 200


def test_only_this_machine_can_ask(server):
    with pytest.raises(ConnectionRefusedError):  # 127.0.0.2 is this machine too, by another address
        socket.create_connection(("127.0.0.2", server.port))


REFUSED = {  # the arguments, and the error
    "google-bert/bert-base-uncased two=ADAPTER": "google-bert/bert-base-uncased: no such directory",
    f"{MINILM} two=you/bert-lora": "you/bert-lora: no such directory",
    f"{MINILM} two=ADAPTER two=ADAPTER": "two adapters have one name; "
    "give each another: NAME=DIRECTORY",
    f"{MINILM} two=ADAPTER --port 99999": "--port 99999: expected a number from 0 to 65535",
    f"{MINILM} two={MINILM}": f"{MINILM}/adapter_config.json: No such file or directory",
}


@pytest.mark.parametrize(("words", "said"), REFUSED.items())
def test_loads_only_directories(monkeypatch, capsys, adapters, words, said):
    arguments = [word.replace("ADAPTER", adapters["two"]) for word in words.split()]
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    monkeypatch.setattr(serve.uvicorn, "run", lambda *_, **__: pytest.fail("it serves"))
    with pytest.raises(SystemExit) as exit:
        serve.run_main(serve.main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_sigterm_finishes_what_has_begun(adapters):
    """Eight clients wait for long answers when it comes. Each gets its own whole; then nobody is
    there."""
    server = Server(adapters)
    long = [" ".join(TEXTS[i : i + 8])[:400] for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.ask, "three", long) for _ in range(8)]
        while server.measured()["bert_lora_batch_texts_count"] < 1:
            time.sleep(0.01)
        assert not any(future.done() for future in asked)
        server.process.send_signal(signal.SIGTERM)
    answers = [future.result() for future in asked]
    assert [answer.status_code for answer in answers] == [200] * 8
    first = answers[0].json()
    for answer in answers:
        for ours, theirs in zip(answer.json(), first, strict=True):
            assert np.abs(np.array([*ours.values()]) - [*theirs.values()]).max() < 1e-5
    assert "Traceback" not in server.said() and server.process.returncode == -signal.SIGTERM
    with pytest.raises(httpx.ConnectError):
        server.ask("two", ["great film"])


def test_the_page_in_a_browser(server, adapters, browser):
    """Chromium writes a text, chooses an adapter, and sees bars as sample.py's answer says."""
    from selenium.webdriver.support.ui import Select, WebDriverWait

    find = functools.partial(browser.find_element, "css selector")
    find_all = functools.partial(browser.find_elements, "css selector")
    wait = WebDriverWait(browser, 30)
    browser.get(server.url)
    wait.until(lambda _: len(Select(find("select")).options) == 2)
    assert [option.text for option in Select(find("select")).options] == [*LABELS]
    text = "a gripping, <i>beautifully</i> acted film"
    for name, labels in LABELS.items():
        Select(find("select")).select_by_visible_text(name)
        find("textarea").clear()
        find("textarea").send_keys(text)
        find("button").click()
        p = probabilities(adapters[name], [text])[0]  # (C,)
        wait.until(lambda _, labels=labels: len(find_all(".bar")) == len(labels))
        shown = [bar.text.split("\n") for bar in find_all(".bar")]
        assert [label for label, _ in shown] == labels
        percents = np.array([float(percent.rstrip("%")) for _, percent in shown])
        assert np.abs(percents - 100 * p).max() < 0.06
        widths = np.array([bar.rect["width"] for bar in find_all(".bar i")])
        assert np.abs(widths / widths.sum() - p).max() < 0.02
    if "SCREENSHOT" in os.environ:
        browser.save_screenshot(os.environ["SCREENSHOT"])
    find("textarea").clear()
    find("textarea").send_keys("\u200b")
    find("button").click()
    wait.until(lambda _: "empty" in find("[role=alert]").text)
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert not [said for said in messages if "422" not in said and "favicon" not in said]
