"""Where settings are read from: a TOML file and the environment, same names, the environment wins; and how a wrong one is told.

Nothing here opens, connects or starts anything.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proxy.settings.model import Settings, SiteSettings
from proxy.settings.names import CONFIG_VARIABLE, PREFIX, SettingsError, variable

NAMES = ("prefix", "script", "script_events", "endpoints", "parameters")
"""They stand in every page."""


def load(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from the file (if any) and the environment. Raises SettingsError."""
    if config is None and CONFIG_VARIABLE in environ:
        config = Path(environ[CONFIG_VARIABLE])
    tree = _read_file(config) if config is not None else {}
    origin = f"in {config}" if config is not None else ""
    from_environment = _read_environment(environ)
    _overlay(tree, from_environment)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(e, tree, from_environment, origin) for e in error.errors())) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """BEACON_PROXY_A__B=v → {"a": {"b": "v"}}. Names that end in no setting are found by validation, like the file's."""
    tree: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or _is_service_link(name, environ[name]):
            continue
        *parents, last = name[len(PREFIX) :].lower().split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{name}: a part of its name is a setting of its own in the environment")
        node[last] = environ[name]
    return tree


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes put it there: a Service named beacon-proxy announces itself so to every pod beside it."""
    rest = name.removeprefix(PREFIX)
    return (
        rest == "SERVICE_HOST" or re.match(r"SERVICE_PORT|PORT_\d+_", rest) is not None or value.startswith(("tcp://", "udp://"))
    )


def _overlay(tree: dict[str, Any], over: dict[str, Any]) -> None:
    spelt = {name.lower(): name for name in tree}  # variables are upper case: they mean a site however the file spells it
    for name, value in over.items():
        name = spelt.get(name, name)
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _overlay(tree[name], value)
        else:
            tree[name] = value


def _explain(error: Any, tree: dict[str, Any], environ: dict[str, Any], origin: str) -> str:
    """One validation error in plain words: setting, found, expected, what to do. The value of a secret is never shown."""
    path = tuple(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    name = ".".join(path)
    found: Any = tree
    in_environment: Any = environ
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
        in_environment = in_environment.get(part) if isinstance(in_environment, dict) else None
    where = variable(path) if in_environment is not None else name
    place = "" if in_environment is not None or not origin else f" ({origin})"
    if error["type"] == "extra_forbidden":
        fields = SiteSettings.model_fields if path[0] == "sites" else Settings.model_fields
        close = difflib.get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        hint = variable((*path[:-1], close[0])) if close and in_environment is not None else ".".join((*path[:-1], *close))
        return f"{where}{place}: no such setting; " + (
            f"did you mean {hint}?" if close else "see the settings table in the README"
        )
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return f"{message}{place}"
    if error["type"] == "missing":
        return f"{where}{place}: missing; it is required for each site"
    if path[-1] in ("spool", "fallback") and isinstance(found, str) and "?" in found and "@" not in found:
        found = found.partition("?")[0] + "?…"  # somebody may have put a login there
    shown = repr(found)[:80] if _may_be_shown(path, found) else "a value that is not shown"
    message = message[:1].lower() + message[1:]
    expected = message if "expected" in message else "expected: " + message.removeprefix("input should be ")
    return f"{where}{place}: found {shown}; {expected}"


def _may_be_shown(path: tuple[str, ...], found: object) -> bool:
    """Not what is a key, may hold one, or stands where somebody put one by mistake."""
    if path[0] in NAMES:
        return True
    if path[-1] == "api_key" or not isinstance(found, str | int | float) or (path[0] == "sites" and len(path) < 3):
        return False
    if path[-1] == "debug_token":
        return False
    if path[-1] in ("spool", "fallback"):
        return "@" not in str(found)
    return path[-1] != "upstream" or ("." in str(found) and not set("?@#") & set(str(found)))
