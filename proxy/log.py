"""One way to log: structlog to standard error; JSON where nobody watches, readable on a terminal. No query, address or key.

The logger is our own: inside another application its logging stays as it is. A line is for the operator: one for each change of
state, none for a beacon.
"""

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

# structlog loads these, if they are there, for what is never done here (drawing tracebacks, say): a quarter of a process' start.
_unloaded = {"rich", "colorama"} - sys.modules.keys()
for _module in _unloaded:
    sys.modules[_module] = None  # type: ignore[assignment]
import structlog  # noqa: E402
from structlog.typing import Processor  # noqa: E402

for _module in _unloaded:
    del sys.modules[_module]

QUIET_S = 10.0
"""What flaps is told of once in so long."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Event = MutableMapping[str, Any]
_least = logging.INFO


class _StandardError:
    """One write a line, so that those of several processes don't mix. Nobody fails because nobody reads."""

    def msg(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the other end of the pipe is gone, or there is none

    debug = info = warning = error = critical = msg


def _loud_enough(logger: object, method: str, event: Event) -> Event:
    if getattr(logging, method.upper(), logging.ERROR) < _least:
        raise structlog.DropEvent
    return event


def _traceback_without_values(logger: object, method: str, event: Event) -> Event:
    """Where it happened and what kind it was. Neither messages nor variables: a key or a visitor's data may be among them."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found if isinstance(found, BaseException) else found[1] if isinstance(found, tuple) else None
    if error is not None:
        parts = []
        while error is not None:
            parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        event["exception"] = "\nwhile handling:\n".join(parts)
    return event


_processors: list[Processor] = []


def configure(level: str = "info", format: str = "auto") -> None:
    """The least level told ("debug" to "error"), and how: "json", "console", or "auto", which is json but on a terminal."""
    global _least
    _least = LEVELS[level]
    console = sys.stderr.isatty() if format == "auto" else format == "console"
    _processors[:] = [
        _loud_enough,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        _traceback_without_values,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(serializer=json.dumps),
    ]


log: Any = structlog.wrap_logger(
    _StandardError(), processors=_processors, wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
)
configure()


def own_process() -> None:
    """For a process that is all ours: what libraries say, and what nobody caught, are lines like all others."""
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda told: log.critical("unexpected error", thread=_name(told.thread), exc_info=told.exc_value)


class _Libraries(logging.Handler):
    """uvicorn's and asyncio's records as lines of ours: the first line of what they say, and where it happened."""

    def emit(self, record: logging.LogRecord) -> None:
        first = (record.getMessage().strip().splitlines() or [""])[0][:200]
        method = "warning" if record.levelno < logging.ERROR else "error"
        getattr(log, method)(first, logger=record.name, exc_info=record.exc_info)


def _uncaught(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    log.critical("unexpected error", exc_info=error)


def _name(thread: threading.Thread | None) -> str:
    return thread.name if thread is not None else ""


class Trouble:
    """A state that is told of when it begins and when it is over. One that flaps is told of once in QUIET_S."""

    def __init__(self) -> None:
        self._told = False
        self._told_at = -QUIET_S

    def begins(self) -> bool:
        """Whether to tell of it now. To be asked each time that it is met: it may have been too early before."""
        if self._told or time.monotonic() - self._told_at < QUIET_S:
            return False
        self._told, self._told_at = True, time.monotonic()
        return True

    def ends(self) -> bool:
        """Whether to tell of its end: only if its beginning was told."""
        told, self._told = self._told, False
        return told
