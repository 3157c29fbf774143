"""`make script`: makes built.js of source.js. With --check it only tells whether that was forgotten."""

import argparse
import sys
from pathlib import Path

import minify

HERE = Path(__file__).resolve().parent


def built() -> str:
    """The script without what only readers need; the banner stays."""
    return str(minify.string("application/javascript", (HERE / "source.js").read_text("utf-8"))) + "\n"


def main() -> int:
    """Exit status 1 if --check found built.js out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if built.js is out of date")
    target = HERE / "built.js"
    fresh = built()
    if parser.parse_args().check:
        if target.read_text("utf-8") == fresh:
            return 0
        print("proxy/script/built.js is out of date; run `make script`", file=sys.stderr)
        return 1
    target.write_text(fresh, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
