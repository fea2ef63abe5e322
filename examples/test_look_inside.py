"""look_inside.py against what transformers and peft say of the same model."""

import re
import shutil
import sys

import peft
import pytest
import torch
from helpers import adapted, difference, draw, in_peft, inputs, saved_base

from examples import look_inside
from lora import save_adapter
from runtime import fast
from support.errors import run_main
from support.offline import offline_pair


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = saved_base(tmp_path_factory.mktemp("base") / "base", vocab_size=30522, num_labels=3)
    shutil.copy(f"{offline_pair()[0]}/tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def model(base):
    model = adapted(base, ["query", "value"], rank=4)
    draw(model.classifier)
    return model


@pytest.fixture(scope="module")
def theirs(model, base):
    """The same in transformers and peft, in the attention that returns its probabilities."""
    theirs = in_peft(model, base)
    theirs.base_model.model.set_attn_implementation("eager")
    return theirs


@torch.no_grad()
def test_attention_and_states_are_those_of_transformers(model, theirs):
    ids, _ = inputs(30522, [9])
    expected = theirs(ids, output_attentions=True, output_hidden_states=True)
    maps = look_inside.attention_maps(model, ids)
    states = look_inside.hidden_states(model, ids)
    assert difference(maps, torch.cat(expected.attentions)) < 1e-5
    assert difference(states, torch.cat(expected.hidden_states)) < 1e-5
    assert not any(module._forward_hooks for module in model.modules())  # all were taken off


def test_sizes_are_those_of_peft(model, theirs):
    sizes = look_inside.delta_sizes(model)
    assert len(sizes) == 4
    for name, module in theirs.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            delta = module.get_delta_weight("default")
            assert sizes[name] == pytest.approx((delta.norm() / module.weight.norm()).item())


def their_lead(theirs, embedded, right: int):
    logits = theirs(inputs_embeds=embedded).logits  # (M, C)
    others = [number for number in range(3) if number != right]
    return logits[:, right] - logits[:, others].amax(1)


@pytest.mark.parametrize("right", [0, 2])
def test_scores_of_tokens_are_gradients_of_transformers(model, theirs, right):
    ids, _ = inputs(30522, [9])
    ours = look_inside.token_scores(model, ids, right, mask_id=103, steps=40)
    words = theirs.get_input_embeddings()
    own = words(ids).detach().requires_grad_()
    their_lead(theirs, own, right).sum().backward()
    assert difference(ours["gradient"], (own.grad * own)[0].sum(-1)) < 1e-5
    nothing = own.detach().clone()
    nothing[:, 1:-1] = words.weight[103].detach()
    total = torch.zeros(9)
    for part in (torch.arange(40) + 0.5) / 40:  # one point after the other
        point = (nothing + part * (own.detach() - nothing)).requires_grad_()
        their_lead(theirs, point, right).sum().backward()
        total += (point.grad * (own.detach() - nothing))[0].sum(-1) / 40
    assert difference(ours["integrated"], total) < 1e-5
    with torch.no_grad():
        lead, empty = their_lead(theirs, own, right), their_lead(theirs, nothing, right)
        masked = ids.clone()
        masked[0, 4] = 103
        lost = lead - their_lead(theirs, words(masked), right)
    # Integrated gradients add up to the difference (their paper's axiom of completeness).
    assert ours["integrated"].sum().item() == pytest.approx((lead - empty).item(), abs=1e-3)
    assert ours["masked"][4].item() == pytest.approx(lost.item(), abs=1e-5)


def test_the_faster_attention_has_no_probabilities(model, base):
    """Why the example opens the plain model."""
    faster = adapted(base, ["query", "value"], rank=4)
    fast.rewrite(faster)
    with pytest.raises((RuntimeError, ValueError), match="non-empty list"):
        look_inside.attention_maps(faster, inputs(30522, [9])[0])


def test_the_program(model, base, tmp_path, monkeypatch, capsys):
    model.config.id2label = {0: "bad", 1: "good", 2: "so-so"}
    save_adapter(model, tmp_path / "adapter", str(base))
    out = tmp_path / "out"
    words = ["look_inside", str(tmp_path / "adapter"), "a <b>great</b> film", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--label", "good"])
    run_main(look_inside.main)
    said = capsys.readouterr().out
    assert len(re.findall(r"^‖ΔW‖", said, re.MULTILINE)) == 4
    assert "\033[30;48;2;" in said and "\033[0m" in said
    page = (out / "tokens.html").read_text(encoding="utf-8")
    assert "&lt;" in page and "<b>" not in page and page.count("<span") == 12
    assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")
    for more, says in {
        "--label=great": "--label great: the classes are bad, good, so-so",
        "--layer=2": "--layer 2: the model has the layers 0 to 1",
    }.items():
        monkeypatch.setattr(sys, "argv", [*words[:-1], str(tmp_path / "new"), more])
        with pytest.raises(SystemExit):
            run_main(look_inside.main)
        assert capsys.readouterr().err == f"error: {says}\n"
    assert not (tmp_path / "new").exists()


def test_colours_are_strongest_for_the_largest_score():
    colors = look_inside.shades(torch.tensor([0.0, 2.0, -1.0]))
    assert colors[0] == (255, 255, 255) and colors[1] == look_inside.BLUE
    assert colors[2] == tuple(
        round(255 + (part - 255) * 0.5) for part in look_inside.ORANGE
    )  # half as strong
