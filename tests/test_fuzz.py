"""The slice of tests/fuzz.py that every `make test` runs: every crafted file, a few truncations and byte flips."""


def test_every_reader_takes_or_refuses(run):
    done = run("tests/fuzz.py", "--cases", "150", "--cuts", "5", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
