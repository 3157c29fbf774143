"""A hook of the site's build (`make site`): links to files of the repository become plain text: the site does not hold them."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[words](../file)` → words."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
