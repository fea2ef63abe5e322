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
    command = [
        sys.executable,
        "-m",
        "examples.load_serve",
        offline_pair()[0],
        *named,
        "--seconds=3",
        "--rounds=1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = re.findall(r"^ *(\d+) +(\d+) +([\d.]+) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    rows = [[float(number) for number in row] for row in rows]
    assert [row[:2] for row in rows] == [
        [clients, together] for clients in (1, 16, 64) for together in (1, 32)
    ]
    assert all(
        speed > 0 and slowest > 0 and failed == 0 for _, _, speed, slowest, failed in rows
    ), done.stdout
