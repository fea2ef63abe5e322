"""The Hugging Face Hub: a name becomes a folder, errors become one line, a model is uploaded.

The Hub's own client does the work. It is imported late: directories do without.
"""

import contextlib
import functools
import re
import shlex
import sys
import threading
from pathlib import Path

from support.errors import InputError, first_line, listing, say

SECONDS = 8.0  # within which the Hub has to answer
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
OLDER_FILES = ("added_tokens.json", "special_tokens_map.json")  # what tokenizers had beside them
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PICKLES = ("pytorch_model.bin", "adapter_model.bin")
WEIGHTS = {False: ("model.safetensors", PICKLES[0]), True: (ADAPTER_FILES[1], PICKLES[1])}
MODEL_FILES = ("config.json", "model.safetensors", *ADAPTER_FILES, *TOKENIZER_FILES, *OLDER_FILES)
EXPLANATIONS = {  # of the client's errors, a special one before the general one
    "HFValidationError": "no such directory, and no name of a Hub repository",
    "GatedRepoError": "asks for a login: accept its terms on the Hub, then run `hf auth login`",
    "RepositoryNotFoundError": "neither a directory here nor a public Hub repository; "
    "if it is a private one, run `hf auth login` first",
    "RevisionNotFoundError": "the Hub's repository has no such revision",
    "LocalEntryNotFoundError": "no directory, nor in the cache, and the Hub cannot be reached",
}


def folder(name: str | Path, pickles: bool = False) -> Path:
    """A directory as it is, or a folder with the model in the Hub's `owner/name[@revision]`.

    Raises InputError for a model or an adapter whose weights are a pickle alone, except where
    `pickles` are asked for.
    """
    found = Path(name)
    if not str(name):
        raise InputError("a name is empty: expected a directory, or owner/name of the Hub")
    if not found.is_dir():
        repository, _, revision = str(name).partition("@")
        names = MODEL_FILES + PICKLES if pickles else MODEL_FILES
        found = snapshot(str(name), names, repo_id=repository, revision=revision or None)
    if not pickles:
        refuse_pickle(found, str(name))
    return found


def data_folder(name: str | Path) -> Path:
    """A local path as it is, or a folder in GLUE's layout of `owner/name[/folder][@revision]`."""
    if Path(name).exists():
        return Path(name)
    parsed = re.fullmatch(r"(\w[^/@]*/\w[^/@]*)/?([^@]*?)/?(?:@(.+))?", str(name))
    if not parsed:
        form = "owner/name/folder, such as nyu-mll/glue/sst2"
        raise InputError(f"{name}: no such file, directory or Hub data set ({form})")
    repository, inside, revision = parsed.groups()
    files = []
    for place in [f"{inside}/"] if inside else ["", "data/"]:
        files += [f"{place}train*.parquet", f"{place}validation*.parquet"]
    of = {"repo_id": repository, "repo_type": "dataset", "revision": revision}
    return snapshot(str(name), tuple(files), **of)


def refuse_pickle(folder: Path, name: str) -> None:
    weights, pickled = WEIGHTS[(folder / "adapter_config.json").is_file()]
    is_local = Path(name).is_dir()
    if (folder / weights).is_file() or (is_local and not (folder / pickled).is_file()):
        return
    command = shlex.join(["python", "-m", "runtime.convert", name, "NEW_FOLDER"])
    problem = f"{pickled} is a pickle, which can run code, and is not read here"
    raise InputError(f"{name}: has no {weights}; {problem}: convert it with: {command}")


def client():
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    if not (sys.stderr and sys.stderr.isatty()):
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


@functools.cache
def snapshot(name: str, files: tuple[str, ...], **of) -> Path:
    """The cache's folder with the files of a repository that match the first of these patterns."""
    hub = client()
    # One at a time: the threads of a failed download close the connection under each other.
    download = functools.partial(hub.snapshot_download, **of, allow_patterns=files, max_workers=1)
    root = ""
    with hub_errors(name):
        hub.utils.validate_repo_id(of["repo_id"])
        if re.fullmatch("[0-9a-f]{40}", of["revision"] or ""):  # a commit, whose files never change
            missing = (hub.errors.CachedRepoTreeNotFoundError, hub.errors.LocalEntryNotFoundError)
            with contextlib.suppress(*missing):
                hub.get_cached_repo_tree(**of)  # without it a part would pass for the whole
                root = download(local_files_only=True)
        root = root or download(local_files_only=bool(out_of_reach()))
    found = [path for pattern in files for path in Path(root).glob(pattern)]
    if not found:
        raise InputError(f"{name}: the Hub's repository has none of {listing(files)}")
    return found[0].parent


@functools.cache
def out_of_reach() -> str:
    """Why this process cannot use the Hub, or "". The client would try each file for minutes."""
    hub = client()
    answers = [f"no answer in {SECONDS:.0f} s"]

    def ask() -> None:
        try:
            answer = hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=SECONDS)
            answers.append("" if answer.status_code < 500 else f"status {answer.status_code}")
        except Exception as error:
            answers.append(first_line(error))

    thread = threading.Thread(target=ask, daemon=True)  # a name look-up has no limit of its own
    thread.start()
    thread.join(SECONDS)
    return answers[-1]


@contextlib.contextmanager
def hub_errors(name: str, later: str = ""):
    """Turns what the Hub, the network or the disk does into one line, which ends with `later`."""
    try:
        yield
    except Exception as error:
        text = f"the Hub did not answer as it should ({first_line(error)}); try again"
        if isinstance(error, OSError) and error.strerror:
            place = error.filename or client().constants.HF_HUB_CACHE
            text = f"{error.strerror}: {place}; HF_HOME can name another directory"
        kinds = [kind.__name__ for kind in type(error).__mro__]
        known = [text for kind, text in EXPLANATIONS.items() if kind in kinds]
        raise InputError(f"{name}: {[*known, text][0]}{later}") from error


def check_login(repository: str) -> None:
    """Raises InputError where nobody is logged in to the Hub, or by a token that can only read."""
    with hub_errors(repository):
        if out_of_reach():
            raise ConnectionError(out_of_reach())
        user = client().HfApi().whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"{repository}: your token can only read; `hf auth login` takes another")


def push(files: list[Path], repository: str, private: bool = False) -> None:
    """Uploads the files of a folder as one commit. A new repository can be made `private`."""
    check_login(repository)
    folder = files[0].parent
    again = shlex.join(["python", "-m", "runtime.adapters", "push", str(folder), repository])
    with hub_errors(repository, later=f"; {folder} is kept, and goes there with: {again}"):
        api = client().HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        local = "/".join(folder.absolute().parts[-2:])  # how the model card names its folder
        operations = []
        for file in files:
            content = file.read_bytes()
            if file.name == "README.md":
                content = content.replace(local.encode(), repository.encode())
            operations.append(client().CommitOperationAdd(file.name, content))
        commit = api.create_commit(repository, operations, commit_message="Upload a model")
    say(f"pushed to {commit.repo_url}")
