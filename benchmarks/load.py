"""The load: wrk as fast as it goes, or a steady rate; a five-parameter beacon with a browser's usual headers."""

import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.stage import OTHER, tool

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


class WrongAnswers(Exception):
    """Not every answer was 200 and the GIF: then no figure means anything."""


def _first() -> list[str]:
    """Load has priority on its core, so that it is equally full whoever is its neighbour."""
    return ["chrt", "-f", "1"] if os.geteuid() == 0 and shutil.which("chrt") else []


def wrk(port: int, seconds: float, connections: int = CONNECTIONS) -> dict[str, float]:
    """As many as the server answers: `per_second`, `p50_ms`, `p99_ms`. Raises WrongAnswers."""
    command = [*_first(), "taskset", "-c", str(OTHER), tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    for name, value in HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    text = subprocess.run([*command, f"http://127.0.0.1:{port}{BEACON}"], capture_output=True, text=True, check=True).stdout

    def latency(percentile: int) -> float:
        found = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s)", text)
        return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]] if found else float("nan")

    if wrong := re.search(r"(Non-2xx or 3xx responses|Socket errors): .*", text):
        raise WrongAnswers(wrong[0])
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    return {"per_second": float(rate[1]) if rate else 0.0, "p50_ms": latency(50), "p99_ms": latency(99)}


def steady(port: int, rate: float, seconds: float, connections: int = 16, prefix: str = "") -> dict[str, float]:
    """At that rate, whatever the server does: `per_second`, `p50_ms`, `p99_ms`, `sent`. Raises WrongAnswers."""
    command = [*_first(), sys.executable, "-m", "benchmarks.steady", str(port), str(rate), str(seconds), str(connections), prefix]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["wrong"]:
        raise WrongAnswers(f"{found['wrong']} answers were not 200")
    return found
