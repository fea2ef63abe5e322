"""How many requests a second serve.py answers, and how soon, with and without gathering.

    python -m examples.load_serve offline/all-MiniLM-L6-v2 reviews=out/best again=out/final

It takes wrk, a load generator (apt install wrk). Each request has one of the held-out reviews. Both
servers are asked in turn: what else the machine does strikes both.
"""

import atexit
import json
import socket
import subprocess
import sys
import tempfile
import time
from statistics import median
from urllib.error import URLError
from urllib.request import Request, urlopen

from data import load_data
from support.errors import run_main
from support.offline import offline_pair
from support.options import OneLineParser

HEADERS = {"Content-Type": "application/json"}
LUA = """
local bodies, i = {%s}, 0
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request() i = i %% #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end
function done(summary, latency)
  local e, seconds = summary.errors, summary.duration / 1e6
  local failed = e.status + e.connect + e.read + e.timeout
  print("RESULT", summary.requests / seconds, latency:percentile(99) / 1e3, failed)
end
"""


def start(base: str, adapters: list[str], batch: int) -> str:
    """The address of a server that answers at most so many texts together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [base, *adapters, f"--port={port}", f"--batch={batch}"]
    server = subprocess.Popen([sys.executable, "-m", "examples.serve", *words])
    atexit.register(server.terminate)
    while server.poll() is None:
        try:
            return urlopen(f"http://127.0.0.1:{port}/health").url.replace("health", "classify")
        except URLError:
            time.sleep(0.1)
    sys.exit(server.returncode)  # it has said why


def measure(url: str, script: str, clients: int, seconds: int) -> list[float]:
    """Requests a second, the 99th percentile of their milliseconds, and how many failed."""
    load = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout=30s", "-s", script, url]
    said = subprocess.run(load, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in said.partition("RESULT")[2].split()]


def main() -> None:
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    add("base", help="the directory of the base model")
    add("adapters", nargs="+", metavar="NAME=DIRECTORY")
    add("--seconds", type=int, default=10, help="of each measurement (default: 10)")
    add("--rounds", type=int, default=3, help="of measurements (default: 3)")
    given = parser.parse_args()
    names = [adapter.partition("=")[0] for adapter in given.adapters]
    bodies = []
    for number, (text,) in enumerate(load_data(offline_pair()[1]).validation.texts):
        bodies.append(json.dumps({"adapter": names[number % len(names)], "texts": [text]}))
    urls = {batch: start(given.base, given.adapters, batch) for batch in (1, 32)}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % ",".join(f"[==[{body}]==]" for body in bodies))
        script.flush()
        print("clients  texts together  requests/s   p99 ms  failed")
        for clients in 1, 16, 64:
            results = {batch: [] for batch in urls}
            for _ in range(given.rounds):
                for batch, url in urls.items():
                    results[batch].append(measure(url, script.name, clients, given.seconds))
                    # It is answered after what wrk has left behind.
                    urlopen(Request(url, bodies[0].encode(), HEADERS)).read()
            for batch, rounds in results.items():
                speed, slowest, failed = (median(column) for column in zip(*rounds, strict=True))
                row = f"{clients:7} {batch:15} {speed:11.1f} {slowest:8.0f} {failed:7.0f}"
                print(row, flush=True)


if __name__ == "__main__":
    run_main(main)
