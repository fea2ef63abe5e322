"""bert.py against transformers: the same numbers from the same files, and a clear refusal of all
other files."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import (
    TINY,
    difference,
    draw,
    edit_json,
    inputs,
    official_base,
    official_names,
    saved_base,
    silence,
)
from safetensors.torch import load_file, save_file

from bert import BertConfig, BertForSequenceClassification, BertModel

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
        "type_vocab_size": 3,
        "max_position_embeddings": 513,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 7,
    },
}


@pytest.fixture(scope="module", params=["minilm", "bert-base", *SHAPES])
def pair(request, tmp_path_factory):
    """Our classifier and transformers', from one directory; a new classifier is given to both."""
    folder = tmp_path_factory.mktemp("pair") / "model"
    if request.param == "minilm":
        folder = Path(request.getfixturevalue("minilm"))
    elif request.param == "bert-base":
        official_base(folder)
    else:
        saved_base(folder, **SHAPES[request.param])
    ours = BertForSequenceClassification.from_pretrained(folder)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    if ours.newly_initialized:
        draw(ours.classifier)
        theirs.classifier.load_state_dict(ours.classifier.state_dict())
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
    types = None
    if with_types:
        types = torch.arange(input_ids.shape[1]).expand_as(input_ids) % config.type_vocab_size
    given = {"attention_mask": None if mask.all() else mask, "token_type_ids": types}
    hidden, pooled = ours.bert(input_ids, **given)
    expected = theirs.bert(input_ids, **given)
    real = mask.bool()  # what stands at padding is nobody's concern
    assert difference(hidden[real], expected.last_hidden_state[real]) < 1e-5
    assert difference(pooled, expected.pooler_output) < 1e-5
    assert difference(ours(input_ids, **given), theirs(input_ids, **given).logits) < 1e-5


@torch.inference_mode()
def test_padding_changes_nothing(pair):
    model = pair[0]
    input_ids, mask = inputs(model.config.vocab_size, [12, 5])
    assert difference(model(input_ids, mask)[1:], model(input_ids[1:, :5])) < 1e-5


@pytest.mark.parametrize("lengths", [[9, 9], [9, 4]], ids=["unpadded", "padded"])
def test_training_equals_transformers_with_dropout(tmp_path, monkeypatch, lengths):
    """Both draw what is dropped from the shape and the rate: the same in the same places, in the
    logits and in the gradients."""
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    base = saved_base(tmp_path / "base", classifier_dropout=0.3, **rates)
    rates_seen = []

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training
        rates_seen.append(p)
        generator = torch.Generator().manual_seed(sum(x.shape) + round(1000 * p))
        return x * (torch.rand(x.shape, generator=generator) > p) / (1 - p)

    monkeypatch.setattr(F, "dropout", dropout)
    ours = BertForSequenceClassification.from_pretrained(base).train()
    theirs = transformers.BertForSequenceClassification.from_pretrained(
        base, attn_implementation="eager"
    ).train()
    input_ids, mask = inputs(TINY["vocab_size"], lengths)
    logits = ours(input_ids, mask)
    times = len(rates_seen)
    expected = theirs(input_ids, mask).logits
    assert sorted(rates_seen[:times]) == sorted(rates_seen[times:])
    assert sorted(rates_seen[:times]) == [0.1] * 5 + [0.2] * 2 + [0.3]
    assert difference(logits, expected) < 1e-5
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert difference(parameter.grad, gradients[name]) < 1e-4, name


def test_model_drops_only_in_training(base):
    model = BertForSequenceClassification.from_pretrained(base)
    input_ids, mask = inputs(TINY["vocab_size"], [9, 4])
    first = model(input_ids, mask)
    assert torch.equal(first, model(input_ids, mask))
    model.train()
    torch.manual_seed(0)
    dropped = model(input_ids, mask)
    assert not torch.equal(first, dropped)
    torch.manual_seed(0)
    assert torch.equal(dropped, model(input_ids, mask))


def test_more_tokens_than_positions_are_refused(base):
    with pytest.raises(RuntimeError, match=r"size .* \(41\) must match the size .* \(40\)"):
        BertModel.from_pretrained(base)(torch.ones(1, 41, dtype=torch.long))


def test_parameter_counts():
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    assert sum(p.numel() for p in model.bert.parameters()) == 109_482_240
    assert sum(p.numel() for p in model.parameters()) == 109_483_778


def test_official_weights():
    """The hidden states that transformers documents for bert-base-uncased's weights."""
    from support import hub, offline

    folder = os.environ.get("BERT_BASE_UNCASED")
    if not folder:
        if hub.out_of_reach():
            pytest.skip("needs the Hub, or BERT_BASE_UNCASED=DIR with its two files")
        folder = hub.folder(offline.OFFICIAL_MODEL)
    ours = BertModel.from_pretrained(folder)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
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


# Files: the weights.


@pytest.fixture
def base(tmp_path) -> Path:
    """The directory of a tiny random classifier."""
    return saved_base(tmp_path / "base")


def rewrite(folder: Path, change) -> None:
    """Puts change(tensors) in the place of the tensors in a directory's file."""
    path = folder / "model.safetensors"
    changed = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path)


def encoder(state: dict) -> dict:
    """The tensors of the encoder, with their prefix."""
    return {name: tensor for name, tensor in state.items() if name.startswith("bert.")}


def bare(state: dict) -> dict:
    """The tensors of the encoder, without a prefix."""
    return {name.removeprefix("bert."): tensor for name, tensor in encoder(state).items()}


def official(state: dict) -> dict:
    return official_names(bare(state))


def with_position_ids(state: dict) -> dict:
    return bare(state) | {"embeddings.position_ids": torch.arange(40)[None]}


def with_prefixed_position_ids(state: dict) -> dict:
    return state | {"bert.embeddings.position_ids": torch.arange(40)[None]}


def with_pretraining(state: dict) -> dict:
    return bare(state) | {"cls.seq_relationship.weight": torch.ones(2, 32)}


NAMINGS = [
    official,
    encoder,
    bare,
    with_position_ids,
    with_prefixed_position_ids,
    with_pretraining,
]


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_loads(base, naming):
    expected = bare(load_file(base / "model.safetensors"))
    rewrite(base, naming)
    classifier = BertForSequenceClassification.from_pretrained(base)
    for model in BertModel.from_pretrained(base), classifier.bert:
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_computed_in_float32(base, dtype):
    rewrite(base, lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    ours = BertForSequenceClassification.from_pretrained(base)
    opener = transformers.BertForSequenceClassification
    theirs = opener.from_pretrained(base, dtype=torch.float32).eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    input_ids, mask = inputs(60, [9, 4])
    assert difference(ours(input_ids, mask), theirs(input_ids, mask).logits) < 1e-5


def open_seeded(folder: Path, label_names: list[str]) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification.from_pretrained(folder, label_names)


def test_a_classifier_that_the_file_lacks_is_drawn(base):
    assert BertForSequenceClassification.from_pretrained(base).newly_initialized == ()
    rewrite(base, bare)
    model = open_seeded(base, ["bad", "fair", "good"])
    assert model.newly_initialized == ("classifier",)
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert model.classifier.weight.shape == (3, 32)
    assert 0.01 < model.classifier.weight.std().item() < 0.03
    assert not model.classifier.bias.any()
    again = open_seeded(base, ["bad", "fair", "good"])
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_a_pooler_that_the_file_lacks_is_drawn(base):
    """As in the file of a masked language model."""
    rewrite(base, lambda state: {k: v for k, v in state.items() if "pooler" not in k})
    model = BertForSequenceClassification.from_pretrained(base)
    assert model.newly_initialized == ("bert.pooler.dense",)
    assert 0.01 < model.bert.pooler.dense.weight.std().item() < 0.03
    assert BertModel.from_pretrained(base).newly_initialized == ("pooler.dense",)


def test_a_base_with_a_classifier_of_other_classes_gets_a_new_one(base):
    """As in transformers with ignore_mismatched_sizes: the encoder is the file's."""
    five = [f"class {number}" for number in range(5)]
    model = BertForSequenceClassification.from_pretrained(base, five)
    assert model.newly_initialized == ("classifier",)
    assert model.classifier.weight.shape == (5, 32)
    opener = transformers.BertForSequenceClassification
    theirs = opener.from_pretrained(base, num_labels=5, ignore_mismatched_sizes=True)
    ours = model.state_dict()
    for name, tensor in encoder(theirs.state_dict()).items():
        assert torch.equal(tensor, ours[name])


def test_as_many_classes_of_other_names_are_other_classes(base):
    """Their rows mean something else, or nobody knows what."""
    for names, new in (["LABEL_0", "LABEL_1"], ()), (["good", "bad"], ("classifier",)):
        model = BertForSequenceClassification.from_pretrained(base, names)
        assert model.newly_initialized == new
        assert [*model.config.id2label.values()] == names


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
DAMAGE = {  # the tensors that are changed (None: left out), and what the message says
    "missing": ({QUERY: None}, rf"Missing .*{QUERY}"),
    "half a classifier": ({"classifier.bias": None}, r"Missing .*classifier\.bias"),
    "half a pooler": (
        {"bert.pooler.dense.weight": None},
        r"Missing .*bert\.pooler\.dense\.weight",
    ),
    "surplus": (
        {"bert.encoder.layer.2.odd": torch.ones(2)},
        r"Unexpected .*encoder\.layer\.2\.odd",
    ),
    "shape": ({QUERY: torch.ones(32, 31)}, rf"{QUERY}: .*\[32, 31\].*\[32, 32\]"),
    "classifier's shape": (
        {"classifier.bias": torch.ones(3)},
        r"classifier\.bias: .*\[3\].*\[2\]",
    ),
    "integers": ({QUERY: torch.ones(32, 32).long()}, rf"{QUERY}.*Only Tensors of floating point"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors_are_named(base, damage):
    changes, message = DAMAGE[damage]
    rewrite(base, lambda state: {k: v for k, v in (state | changes).items() if v is not None})
    with pytest.raises(RuntimeError, match=message):
        BertForSequenceClassification.from_pretrained(base)


# Files: config.json.

UNSUPPORTED = {
    "hidden_act": "silu",
    "position_embedding_type": "relative_key",
    "is_decoder": True,
    "model_type": "t5",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_config_is_named(base, name):
    edit_json(base / "config.json", **{name: UNSUPPORTED[name]})
    with pytest.raises(ValueError, match=rf"config\.json: .*{name}"):
        BertModel.from_pretrained(base)


def test_a_class_without_a_name_is_refused(base):
    edit_json(base / "config.json", id2label={"1": "no", "2": "yes"})
    with pytest.raises(KeyError, match="0"):
        BertModel.from_pretrained(base)


def test_classes_stand_in_the_order_of_their_numbers(tmp_path):
    """A file that was sorted as text has "10" before "2"."""
    names = {str(number): f"class {number}" for number in range(12)}
    text = json.dumps({"id2label": names}, sort_keys=True)
    assert text.index('"10"') < text.index('"2"')
    (tmp_path / "config.json").write_text(text)
    config = BertConfig.from_json(tmp_path / "config.json")
    assert list(config.id2label.values()) == [f"class {number}" for number in range(12)]


def test_a_config_of_one_label_says_that_it_is_a_regression(tmp_path):
    """Otherwise transformers' pipeline shows the sigmoid of the number."""
    for labels, expected in (1, "regression"), (2, None):
        config = BertConfig(id2label={number: f"LABEL_{number}" for number in range(labels)})
        config.to_json(tmp_path / "config.json", "BertForSequenceClassification")
        assert transformers.BertConfig.from_pretrained(tmp_path).problem_type == expected


def test_a_base_of_another_problem(base):
    """What a regression becomes with classes is no regression."""
    rewrite(base, lambda state: state | {"classifier.weight": torch.ones(1, 32)})
    rewrite(base, lambda state: state | {"classifier.bias": torch.ones(1)})
    edit_json(base / "config.json", id2label={"0": "LABEL_0"}, problem_type="regression")
    same = BertForSequenceClassification.from_pretrained(base)
    assert same.config.problem_type == "regression" and same.newly_initialized == ()
    other = BertForSequenceClassification.from_pretrained(base, ["bad", "good"])
    assert other.config.problem_type is None and other.newly_initialized == ("classifier",)


@pytest.mark.parametrize(
    "opener", ["BertForSequenceClassification", "AutoModelForSequenceClassification"]
)
def test_transformers_opens_what_we_save(base, tmp_path, opener):
    ours = BertForSequenceClassification.from_pretrained(base)
    ours.config.id2label = {0: "böse", 1: "gut"}
    ours.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    with silence():
        theirs = getattr(transformers, opener).from_pretrained(tmp_path / "saved").eval()
    assert theirs.config.id2label == {0: "böse", 1: "gut"}
    assert theirs.config.label2id == {"böse": 0, "gut": 1}
    again = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.config == ours.config
    input_ids, mask = inputs(60, [9, 4])
    logits = ours(input_ids, mask)
    assert torch.equal(logits, again(input_ids, mask))
    assert difference(logits, theirs(input_ids, mask).logits) < 1e-5


def test_transformers_opens_a_saved_encoder(base, tmp_path):
    ours = BertModel.from_pretrained(base)
    ours.save_pretrained(tmp_path / "saved")
    with silence():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert isinstance(theirs, transformers.BertModel)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    input_ids, _ = inputs(60, [9])
    assert difference(ours(input_ids)[0], theirs(input_ids).last_hidden_state) < 1e-5
    # A new classifier: here transformers does warn.
    with pytest.raises(AssertionError, match="classifier"), silence():
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_the_default_config_is_that_of_transformers():
    ours = BertConfig()
    theirs = transformers.BertConfig()
    for name, value in vars(ours).items():
        if name not in ("text_pairs", "model_max_length"):  # our own
            assert value == getattr(theirs, name), name
