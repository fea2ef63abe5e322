"""Many adapters on one base: each row as in a model of its own, and as in peft."""

from pathlib import Path

import pytest
import torch
from helpers import TINY, difference, inputs, open_theirs, saved_base
from torch import Tensor

import lora
from bert import BertForSequenceClassification, BertPooler
from lora import LinearWithLoRA, LoRALayer
from runtime.bank import AdapterBank, RoutedLinear
from runtime.fast import ClsOnlyLayer

# peft's own affair
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
ADAPTERS = {
    "two": {"r": 4, "target_modules": ["query", "value"], "labels": 2},
    "five": {"r": 8, "target_modules": "all-linear", "labels": 5},
    "keys": {"r": 16, "target_modules": ["key"], "labels": 2},
    "number": {"r": 2, "target_modules": ["query", "value"], "labels": 1},  # a regression
}
NAMES = ["five", "two", "keys", "two", "five", "keys", "number", "two"]
BATCH = inputs(TINY["vocab_size"], [12, 5, 9, 12, 3, 12, 11, 7])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def theirs(base, tmp_path_factory) -> dict[str, tuple]:
    """Adapters made by peft: the directory of each, and the model itself."""
    import peft

    made = {}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=settings["r"],
            target_modules=settings["target_modules"],
            lora_alpha=12,
            init_lora_weights=False,
        )
        plain = open_theirs(base, num_labels=settings["labels"], ignore_mismatched_sizes=True)
        model = peft.get_peft_model(plain, config).eval()
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folder)
        made[name] = folder, model
    return made


def open_bank(base: Path, theirs: dict[str, tuple]) -> AdapterBank:
    bank = AdapterBank(str(base))
    for name, (folder, _) in theirs.items():
        bank.load(name, str(folder))
    return bank


@pytest.fixture
def bank(base, theirs) -> AdapterBank:
    return open_bank(base, theirs)


@torch.no_grad()
def of_their_own(models: dict, names=NAMES, batch=BATCH) -> list[Tensor]:
    """The logits of each row, alone in the model of its adapter."""
    rows = [models[name](*(t[i : i + 1] for t in batch)) for i, name in enumerate(names)]
    return [getattr(row, "logits", row)[0] for row in rows]


def assert_equal(some: list[Tensor], others: list[Tensor]) -> None:
    assert max(difference(a, b) for a, b in zip(some, others, strict=True)) < 1e-5


def test_each_row_gets_its_adapter(bank, theirs):
    mixed = bank.forward_rows(NAMES, *BATCH)
    assert [len(row) for row in mixed] == [ADAPTERS[name]["labels"] for name in NAMES]
    assert_equal(mixed, of_their_own({name: model for name, (_, model) in theirs.items()}))
    assert_equal(mixed, of_their_own(bank.models))
    assert bank.notes == []


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_other_rows(bank):
    """Nor on their order, on token types or on a batch before it."""
    input_ids = BATCH[0][:2]
    types = torch.arange(12).expand_as(input_ids) % 2
    found = {}
    for names in ["five", "two"], ["two", "five"], ["keys", "keys"]:
        found[tuple(names)] = bank.forward_rows(names, input_ids, None, types)
    for names, mixed in found.items():
        for i, name in enumerate(names):
            expected = bank.models[name](input_ids[i : i + 1], None, types[i : i + 1])[0]
            assert difference(mixed[i], expected) < 1e-5
    assert bank.forward_rows([], input_ids[:0]) == []


def test_the_base_is_in_memory_once(bank):
    base = {p.data_ptr() for p in bank.base.bert.parameters()}
    for model in [*(model.bert for model in bank.models.values()), bank.mixed]:
        frozen = {p.data_ptr() for name, p in model.named_parameters() if ".lora." not in name}
        assert frozen == base


def test_removing_an_adapter_leaves_the_others(bank):
    before = bank.forward_rows(["two", "keys"], BATCH[0][:2])
    bank.remove("five")
    after = bank.forward_rows(["two", "keys"], BATCH[0][:2])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert bank.models.keys() == ADAPTERS.keys() - {"five"}
    assert not any("five" in m.paths for m in bank.mixed.modules() if isinstance(m, RoutedLinear))
    with pytest.raises(ValueError, match=r"^1 names of adapters for a batch of 3 rows$"):
        bank.forward_rows(["two"], BATCH[0][:3])
    with pytest.raises(KeyError, match="five"):
        bank.forward_rows(["five"], BATCH[0][:1])


def test_another_adapter_takes_the_place_of_one_of_its_name(bank, theirs):
    """Of other layers: those of the former must not be left."""
    bank.load("five", str(theirs["keys"][0]))
    expected = of_their_own({"five": theirs["keys"][1]}, ["five"])
    assert_equal(bank.forward_rows(["five", "two"], *(t[:2] for t in BATCH))[:1], expected)


# The one pass, and where it steps aside.


def test_one_pass_is_a_pass_for_each(bank):
    assert type(bank.mixed.encoder.layer[-1]) is ClsOnlyLayer
    passes = []
    bank.mixed.register_forward_hook(lambda *_: passes.append(1))
    together = bank.forward_rows(NAMES, *BATCH)
    assert bank.is_mixing and passes == [1]
    bank.is_mixing = False
    assert_equal(together, bank.forward_rows(NAMES, *BATCH))
    assert passes == [1]


def mix_tokens(cls: type, monkeypatch) -> None:
    """An edit of the class's forward by which each row of its input has a part in every other."""
    plain = cls.forward

    def forward(self, x: Tensor) -> Tensor:
        return plain(self, x + x.mean(1, keepdim=True))

    monkeypatch.setattr(cls, "forward", forward)


def mean_of_states(self, input_ids, attention_mask=None, token_type_ids=None):
    """Another forward of the classifier, which reads every row of the last states."""
    states, _ = self.bert(input_ids, attention_mask, token_type_ids)
    return self.classifier(states.mean(1))


WITHOUT_PADDING = [BATCH[0][:, :3]]  # which would have a part in the mean


@pytest.mark.parametrize("cls", [LoRALayer, LinearWithLoRA, BertPooler])
def test_an_edit_takes_effect(cls, base, theirs, monkeypatch):
    before = open_bank(base, theirs).forward_rows(NAMES, *WITHOUT_PADDING)
    mix_tokens(cls, monkeypatch)
    bank = open_bank(base, theirs)
    mixed = bank.forward_rows(NAMES, *WITHOUT_PADDING)
    assert_equal(mixed, of_their_own(bank.models, batch=WITHOUT_PADDING))
    assert max(difference(a, b) for a, b in zip(mixed, before, strict=True)) > 1e-3
    assert any(f"{cls.__name__}.forward was edited" in note for note in bank.notes)
    assert len(bank.notes) == len({*bank.notes})


def test_an_edit_of_the_classifier_takes_effect(base, theirs, monkeypatch):
    monkeypatch.setattr(BertForSequenceClassification, "forward", mean_of_states)
    bank = open_bank(base, theirs)
    mixed = bank.forward_rows(NAMES, *BATCH)
    assert_equal(mixed, of_their_own(bank.models))


def test_an_adapter_that_is_odd_when_it_is_loaded(base, theirs, monkeypatch):
    """Of an unknown class, or hooked: each adapter runs its own lines."""

    class Odd(LoRALayer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + x.mean(1, keepdim=True))

    class Hooked:
        def __new__(cls, *given, **named):
            layer = LoRALayer(*given, **named)
            layer.lora_B.register_forward_hook(lambda module, given, y: 3 * y)
            return layer

    for name, odd in ("keys", Odd), ("number", Hooked):
        bank = AdapterBank(str(base))
        with monkeypatch.context() as patch:
            bank.load("two", str(theirs["two"][0]))
            patch.setattr(lora, "LoRALayer", odd)
            bank.load(name, str(theirs[name][0]))
        rows = [BATCH[0][:3, :3]]
        names = [name, "two", name]
        assert_equal(bank.forward_rows(names, *rows), of_their_own(bank.models, names, rows))
        assert any("each adapter has a pass of its own" in note for note in bank.notes)
