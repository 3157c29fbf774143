"""What others wrote (names of files, rules of lists), made harmless before it is printed."""


def plain(text: str) -> str:
    """Nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
