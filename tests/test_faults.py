"""The slice of tests/faults.py that every `make test` runs: a few of each fault."""


def test_training_survives(run):
    done = run("tests/faults.py", "--quick", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
