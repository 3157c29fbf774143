"""Which version of the project is measured: this checkout, or another one, for `--against DIR`.

Both run under the same interpreter with the same installed libraries. Processes get their version from the environment alone.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Checkout(NamedTuple):
    """A directory that has the package `proxy` in it."""

    root: Path
    name: str
    """For the table: the commit, or the directory's name where there is no git."""

    def environ(self) -> dict[str, str]:
        """Variables with which a Python process imports this checkout's `proxy`, whatever is installed, wherever it starts."""
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        return {"PYTHONPATH": os.pathsep.join([str(self.root), *others]), "PYTHONSAFEPATH": "1"}


OURS = Checkout(Path(__file__).resolve().parents[1], "this version")


def checkout(directory: str) -> Checkout:
    """Another version. Raises argparse.ArgumentTypeError if its code cannot be run with this interpreter."""
    root = Path(directory).resolve()
    if not (root / "proxy" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(
            f"found no package proxy in {directory}; expected a checkout of this project (git worktree add DIR COMMIT)"
        )
    other = Checkout(root, _commit(root) or root.name)
    command = [sys.executable, "-c", "import proxy.cli.child; print(proxy.__file__)"]
    done = subprocess.run(command, env={**os.environ, **other.environ()}, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise argparse.ArgumentTypeError(
            f"{directory} does not run with {sys.executable}: {reason}; expected an environment with both versions' libraries"
        )
    if not Path(done.stdout.strip()).is_relative_to(root):
        raise argparse.ArgumentTypeError(f"{directory} was asked for, and {done.stdout.strip()} was imported")
    return other


def _commit(root: Path) -> str:
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
