"""What the study guide and howto.md tell people to type, typed; what they show, compared.

And the same in both languages.
"""

import code
import json
import re
import shlex
import sys
import types
from dataclasses import fields

import pytest
import torch
import zoo
from helpers import ROOT, draw, inputs
from pyarrow import parquet

import bert
import lora
import train
from data import load_data, load_tokenizer
from support import options
from support.errors import InputError

LANGUAGES = "", ".zh-TW"
PAGES = [
    [ROOT / f"docs/{name}{language}.md" for name in ("guide", "howto")] for language in LANGUAGES
]
TEXTS = ["".join(page.read_text(encoding="utf-8") for page in pages) for pages in PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [BLOCK.findall(text) for text in TEXTS]
GUIDE, HOWTO = (BLOCK.findall(page.read_text(encoding="utf-8")) for page in PAGES[0])
PROSE = [re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE) for text in TEXTS]
TABLES = "messages.csv", "comments.csv"  # in their order
CHINESE = "google-bert/bert-base-chinese"
OTHERS = {"--nproc-per-node", "--logdir"}  # flags of torchrun and of TensorBoard
FEW = ["--epochs", "1", "--max-length", "12", "--batch-size", "8"]
FLAG = r"--[a-z][\w-]+"
NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?"
FOREIGN = """
    代碼 數據 內存 默認 文件 運行 信息 程序 網絡 軟件 硬件 服務器 用戶 質量 函數庫 調用 緩存 智能
"""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def with_outputs(kind: str, blocks: list) -> list[tuple[str, str]]:
    """The blocks of a kind in their order, each with the output that is shown after it, or ""."""
    following = [*blocks[1:], ("", "")]
    pairs = []
    for (found, body), (after, shown) in zip(blocks, following, strict=True):
        if found == kind:
            pairs.append((body, shown if after == "text" else ""))
    return pairs


def compare(said: str, shown: str, slack: float) -> None:
    """The same words, the same whole numbers, and others to `slack` of their last digits."""
    assert re.sub(NUMBER, "0", said).split() == re.sub(NUMBER, "0", shown).split(), said
    for ours, theirs in zip(re.findall(NUMBER, said), re.findall(NUMBER, shown), strict=True):
        decimals = len(theirs.partition(".")[2])
        most = slack * 10**-decimals if decimals else 0
        assert abs(float(ours) - float(theirs)) <= most, (said, shown)


@pytest.fixture(scope="module")
def home(tmp_path_factory, minilm, reviews):
    """A folder that looks like the project's after `make train`, and 16 of the reviews."""
    home = tmp_path_factory.mktemp("home")
    folders = ("support", "runtime", "examples", "experiments", "offline")
    for name in ("bert.py", "lora.py", "data.py", "train.py", "sample.py", *folders):
        (home / name).symlink_to(ROOT / name)
    (home / "chinese").mkdir()
    zoo.build(CHINESE, home / "chinese")
    (home / "some").mkdir()
    for split in "train", "validation":
        table = parquet.read_table(f"{reviews}/{split}-00000-of-00001.parquet")
        parquet.write_table(table.slice(0, 16), home / "some" / f"{split}.parquet")
    for name, (table, _) in zip(TABLES, with_outputs("csv", GUIDE + HOWTO), strict=True):
        (home / name).write_text(table, encoding="utf-8-sig")  # as a spreadsheet writes it
    return home


def test_the_python_is_one_session_that_prints_what_is_shown(home, monkeypatch, capsys):
    """Typed line by line, as a reader pastes it, except for what the session echoes of values."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "displayhook", lambda value: None)
    session = code.InteractiveConsole()
    for block, shown in with_outputs("python", GUIDE):
        for line in [*block.splitlines(), ""]:
            waiting = session.push(line)
        said = capsys.readouterr()
        assert not waiting and not said.err, said.err
        compare(said.out, shown, slack=2)


@pytest.mark.slow
def test_the_commands(home, run, tiny):
    """As written, but what trains on the reviews takes 16 of them and a small random BERT."""
    small = {
        "offline/movie-reviews": "some",
        "offline/all-MiniLM-L6-v2": str(tiny),
        "few": "some",
        CHINESE: "chinese",
    }
    answers = {}
    for block, shown in with_outputs("bash", GUIDE + HOWTO):
        said = ""
        for line in block.splitlines():
            python, *words = shlex.split(line)
            if {"offline/movie-reviews", "few", CHINESE} & {*words}:
                words = [small.get(word, word) for word in words]
                words += FEW  # of an option given twice the last one wins
            done = run(*words, cwd=home)
            assert python == "python" and done.returncode == 0, (line, done.stderr)
            if words[0] == "sample.py":  # what a training says has times in it
                answers[line] = done.stdout
                said += done.stdout
        if shown:
            compare(said, shown, slack=50)  # percents with one digit after the point, and labels
    merged, plain = (answers[line] for line in answers if "default" in line)
    compare(merged, plain, slack=1)
    assert re.match(
        "(好評|負評|問題) ", next(answers[line] for line in answers if "chinese" in line)
    )


def test_the_lines_to_change_are_there_and_change_what_is_computed(tiny, monkeypatch):
    """Those of three exercises. That such an edit takes effect in train.py: tests/test_edits.py."""

    def logits(modules: dict) -> torch.Tensor:
        model = modules["bert.py"].BertForSequenceClassification.from_pretrained(tiny)
        modules["lora.py"].apply_lora_to_model(model, dropout=0.5)
        draw(model)
        torch.manual_seed(0)
        return model.train()(inputs(60, [9, 9])[0])

    plain = {"bert.py": bert, "lora.py": lora}
    diffs = [body for kind, body in GUIDE if kind == "diff"]
    assert len(diffs) == 3 and torch.equal(logits(plain), logits(plain))
    for diff in diffs:
        old, new = (line[1:].strip() for line in diff.splitlines())
        (file,) = (name for name in plain if read(name).count(old) == 1)
        edited = types.ModuleType("edited")
        monkeypatch.setitem(sys.modules, "edited", edited)
        exec(read(file).replace(old, new), vars(edited))
        assert not torch.allclose(logits(plain | {file: edited}), logits(plain))


def test_the_curves_reach_tensorboard(home, run):
    """The block of howto.md, on a run; what TensorBoard reads are the numbers of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--model", "chinese", "--data", "some", "--out", "out-board", "--log-every", "1"]
    assert run("train.py", *words, *FEW, cwd=home).returncode == 0
    ((block, _),) = with_outputs("python", HOWTO)
    done = run("-c", block.replace("out-default", "out-board"), cwd=home)
    assert done.returncode == 0, done.stderr
    board = EventAccumulator(str(home / "out-board" / "tensorboard"))
    board.Reload()
    seen = {}
    for line in (home / "out-board" / "metrics.jsonl").read_text().splitlines():
        scores = json.loads(line)
        for name, score in scores.items():
            if name != "step":
                split, quantity = name.split("_", 1)
                seen.setdefault(f"{quantity}/{split}", []).append((scores["step"], score))
    assert {*board.Tags()["scalars"]} == {*seen} and len(seen) == 3
    for name, points in seen.items():
        found = [(event.step, event.value) for event in board.Scalars(name)]
        assert found == [(step, pytest.approx(score)) for step, score in points]
    fields = re.findall(r"^\| `(\w+)` \|", TEXTS[0], re.MULTILINE)  # those that howto.md explains
    assert {"step", "train_loss", "validation_loss"} <= {*fields}


def test_what_is_said_of_text_in_chinese(home):
    """A character is a token, capitals are unknown; names may be Chinese; Big5 is refused."""
    tokenizer = load_tokenizer(home / "chinese")
    said = tokenizer.encode("中文字符 iPhone NBA").tokens
    assert said == ["[CLS]", "中", "文", "字", "符", "[UNK]", "[UNK]", "[SEP]"]
    settings = {"text_columns": ["內容"], "label_column": "類別"}
    data = load_data(home / "comments.csv", **settings)
    assert sorted(data.task.names) == sorted(["好評", "負評", "問題"])
    assert len(data.train.texts) + len(data.validation.texts) == 18
    text = (home / "comments.csv").read_text(encoding="utf-8-sig")
    (home / "big5.csv").write_text(text, encoding="cp950")
    with pytest.raises(InputError, match=r"big5\.csv: is no UTF-8, .*iconv"):
        load_data(home / "big5.csv", **settings)


@pytest.mark.parametrize("text", TEXTS, ids=["English", "Chinese"])
def test_the_links_into_the_code_name_what_is_there(text):
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", text)
    assert links
    for symbols, file in links:
        for symbol in symbols.split("."):
            pattern = rf"^ *(class|def) {symbol}\b"
            assert re.search(pattern, read(file), re.MULTILINE), (symbol, file)


@pytest.mark.parametrize("prose", PROSE, ids=["English", "Chinese"])
def test_what_is_named_in_the_prose_exists(prose):
    quoted = re.findall(r"`([^`]+)`", prose)
    named = {flag for text in quoted for flag in re.findall(FLAG, text)}
    known = {options.flag(field.name) for field in fields(train.Config)}
    known |= {options.flag(field.metadata.get("also", "")) for field in fields(train.Config)}
    programs = ["sample.py", "support/options.py", "runtime/adapters.py"]
    programs += ["experiments/run.py", "examples/look_inside.py"]
    known |= {*re.findall(FLAG, "".join(map(read, programs)))}
    assert named and named <= known | OTHERS, named - known
    targets = {*re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE)}
    assert {*re.findall(r"\bmake (\w+)`", prose)} <= targets


def test_the_pictures_are_small_and_have_a_maker():
    pictures = [re.findall(r"!\[[^]]*\]\((figures/[\w-]+\.png)\)", text) for text in TEXTS]
    assert pictures[0] and pictures[0] == pictures[1]
    for picture in pictures[0]:
        assert (ROOT / "docs" / picture).stat().st_size < 100_000
        assert f'"{picture.removeprefix("figures/")}"' in read("docs/figures/make.py")


def test_both_languages_say_the_same():
    """Blocks to the letter; sections by number; links; every figure of some digits."""
    assert BLOCKS[0] == BLOCKS[1]
    sections = r"^#+ (\d+)\."
    links = r"\]\((\.\./[^)]+|https?:[^)]+|figures/[^)]+)\)"
    questions, answers = r"<summary>(\d*)", r"^(\d+)\. "
    for pattern in sections, links, questions, answers:
        ours, theirs = (re.findall(pattern, text, re.MULTILINE) for text in PROSE)
        assert ours and sorted(ours) == sorted(theirs), pattern
    figure = r"(?<![\w./])\d[\d,]*\.\d+|(?<![\w./])\d[\d,]{2,}\d"
    ours, theirs = ({*re.findall(figure, text)} for text in PROSE)
    assert ours and ours == theirs, ours ^ theirs


def test_the_chinese_is_that_of_taiwan():
    """Characters that Big5 has, and none of the words for which people in Taiwan have another."""
    characters = {c for c in TEXTS[1] if "\u4e00" <= c <= "\u9fff"}
    assert not {c for c in characters if not c.encode("big5", "ignore")}
    assert not [word for word in FOREIGN.split() if word in TEXTS[1]]
