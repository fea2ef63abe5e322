"""What config.json and the tokenizer of a base model may not ask for."""

import pytest
from helpers import edit_json, saved_base

from bert import BertModel
from support.files import InputError

UNSUPPORTED = {
    "hidden_act": "relu",
    "position_embedding_type": "relative_key",
    "is_decoder": True,
    "model_type": "t5",
    "problem_type": "regression",
    "num_attention_heads": 5,
    "id2label": {"1": "yes"},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_config_is_named(tmp_path, name):
    base = saved_base(tmp_path / "base")
    edit_json(base / "config.json", **{name: UNSUPPORTED[name]})
    with pytest.raises(InputError, match=rf"config\.json: .*{name}"):
        BertModel.from_pretrained(base)
