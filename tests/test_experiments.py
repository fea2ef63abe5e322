"""The runner of experiments: every setting once, a table of what the runs themselves left."""

import importlib.util
import json
import statistics
import sys
import time

import pytest
from helpers import ROOT
from scipy import stats

from support.files import InputError

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


def unmeasured(table):
    """A table without its last two columns, seconds and memory, which are medians of what is
    known."""
    return [line.split(" | ")[:-2] for line in table.splitlines()]


@pytest.fixture(scope="module")
def runner():
    sys.path.insert(0, str(ROOT / "experiments"))
    spec = importlib.util.spec_from_file_location("run", ROOT / "experiments" / "run.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    sys.path.remove(str(ROOT / "experiments"))
    return module


GROUP = "\n[[groups]]\ntitle = 'Rank'\nsettings = "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seeds = 1" + GROUP + "[{}]", "seeds is not a list of whole numbers"),
        ("seeds = [1, 1]" + GROUP + "[{}]", "one twice"),
        ("seeds = []" + GROUP + "[{}]", "holds no number"),
        ("seeds = [1]", "'groups' is missing"),
        ("seeds = [1]\ngroups = 3", "groups is not a list"),
        ("seeds = [1]\n[[groups]]\ntitle = 'Rank'", "groups is not a list"),
        ("seeds = [1]" + GROUP + "['rank']", "'rank' is not a table"),
        ("seeds = [1]" + GROUP + "[{ lrr = 3 }]", "'lrr' is no option"),
        ("seeds = [1]" + GROUP + "[{ seed = 3 }]", "'seed' is no option"),
        ("seeds = [1]" + GROUP + "[{ rank = 'x' }]", "rank must be of type int"),
        ("seeds = [1]" + GROUP + "[{ ideas = 'cosin' }]", "cosin: none of the ideas"),
        (
            "seeds = [1]\ncommon = { rank = 0 }" + GROUP + "[{ ideas = 'pissa' }]",
            "nothing to do without adapters",
        ),
        ("seeds = [9223372036854775808]" + GROUP + "[{}]", "seeds is not a list"),
        ("seeds = [1]\nseconds = inf" + GROUP + "[{}]", "seconds are numbers"),
        ("seeds = [1]\nseconds = 'x'" + GROUP + "[{}]", "seconds are numbers"),
        ("seeds = [1]\ncommon = 3" + GROUP + "[{}]", "common a table"),
        ("seeds = [1]\nseed = 3" + GROUP + "[{}]", "'seed' is none of its words"),
        ("seeds = " + 3000 * "[", "not a TOML file"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_before_the_first_run(runner, tmp_path, text, says):
    (plan := tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InputError, match=says):
        runner.read_plan(plan, None)


def test_the_plans_here_are_such_and_a_setting_stands_once(runner, tmp_path):
    for name in "reviews.toml", "sst2.toml":
        assert len(runner.read_plan(ROOT / "experiments" / name, None).settings) > 20
    (plan := tmp_path / "plan.toml").write_text(
        "seeds = [1]\n[common]\nlr = 1e-3"
        + GROUP
        + "[{ alpha = 4, rank = 1 }, { rank = 1, alpha = 4.0 }, { lr = 0.001, rank = 8 }]"
    )
    assert list(runner.read_plan(plan, None).settings) == ["the default", "rank 1, alpha 4.0"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
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
    ],
)
def test_known_lines_that_are_none_are_refused(runner, tmp_path, changed, says):
    plan = runner.read_plan(ROOT / "experiments" / "sst2.toml", None)
    line = json.loads((ROOT / "experiments" / "sst2-runs.jsonl").read_text().splitlines()[-1])
    (known := tmp_path / "runs.jsonl").write_text(json.dumps(line))
    assert len(runner.finished(plan, tmp_path, known)) == 1
    known.write_text(json.dumps(line | changed))
    with pytest.raises(InputError, match=says):
        runner.finished(plan, tmp_path, known)


def test_the_kept_lines_are_all_of_their_plans(runner, tmp_path):
    for name in "sst2", "reviews":
        plan = runner.read_plan(ROOT / "experiments" / f"{name}.toml", None)
        known = ROOT / "experiments" / f"{name}-runs.jsonl"
        runs = runner.finished(plan, tmp_path, known)
        assert len(runs) == len(known.read_text().splitlines())
        assert {name for name, _ in runs} <= plan.settings.keys()


def test_the_first_failure_ends_the_rest(runner, tmp_path, monkeypatch):
    """Though an earlier run is still at work."""
    plan = runner.read_plan(ROOT / "experiments" / "reviews.toml", None)
    begun = []

    def start(words, folder, environment):
        begun.append(folder.name)
        if folder.name == "2":
            raise InputError("a run ended early")
        time.sleep(1)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "prepare_data", lambda plan, out: ("model", "data"))
    with pytest.raises(InputError, match="ended early"):
        runner.run_all(plan, [("the default", seed) for seed in range(1, 7)], tmp_path, 2)
    assert set(begun) <= {"1", "2", "3"}


def test_a_difference_is_named_where_students_t_says_so(runner):
    """Against scipy's test of two means, of as many seeds each."""
    generator = runner.np.random.default_rng(0)
    seen = set()
    for seeds in 2, 3, 5:
        for gap in 0.0, 0.003, 0.01, 0.02, 0.05:
            ours, theirs = (
                [{"accuracy": float(a)} for a in generator.normal(m, 0.005, seeds)]
                for m in (0.8 + gap, 0.8)
            )
            p = stats.ttest_ind(
                *([run["accuracy"] for run in runs] for runs in (ours, theirs))
            ).pvalue
            told = runner.against(ours, theirs)
            assert (told == "within the noise") == (p > 0.05), (told, p)
            seen.add(told == "within the noise")
    assert seen == {True, False} and runner.against(ours, ours) == "–"


@pytest.mark.slow
def test_every_setting_is_run_once_and_stands_in_the_table(run, tiny, some_reviews, tmp_path):
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(PLAN.format(ideas=IDEAS, tiny=tiny, data=some_reviews))
    command = [ROOT / "experiments" / "run.py", plan, "--out", out]
    asked = run(*command, "--dry-run")
    assert (
        asked.returncode == 0
        and "3 settings, 2 seeds: 6 runs are left" in asked.stdout
        and not out.exists()
    )
    done = run(*command, "--jobs", "2", timeout=300)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert table in done.stdout and (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")
        for line in table.splitlines()
        if "±" in line
    }
    assert rows.keys() == {
        f"ideas {IDEAS}, rank 1",
        "the default",
        "ideas classifier_alone, rank 1",
    }
    for name, row in rows.items():
        lasts = [
            json.loads((out / name / seed / "metrics.jsonl").read_text().splitlines()[-1])
            for seed in "12"
        ]
        accuracies = [100 * last["validation_accuracy"] for last in lasts]
        assert row[1] == f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
    trained = {name: int(row[3].replace(",", "")) for name, row in rows.items()}
    assert trained["ideas classifier_alone, rank 1"] == 66 and trained["the default"] == 66 + 8 * (
        trained[f"ideas {IDEAS}, rank 1"] - 66
    )
    before = (out / "table.md").stat().st_mtime_ns
    again = run(*command)
    assert again.returncode == 0 and "0 runs are left" in again.stdout, again.stderr
    assert (out / "table.md").read_text() == table and (
        out / "table.md"
    ).stat().st_mtime_ns > before
    elsewhere = run(
        *command[:2], "--out", tmp_path / "elsewhere", "--known", out / "runs.jsonl", "--table"
    )
    assert (
        elsewhere.returncode == 0
        and table in elsewhere.stdout
        and "0 runs are left" in elsewhere.stdout
    )
    (
        out / "the default" / "1" / "result.json"
    ).unlink()  # as if the runner was killed before it wrote them
    later = run(*command)
    assert later.returncode == 0 and "0 runs are left" in later.stdout, later.stderr
    assert unmeasured((out / "table.md").read_text()) == unmeasured(table)
    wrong = run(*command, "--known", plan, "--table")
    assert wrong.returncode == 2 and "not the runs.jsonl of such experiments" in wrong.stderr
    plan.write_text(plan.read_text().replace("lr = 0.01", "lr = 0.02"))
    other = run(*command, "--known", out / "runs.jsonl", "--table")
    assert other.returncode == 2 and "of other experiments, with" in other.stderr
    other = run(*command)
    assert other.returncode == 2 and "a run with lr 0.01, not 0.02" in other.stderr, other.stderr
    plan.write_text(plan.read_text().replace("lr = 0.02", ""))
    other = run(*command)
    assert other.returncode == 2 and "a run with lr 0.01, not 0.0005" in other.stderr, other.stderr


@pytest.mark.slow
def test_a_run_that_fails_is_named(run, some_reviews, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(ideas=IDEAS, tiny=tmp_path, data=some_reviews))
    done = run(ROOT / "experiments" / "run.py", plan, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "a run ended early: error: " in done.stderr and "no table yet" in done.stdout
    none = run(ROOT / "experiments" / "run.py", plan, "--out", tmp_path / "elsewhere", "--table")
    assert (
        none.returncode == 2
        and "no finished run there" in none.stderr
        and not (tmp_path / "elsewhere").exists()
    )
