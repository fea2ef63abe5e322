"""Checkpoints as the Hub has them, each equal to transformers or refused by the name of a field.

What is compared: the tokens of 200 hostile texts, alone and as pairs, and the logits. A base's
head that is drawn anew is copied into transformers' model first.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
import zoo
from helpers import ROOT, difference
from safetensors.torch import load_file, save_file

import sample
from bert import BertForSequenceClassification
from runtime import adapters, convert
from support import hub
from support.errors import InputError
from support.wordpiece import load_tokenizer

REFUSED = [name for name, replica in zoo.ZOO.items() if replica.refused]
OPENED = [name for name in zoo.ZOO if name not in REFUSED]
TEXTS = zoo.hostile_texts()
LENGTH = 30


@pytest.fixture
def replica(request, tmp_path):
    """A folder with the replica of this name; the pickle of one is converted first."""
    if not zoo.build(request.param, tmp_path).pickled:
        return tmp_path
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        hub.folder(tmp_path)
    convert.convert(str(tmp_path), str(tmp_path / "converted"))
    return tmp_path / "converted"


def has_model_type(folder: Path) -> bool:
    return "model_type" in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("replica", OPENED, indirect=True)
def test_tokens_equal_transformers(replica):
    # Without a model_type AutoTokenizer goes by the name of the folder.
    opener = transformers.AutoTokenizer if has_model_type(replica) else transformers.BertTokenizer
    theirs = opener.from_pretrained(replica)
    ours = load_tokenizer(replica, LENGTH)
    for others in None, TEXTS[::-1]:
        given = list(zip(TEXTS, others, strict=True)) if others else TEXTS
        settings = {"truncation": True, "max_length": LENGTH, "return_token_type_ids": True}
        expected = theirs(TEXTS, others, **settings)
        for row, found in enumerate(ours.encode_batch(given)):
            assert found.ids == expected["input_ids"][row], given[row]
            assert found.type_ids == expected["token_type_ids"][row], given[row]


def open_theirs(folder: Path, ours: BertForSequenceClassification):
    """transformers' model, in float32, with what was drawn for ours."""
    state = load_file(folder / "model.safetensors")
    prefix = re.compile(r"^(_orig_mod|module)\.")  # which transformers does not know
    bare = {prefix.sub("", name): tensor for name, tensor in state.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    opener = transformers.BertForSequenceClassification
    settings = {"ignore_mismatched_sizes": True, "num_labels": ours.config.num_labels}
    theirs = opener.from_pretrained(folder, dtype=torch.float32, **settings).eval()
    drawn = {
        name: tensor
        for name, tensor in ours.state_dict().items()
        if name.startswith(ours.newly_initialized or "none")
    }
    theirs.load_state_dict(drawn, strict=False)
    return theirs


@pytest.mark.parametrize("replica", OPENED, indirect=True)
@torch.no_grad()
def test_logits_equal_transformers(replica, request):
    ours = BertForSequenceClassification.from_pretrained(replica)
    is_classifier = zoo.ZOO[request.node.callspec.params["replica"]].architecture == zoo.SEQUENCE
    assert ("classifier" in ours.newly_initialized) is not is_classifier
    theirs = open_theirs(replica, ours)
    if is_classifier:
        assert ours.config.id2label == theirs.config.id2label
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, 200, (3, 20), generator=generator)
    mask = torch.arange(20) < torch.tensor([[20], [11], [3]])
    types = (torch.arange(20) > 6).long().expand(3, -1)
    if ours.config.type_vocab_size < 2:
        types = torch.zeros_like(types)
    found = ours(input_ids, mask, types)
    assert difference(found, theirs(input_ids, mask.long(), types).logits) < 1e-5
    assert found.std() > 1e-3


@pytest.mark.parametrize("replica", REFUSED, indirect=True)
def test_others_are_refused_by_the_name_of_a_field(replica, request):
    problem = zoo.ZOO[request.node.callspec.params["replica"]].refused
    with pytest.raises(InputError, match=rf"^{replica}.*({problem})"):
        load_tokenizer(replica)
        adapters.open_base(replica)


@pytest.mark.parametrize("kind", ["BertForTokenClassification", "BertForQuestionAnswering"])
def test_a_base_for_another_task_gets_a_head_of_its_own(quick, tmp_path, kind, capsys):
    """And sample.py takes such a model for no classifier."""
    base = tmp_path / "base"
    base.mkdir()
    names = {replica.architecture: name for name, replica in zoo.ZOO.items()}
    zoo.build(names[kind], base)
    quick(tmp_path / "out", "--model", base, "--rank", 2)
    printed = capsys.readouterr().out
    assert re.search("classifier .* newly initialized", printed)
    with pytest.raises(InputError, match=f"{kind} has no trained classifier of texts; name"):
        sample.open_model(str(base))


def test_the_table_of_the_document_is_this_zoo():
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert zoo.table() in text, "PYTHONPATH=. python tests/zoo.py prints it"
