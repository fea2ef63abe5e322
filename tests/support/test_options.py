"""A dataclass as flags and as a TOML file: names, types, limits, and a line for each mistake."""

import re
from dataclasses import fields

import pytest

from support.files import InputError
from support.options import parse_options
from train import Config


def test_every_option_has_its_flag_and_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_options(Config, ["--help"])
    shown = capsys.readouterr().out
    assert all(
        f"--{f.name.replace('_', '-')}" in shown and f.metadata["help"][:20] in shown
        for f in fields(Config)
    )


@pytest.mark.parametrize("line", [
    "--batch-size 8 --lr 1e-3 --epochs 5 --rank 4 --alpha 2 --dropout 0.2 --out a_b --log-every 2",
    "--batch_size 8 --learning_rate 1e-3 --num_epochs 5 --lora_rank 4 --lora_alpha 2 --lora_dropout 0.2 "
    "--output_dir a_b --logging_steps 2",
    "--batch-size=8 --learning-rate=0.001 --num-epochs=5 --lora-rank=4 --alpha=2.0 --dropout=.2 --out=a_b "
    "--logging-steps=2",
])  # fmt: skip
def test_flags_go_by_several_names(line):
    wanted = Config(
        batch_size=8, lr=1e-3, epochs=5, rank=4, alpha=2.0, dropout=0.2, out="a_b", log_every=2
    )
    assert Config(**parse_options(Config, line.split())) == wanted


def test_a_file_knows_the_names_that_the_flags_know(tmp_path):
    names = (
        "learning_rate = 1e-3\nnum-epochs = 5\nbatch-size = 8\n'lora-rank' = 4\noutput_dir = 'x'\n"
    )
    (tmp_path / "a.toml").write_text(names)
    config = Config(**parse_options(Config, ["--config", str(tmp_path / "a.toml")]))
    assert config == Config(lr=1e-3, epochs=5, batch_size=8, rank=4, out="x")


def test_flags_undo_what_the_file_switches_on(tmp_path):
    switches = [f.name for f in fields(Config) if f.type is bool]
    (tmp_path / "a.toml").write_text("".join(f"{name} = true\n" for name in switches))
    arguments = [
        "--config",
        str(tmp_path / "a.toml"),
        *(f"--no-{name.replace('_', '-')}" for name in switches),
    ]
    assert "resume" in switches and "overwrite" in switches
    assert Config(**parse_options(Config, arguments)) == Config()
    assert Config(**parse_options(Config, [*arguments, "--no_resume", "--resume"])) == Config(
        resume=True
    )


def test_a_flag_wins_over_the_file(tmp_path):
    (tmp_path / "a.toml").write_text('lr = 1\nseed = 7\nmodel = "x"\nresume = true\n')
    config = Config(**parse_options(Config, ["--seed", "8", "--config", str(tmp_path / "a.toml")]))
    assert config == Config(lr=1.0, seed=8, model="x", resume=True)


@pytest.mark.parametrize("content, problem", [("learnrate = 1", "unknown option 'learnrate'"),
    ("batchsize = 1", "did you mean 'batch_size'?"), ("epochs = 2.5", "epochs must be of type int"),
    ("dropout = 1", "--dropout 1.0 is not"), ("a = b", "not a TOML file"),
    ("lr = 1.0\nlearning-rate = 2.0", "'learning-rate' gives --lr a second time"), ("resume = 1", "of type bool"),
    ("a." * 10**5 + "a = 1", "too long for one of options"),
    ("lr = 1" + "0" * 400, "--lr is a number of more than 64 bits"),
    ("lr = 1e999", "--lr inf is not a finite number"),
    ("weight_decay = inf", "--weight-decay inf is not a finite number"),
    ("epochs = 9223372036854775808", "--epochs is a number of more than 64 bits"),
    ("seed = 0x" + "f" * 5000, "--seed is a number of more than 64 bits"),
    ("model = [0x" + "f" * 5000 + "]", "model must be of type str, not a list with too long a number"),
    ('out = "a\\u0000b"', r"--out 'a\x00b' holds a NUL character")])  # fmt: skip
def test_a_bad_file_of_options_is_named(tmp_path, content, problem):
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(InputError, match=re.escape(problem)):
        Config(**parse_options(Config, ["--config", str(tmp_path / "a.toml")]))


@pytest.mark.parametrize(
    "flag", ["--lr=1e999", "--weight-decay=1e999", "--seed=1" + "0" * 30, "--seed=" + "9" * 5000]
)
def test_a_number_that_is_none_is_one_short_line(refused, flag):
    assert len(refused(flag)) < 400
