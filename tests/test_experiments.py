"""The runner of experiments: every setting once, a table of what the runs themselves left."""

import json
import statistics

import pytest
from helpers import ROOT

IDEAS = "loraplus_lr_ratio=4 cosine average=0.9 label_smoothing=0.1 pissa base_dropout=0"
pytestmark = pytest.mark.slow
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


def test_every_setting_is_run_once_and_stands_in_the_table(run, tiny, some_reviews, tmp_path):
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(PLAN.format(ideas=IDEAS, tiny=tiny, data=some_reviews))
    command = [ROOT / "experiments" / "run.py", plan, "--out", out]
    asked = run(*command, "--dry-run")
    assert asked.returncode == 0 and "3 settings, 2 seeds: 6 runs are left" in asked.stdout and not out.exists()
    done = run(*command, "--jobs", "2", timeout=300)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert table in done.stdout and (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines() if "±" in line}
    assert rows.keys() == {f"ideas {IDEAS}, rank 1", "the default", "ideas classifier_alone, rank 1"}
    for name, row in rows.items():
        lasts = [json.loads((out / name / seed / "metrics.jsonl").read_text().splitlines()[-1]) for seed in "12"]
        accuracies = [100 * last["validation_accuracy"] for last in lasts]
        assert row[1] == f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
    trained = {name: int(row[3].replace(",", "")) for name, row in rows.items()}
    assert trained["ideas classifier_alone, rank 1"] == 66 and trained["the default"] == 66 + 8 * (
        trained[f"ideas {IDEAS}, rank 1"] - 66
    )
    before = (out / "table.md").stat().st_mtime_ns
    again = run(*command)
    assert again.returncode == 0 and "0 runs are left" in again.stdout, again.stderr
    assert (out / "table.md").read_text() == table and (out / "table.md").stat().st_mtime_ns > before
    elsewhere = run(*command[:2], "--out", tmp_path / "elsewhere", "--known", out / "runs.jsonl", "--table")
    assert elsewhere.returncode == 0 and table in elsewhere.stdout and "0 runs are left" in elsewhere.stdout
    wrong = run(*command, "--known", plan, "--table")
    assert wrong.returncode == 2 and "not the runs.jsonl of such experiments" in wrong.stderr
    plan.write_text(plan.read_text().replace("lr = 0.01", "lr = 0.02"))
    other = run(*command, "--known", out / "runs.jsonl", "--table")
    assert other.returncode == 2 and "of other experiments, with" in other.stderr


def test_a_run_that_fails_is_named(run, some_reviews, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(ideas=IDEAS, tiny=tmp_path, data=some_reviews))
    done = run(ROOT / "experiments" / "run.py", plan, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "a run ended early" in done.stderr
    plan.write_text("seeds = 1")
    done = run(ROOT / "experiments" / "run.py", plan, "--out", tmp_path / "out")
    assert done.returncode == 2 and "not a list of experiments" in done.stderr
