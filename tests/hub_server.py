"""A small Hugging Face Hub on 127.0.0.1: folders under repository names, the Hub's headers and
errors, faults to order.

    with Hub() as hub:
        hub.add("me/model", folder)                # or "datasets/me/data"; again: a newer commit
        hub.faults["model.safetensors"] = "cut"    # for the files of that name, "*" for all

Faults: an HTTP status; "silent" (connects and never answers); "drip" (a byte at a time, for ever);
"cut" (breaks off in the middle, again and again); "cut once"; "short" (half the file, though the
headers promised all of it); "portal" (another page).
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PATTERN = "/{repo_id}/resolve/{revision}/{filename}"
CODES = {401: "RepoNotFound", 403: "GatedRepo"}


class Hub:
    def __init__(self, handler=None):
        self.repositories: dict[str, dict[str, Path]] = {}  # {"me/model": {commit: folder}}
        self.faults: dict[str, int | str] = {}
        self.served: list[tuple[str, int]] = []  # the paths asked for, and the status answered
        self.role = "write"  # what the token of UploadHandler's user may do
        self.full = False  # whether uploads are refused
        self.closing = threading.Event()
        bound = type("Bound", (handler or Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """From here on connections are refused."""
        if not self.closing.is_set():
            self.closing.set()
            self.server.shutdown()
            self.server.server_close()

    def add(self, repository: str, folder: str | Path, commit: str = "0" * 40) -> None:
        self.repositories.setdefault(repository, {})[commit] = Path(folder)

    def gets(self, name: str) -> int:
        """How often something of this name was asked for."""
        return sum(path.partition("?")[0].endswith(f"/{name}") for path, _ in self.served)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def answer(
        self, status: int, body: bytes = b"", length: int | None = None, **headers: str
    ) -> None:
        self.hub.served.append((self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply(self, value) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        of_file = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        of_repository = re.fullmatch(r"/api/(\w+)/(.+?)(?:/(revision|tree)/([^/]+))?", path)
        if of_file:
            repository, revision, name = of_file.groups()
        elif of_repository:
            kind, repository, asked, revision = of_repository.groups()
            repository = repository if kind == "models" else f"{kind}/{repository}"
            name = ""
        else:  # the client asks for things beside these, and can do without
            repository, name = "", ""
        fault = self.hub.faults.get(Path(name).name, self.hub.faults.get("*"))
        if fault in ("silent", "drip"):
            while not self.hub.closing.wait(0.1):
                self.wfile.write(b"H" * (fault == "drip"))
            return None
        if fault == "portal":
            return self.answer(200, b"<html>Please accept our terms of use</html>")
        if isinstance(fault, int):
            code = CODES.get(fault, "")
            return self.answer(fault, X_Error_Code=code, X_Error_Message=f"fault {fault}")
        if not repository:
            return self.answer(404)
        commits = self.hub.repositories.get(repository)
        if commits is None:
            return self.answer(401, X_Error_Code="RepoNotFound")
        commit = list(commits)[-1] if revision in ("main", None) else revision
        if commit not in commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if name:
            return self.answer_file(commits[commit] / name, commit, fault)
        if asked != "tree":
            return self.reply({"id": repository.removeprefix("datasets/"), "sha": commit})
        files = [path for path in sorted(commits[commit].rglob("*")) if path.is_file()]
        return self.reply([
            {
                "type": "file",
                "path": str(path.relative_to(commits[commit])),
                "size": path.stat().st_size,
                "oid": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        ])  # fmt: skip

    def answer_file(self, file: Path, commit: str, fault: str | None) -> None:
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": commit}
        if fault == "short" and self.command == "GET":
            return self.answer(200, content[: len(content) // 2], **headers)
        end, start, status = len(content), 0, 200
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(ranged[1]), 206
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault in ("cut", "cut once"):
            end = len(content) // 2
            if fault == "cut once" and self.command == "GET":
                self.hub.faults.clear()
        return self.answer(status, content[start:end], length=len(content) - start, **headers)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


class UploadHandler(Handler):
    """The Hub's API for uploads, as far as the client asks: who I am, create, preupload, commit."""

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            if self.headers.get("Authorization") != "Bearer hf_right":
                return self.answer(401)
            role = {"auth": {"accessToken": {"role": self.hub.role}}}
            return self.reply({"type": "user", "name": "you", "orgs": [{"name": "us"}]} | role)
        return super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer(401, X_Error_Message="Invalid token")
        if self.hub.full:
            return self.answer(403, X_Error_Message="storage limit reached")
        if self.path == "/api/repos/create":
            self.hub.created = json.loads(body)
            return self.reply({"url": f"{self.hub.url}/you/sst2"})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply({"files": [{"path": file["path"]} | modes for file in files]})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line)["value"] for line in body.decode().splitlines()]
            sent = {v["path"]: base64.b64decode(v["content"]) for v in lines if "path" in v}
            self.hub.files = sent
            commit = "1" * 40
            url = f"{self.hub.url}/you/sst2/commit/{commit}"
            return self.reply({"commitUrl": url, "commitOid": commit})
        return self.reply({"errors": [], "warnings": []})  # validate-yaml

    do_HEAD = do_GET
