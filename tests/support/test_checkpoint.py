"""A run's state as one file: resuming is exact, and a file that is damaged or another run's changes
nothing."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from support import checkpoint
from support.checkpoint import Checkpoint
from support.files import InputError
from support.progress import Progress

IDENTITY = {"lr": 1e-3, "contents": "abc"}


class Run:
    """A small training with dropout, of PyTorch's own parts, and its checkpoint."""

    def __init__(self, path: Path, **other):
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.1, fused=True)
        trained = dict(self.layer.named_parameters())
        self.checkpoint = Checkpoint(path, IDENTITY | other, 0, trained, self.optimizer)
        self.progress = Progress()

    def go(self, steps: int) -> "Run":
        for _ in range(steps):
            loss = nn.functional.dropout(self.layer(torch.randn(4, 5)), 0.5).square().sum()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.progress.step += 1
            self.progress.window.append([loss.item(), 1, 4])
        return self

    def weights(self) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in self.layer.parameters())


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint" / "checkpoint.safetensors"


def test_going_on_is_going_through(path):
    through = Run(path).go(3)
    through.checkpoint.save(through.progress)
    through.go(4)
    again = Run(path)
    torch.manual_seed(99)  # the saved state of the random numbers is what counts
    again.progress = again.checkpoint.load(7)
    assert again.progress.step == 3 and len(again.progress.window) == 3
    assert again.go(4).weights() == through.weights()
    assert again.progress == through.progress


def test_the_file_is_what_pytorch_says(path):
    run = Run(path).go(2)
    run.checkpoint.save(run.progress)
    found, state = load_file(path), run.optimizer.state_dict()["state"]
    for number, name in enumerate(("weight", "bias")):
        assert torch.equal(found.pop(f"parameter.{name}"), dict(run.layer.named_parameters())[name])
        for kind in "step", "exp_avg", "exp_avg_sq":
            assert torch.equal(found.pop(f"{kind}.{name}"), state[number][kind])
    assert torch.equal(found.pop("random.cpu.0"), torch.get_rng_state()) and not found


def rewritten(path: Path, right_hash: bool, change) -> None:
    """Saves the file again after change(header, tensors), with a hash that fits if `right_hash`."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    change(header, tensors)
    if right_hash:
        header["sha256"] = checkpoint.digest(header, tensors)
    save_file(tensors, path, header)


def set_progress(**values):
    return lambda header, _: header.update(
        progress=json.dumps(json.loads(header["progress"]) | values)
    )


DAMAGE = {
    "a tensor": lambda header, tensors: tensors["exp_avg.bias"].add_(1),
    "the progress": set_progress(step=1),
    "the identity": lambda header, _: header.update(identity=json.dumps(IDENTITY | {"lr": 5.0})),
}
FORGED = {
    "too many steps": set_progress(step=8),
    "no step": set_progress(step=0),
    "a step of another kind": set_progress(step="3"),
    "a window of two": set_progress(window=[[1.0, 2]]),
    "a history of words": set_progress(history=[{"step": 1, "train_loss": "low"}]),
    "a history of lists": set_progress(history=[[1]]),
    "a surplus field": set_progress(more=1),
    "a tensor missing": lambda _, tensors: tensors.pop("step.bias"),
    "a surplus tensor": lambda _, tensors: tensors.update(more=torch.ones(2)),
    "another shape": lambda _, tensors: tensors.update({"exp_avg.bias": torch.ones(4)}),
    "another type": lambda _, tensors: tensors.update(
        {"exp_avg.bias": torch.ones(3, dtype=torch.float64)}
    ),
    "another random state": lambda _, tensors: tensors.update(
        {"random.cpu.0": torch.ones(5056, dtype=torch.uint8)}
    ),
    "a list for the progress": lambda header, _: header.update(progress="[1]"),
    "a list for the identity": lambda header, _: header.update(identity="[1]"),
}


@pytest.mark.parametrize("what", [*DAMAGE, *FORGED])
def test_a_damaged_or_forged_file_is_refused_and_changes_nothing(path, what):
    run = Run(path).go(3)
    run.checkpoint.save(run.progress)
    rewritten(path, what in FORGED, (DAMAGE | FORGED)[what])
    other = Run(path).go(1)
    before, random = other.weights(), torch.get_rng_state()
    with pytest.raises(
        InputError,
        match=r"checkpoint\.safetensors: not a whole checkpoint; --overwrite starts anew",
    ):
        other.checkpoint.load(7)
    assert other.weights() == before and torch.equal(torch.get_rng_state(), random)


def test_a_truncated_file_is_refused(path):
    run = Run(path).go(3)
    run.checkpoint.save(run.progress)
    os.truncate(path, 300)
    with pytest.raises(InputError, match="not a whole"):
        run.checkpoint.load(7)


@pytest.mark.parametrize("other, message", [
    ({"lr": 2e-3}, "started with lr 0.001, not 0.002"),
    ({"seed": 1}, "started with seed None, not 1"),
    ({"contents": "xyz"}, "started with other weights or data"),
])  # fmt: skip
def test_another_run_is_named(path, other, message):
    run = Run(path).go(3)
    run.checkpoint.save(run.progress)
    with pytest.raises(InputError, match=message):
        Run(path, **other).checkpoint.load(7)


def test_a_run_on_a_gpu_is_not_called_damaged(path):
    run = Run(path).go(3)
    run.checkpoint.save(run.progress)
    rewritten(
        path,
        True,
        lambda _, tensors: tensors.update({"random.cuda.0": torch.ones(16, dtype=torch.uint8)}),
    )
    with pytest.raises(InputError, match="that run was on a GPU, and this one is on a CPU"):
        run.checkpoint.load(7)


def test_too_little_memory_is_not_called_a_damaged_file(path, monkeypatch):
    run = Run(path).go(3)
    run.checkpoint.save(run.progress)
    monkeypatch.setattr(
        checkpoint, "digest", lambda *_: torch.empty(2**50)
    )  # the allocator's own error
    with pytest.raises(RuntimeError, match="allocate memory"):
        run.checkpoint.load(7)


def test_a_checkpoint_is_due(path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    run = Run(path).go(1)
    run.checkpoint.every = 3
    assert [run.checkpoint.due(step) for step in range(1, 7)] == [False, False, True] * 2
    run.checkpoint.every = 0  # from now on after 20 seconds, or a hundred times what saving takes
    now[0] = 19.0
    assert not run.checkpoint.due(1)
    now[0] = 21.0
    assert run.checkpoint.due(1)
    run.checkpoint.cost, run.checkpoint.saved = 1.0, 21.0
    now[0] = 120.0
    assert not run.checkpoint.due(1)
    now[0] = 122.0
    assert run.checkpoint.due(1)
