"""A run's state as one file: resuming is exact, and a file that is damaged or another run's
changes nothing."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train
from runtime import checkpoint, run_folder
from runtime.run import Run
from support.errors import InputError


@pytest.fixture
def begin(tiny, some_reviews, tmp_path):
    """begin(lr=1e-3): a Run of a small training with dropout, and its set-up."""

    def begin(steps: int = 0, **options) -> Run:
        common = {"model": str(tiny), "data": str(some_reviews), "max_length": 16, "epochs": 1}
        config = train.Config(**common | {"out": str(tmp_path / "out"), **options})
        Path(config.out).mkdir(exist_ok=True)
        run = Run(config)
        run.resuming = True
        run.begin(train.set_up(config))
        run.saved = run.cost = 0.0
        run.sentences = 0
        run.setup.model.train()
        return take(run, steps)

    return begin


def take(run: Run, steps: int) -> Run:
    for step in range(run.step, run.step + steps):
        rows = torch.arange(step, step + 4).numpy()
        loss_sum, right = train.train_step(run.setup, rows, step)
        run.note_step(loss_sum, right, len(rows))
    return run


def weights(run: Run) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in run.trained.values())


def rewrite(path: Path, change) -> None:
    """Saves the file again, with its old hash, after change(header, tensors)."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    change(header, tensors)
    save_file(tensors, path, header)


def test_going_on_is_going_through(begin):
    through = begin(3)
    through.save_checkpoint(now=True)
    take(through, 4)
    again = begin()
    torch.manual_seed(99)  # the saved state of the random numbers is what counts
    again.resume()
    assert again.step == 3 and len(again.unlogged) == 3
    take(again, 4)
    assert weights(again) == weights(through) and again.unlogged == through.unlogged


def test_the_file_is_what_pytorch_says(begin):
    run = begin(2)
    run.save_checkpoint(now=True)
    found = load_file(run.out / run_folder.CHECKPOINT)
    state = run.setup.optimizer.state
    for name, parameter in run.trained.items():
        assert torch.equal(found.pop(f"parameter.{name}"), parameter)
        for kind in "step", "exp_avg", "exp_avg_sq":
            assert torch.equal(found.pop(f"{kind}.{name}"), state[parameter][kind])
    assert torch.equal(found.pop("random.cpu.0"), torch.get_rng_state()) and not found


def edit_metadata(before: str, after: str):
    def change(header: dict, _) -> None:
        assert before in header["metadata"]
        header["metadata"] = header["metadata"].replace(before, after)

    return change


DAMAGE = {
    "a tensor": lambda path: rewrite(path, lambda _, t: t["random.cpu.0"].add_(1)),
    "the step": lambda path: rewrite(path, edit_metadata('"step": 2', '"step": 1')),
    "the identity": lambda path: rewrite(path, edit_metadata('"seed": 42', '"seed": 43')),
    "a missing tensor": lambda path: rewrite(path, lambda _, t: t.pop("random.cpu.0")),
    "no hash": lambda path: rewrite(path, lambda header, _: header.pop("sha256")),
    "another file": lambda path: save_file({"a": torch.ones(1)}, path),
    "truncated": lambda path: os.truncate(path, 300),
    "cut within the tensors": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("no checkpoint"),
}


def test_a_damaged_file_is_refused_and_changes_nothing(begin):
    run = begin(2)
    path = run.out / run_folder.CHECKPOINT
    run.save_checkpoint(now=True)
    whole = path.read_bytes()
    other = begin(1)
    before, random = weights(other), torch.get_rng_state()
    for name, damage in DAMAGE.items():
        path.write_bytes(whole)
        damage(path)
        line = rf"^{path}: not a whole checkpoint; rm -r {run.out}, or give another --out$"
        with pytest.raises(InputError, match=line):
            other.resume()
        assert (weights(other), other.step) == (before, 1), name
        assert torch.equal(torch.get_rng_state(), random), name


def test_too_little_memory_is_not_called_a_damaged_file(begin, monkeypatch):
    run = begin(1)
    run.save_checkpoint(now=True)
    monkeypatch.setattr(checkpoint, "digest", lambda *_: torch.empty(2**50))
    with pytest.raises(RuntimeError, match="allocate memory"):  # the allocator's own error
        run.resume()


# Another run.


@pytest.fixture
def numbers(some_reviews, tmp_path) -> str:
    """The reviews with the classes 0 and 1."""
    text = some_reviews.read_text().replace('"negative"', "0").replace('"positive"', "1")
    (tmp_path / "numbers.csv").write_text(text)
    return str(tmp_path / "numbers.csv")


def test_another_run_is_named(begin, numbers):
    options = {"data": numbers, "label_names": "negative,positive"}
    begin(1, **options).save_checkpoint(now=True)
    for other, problem in (
        ({"lr": 2e-3}, "lr 0.0005, not 0.002; give another --out"),
        ({"rank": 4}, "rank 8, not 4; give another --out"),
        ({"max_length": 12}, "max_length 16, not 12; give another --out"),
        ({"targets": "value"}, "targets 'query,value', not 'value'; give another --out"),
        ({"metric": "f1"}, "metric 'accuracy', not 'f1'; give another --out"),
        ({"dtype": "bfloat16"}, "dtype 'float32', not 'bfloat16'; give another --out"),
        ({"label_names": "a,b"}, "classes ['negative', 'positive'], not ['a', 'b']; give another"),
    ):
        with pytest.raises(InputError) as error:
            begin(**options | other).resume()
        assert f"checkpoint.safetensors: that run was started with {problem}" in str(error.value)


def test_an_option_of_another_version(begin):
    """A new one that is at its default does not refuse an old checkpoint."""
    run = begin(1)
    then = run.metadata["identity"].copy()
    del then["max_grad_norm"], then["dropout"]
    run.metadata["identity"]["dropout"] = 0.1
    with pytest.raises(InputError, match=r"started with dropout 0\.05, not 0\.1"):
        checkpoint.refuse_another_run(Path("x"), then, run.metadata["identity"], run.config)
    run.metadata["identity"]["dropout"] = 0.05
    checkpoint.refuse_another_run(Path("x"), then, run.metadata["identity"], run.config)
    then["no_more"] = 3  # nobody knows what it did
    with pytest.raises(InputError, match="started with no_more 3, not None"):
        checkpoint.refuse_another_run(Path("x"), then, run.metadata["identity"], run.config)


def test_more_epochs_may_be_asked_for_and_no_fewer(begin):
    begin(1, epochs=2).save_checkpoint(now=True)
    longer = begin(epochs=3)
    longer.resume()
    log = (longer.out / run_folder.LOG).read_text()
    assert "resuming at step 1 of 6\n3 epochs instead of 2: the learning rate's line is" in log
    with pytest.raises(InputError, match="started with epochs 2, not 1"):
        begin(epochs=1).resume()


def test_other_parameters_are_no_damage(begin):
    """As after an edit of the model, which no option shows."""
    begin(1).save_checkpoint(now=True)
    run = begin()
    run.trained.popitem()
    with pytest.raises(InputError, match="that run trained other parameters; give another --out"):
        run.resume()


# What is said.


def test_an_edit_of_the_code_is_said_and_one_of_its_comments_is_not(tmp_path):
    path = tmp_path / "bert.py"
    text = '"""A file."""\n\n\ndef forward(x):\n    return x + 1\n'
    hashes = []
    for edited in (
        text,
        text.replace("A file.", "A longer text."),
        text.replace("    return", '    """Adds."""\n    return'),
        text.replace("x + 1", "x  +  1  # one"),
        text.replace("x + 1", "x + 2"),
    ):
        path.write_text(edited)
        hashes.append(checkpoint.hash_code(path))
    assert len(set(hashes[:4])) == 1 and hashes[4] != hashes[0]


def test_what_changed_is_a_line_each(begin):
    now = begin().metadata
    assert checkpoint.changes(now, now) == []
    then = now | {"threads": now["threads"] + 1, "processes": 3}
    then["code"] = now["code"] | {"bert.py": "other", "train.py": "other"}
    processes, threads, code = checkpoint.changes(then, now)
    assert processes.startswith("the number of processes is 1, and was 3: the same steps")
    assert threads.startswith(f"the number of CPU threads is {now['threads']}, and was ")
    assert code == (
        "the code of bert.py and train.py was edited since: from here on the run is another one"
    )


def test_a_checkpoint_is_due(begin, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("runtime.run.time.perf_counter", lambda: now[0])
    run = begin(save_every=3)
    path = run.out / run_folder.CHECKPOINT

    def is_saved() -> bool:
        path.unlink(missing_ok=True)
        run.save_checkpoint(now=False)
        return path.exists()

    assert [is_saved() for run.step in range(1, 7)] == [False, False, True] * 2
    run.config.save_every = 0  # from now on after 20 seconds, or a hundred times what saving takes
    now[0] = 19.0
    assert not is_saved()
    now[0] = 21.0
    assert is_saved()
    run.cost = 1.0
    now[0] = 120.0
    assert not is_saved()
    now[0] = 122.0
    assert is_saved()
    now[0] = 123.0
    run.signal = 15  # it came in this step
    assert is_saved() and run.stopped == 15
