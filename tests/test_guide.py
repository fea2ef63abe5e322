"""What the study guide tells people to type, typed; what it shows, compared; and the same in both
languages."""

import code
import re
import shlex
import sys
from dataclasses import fields

import pytest
from helpers import ROOT
from pyarrow import parquet

import train

PAGES = [ROOT / "docs" / name for name in ("guide.md", "guide.zh-TW.md")]
TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]
BLOCKS = [re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for text in TEXTS]
PROSE = [re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE) for text in TEXTS]
TINY = ["--epochs", "1", "--max-length", "12", "--batch-size", "16"]
FLAG = r"--[a-z][\w-]+"
NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?"


def with_outputs(kind: str) -> list[tuple[str, str]]:
    """The blocks of a kind in their order, each with the output that is shown after it, or ""."""
    pairs = zip(BLOCKS[0], [*BLOCKS[0][1:], ("", "")], strict=True)
    return [
        (body, shown if after == "text" else "")
        for (found, body), (after, shown) in pairs
        if found == kind
    ]


def compare(said: str, shown: str, slack: float) -> None:
    """The same words, and the same numbers to `slack` of their last digits; whole numbers
    exactly."""
    words = [re.sub(NUMBER, "0", text).split() for text in (said, shown)]
    assert words[0] == words[1], said
    for ours, theirs in zip(*(re.findall(NUMBER, text) for text in (said, shown)), strict=True):
        decimals = len(theirs.partition(".")[2])
        assert abs(float(ours) - float(theirs)) <= (slack * 10**-decimals if decimals else 0), (
            said,
            shown,
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory, minilm):
    """A folder that looks like the project's after `make train`, and 32 of the reviews."""
    home = tmp_path_factory.mktemp("home")
    for name in (
        "bert.py",
        "lora.py",
        "data.py",
        "train.py",
        "sample.py",
        "support",
        "experiments",
        "offline",
    ):
        (home / name).symlink_to(ROOT / name)
    (home / "some").mkdir()
    for split, rows in ("train", 32), ("validation", 16):
        table = parquet.read_table(
            ROOT / "offline" / "movie-reviews" / f"{split}-00000-of-00001.parquet"
        )
        parquet.write_table(table.slice(0, rows), home / "some" / f"{split}.parquet")
    (home / "messages.csv").write_text(with_outputs("csv")[0][0])
    return home


def test_the_python_is_one_session_that_prints_what_is_shown(home, monkeypatch, capsys):
    """Typed line by line, as a reader pastes it; what the session echoes of a line's value is left
    out."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "displayhook", lambda value: None)
    session = code.InteractiveConsole()
    for block, shown in with_outputs("python"):
        waiting = [session.push(line) for line in [*block.splitlines(), ""]][-1]
        said = capsys.readouterr()
        assert not waiting and not said.err, said.err
        compare(said.out, shown, slack=2)


def test_the_commands(home, run, tiny):
    """As written, but that trainings on the reviews take 32 of them, one epoch, and a small random
    BERT."""
    small = {"offline/movie-reviews": "some", "offline/all-MiniLM-L6-v2": str(tiny)}
    answers = {}
    for block, shown in with_outputs("bash"):
        said = ""
        for line in block.splitlines():
            python, *words = shlex.split(line)
            if "offline/movie-reviews" in words:
                words = [
                    small.get(word, word) for word in words
                ] + TINY  # of an option given twice the last one wins
            done = run(*words, cwd=home)
            assert python == "python" and done.returncode == 0, (line, done.stderr)
            answers[line] = done.stdout
            said += (
                done.stdout if words[0] == "sample.py" else ""
            )  # what a training says has times in it
        if shown:
            compare(said, shown, slack=50)  # percents with one digit after the point, and labels
    merged, plain = (
        answer for line, answer in answers.items() if "sample.py" in line and "default" in line
    )
    compare(merged, plain, slack=1)


@pytest.mark.parametrize("text", TEXTS, ids=["English", "Chinese"])
def test_the_links_into_the_code_name_what_is_there(text):
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./(\w+\.py)\)", text)
    assert len(links) > 20
    for symbols, file in links:
        for symbol in symbols.split("."):
            pattern = rf"^ *(class|def) {symbol}\b"
            assert re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                symbol
            )


@pytest.mark.parametrize("prose", PROSE, ids=["English", "Chinese"])
def test_what_is_named_in_the_prose_exists(prose):
    programs = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("sample.py", "lora.py", "support/hub.py")
    )
    flags = {
        flag for quoted in re.findall(r"`([^`]+)`", prose) for flag in re.findall(FLAG, quoted)
    }
    assert len(flags) > 10
    names = [name for f in fields(train.Config) for name in (f.name, f.metadata["also"])]
    known = {f"--{name.replace('_', '-')}" for name in names} | set(re.findall(FLAG, programs))
    assert flags - known <= {"--dry-run", "--nproc-per-node"}  # the latter is torchrun's
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)`", prose)) <= targets


def test_the_pictures_are_small_and_have_a_maker():
    pictures = [re.findall(r"!\[[^]]*\]\((figures/[\w-]+\.png)\)", text) for text in TEXTS]
    assert pictures[0] == pictures[1] and len(pictures[0]) >= 3
    maker = (ROOT / "docs" / "figures" / "make.py").read_text(encoding="utf-8")
    for picture in pictures[0]:
        assert (ROOT / "docs" / picture).stat().st_size < 100_000
        assert f'"{picture.removeprefix("figures/")}"' in maker


def test_both_languages_say_the_same():
    """Blocks to the letter; sections by number; links into the code; every figure of three digits
    or with a point."""
    assert BLOCKS[0] == BLOCKS[1]
    for pattern in (
        r"^#+ (\d+)\.",
        r"\]\((\.\./[^)]+|https?:[^)]+|figures/[^)]+)\)",
        r"<summary>(\d*)",
        r"^(\d+)\. ",
    ):
        ours, theirs = (re.findall(pattern, text, re.MULTILINE) for text in PROSE)
        assert ours and sorted(ours) == sorted(theirs), pattern
    figure = r"(?<![\w./])\d[\d,]*\.\d+|(?<![\w./])\d[\d,]{2,}\d"
    ours, theirs = (set(re.findall(figure, text)) for text in PROSE)
    assert len(ours) > 30 and ours == theirs, ours ^ theirs


def test_the_chinese_is_that_of_taiwan():
    """Characters that Big5 has, and none of the words for which people in Taiwan have another."""
    strange = {c for c in TEXTS[1] if "\u4e00" <= c <= "\u9fff" and not c.encode("big5", "ignore")}
    assert not strange
    foreign = "代碼 數據 內存 默認 文件 運行 信息 程序 網絡 軟件 硬件 服務器 用戶 質量 函數庫 調用 緩存 智能"
    assert not [word for word in foreign.split() if word in TEXTS[1]]
