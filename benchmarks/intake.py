"""Intake: how many beacons a second one collector on one core answers, against servers that store nothing.

All lines run in turn (A B C A B C …) on one machine, the server on core 0 and the load (wrk) on core 1; what counts is the ratio
to the bare server in the same round. Absolute figures are only context. Needs wrk (apt-get install wrk).
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from proxy.collector.config import CollectorConfig
from proxy.spool.port import SpoolConfig

HERE = Path(__file__).parent
BEACON = "/e?Product=Teapot&Price=24.50&_n=Viewed%20Product&_p=visitor%40example.com&_t=1700000000&_d=0"
HEADERS = {
    "Host": "shop.example",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Accept": "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.9",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://shop.example/teapots?utm_source=news&utm_medium=mail",
    "Sec-Fetch-Dest": "image",
    "Sec-Fetch-Mode": "no-cors",
    "Sec-Fetch-Site": "same-origin",
}
CONNECTIONS = 64
LINES = {
    "bare": "bare uvicorn, the GIF and nothing else",
    "starlette": "Starlette Route, the GIF and nothing stored",
    "disk": "collector, durability=disk",
    "os": "collector, durability=os",
}


@contextmanager
def listener() -> Iterator[socket.socket]:
    """A listening socket on a free port of 127.0.0.1, to be handed to the server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        yield listening


@contextmanager
def server(line: str, spool: Path) -> Iterator[int]:
    """The server of that line on core 0; its port."""
    with listener() as listening:
        fd = listening.fileno()
        if line in ("disk", "os"):
            command = [sys.executable, "-m", "proxy.cli.child", "collector", str(fd)]
            config = msgspec.json.encode(CollectorConfig(spool=SpoolConfig(f"sqlite:{spool}", line))) + b"\n"
        else:
            command, config = [sys.executable, str(HERE / "bare.py"), line, str(fd)], b"\n"
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[fd], preexec_fn=lambda: os.sched_setaffinity(0, {0}), env=os.environ
        )
        assert process.stdin is not None
        process.stdin.write(config)
        process.stdin.flush()
        try:
            yield int(listening.getsockname()[1])
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdin.close()


def load(port: int, seconds: float) -> dict[str, Any]:
    """One run of wrk on core 1."""
    priority = ["chrt", "-f", "1"] if os.geteuid() == 0 and shutil.which("chrt") else []
    command = [*priority, "taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency"]
    for name, value in HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}{BEACON}"], capture_output=True, text=True, check=True)
    text = done.stdout

    def latency(percentile: int) -> float:
        found = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s)", text)
        return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]] if found else float("nan")

    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: (.*)", text)
    return {
        "per_second": float(rate[1]) if rate else 0.0,
        "p50_ms": latency(50),
        "p99_ms": latency(99),
        "wrong": int(wrong[1]) if wrong else 0,
        "errors": errors[1] if errors else "",
    }


def measure(lines: list[str], rounds: int, seconds: float, place: Path) -> dict[str, list[dict[str, Any]]]:
    """All lines in turn, `rounds` times."""
    results: dict[str, list[dict[str, Any]]] = {line: [] for line in lines}
    for turn in track(range(rounds * len(lines)), description="measuring", console=Console(stderr=True)):
        line = lines[turn % len(lines)]
        with tempfile.TemporaryDirectory(dir=place, prefix=".bench-") as directory, server(line, Path(directory)) as port:
            load(port, 1)
            results[line].append(load(port, seconds))
            time.sleep(0.2)
    return results


def spread(values: list[float], form: Callable[[float], str]) -> str:
    """Median, least and greatest."""
    return f"{form(statistics.median(values))} ({form(min(values))}–{form(max(values))})"


def report(results: dict[str, list[dict[str, Any]]]) -> Table:
    """The table."""
    table = Table("line", "beacons/s", "ratio to bare", "p50 ms", "p99 ms", title=f"intake, one core, {CONNECTIONS} connections")
    for line, runs in results.items():
        ratio = "—"
        if "bare" in results:
            pairs = zip(runs, results["bare"], strict=True)
            ratio = spread([run["per_second"] / bare["per_second"] for run, bare in pairs], "{:.2f}".format)
        table.add_row(
            LINES[line],
            spread([run["per_second"] for run in runs], "{:,.0f}".format),
            ratio,
            spread([run["p50_ms"] for run in runs], "{:.2f}".format),
            spread([run["p99_ms"] for run in runs], "{:.2f}".format),
        )
    return table


def main() -> int:
    """Exit status 1 when any answer was not 200; never for a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each line (default 5)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of load in each turn (default 4)")
    parser.add_argument("--lines", default=",".join(LINES), help=f"which, comma-separated (default {','.join(LINES)})")
    parser.add_argument("--spool-dir", type=Path, default=Path.cwd(), help="where spools are made; a real disk (default: here)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the raw results")
    arguments = parser.parse_args()
    lines = arguments.lines.split(",")
    if unknown := set(lines) - set(LINES):
        parser.error(f"--lines: found {', '.join(sorted(unknown))}; expected some of {', '.join(LINES)}")
    if shutil.which("wrk") is None:
        print("wrk is not on this machine: apt-get install wrk", file=sys.stderr)
        return 2
    results = measure(lines, arguments.rounds, arguments.seconds, arguments.spool_dir)
    Console(width=130).print(report(results))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": list(os.uname()), "results": results}, indent=1))
    wrong = {line: [run for run in runs if run["wrong"] or run["errors"]] for line, runs in results.items()}
    if any(wrong.values()):
        print(f"NOT ALL ANSWERS WERE 200: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
