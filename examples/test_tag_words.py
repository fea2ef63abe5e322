"""tag_words.py against peft's TOKEN_CLS and transformers: numbers, gradients, files, labels."""

import re

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import difference, draw, gradients, inputs, saved_base, silence
from safetensors.torch import load_file

import lora
import sample
from data import load_tokenizer
from examples import tag_words
from examples.tag_words import TAGS, TRAINING, VALIDATION, compute_logits, open_tagger
from support import offline
from support.errors import run_main


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(saved_base(tmp_path_factory.mktemp("base") / "base"))


def drawn(base):
    model = open_tagger(base).eval()
    for seed, layer in enumerate(m for m in model.modules() if isinstance(m, lora.LoRALayer)):
        draw(layer, seed)
    draw(model.classifier)
    return model


def open_theirs(base):
    opener = transformers.AutoModelForTokenClassification
    return opener.from_pretrained(base, num_labels=len(TAGS), ignore_mismatched_sizes=True).eval()


def test_peft_opens_ours_with_the_same_logits_and_gradients(base, tmp_path):
    ours = drawn(base)
    lora.save_adapter(ours, tmp_path, base)
    with silence():
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        plain = transformers.AutoModelForTokenClassification.from_config(config)
    plain.bert.load_state_dict(open_theirs(base).bert.state_dict())
    with silence():
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True).eval()
    assert type(theirs) is peft.PeftModelForTokenClassification
    assert [*config.id2label.values()] == TAGS
    input_ids, mask = inputs(60, [9, 9, 4])
    labels = torch.where(mask.bool(), input_ids % len(TAGS), -100)
    labels[:, ::3] = -100
    logits = ours(input_ids, mask)
    output = theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    F.cross_entropy(logits.transpose(1, 2), labels).backward()
    output.loss.backward()
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys() and len(mine) == 2 + 2 * 2 * 6
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


def test_opens_an_adapter_of_peft(base, tmp_path):
    # Every linear layer by name: peft's own "all-linear" takes the classifier too, and fails.
    settings = {"target_modules": ["query", "key", "value", "dense"], "r": 8, "lora_alpha": 16}
    config = peft.LoraConfig(task_type="TOKEN_CLS", init_lora_weights=False, **settings)
    theirs = peft.get_peft_model(open_theirs(base), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = open_tagger(base).eval()
    lora.load_lora_state_dict(ours, lora.read_adapter_tensors(tmp_path / "theirs"))
    input_ids, mask = inputs(60, [9, 4])
    assert difference(ours(input_ids, mask), theirs(input_ids, mask).logits) < 1e-5
    lora.save_adapter(ours, tmp_path / "ours", base)
    saved, mine = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")
    )
    assert saved.keys() == mine.keys()
    assert all(torch.equal(saved[name], mine[name]) for name in saved)


def test_the_logits_of_a_word_are_those_of_its_first_piece():
    """As transformers' tokenizer says which piece is of which word."""
    folder, _ = offline.offline_pair()
    tokenizer = load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = open_tagger(folder).eval()
    for words in next(iter(TRAINING)).split(), ["engrossing", "Kaohsiung", "it's", "a"]:
        encoding = theirs(words, is_split_into_words=True, return_tensors="pt")
        of = encoding.word_ids(0)
        first = [of.index(number) for number in range(len(words))]
        expected = model(encoding["input_ids"])[0, first]
        assert torch.equal(compute_logits(model, tokenizer, words), expected)
    assert len(of) > len(words) + 4  # words in several pieces


def test_each_word_has_a_tag_and_no_name_was_seen():
    names = {}
    for split in TRAINING, VALIDATION:
        pairs = []
        for sentence, tags in split.items():
            pairs += zip(sentence.split(), tags.split(), strict=True)
        assert {tag for _, tag in pairs} == {*TAGS}
        names[id(split)] = {word for word, tag in pairs if tag != "O"}
    assert not set.intersection(*names.values())


def test_the_program_and_sample_py_refuses_its_adapter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_main(tag_words.main)
    said = capsys.readouterr().out
    lines = [sentence + ": .*\n" for sentence in VALIDATION]
    assert float(re.fullmatch("".join(lines) + r"F1 (\d\.\d+)\n", said)[1]) > 0.5
    for opened in sample.open_model, lora.open_adapter:
        with pytest.raises(ValueError, match=r"task_type = 'TOKEN_CLS' is not supported"):
            opened(tmp_path / "out-tags")
    with pytest.raises(SystemExit):
        run_main(tag_words.main)
    assert "out-tags: is there already" in capsys.readouterr().err
