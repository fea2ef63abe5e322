"""adapter_config.json and its tensors: what a plain LoRA is not is refused by name."""

from pathlib import Path

import peft
import pytest
import torch
from helpers import edit_json, open_theirs, saved_base
from safetensors.torch import load_file, save_file

from lora import open_adapter
from support import adapter_files
from support.files import InputError


@pytest.fixture
def adapter(tmp_path) -> Path:
    """The directory of an adapter that peft saved."""
    base = saved_base(tmp_path / "base", num_labels=3)
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    peft.get_peft_model(open_theirs(base), settings).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


UNSUPPORTED = {"use_dora": True, "bias": "all", "rank_pattern": {"query": 4}, "layers_to_transform": [0],
               "peft_type": "LOHA", "init_lora_weights": "pissa", "task_type": "TOKEN_CLS", "odd": 1}  # fmt: skip


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_unsupported_fields_are_named(adapter, field):
    edit_json(adapter / "adapter_config.json", **{field: UNSUPPORTED[field]})
    with pytest.raises(InputError, match=rf"adapter_config\.json: {field} = "):
        open_adapter(str(adapter))


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_a_field_that_the_caller_knows_is_read(adapter, field):
    edit_json(adapter / "adapter_config.json", **{field: UNSUPPORTED[field], "other": 1})
    with pytest.raises(InputError, match=r"adapter_config\.json: other = 1"):
        adapter_files.read_config(str(adapter), frozenset({field}))
    edit_json(adapter / "adapter_config.json", other=None)
    assert adapter_files.read_config(str(adapter), frozenset({field}))[field] == UNSUPPORTED[field]


def test_unknown_field_that_is_null_is_accepted(adapter):
    edit_json(adapter / "adapter_config.json", odd=None)
    open_adapter(str(adapter))


@pytest.mark.parametrize("shape", [(), (0, 32), (3, 0), (3, 32, 1)], ids=str)
def test_a_classifier_of_no_shape_is_refused(adapter, shape):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.classifier.weight"] = torch.ones(shape)
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"classifier has the shape \["):
        open_adapter(str(adapter))


def test_contradicting_rank_is_refused(adapter):
    edit_json(adapter / "adapter_config.json", r=4)
    with pytest.raises(InputError, match=r"lora_A.* \[8, 32\].* r = 4"):
        open_adapter(str(adapter))


@pytest.mark.parametrize("targets", ["query,value", "value, query", " query , value"])
def test_the_targets_of_an_adapter_may_be_spelled_as_any_list(adapter, targets):
    assert set(
        adapter_files.as_options(str(adapter), {"targets": targets})["targets"].split(",")
    ) == {"query", "value"}
    with pytest.raises(InputError, match="does not go with --init-adapter"):
        adapter_files.as_options(str(adapter), {"targets": f"{targets}, key"})
