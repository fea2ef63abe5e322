"""The runner of experiments: every setting once, a table of what the runs themselves left."""

import json
import statistics
import time

import numpy as np
import pytest
import run as runner
from helpers import ROOT
from scipy import stats

from support.errors import InputError

PLANS = ROOT / "experiments"
RUNNER = "experiments/run.py"
IDEAS = "loraplus_lr_ratio=4 cosine label_smoothing=0.1 base_dropout=0 pissa average=0.9"
PLAN = """
model = "{tiny}"
data = "{data}"
seeds = [1, 2]
[common]
max_length = 12
epochs = 1
batch_size = 16
lr = 0.01
[[groups]]
title = "Rank"
settings = [{{ ideas = "{ideas}", rank = 1 }}, {{}}]
[[groups]]
title = "Without LoRA"
settings = [{{ ideas = "classifier_alone", rank = 1 }}, {{}}]
"""
GROUP = "\n[[groups]]\ntitle = 'Rank'\nsettings = "
REFUSED_PLANS = {
    "seeds = 1" + GROUP + "[{}]": "seeds is not a list of whole numbers",
    "seeds = [1, 1]" + GROUP + "[{}]": "one twice",
    "seeds = []" + GROUP + "[{}]": "holds no number",
    "seeds = [1]": "missing .*'groups'",
    "seeds = [1]\ngroups = 3": "cannot be read",
    "seeds = [1]\n[[groups]]\ntitle = 'Rank'": "cannot be read \\('settings'\\)",
    "seeds = [1]" + GROUP + "['rank']": "'rank' is not a table",
    "seeds = [1]" + GROUP + "[{ lrr = 3 }]": "'lrr' is no option",
    "seeds = [1]" + GROUP + "[{ seed = 3 }]": "'seed' is no option",
    "seeds = [1]" + GROUP + "[{ rank = 'x' }]": "invalid int value: 'x'",
    "seeds = [1]" + GROUP + "[{ ideas = 'cosin' }]": "cosin: none of the ideas",
    "seeds = [1]\ncommon = { rank = 0 }" + GROUP + "[{ ideas = 'pissa' }]": "without adapters",
    "seeds = [9223372036854775808]" + GROUP + "[{}]": "seeds is not a list",
    "seeds = [1]\nseconds = inf" + GROUP + "[{}]": "seconds are numbers",
    "seeds = [1]\nseconds = 'x'" + GROUP + "[{}]": "cannot be read",
    "seeds = [1]\ncommon = 3" + GROUP + "[{}]": "3 is not a table",
    "seeds = [1]\nseed = 3" + GROUP + "[{}]": "unexpected .*'seed'",
    "seeds = " + 3000 * "[": "cannot be read",
}


@pytest.mark.parametrize(("text", "says"), REFUSED_PLANS.items())
def test_a_plan_that_cannot_be_run_is_refused_before_the_first_run(tmp_path, text, says):
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(InputError, match=says) as refused:
        runner.read_plan(plan, None)
    assert str(refused.value).startswith(str(plan))


def test_the_plans_here_are_such_and_a_setting_stands_once(tmp_path):
    for name in "reviews.toml", "sst2.toml", "regret.toml":
        assert len(runner.read_plan(PLANS / name, None).settings) > 20
    plan = tmp_path / "plan.toml"
    settings = (
        "[{ alpha = 4, rank = 1 }, { rank = 1, alpha = 4.0 }, { lr = 0.001, rank = 8 }, "
        "{ ideas = 'average=0.90 cosine' }, { ideas = 'cosine average=0.9' }]"
    )
    plan.write_text("seeds = [1]\n[common]\nlr = 1e-3" + GROUP + settings)
    names = ["the default", "rank 1, alpha 4.0", "ideas cosine average=0.9"]
    assert list(runner.read_plan(plan, None).settings) == names


REFUSED_LINES = [
    ({"accuracy": "0.5"}, "accuracy is '0.5'"),
    ({"accuracy": 9}, "accuracy is 9"),
    ({"accuracy": True}, "accuracy is True"),
    ({"accuracy": None}, "accuracy is None"),
    ({"trained": None}, "trained is None"),
    ({"seconds": -5}, "seconds is -5"),
    ({"seconds": float("inf")}, "seconds is inf"),
    ({"bytes": 10**400}, "bytes is 1000"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"setting": {"lrr": 1}}, "'lrr' is no option"),
    ({"shared": {}}, "of other experiments"),
]


@pytest.mark.parametrize(("changed", "says"), REFUSED_LINES)
def test_known_lines_that_are_none_are_refused(tmp_path, changed, says):
    plan = runner.read_plan(PLANS / "sst2.toml", None)
    line = json.loads((PLANS / "sst2-runs.jsonl").read_text().splitlines()[-1])
    known = tmp_path / "runs.jsonl"
    known.write_text(json.dumps(line))
    assert len(runner.finished(plan, tmp_path, known)) == 1
    known.write_text(json.dumps(line | changed))
    with pytest.raises(InputError, match=says):
        runner.finished(plan, tmp_path, known)


@pytest.mark.parametrize("name", ["sst2", "reviews"])
def test_the_kept_lines_are_all_of_their_plans(tmp_path, name):
    plan = runner.read_plan(PLANS / f"{name}.toml", None)
    known = PLANS / f"{name}-runs.jsonl"
    runs = runner.finished(plan, tmp_path, known)
    assert len(runs) == len(known.read_text().splitlines())
    assert {setting for setting, _ in runs} <= plan.settings.keys()


def test_the_first_failure_ends_the_rest(tmp_path, monkeypatch):
    """Though an earlier run is still at work."""
    plan = runner.read_plan(PLANS / "reviews.toml", None)
    begun = []

    def start(words, folder, environment):
        begun.append(folder.name)
        if folder.name == "2":
            raise InputError("a run ended early")
        time.sleep(1)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "prepare_data", lambda plan, out: ("model", "data"))
    left = [("the default", seed) for seed in range(1, 7)]
    with pytest.raises(InputError, match="ended early"):
        runner.run_all(plan, left, tmp_path, jobs=2)
    assert set(begun) <= {"1", "2", "3"}


def test_a_part_of_the_training_split_is_always_the_same(some_reviews, tmp_path):
    from pyarrow import csv, parquet

    table = csv.read_csv(some_reviews)
    for split in "train", "validation":
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    taken = []
    for folder in tmp_path / "some", tmp_path / "again":
        runner.take_rows(tmp_path, 20, folder)
        taken.append(parquet.read_table(folder / "train.parquet"))
        assert parquet.read_table(folder / "validation.parquet").equals(table)
    assert taken[0].equals(taken[1]) and len(taken[0]) == 20
    sentences = table["sentence"].to_pylist()
    places = [sentences.index(text) for text in taken[0]["sentence"].to_pylist()]
    assert places == sorted(places)


def test_a_difference_is_named_where_students_t_says_so():
    """Against scipy's test of two means, of as many seeds each."""
    generator = np.random.default_rng(0)
    seen = set()
    for seeds in 2, 3, 5:
        for gap in 0.0, 0.003, 0.01, 0.02, 0.05:
            ours, theirs = (generator.normal(mean, 0.005, seeds) for mean in (0.8 + gap, 0.8))
            p = stats.ttest_ind(ours, theirs).pvalue
            told = runner.against(
                *([{"accuracy": float(a)} for a in runs] for runs in (ours, theirs))
            )
            assert (told == "within the noise") == (p > 0.05), (told, p)
            seen.add(told == "within the noise")
    same = [{"accuracy": 0.5}, {"accuracy": 0.6}]
    assert seen == {True, False} and runner.against(same, same) == "–"


def without_measures(table: str) -> list[list[str]]:
    """Without the last two columns, seconds and memory: they are medians of what is known."""
    return [line.split(" | ")[:-2] for line in table.splitlines()]


@pytest.mark.slow
def test_every_setting_is_run_once_and_stands_in_the_table(run, tiny, some_reviews, tmp_path):
    plan = tmp_path / "plan.toml"
    out = tmp_path / "out"
    plan.write_text(PLAN.format(ideas=IDEAS, tiny=tiny, data=some_reviews))
    command = [RUNNER, plan, "--out", out]
    asked = run(*command, "--dry-run")
    assert asked.returncode == 0 and "3 settings, 2 seeds: 6 runs are left" in asked.stdout
    assert not out.exists()
    done = run(*command, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert table in done.stdout
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")

    with_ideas, alone = f"ideas {IDEAS}, rank 1", "ideas classifier_alone, rank 1"
    lines = [line.split(" | ") for line in table.splitlines() if "±" in line]
    rows = {line[0].strip("| "): line for line in lines}
    assert rows.keys() == {with_ideas, "the default", alone}
    trained = {}
    for name, row in rows.items():
        accuracies = []
        for seed in "12":
            last = (out / name / seed / "metrics.jsonl").read_text().splitlines()[-1]
            accuracies.append(100 * json.loads(last)["validation_accuracy"])
        assert row[1] == f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
        trained[name] = int(row[3].replace(",", ""))
    assert trained[alone] == 66
    assert trained["the default"] == 66 + 8 * (trained[with_ideas] - 66)

    # None is run again, here or where its line is known.
    before = (out / "table.md").stat().st_mtime_ns
    again = run(*command)
    assert again.returncode == 0 and "0 runs are left" in again.stdout, again.stderr
    assert (out / "table.md").read_text() == table
    assert (out / "table.md").stat().st_mtime_ns > before
    known = ["--known", out / "runs.jsonl", "--table"]
    elsewhere = run(RUNNER, plan, "--out", tmp_path / "elsewhere", *known)
    assert elsewhere.returncode == 0 and "0 runs are left" in elsewhere.stdout, elsewhere.stderr
    assert table in elsewhere.stdout

    # As if the runner was killed before it wrote what it measured.
    (out / "the default" / "1" / "result.json").unlink()
    later = run(*command)
    assert later.returncode == 0 and "0 runs are left" in later.stdout, later.stderr
    assert without_measures((out / "table.md").read_text()) == without_measures(table)

    # Another plan's runs are not taken for this one's.
    wrong = run(*command, "--known", plan, "--table")
    assert wrong.returncode == 2 and f"{plan}: cannot be read" in wrong.stderr
    text = plan.read_text()
    plan.write_text(text.replace("lr = 0.01", "lr = 0.02"))
    other = run(*command, *known)
    assert other.returncode == 2 and "of other experiments, with" in other.stderr
    other = run(*command)
    assert other.returncode == 2 and "a run with lr 0.01, not 0.02" in other.stderr, other.stderr
    plan.write_text(text.replace("lr = 0.01", ""))
    other = run(*command)
    assert other.returncode == 2 and "a run with lr 0.01, not 0.0005" in other.stderr, other.stderr


@pytest.mark.slow
def test_a_run_that_fails_is_named(run, some_reviews, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(ideas=IDEAS, tiny=tmp_path, data=some_reviews))
    done = run(RUNNER, plan, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "a run ended early: error: " in done.stderr and "no table yet" in done.stdout
    none = run(RUNNER, plan, "--out", tmp_path / "elsewhere", "--table")
    assert none.returncode == 2 and "no finished run there" in none.stderr
    assert not (tmp_path / "elsewhere").exists()
