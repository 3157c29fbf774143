"""One way to log: structlog to standard error; JSON where nobody watches, readable on a terminal. No query, address or key."""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Set up once per process."""
    terminal = sys.stderr.isatty()
    # Plain tracebacks: the fancy ones show the values of local variables, and a key or a visitor's data may be among them.
    on_terminal = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    rendering = [on_terminal] if terminal else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


log = structlog.get_logger()
