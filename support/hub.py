"""The Hugging Face Hub: finding a file in a directory or there, what goes wrong in one line, the login, the upload.

The Hub's own client does the work. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean elsewhere.
It is imported late: nothing of it is needed where all files are in directories.
"""

import contextlib
import errno
import functools
import json
import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

from support.files import InputError, first_line, misread

SECONDS = 8.0  # within which the Hub has to answer
DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EIO,
}


def within(seconds: float, ask: Callable):
    """What ask() returns or raises, as a value; after so many seconds a TimeoutError.

    The client's own limits are for each of its attempts, and a name server that never answers knows none.
    """
    answers = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            answers.append(error)

    asking = threading.Thread(target=work, daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else TimeoutError(f"no answer of the Hub's within {seconds:.0f} s")


@functools.cache
def out_of_reach() -> str:
    """Why this process cannot use the Hub, or "". Asked once: the client would try each file for minutes."""
    from huggingface_hub import constants, errors, get_hf_file_metadata

    answer = within(SECONDS, lambda: get_hf_file_metadata(constants.ENDPOINT, timeout=SECONDS))
    refused = (
        isinstance(answer, errors.HfHubHTTPError) and answer.response.status_code < 500
    )  # so it is there
    return first_line(answer) if isinstance(answer, Exception) and not refused else ""


def find_file(
    name: str, filename: str, repo_type: str = "model", required: bool = True
) -> Path | None:
    """The path of a file in the directory `name`, or else in the Hub's repository `name[@revision]`.

    From the Hub it is downloaded once and kept in its cache. Without `required`, an absent file is None.
    """
    if Path(name).is_dir():
        return find_in_folder(Path(name), filename, required)
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repository):
        raise InputError(f"{name}: no such directory, and no name of a Hub repository")
    from huggingface_hub import (
        _CACHED_NO_EXIST,
        errors,
        hf_hub_download,
        logging,
        try_to_load_from_cache,
    )

    logging.set_verbosity_error()  # the one line says it all
    which = {"repo_type": repo_type, "revision": revision or None}
    at_commit = re.fullmatch(r"[0-9a-f]{40}", revision) and try_to_load_from_cache(
        repository, filename, **which
    )
    with hub_errors(name):
        local = isinstance(at_commit, str) or bool(out_of_reach())  # a commit's file never changes
        try:
            return Path(hf_hub_download(repository, filename, local_files_only=local, **which))
        except errors.RemoteEntryNotFoundError:
            if required:
                raise InputError(f"{name}: the Hub's repository has no {filename}") from None
        except (
            errors.LocalEntryNotFoundError
        ):  # the Hub is out of reach, but may have said that there is no such file
            if (
                required
                or try_to_load_from_cache(repository, filename, **which) is not _CACHED_NO_EXIST
            ):
                raise
    return None


def find_in_folder(folder: Path, filename: str, required: bool) -> Path | None:
    if (folder / filename).is_file():
        return folder / filename
    if not required:
        return None
    pickled = (folder / "pytorch_model.bin").exists() and filename == "model.safetensors"
    hint = (
        "; its pytorch_model.bin is a pickle, which can run code: convert it to safetensors"
        if pickled
        else ""
    )
    raise InputError(f"{folder}: the directory has no {filename}{hint}")


@contextlib.contextmanager
def hub_errors(name: str, later: str = ""):
    """Turns whatever the Hub or the network does inside the block into one line, which ends with `later`."""
    from huggingface_hub import constants, errors

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (full := disk_error(error)) is not None:
            where = full.filename or constants.HF_HUB_CACHE
            hint = f"while {name} was downloaded; make room there, or let HF_HOME name another directory"
            raise InputError(f"{where}: {full.strerror}, {hint}") from None
        explanations = {
            errors.GatedRepoError: "asks for a login: accept its terms on the Hub, then run `hf auth login`",
            errors.RepositoryNotFoundError: "neither a directory here nor a public Hub repository; "
            "if it is a private one, run `hf auth login` first",
            errors.RevisionNotFoundError: "the Hub's repository has no such revision",
            errors.LocalEntryNotFoundError: "no such directory, and the Hub cannot be reached "
            "(nor is it in the cache); check the network, or give a directory",
            errors.LocalTokenNotFoundError: "nobody is logged in to the Hub: run `hf auth login` first",
        }
        unforeseen = f"the Hub did not answer as it should ({first_line(error)}); try again"
        text = next(
            (text for kind, text in explanations.items() if isinstance(error, kind)), unforeseen
        )
        raise misread(error, f"{name}: {text}{later}") from None


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of a disk that lies behind an error of the client's, if there is one."""
    while error is not None and not (
        type(error).__module__ == "builtins" and getattr(error, "errno", 0) in DISK
    ):
        error = error.__cause__ or error.__context__
    return error


def check_login(repository: str) -> None:
    """Raises InputError if a push to `repository` could not succeed: better before the training than after it."""
    from huggingface_hub import whoami

    if not repository:
        raise InputError("--push-to-hub pushes an adapter, and takes --hub-model-id owner/name")
    require_hub(repository)
    with hub_errors(repository):
        if isinstance(who := within(SECONDS, whoami), Exception):
            raise who
    owner, names = (
        repository.partition("/")[0],
        [who["name"], *(group["name"] for group in who.get("orgs", []))],
    )
    if "/" in repository and owner not in names:
        raise InputError(
            f"{repository}: you are {who['name']} on the Hub, who cannot push to what is {owner}'s"
        )
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"{repository}: your token can only read; `hf auth login` takes one that can write"
        )


def require_hub(repository: str, later: str = "") -> None:
    if reason := out_of_reach():
        raise InputError(f"{repository}: the Hub cannot be reached ({reason}){later}")


def content_for(repository: str, file: Path) -> bytes:
    """What is uploaded of a file: its bytes; but a model card names the repository, no longer a directory."""
    content = file.read_bytes()
    if file.name == "README.md" and (
        named := re.search(rb'^    python sample\.py --adapter (.+) "', content, re.MULTILINE)
    ):
        name = shlex.split(named[1].decode())[0]
        content = content.replace(
            named[0], b'    python sample.py --adapter %s "' % repository.encode()
        )
        content = content.replace(
            json.dumps(name, ensure_ascii=False).encode(), json.dumps(repository).encode()
        )
    return content


def push_adapter(folder: str | Path, repository: str, private: bool = False) -> None:
    """Uploads an adapter's files, its model card and the curves in the folder above, as one commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds no adapter to push")
    names = (
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "README.md",
        "../training_curves.png",
    )
    files = [folder / name for name in names if (folder / name).is_file()]
    again = shlex.join(["python", "lora.py", "push", str(folder), repository])
    later = f"; {folder} is kept, and goes there with: {again}"
    require_hub(repository, later)
    with hub_errors(repository, later):
        HfApi().create_repo(repository, private=private, exist_ok=True)
        operations = [
            CommitOperationAdd(file.name, content_for(repository, file)) for file in files
        ]
        commit = HfApi().create_commit(
            repository, operations, commit_message="Upload a LoRA adapter"
        )
    print(f"pushed to {commit.repo_url}")
