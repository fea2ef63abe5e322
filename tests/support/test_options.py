"""A dataclass as flags and as a TOML file: names, types, limits, and a line for each mistake."""

import re
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass, fields

import pytest
from helpers import ROOT

from support import options
from support.errors import InputError
from support.options import option, parse, split_list


@dataclass
class Config:
    model: str = option("bert", "base model")
    metric: str = option("", "what is best", choices=["", "accuracy", "f1"])
    epochs: int = option(3, "passes over the data", at_least=1, also="num-epochs")
    batch_size: int = option(32, "sentences in a batch", at_least=1)
    lr: float = option(5e-4, "rate at its peak", above=0, also="learning-rate")
    dropout: float = option(0.1, "of the input", at_least=0, below=1, also="lora-dropout")
    warmup_ratio: float = option(0.1, "fraction of the steps", at_least=0, at_most=1)
    seed: int = option(42, "of everything random", at_least=0)
    out: str = option("out", "where everything goes", also="output-dir")
    resume: bool = option(False, "go on with the run")
    push: bool = option(False, "upload it")

    def __post_init__(self):
        options.check(self)


def read(*arguments, file: str = "", tmp_path=None) -> Config:
    words = list(arguments)
    if file:
        (tmp_path / "a.toml").write_text(file, encoding="utf-8")
        words += ["--config", str(tmp_path / "a.toml")]
    return Config(**parse(Config, words))


def test_every_option_has_its_flag_its_default_and_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(Config, ["--help"], "What it does.\n\nMore of it.")
    shown = " ".join(capsys.readouterr().out.split())
    for f in fields(Config):
        default = f" (default: {f.default})" if f.name != "metric" else ""
        assert f"--{f.name.replace('_', '-')}" in shown
        assert f.metadata["help"] + default in shown
    assert "{,accuracy,f1}" in shown
    assert "What it does." in shown and "More of it." not in shown and "None" not in shown


def test_help_imports_no_torch():
    code = "import sys, support.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("line", [
    "--batch-size 8 --lr 1e-3 --epochs 5 --dropout 0.2 --out a_b",
    "--batch_size 8 --learning_rate 1e-3 --num_epochs 5 --lora_dropout 0.2 --output_dir a_b",
    "--batch_size=8 --learning-rate=0.001 --num-epochs=5 --dropout=.2 --out=a_b",
])  # fmt: skip
def test_flags_go_by_several_names(line):
    wanted = Config(batch_size=8, lr=1e-3, epochs=5, dropout=0.2, out="a_b")
    assert read(*line.split()) == wanted


def test_a_file_knows_the_names_that_the_flags_know(tmp_path):
    file = "learning_rate = 1\nnum-epochs = 5\nbatch-size = 8\noutput_dir = 'x'\nlora-dropout = 0"
    config = read(file=file, tmp_path=tmp_path)
    assert config == Config(lr=1.0, epochs=5, batch_size=8, out="x", dropout=0.0)
    assert type(config.lr) is float


def test_flags_undo_what_the_file_switches_on(tmp_path):
    file = "resume = true\npush = true\n"
    assert read(file=file, tmp_path=tmp_path) == Config(resume=True, push=True)
    assert read("--no-resume", "--no_push", file=file, tmp_path=tmp_path) == Config()
    assert read("--no_resume", "--resume") == Config(resume=True)


def test_a_flag_wins_over_the_file_and_a_later_one_over_an_earlier_one(tmp_path):
    file = 'lr = 1\nseed = 7\nmodel = "x"\nresume = true\n'
    config = read("--seed", "8", file=file, tmp_path=tmp_path)
    assert config == Config(lr=1.0, seed=8, model="x", resume=True)
    assert read("--seed", "1", "--seed", "3") == Config(seed=3)


@pytest.mark.parametrize("words, problem", [
    ("--batch-size 0", "--batch-size 0 is not at least 1"),
    ("--lr 0", "--lr 0.0 is not above 0"),
    ("--lr inf", "--lr inf is not below inf"),
    ("--dropout nan", "--dropout nan is not at least 0"),
    ("--dropout 1", "--dropout 1.0 is not below 1"),
    ("--warmup-ratio 1.1", "--warmup-ratio 1.1 is not at most 1"),
    ("--seed -1", "--seed -1 is not at least 0"),
    ("--seed " + "9" * 5000, "invalid int value"),
    ("--metric foo", "argument --metric: invalid choice: 'foo' (choose from '', 'accuracy', 'f1')"),
    ("--epochs 2.5", "argument --epochs/--num-epochs: invalid int value: '2.5'"),
    ("--epoch 2", "unrecognized arguments: --epoch 2 (--help lists the options)"),
])  # fmt: skip
def test_a_bad_flag_is_one_short_line(words, problem):
    with pytest.raises(InputError) as error:
        read(*words.split())
    said = str(error.value)
    assert problem in said and "\n" not in said and len(said) < 400


@pytest.mark.parametrize("content, problem", [
    ("learnrate = 1", "a.toml: unrecognized arguments: --learnrate=1"),
    ("'' = 1", "a.toml: unrecognized arguments: --=1"),
    ("epochs = 2.5", "invalid int value: '2.5'"),
    ("epochs = true", "expected one argument"),
    ("resume = 1", "ignored explicit argument '1'"),
    ("lr = [1]", "invalid float value: '[1]'"),
    ("dropout = 1", "--dropout 1.0 is not below 1"),
    ("model = ''\nmetric = 'x'", "a.toml: argument --metric: invalid choice: 'x'"),
    ("a = b", "a.toml: cannot be read"),
    ("a." * 10**5 + "a = 1", "too long for a file of options"),
    ("a = " + "[" * 30000, "a.toml: cannot be read"),
    ("lr = 1" + "0" * 400, "--lr inf is not below inf"),
    ("seed = 0x" + "f" * 5000, "a.toml: cannot be read (Exceeds the limit"),
])  # fmt: skip
def test_a_bad_file_of_options_is_named(tmp_path, content, problem):
    with pytest.raises(InputError) as error:
        read(file=content, tmp_path=tmp_path)
    said = str(error.value)
    assert problem in said and "\n" not in said and len(said) < 500


def test_a_missing_file_of_options_is_named():
    with pytest.raises(InputError, match=re.escape("/nowhere.toml: cannot be read (No such file")):
        read("--config", "/nowhere.toml")


def test_what_is_written_reads_the_same(tmp_path):
    text = 'naïve "q" \\ \n\t \x1b 😀'
    config = Config(model=text, lr=1e-05, dropout=0.1 + 0.2, seed=2**62, resume=True)
    written = options.write_toml(asdict(config))
    assert tomllib.loads(written) == asdict(config)
    assert read(file=written, tmp_path=tmp_path) == config


def test_flags_give_the_same_options():
    config = Config(epochs=5, lr=1e-3, out="elsewhere", resume=True)
    assert read(*options.as_flags(asdict(config))) == config


@dataclass(kw_only=True)
class Others:
    out: str = option("out", "where everything goes")


@dataclass
class Both(Others):
    model: str = option("bert", "base model")


def test_options_that_are_given_by_name_alone_come_last(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(Both, ["--help"])
    shown = capsys.readouterr().out
    assert shown.index("--model") < shown.index("--out")
    assert Both("mine").model == "mine"


def test_a_list_is_a_flag_with_commas(tmp_path):
    """From Python and from a file; what a flag cannot say is refused."""
    config = Config(model=["bad", "good"], out=(1, 5))
    assert config.model == "bad,good" and config.out == "1,5"
    assert read(file='model = ["bad", "good"]', tmp_path=tmp_path).model == "bad,good"
    for wrong in ["a, b", "c"], {"bad": 0}, None, 1:
        with pytest.raises(InputError, match=r"^--model .*: expected names without commas$"):
            Config(model=wrong)
    with pytest.raises(InputError, match=r"^--model .*: expected names without commas$"):
        read(file='model = ["a, b", "c"]', tmp_path=tmp_path)
    with pytest.raises(InputError, match=r"^--model \{'a': 0\}: expected names without commas$"):
        read(file="model = {a = 0}", tmp_path=tmp_path)


def test_a_list_of_names():
    assert split_list("a, b,c,") == ["a", "b", "c"] and split_list("") == []
