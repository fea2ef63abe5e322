"""load_serve.py, with the real load generator, for three seconds each."""

import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

from support.offline import offline_pair


def test_table(adapters):
    if not shutil.which("wrk"):
        pytest.skip("needs Debian's package wrk")
    named = [f"{name}={folder}" for name, folder in adapters.items()]
    words = [offline_pair()[0], *named, "--seconds=3", "--rounds=1"]
    command = [sys.executable, "-m", "examples.load_serve", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = re.findall(r"^ *(\d+) +(\d+) +([\d.]+) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    measured = [(int(clients), int(together)) for clients, together, *_ in rows]
    assert measured == [(clients, together) for clients in (1, 16, 64) for together in (1, 32)]
    for _, _, speed, slowest, failed in rows:
        assert float(speed) > 0 and int(slowest) > 0 and int(failed) == 0, done.stdout
