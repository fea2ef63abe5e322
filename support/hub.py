"""The Hugging Face Hub: a name becomes a folder, errors become one line, and a model is uploaded.

The Hub's own client does the work. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what
they mean elsewhere. It is imported late: nothing of it is needed where all is in directories.
"""

import contextlib
import errno
import functools
import json
import re
import shlex
import sys
import threading
from pathlib import Path

from support.errors import InputError, first_line, is_out_of_memory, listing, say

SECONDS = 8.0  # within which the Hub has to answer
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("config.json", "model.safetensors", *ADAPTER_FILES, *TOKENIZER_FILES)
PART = r"[\w-][\w.-]*"  # of a repository's name
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
EXPLANATIONS = {
    "GatedRepoError": "asks for a login: accept its terms on the Hub, then run `hf auth login`",
    "RepositoryNotFoundError": "neither a directory here nor a public Hub repository; "
    "if it is a private one, run `hf auth login` first",
    "RevisionNotFoundError": "the Hub's repository has no such revision",
    "LocalEntryNotFoundError": "no such directory, and the Hub cannot be reached "
    "(nor is it in the cache); check the network, or give a directory",
    "LocalTokenNotFoundError": "nobody is logged in to the Hub: run `hf auth login` first",
}


def folder(name: str | Path, repo_type: str = "model", files=MODEL_FILES) -> Path:
    """A directory as it is, or the folder in the cache of the Hub's `owner/name[@revision]`.

    `files` are the patterns of what is downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(f"({PART}/)?{PART}(@.+)?", str(name)):
        raise InputError(f"{name}: no such directory, and no name of a Hub repository")
    return snapshot(str(name), repo_type, tuple(files))


def data_folder(name: str | Path) -> Path:
    """A local path as it is, or the folder of a Hub data set, `owner/name[/folder][@revision]`.

    What is downloaded are GLUE's files, train*.parquet and validation*.parquet.
    """
    if Path(name).exists():
        return Path(name)
    parsed = re.fullmatch(f"({PART}/{PART})((?:/{PART})*)/?(@.+)?", str(name))
    if not parsed or str(name).endswith((".parquet", ".csv", ".tsv", ".jsonl", ".txt")):
        raise InputError(f"{name}: no such file, directory or Hub data set (owner/name/folder)")
    repository, inside, revision = parsed.groups("")
    places = [inside[1:] + "/"] if inside else ["", "data/"]
    files = [f"{place}{split}*.parquet" for place in places for split in ("train", "validation")]
    found = snapshot(repository + revision, "dataset", tuple(files))
    at_root = not inside and not (found / "data").is_dir()
    return found if at_root else found / (inside[1:] or "data")


def require(folder: Path, filename: str) -> Path:
    """The path of a file in a folder. Raises InputError if there is none."""
    path = Path(folder) / filename
    if not path.is_file():
        pickle = "; a pytorch_model.bin is a pickle, which can run code: convert it to safetensors"
        hint = pickle if filename == "model.safetensors" else ""
        raise InputError(f"{folder}: has no {filename}{hint}")
    return path


def client():
    """The Hub's own client, without its warnings, and without bars where there is no terminal."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    if not (sys.stderr and sys.stderr.isatty()):
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


@functools.cache
def snapshot(name: str, repo_type: str, files: tuple[str, ...]) -> Path:
    """Downloads from `owner/name[@revision]`, or takes from the cache, what matches `files`."""
    hub = client()
    repository, _, revision = name.partition("@")
    which = {"repo_id": repository, "repo_type": repo_type, "revision": revision or None}
    download = functools.partial(hub.snapshot_download, **which, allow_patterns=files)
    found = None
    with hub_errors(name):
        if re.fullmatch("[0-9a-f]{40}", revision):  # a commit, whose files never change
            missing = (hub.errors.CachedRepoTreeNotFoundError, hub.errors.LocalEntryNotFoundError)
            with contextlib.suppress(*missing):
                hub.get_cached_repo_tree(**which)  # without it a part would pass for the whole
                found = download(local_files_only=True)
        found = Path(found or download(local_files_only=bool(out_of_reach())))
    if not any(any(found.glob(pattern)) for pattern in files):
        raise InputError(f"{name}: the Hub's repository has none of {listing(files)}")
    return found


def within(seconds: float, ask):
    """What ask() returns or raises, as a value; after so many seconds a TimeoutError.

    The client's own limits are for each of its attempts, and an unanswered name look-up has none.
    """
    answers = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else TimeoutError(f"no answer of the Hub's in {seconds:.0f} s")


@functools.cache
def out_of_reach() -> str:
    """Why this process cannot use the Hub, or "". The client would try each file for minutes."""
    hub = client()
    url = hub.constants.ENDPOINT
    answer = within(SECONDS, lambda: hub.get_hf_file_metadata(url, timeout=SECONDS))
    refused = isinstance(answer, hub.errors.HfHubHTTPError) and answer.response.status_code < 500
    return first_line(answer) if isinstance(answer, Exception) and not refused else ""


@contextlib.contextmanager
def hub_errors(name: str, later: str = ""):
    """Turns whatever the Hub or the network does into one line, which ends with `later`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = f"the Hub did not answer as it should ({first_line(error)}); try again"
        for kind in type(error).__mro__[::-1]:  # the most special one last
            text = EXPLANATIONS.get(kind.__name__, text)
        disk = disk_error(error)
        if disk:
            place = disk.filename or client().constants.HF_HUB_CACHE
            text = f"{disk.strerror}: make room in {place}, or let HF_HOME name another directory"
        raise InputError(f"{name}: {text}{later}") from error


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of a disk that lies behind an error of the client's, if there is one."""
    while error:
        if (
            isinstance(error, OSError)
            and type(error).__module__ == "builtins"
            and error.errno in DISK
        ):
            return error
        error = error.__cause__ or error.__context__
    return None


def check_login(repository: str) -> None:
    """Raises InputError if a push to `repository` could not succeed."""
    require_hub(repository)
    with hub_errors(repository):
        user = within(SECONDS, client().HfApi().whoami)
        if isinstance(user, Exception):
            raise user
    owner, slash, _ = repository.partition("/")
    if slash and owner not in [user["name"], *(group["name"] for group in user.get("orgs", []))]:
        problem = f"you are {user['name']} on the Hub, who cannot push to what is {owner}'s"
        raise InputError(f"{repository}: {problem}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"{repository}: your token can only read; `hf auth login` takes another")


def require_hub(repository: str, later: str = "") -> None:
    reason = out_of_reach()
    if reason:
        raise InputError(f"{repository}: the Hub cannot be reached ({reason}){later}")


def push(
    files: list[Path], repository: str, private: bool = False, message: str = "Upload"
) -> None:
    """Uploads the files of a folder as one commit. The model card names the repository instead."""
    folder = files[0].parent
    again = shlex.join(["python", "-m", "runtime.adapters", "push", str(folder), repository])
    later = f"; {folder} is kept, and goes there with: {again}"
    require_hub(repository, later)
    api = client().HfApi()
    add = client().CommitOperationAdd
    with hub_errors(repository, later):
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [add(file.name, content_for(repository, file)) for file in files]
        commit = api.create_commit(repository, operations, commit_message=message)
    say(f"pushed to {commit.repo_url}")


def content_for(repository: str, file: Path) -> bytes:
    """A file's bytes; in a model card the repository's name replaces that of the folder."""
    content = file.read_bytes()
    command = re.search(
        rb"^    python sample\.py --adapter (.+?) (?:--pair )?\"", content, re.MULTILINE
    )
    if file.name != "README.md" or not command:
        return content
    name = shlex.split(command[1].decode())[0]
    content = content.replace(b"--adapter %s " % command[1], b"--adapter %s " % repository.encode())
    quoted = json.dumps(name, ensure_ascii=False).encode()
    return content.replace(quoted, json.dumps(repository).encode())
