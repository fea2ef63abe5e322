"""Pushing an adapter: the Hub's own client against a server on 127.0.0.1 that keeps what a commit brings."""

import base64
import json
import shutil

import pytest
from hub_server import Handler, Hub

CARD = "---\nlibrary_name: peft\n---\nA card.\n"


class Accepting(Handler):
    """The Hub's API for uploads, as far as the client asks: who I am, create, preupload, commit."""

    def reply(self, value: dict) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            if self.headers.get("Authorization") != "Bearer hf_right":
                return self.answer(401)
            return self.reply({"type": "user", "name": "you", "orgs": []})
        return super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer(401, X_Error_Message="Invalid token")
        if self.path == "/api/repos/create":
            self.hub.created = json.loads(body)
            return self.reply({"url": f"{self.hub.url}/you/sst2"})
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            return self.reply({"files": [file | {"shouldIgnore": False} for file in files]})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line)["value"] for line in body.decode().splitlines()]
            self.hub.files = {v["path"]: base64.b64decode(v["content"]) for v in lines if "path" in v}
            return self.reply({"commitUrl": f"{self.hub.url}/you/sst2/commit/{'1' * 40}", "commitOid": "1" * 40})
        return self.reply({"errors": [], "warnings": []})  # validate-yaml

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path):
    with Hub() as hub:
        hub.server.RequestHandlerClass = type("Bound", (Accepting,), {"hub": hub})
        hub.files, hub.created = {}, None
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        hub.environment = settings | {"HF_TOKEN": "hf_right", "HF_HUB_DISABLE_XET": "1"}
        yield hub


@pytest.fixture
def table(reviews, tmp_path):
    """A few reviews to train on."""
    from pyarrow import csv, parquet

    rows = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet").slice(0, 40)
    csv.write_csv(rows, tmp_path / "few.csv")
    return tmp_path / "few.csv"


def train(run, minilm, table, out, hub, *more):
    short = ("--epochs", 1, "--max-length", 12, "--batch-size", 16)
    where = ("--model", minilm, "--data", table, "--out", out, "--push-to-hub")
    return run("train.py", *where, *short, *more, env=hub.environment)


def test_a_run_is_pushed_whole_and_comes_back(run, hub, minilm, table, tmp_path):
    out = tmp_path / "out"
    done = train(run, minilm, table, out, hub, "--hub-model-id", "you/sst2", "--hub-private")
    assert done.returncode == 0, done.stderr
    assert hub.created["name"] == "sst2" and hub.created["visibility"] == "private"
    best = {path.name: path.read_bytes() for path in (out / "best").iterdir()}
    assert hub.files == best | {"training_curves.png": (out / "training_curves.png").read_bytes()}
    card = hub.files["README.md"].decode()
    assert "library_name: peft" in card and "--adapter you/sst2" in card and "accuracy" in card
    (tmp_path / "pushed").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    hub.add("you/sst2", tmp_path / "pushed")
    answers = [run("sample.py", "--adapter", a, "great film", env=hub.environment) for a in ("you/sst2", out / "best")]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout


def test_the_login_is_checked_before_training(run, hub, minilm, table, tmp_path):
    hub.environment["HF_TOKEN"] = "hf_wrong"
    done = train(run, minilm, table, tmp_path / "out", hub, "--hub-model-id", "you/sst2")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: you/sst2: ") and done.stderr.count("\n") == 1
    assert "hf auth login" in done.stderr


def test_push_later(run, hub, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    done = run("lora.py", "push", folder, "you/sst2", env=hub.environment)
    assert done.returncode == 2 and "holds no adapter" in done.stderr
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(CARD)
    done = run("lora.py", "push", folder, "you/sst2", env=hub.environment)
    assert done.returncode == 0, done.stderr
    assert hub.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert hub.created.get("visibility") != "private"
    shutil.rmtree(folder)
