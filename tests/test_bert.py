"""bert.py against transformers: the same numbers from the same files, and a clear refusal of all
other files."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from helpers import (
    TINY,
    difference,
    draw,
    inputs,
    official_base,
    official_names,
    saved_base,
    silence,
)
from safetensors.torch import load_file, save_file

from bert import BertConfig, BertForSequenceClassification, BertModel, Dropout
from support import faster
from support.files import InputError
from support.hub import find_file
from support.offline import OFFICIAL_MODEL, official_or_offline

SHAPES = {
    "tiny": {},
    "one wide head": {
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "layer_norm_eps": 1e-3,
        "num_labels": 1,
    },
    "narrow heads": {
        "num_attention_heads": 16,
        "num_hidden_layers": 4,
        "intermediate_size": 100,
        "num_labels": 5,
    }
    | {
        "type_vocab_size": 3,
        "max_position_embeddings": 513,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 7,
    },
}


@pytest.fixture(scope="module", params=["minilm", "bert-base", *SHAPES])
def pair(request, minilm, tmp_path_factory):
    """Our classifier and transformers', each opened from the same directory; a new head is given to
    both."""
    folder = tmp_path_factory.mktemp("pair") / "model"
    if request.param == "minilm":
        folder = Path(minilm)
    elif request.param == "bert-base":
        official_base(folder)
    else:
        saved_base(folder, **SHAPES[request.param])
    ours = BertForSequenceClassification.from_pretrained(folder)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    if ours.new_modules:
        draw(ours.classifier)
        theirs.classifier.load_state_dict(ours.classifier.state_dict())
    if request.param == "bert-base":
        shutil.rmtree(folder)
    return ours, theirs


CASES = {  # the lengths of the sentences, and whether they have token types
    "one token": ([1], False),
    "no padding": ([9, 9], False),
    "padding": ([12, 7, 3, 1], False),
    "token types": ([9, 4], True),
    "all positions": (None, True),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_transformers(pair, case):
    ours, theirs = pair
    config, (lengths, with_types) = ours.config, CASES[case]
    input_ids, mask = inputs(config.vocab_size, lengths or [config.max_position_embeddings])
    types = (
        torch.arange(input_ids.shape[1]).expand_as(input_ids) % config.type_vocab_size
        if with_types
        else None
    )
    given = {"attention_mask": None if mask.all() else mask, "token_type_ids": types}
    hidden, pooled = ours.bert(input_ids, **given)
    expected = theirs.bert(input_ids, **given)
    real = mask.bool()  # what stands at padding is nobody's concern
    assert difference(hidden[real], expected.last_hidden_state[real]) < 1e-5
    assert difference(pooled, expected.pooler_output) < 1e-5
    assert difference(ours(input_ids, **given), theirs(input_ids, **given).logits) < 1e-5


@torch.inference_mode()
def test_cls_only_is_the_first_row(pair):
    model = pair[0].bert
    input_ids, mask = inputs(model.config.vocab_size, [12, 7, 3, 1])
    hidden, pooled = model(input_ids, mask)
    row, pooled_row = model(input_ids, mask, cls_only=True)
    assert difference(row, hidden[:, :1]) < 1e-5
    assert difference(pooled_row, pooled) < 1e-5


@torch.inference_mode()
def test_padding_changes_nothing(pair):
    model = pair[0]
    input_ids, mask = inputs(model.config.vocab_size, [12, 5])
    assert difference(model(input_ids, mask)[1:], model(input_ids[1:, :5])) < 1e-5


def test_more_tokens_than_positions_are_refused(base):
    with pytest.raises(InputError, match="41 tokens are more than the 40 positions"):
        BertModel.from_pretrained(base)(torch.ones(1, 41, dtype=torch.long))


def test_parameter_counts():
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    assert sum(p.numel() for p in model.bert.parameters()) == 109_482_240
    assert sum(p.numel() for p in model.parameters()) == 109_483_778


def test_official_weights():
    """The hidden states that transformers documents for bert-base-uncased's weights."""
    folder = os.environ.get("BERT_BASE_UNCASED")
    if not folder:
        if official_or_offline(5.0)[-1]:
            pytest.skip(
                "needs the Hub, or BERT_BASE_UNCASED=DIR with config.json and model.safetensors"
            )
        find_file(OFFICIAL_MODEL, "config.json")
        folder = find_file(OFFICIAL_MODEL, "model.safetensors").parent
    ours, theirs = (
        BertModel.from_pretrained(folder),
        transformers.BertModel.from_pretrained(folder).eval(),
    )
    input_ids = torch.tensor([[0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    with torch.inference_mode():
        hidden, pooled = ours(input_ids, mask)
        expected = theirs(input_ids, mask)
    known = torch.tensor(
        [[[0.4249, 0.1008, 0.7531], [0.3771, 0.1188, 0.7467], [0.4152, 0.1098, 0.7108]]]
    )
    assert difference(hidden[:, 1:4, 1:4], known) < 1e-4
    assert difference(hidden[:, 1:], expected.last_hidden_state[:, 1:]) < 1e-5
    assert difference(pooled, expected.pooler_output) < 1e-5
    assert sum(p.numel() for p in ours.parameters()) == 109_482_240


# Files.


@pytest.fixture
def base(tmp_path) -> Path:
    """The directory of a tiny random classifier."""
    return saved_base(tmp_path / "base")


def rewrite(folder: Path, change) -> None:
    """Puts change(tensors) in the place of the tensors in a directory's file."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def bare(state: dict) -> dict:
    return {
        name.removeprefix("bert."): tensor
        for name, tensor in state.items()
        if name.startswith("bert.")
    }


POSITION_IDS = {"embeddings.position_ids": torch.arange(40)[None]}
NAMINGS = {
    "official": lambda state: official_names(bare(state)),
    "prefix": lambda state: {
        name: tensor for name, tensor in state.items() if name.startswith("bert.")
    },
    "no prefix": bare,
    "position_ids": lambda state: bare(state) | POSITION_IDS,
    "bert.position_ids": lambda state: state | {f"bert.{k}": v for k, v in POSITION_IDS.items()},
    "another head": lambda state: bare(state) | {"cls.seq_relationship.weight": torch.ones(2, 32)},
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_loads(base, naming):
    expected = bare(load_file(base / "model.safetensors"))
    rewrite(base, NAMINGS[naming])
    for model in (
        BertModel.from_pretrained(base),
        BertForSequenceClassification.from_pretrained(base).bert,
    ):
        assert model.state_dict().keys() == expected.keys()
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items()
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_computed_in_float32(base, dtype):
    rewrite(base, lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    ours = BertForSequenceClassification.from_pretrained(base)
    theirs = transformers.BertForSequenceClassification.from_pretrained(
        base, dtype=torch.float32
    ).eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    input_ids, mask = inputs(60, [9, 4])
    assert difference(ours(input_ids, mask), theirs(input_ids, mask).logits) < 1e-5


def test_only_the_classifier_may_be_new(base):
    assert not BertForSequenceClassification.from_pretrained(base).new_modules
    rewrite(base, bare)
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(base, num_labels=3)
    assert model.new_modules == ("classifier",)
    assert model.classifier.weight.shape == (3, 32)
    assert 0.01 < model.classifier.weight.std().item() < 0.03
    assert not model.classifier.bias.any()
    torch.manual_seed(0)
    again = BertForSequenceClassification.from_pretrained(base, num_labels=3)
    assert torch.equal(model.classifier.weight, again.classifier.weight)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
DAMAGE = {  # what is wrong: the change to the file, and what the message says
    "missing": (lambda s: {k: v for k, v in s.items() if k != QUERY}, rf"lacks {QUERY}"),
    "half a head": (
        lambda s: {k: v for k, v in s.items() if k != "classifier.bias"},
        r"lacks classifier\.bias",
    ),
    "surplus": (
        lambda s: s | {"bert.encoder.layer.2.odd": torch.ones(2)},
        r"surplus tensor bert\.encoder\.layer\.2\.odd",
    ),
    "shape": (
        lambda s: s | {QUERY: torch.ones(32, 31)},
        rf"{QUERY} has the shape \[32, 31\], expected \[32, 32\]",
    ),
    "head's shape": (
        lambda s: s | {"classifier.bias": torch.ones(3)},
        r"classifier\.bias has the shape \[3\]",
    ),
    "NaN": (
        lambda s: s | {QUERY: s[QUERY].index_fill(0, torch.tensor(3), torch.nan)},
        rf"{QUERY} holds NaN",
    ),
    "infinity": (lambda s: s | {QUERY: s[QUERY] / 0}, rf"{QUERY} holds NaN or infinity"),
    "integers": (lambda s: s | {QUERY: s[QUERY].long()}, rf"{QUERY} is torch\.int64"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors_are_named(base, damage):
    change, message = DAMAGE[damage]
    rewrite(base, change)
    with pytest.raises(InputError, match=message):
        BertForSequenceClassification.from_pretrained(base)


@pytest.mark.parametrize(
    "opener", ["BertForSequenceClassification", "AutoModelForSequenceClassification"]
)
def test_transformers_opens_what_we_save(base, tmp_path, opener):
    ours = BertForSequenceClassification.from_pretrained(base)
    ours.config.id2label = {0: "böse", 1: "gut"}
    ours.save_pretrained(tmp_path / "saved")
    with silence():
        theirs = getattr(transformers, opener).from_pretrained(tmp_path / "saved").eval()
    assert (theirs.config.id2label, theirs.config.label2id) == (
        {0: "böse", 1: "gut"},
        {"böse": 0, "gut": 1},
    )
    again = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.config == ours.config
    input_ids, mask = inputs(60, [9, 4])
    for model in again, theirs:
        output = model(input_ids, mask)
        assert difference(ours(input_ids, mask), getattr(output, "logits", output)) < 1e-5


def test_transformers_opens_a_saved_encoder(base, tmp_path):
    ours = BertModel.from_pretrained(base)
    ours.save_pretrained(tmp_path / "saved")
    with silence():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert isinstance(theirs, transformers.BertModel)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [
        "BertModel"
    ]
    assert (
        difference(ours(inputs(60, [9])[0])[0], theirs(inputs(60, [9])[0]).last_hidden_state) < 1e-5
    )
    with (
        pytest.raises(AssertionError, match="classifier"),
        silence(),
    ):  # a new head: here transformers does warn
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


# Dropout.


@pytest.mark.parametrize("p", [1e-12, 0.0])
@pytest.mark.parametrize("lengths", [[9, 9], [9, 4]], ids=["unpadded", "padded"])
def test_attention_in_training_is_that_of_pytorch_with_dropout(base, monkeypatch, lengths, p):
    """With everything kept, the steps by hand are PyTorch's kernel, in the logits and in the
    gradients."""
    model, (input_ids, mask) = (
        BertForSequenceClassification.from_pretrained(base),
        inputs(TINY["vocab_size"], lengths),
    )
    monkeypatch.setattr(faster, "draw_kept", lambda x, p: torch.ones_like(x, dtype=torch.int8))
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = p
    results = []
    for mode in (True, False):
        logits = model.train(mode)(input_ids, mask)
        results.append((logits, *torch.autograd.grad(logits.square().sum(), model.parameters())))
    for by_hand, kernel in zip(*results, strict=True):
        assert difference(by_hand, kernel) < 1e-5


def test_model_drops_only_in_training(base):
    model, (input_ids, mask) = (
        BertForSequenceClassification.from_pretrained(base),
        inputs(TINY["vocab_size"], [9, 4]),
    )
    first = model(input_ids, mask)
    assert torch.equal(first, model(input_ids, mask))
    model.train()
    torch.manual_seed(0)
    dropped = model(input_ids, mask)
    assert not torch.equal(first, dropped)
    torch.manual_seed(0)
    assert torch.equal(dropped, model(input_ids, mask))
