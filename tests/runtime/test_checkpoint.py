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
from runtime.run import Run, open_run
from support.errors import InputError


@pytest.fixture
def begin(tiny, some_reviews, tmp_path):
    """begin(2, lr=1e-3): a Run of a small training with dropout, after so many more steps."""

    def begin(steps: int = 0, **options) -> Run:
        common = {"max_length": 16, "epochs": 1, "batch_size": 4, "resume": True}
        common |= {"model": str(tiny), "data": str(some_reviews), "out": str(tmp_path)}
        common["dtype"] = "float32"
        with open_run(train.set_up(train.Config(**common | options))) as run:
            pass
        run.setup.model.train()
        return take(run, steps)

    return begin


def take(run: Run, steps: int) -> Run:
    for step in range(run.step, run.step + steps):
        rows = torch.arange(step, step + 4).numpy()
        loss_sum = train.train_step(run.setup, rows, step)
        run.count_step(loss_sum, len(rows))
    return run


def weights(run: Run, kind: str = "") -> bytes:
    """All tensors of a run, or those of this kind."""
    tensors = [run.tensors[name] for name in sorted(run.tensors) if name.startswith(kind)]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


@pytest.fixture
def saved(begin) -> Path:
    """The checkpoint of a run after two steps."""
    run = begin(2)
    run.save_checkpoint(now=True)
    return run.out / run_folder.CHECKPOINT


def test_going_on_is_going_through(begin):
    through = begin(3)
    through.save_checkpoint(now=True)
    take(through, 4)
    torch.manual_seed(99)  # a batch has random numbers of its own
    again = begin(4)
    assert again.step == 7
    assert weights(again) == weights(through)


def test_float16_goes_on_with_its_scale_and_with_what_it_skipped(begin):
    """A step that overflows changes nothing, and halves the scale of the loss."""
    through = begin(2, dtype="float16")
    before = weights(through, "parameter")
    scaler = through.setup.placement.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**40})
    take(through, 1)
    assert weights(through, "parameter") == before
    assert (scaler.get_scale(), through.skipped) == (2.0**39, 1)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**9})
    take(through, 1)
    through.save_checkpoint(now=True)
    state = scaler.state_dict()
    assert weights(through, "parameter") != before and state["_growth_tracker"] == 1
    take(through, 3)
    again = begin(dtype="float16")
    assert again.setup.placement.scaler.state_dict() == state
    take(again, 3)
    assert (again.step, again.skipped) == (7, 1)
    assert weights(again) == weights(through)


def test_a_run_may_go_on_in_another_type(begin, tmp_path):
    """Gradients are scaled from then on, or no longer; and it is said."""
    begin(1).save_checkpoint(now=True)
    begin(1, dtype="float16").save_checkpoint(now=True)
    assert begin(1, dtype="bfloat16").step == 3
    log = (tmp_path / run_folder.LOG).read_text()
    for now, then in ("float16", "float32"), ("bfloat16", "float16"):
        was = f"['cpu', 'torch.{now}', False], and was ['cpu', 'torch.{then}', False]"
        assert f"device, dtype, compiled: {was}; from here on" in log


def test_the_file_is_what_pytorch_says(begin):
    run = begin(4)
    run.save_checkpoint(now=True)
    found = load_file(run.out / run_folder.CHECKPOINT)
    for name, parameter in run.setup.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(found.pop(f"parameter.{name}"), parameter)
            for kind in "step", "exp_avg", "exp_avg_sq":
                state = run.setup.optimizer.state[parameter][kind]
                assert torch.equal(found.pop(f"{kind}.{name}"), state) and state.any()
    assert found.keys() == {"best_logits", "unlogged"}
    assert found["unlogged"][1] == 16


def rewrite(path: Path, change) -> None:
    """Saves the file again, with its old hash, after change(header, tensors)."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    change(header, tensors)
    save_file(tensors, path, header)


DAMAGE = {
    "a tensor": lambda path: rewrite(path, lambda _, t: t["step.classifier.bias"].add_(1)),
    "a missing tensor": lambda path: rewrite(path, lambda _, t: t.pop("step.classifier.bias")),
    "no hash": lambda path: rewrite(path, lambda header, _: header.update(run='{"facts": {}}')),
    "another file": lambda path: save_file({"a": torch.ones(1)}, path),
    "truncated": lambda path: os.truncate(path, 300),
    "cut within the tensors": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("no checkpoint"),
}


def test_a_damaged_file_is_refused_and_changes_nothing(begin, saved):
    run = begin()
    facts, before, whole = run.facts, weights(run), saved.read_bytes()
    for name, damage in DAMAGE.items():
        saved.write_bytes(whole)
        damage(saved)
        with pytest.raises(InputError, match=rf"^{saved}: (is damaged|cannot be read)"):
            checkpoint.restore(saved, facts, run.tensors)
        assert weights(run) == before, name


def test_too_little_memory_is_not_called_a_damaged_file(begin, saved, monkeypatch):
    run = begin()
    monkeypatch.setattr(checkpoint, "hash_arrays", lambda _: torch.empty(2**50))
    with pytest.raises(RuntimeError, match="allocate memory"):  # the allocator's own error
        checkpoint.restore(saved, run.facts, run.tensors)


# Another run, and the same one in other circumstances.


@pytest.fixture
def numbers(some_reviews, tmp_path_factory) -> str:
    """The reviews with the classes 0 and 1."""
    text = some_reviews.read_text().replace('"negative"', "0").replace('"positive"', "1")
    path = tmp_path_factory.mktemp("numbers") / "numbers.csv"
    path.write_text(text)
    return str(path)


def test_another_run_is_named(begin, numbers):
    options = {"data": numbers, "label_names": "negative,positive"}
    begin(1, **options).save_checkpoint(now=True)
    for other, problem in (
        ({"lr": 2e-3}, "lr 0.0005, not 0.002; give another --out"),
        ({"rank": 4}, "rank 8, not 4; give another --out"),
        ({"max_length": 12}, "max_length 16, not 12; give another --out"),
        ({"targets": "value"}, "targets 'query,value', not 'value'; give another --out"),
        ({"metric": "f1"}, "metric 'accuracy', not 'f1'; give another --out"),
        ({"label_names": "a,b"}, "classes ['negative', 'positive'], not ['a', 'b']; give another"),
    ):
        with pytest.raises(InputError) as error:
            begin(**options | other)
        assert f"checkpoint.safetensors: that run was started with {problem}" in str(error.value)


def test_more_epochs_may_be_asked_for_and_no_fewer(begin, tmp_path):
    begin(20, epochs=2).save_checkpoint(now=True)
    begin(epochs=3)
    log = (tmp_path / run_folder.LOG).read_text()
    assert "resuming at step 20 of 45\nepochs: 3, and was 2; from here on the bytes may" in log
    with pytest.raises(InputError, match="that run is at step 20; give more --epochs"):
        begin(epochs=1)


def test_an_edit_of_the_code_is_noted_and_one_of_its_comments_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "runtime" / "checkpoint.py"))
    text = "def forward(x):\n    return x + 1\n"
    hashes = []
    for edited in (text, text.replace("x + 1", "x  +  1  # one\n"), text.replace("1", "2")):
        (tmp_path / "bert.py").write_text(edited)
        hashes.append(checkpoint.hash_code("bert.py"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_changed_is_a_line_each(begin, tmp_path):
    now = begin().facts
    assert checkpoint.compare(tmp_path, now, now) == []
    device = ["cuda", "torch.bfloat16", True]
    then = now | {"number of CPU threads": 9, "number of processes": 3, "code of bert.py": "abc"}
    then |= {"device, dtype, compiled": device}
    del then["max_grad_norm"]  # an option that there was not yet
    same = "from here on the bytes may be others than those of a run that never stopped"
    threads = now["number of CPU threads"]
    assert checkpoint.compare(tmp_path, then, now) == [
        f"device, dtype, compiled: ['cpu', 'torch.float32', False], and was {device}; {same}",
        f"number of processes: 1, and was 3; {same}",
        f"number of CPU threads: {threads}, and was 9; {same}",
        f"code of bert.py: {now['code of bert.py']}, and was abc; {same}",
    ]
