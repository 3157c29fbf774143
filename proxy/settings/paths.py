"""What a path and a parameter may be called. What filter lists are known to match is refused here, with the reason."""

import re
from collections.abc import Callable, Iterable, Sequence

from proxy.beacon import plain_name, reserved_name
from proxy.collector.aliases import ANY
from proxy.hit import BATCH, KINDS
from proxy.settings.listed import why_endpoint, why_prefix, why_script
from proxy.settings.values import listed_values

CALLS = (*KINDS, BATCH)
OF_NGINX = ("fallback", "limited")
"""Names under the prefix that deploy/nginx uses itself."""
OF_SCRIPT = ("url", "referrer")
"""Properties that the script sends, in any case of letters."""
_MARK = r"[A-Za-z0-9._~-]{2,63}[.~-]"
_SEGMENT = r"[A-Za-z0-9._~-]+"
_PATH = 'expected a path of letters, digits, "-", "_", ".", "~" and "/", such as "/amber-fjord"'


def prefixes(value: object) -> object:
    """One path or several → ["/x/y", …]; "" or "/" is none. Raises ValueError."""
    found = []
    for path in listed_values(value) or [""]:
        if not isinstance(path, str):
            raise ValueError(_PATH)
        path = path.strip("/")
        if path and (not re.fullmatch(f"{_SEGMENT}(/{_SEGMENT})*", path) or {".", ".."} & set(path.split("/"))):
            raise ValueError(_PATH)
        if reason := why_prefix(path):
            raise ValueError(f"{path!r}: {reason}; expected a neutral path such as /amber-fjord")
        found.append("/" + path if path else "")
    return _each_once(found)


def script_names(value: object) -> object:
    """One name or several of the script, without ".js". Raises ValueError."""
    return _names(value, why_script)


def _names(value: object, why: Callable[[str], str]) -> list[str]:
    """Last parts of a path. Raises ValueError."""
    found: list[str] = []
    for name in listed_values(value):
        reason = why(name) if isinstance(name, str) else ""
        if reason:
            raise ValueError(f"{name!r}: {reason}; expected a neutral name such as willow")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_~-]{1,64}", name):
            raise ValueError(f'{name!r} is no name; expected letters, digits, "-", "_" and "~", such as "willow"')
        found.append(name)
    return _each_once(found)


def endpoints(value: object) -> object:
    """{"e": name or names, …}; every name for one call only. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError('expected a table: [endpoints] with lines such as e = "lark"')
    for call in value:
        if call not in CALLS:
            raise ValueError(f"{call!r} is no call; expected 'e', 's', 'a' or 'b'")
    found = {call: _names(names, why_endpoint) for call, names in value.items()}
    taken = {call: call for call in CALLS}
    for call, names in found.items():
        for name in names:
            if name in OF_NGINX:
                raise ValueError(f"{name!r}: nginx's file uses that name itself; expected another such as willow")
            if name == call:
                raise ValueError(f"{name!r} is that call's name already; expected another, or no line for it")
            if taken.setdefault(name, call) != call:
                raise ValueError(f"{name!r} stands for {taken[name]!r} already; expected another name for {call!r}")
    return found


def parameters(value: object) -> object:
    """{name: alias or aliases, …}; every alias for one name only. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError('expected a table: [parameters] with lines such as _n = "v"')
    found = {name: listed_values(aliases) for name, aliases in value.items()}
    taken: dict[str, str] = {}
    for name, aliases in found.items():
        if (
            name == "_k"
            or (name != ANY and reserved_name(name) not in (None, name))
            or not name.strip()
            or not plain_name(name + "x")
        ):
            raise ValueError(f'{name!r} cannot have another name; expected _p, _n, _t, _d, a property\'s name, or "*"')
        for alias in aliases:
            if (
                not isinstance(alias, str)
                or not re.fullmatch(r"[A-Za-z0-9.~-][A-Za-z0-9._~-]{0,63}", alias)
                or reserved_name(alias)
            ):
                raise ValueError(f'{alias!r}: expected letters, digits, "-", "_", ".", "~", not beginning with "_"')
            if alias.lower() in OF_SCRIPT:
                raise ValueError(f"{alias!r} is a property of the script's own; expected another name for {name!r}")
            if alias == name:
                raise ValueError(f"{alias!r} is that parameter's name already; expected another, or no line for it")
            if alias in found:
                raise ValueError(
                    f"{alias!r} is another name for {name!r}, and has other names itself; expected one without a line of its own"
                )
            if taken.setdefault(alias, name) != name:
                raise ValueError(f"{alias!r} stands for {taken[alias]!r} already; expected another name for {name!r}")
    marks = [str(mark) for mark in found.get(ANY, [])]
    for mark in marks:
        if not re.fullmatch(_MARK, mark):
            raise ValueError(
                f'{mark!r} as a mark: expected at least 3 characters, the last of them "-", "." or "~", such as "reed8-"'
            )
        if other := next((other for other in marks if other != mark and other.startswith(mark)), ""):
            raise ValueError(f"{other!r} begins with the mark {mark!r}; expected marks of which none begins another")
    for alias, name in taken.items():
        if name != ANY and any(alias.startswith(mark) for mark in marks):
            raise ValueError(f"{alias!r} begins like the mark of any name; expected another for {name!r}")
    return found


def together(prefixes: Sequence[str], scripts: Sequence[str], endpoints: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Names that pass alone may be blocked with another setting: at the root of a host, say. Raises ValueError."""
    for path in prefixes if scripts else ():
        if reason := why_prefix(path.strip("/"), script=True):
            raise ValueError(f"prefix: found {path!r}, and a script; {reason}; expected a neutral path such as /amber-fjord")
    if "" not in prefixes:
        return
    named = [("script", name, why_script(name, root=True)) for name in scripts]
    named += [(f"endpoints.{call}", name, why_endpoint(name, root=True)) for call, names in endpoints for name in names]
    for setting, name, reason in named:
        if reason:
            raise ValueError(f"{setting}: found {name!r} and no prefix; {reason}; expected another name, or a prefix before it")


def _each_once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))
