"""`make script`: makes the two scripts that are served of source.js. With --check it only tells whether that was forgotten."""

import argparse
import sys
from pathlib import Path

import minify

HERE = Path(__file__).resolve().parent
BUILDS = {"built.js": "false", "beside.js": "true"}
"""File → what stands for BESIDE in it: whether the vendor's own script is on the page as well."""


def built(beside: str) -> str:
    """The script without what only readers need; the banner stays."""
    source = (HERE / "source.js").read_text("utf-8").replace("BESIDE", beside)
    return str(minify.string("application/javascript", source)) + "\n"


def main() -> int:
    """Exit status 1 if --check found one out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a script is out of date")
    check = parser.parse_args().check
    stale = []
    for name, beside in BUILDS.items():
        fresh = built(beside)
        if (HERE / name).read_text("utf-8") != fresh:
            stale.append(name)
            if not check:
                (HERE / name).write_text(fresh, "utf-8")
    if check and stale:
        print(f"proxy/script: out of date: {', '.join(stale)}; run `make script`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
