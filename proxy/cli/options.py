"""What several commands share: the option that names the settings, and the spool they look at."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from proxy import settings
from proxy.cli.plain import plain
from proxy.settings import values
from proxy.spool import begun, lane_directory, look_into
from proxy.spool.port import SpoolConfig, SpoolError
from proxy.spool.sqlite.disk import Disk
from proxy.spool.sqlite.survey import look_into_directory

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file with the settings; the environment wins over it.", metavar="FILE")
]


def _host(text: str) -> str:
    try:
        (name,) = values.hosts([text])  # type: ignore[misc]
    except ValueError:
        name = "*"
    if "*" in name:
        raise typer.BadParameter(f"found {text!r}; expected a host name such as www.example.com")
    return str(name)


HostOption = Annotated[
    str,
    typer.Option(
        parser=lambda text: _host(text) if text else "",
        metavar="HOST",
        help="Write addresses with this host; without it they are the page's own.",
    ),
]
HostsOption = Annotated[
    list[str] | None,
    typer.Option(parser=_host, metavar="HOST", help="Host of the pages; may be given several times. Without it those of sites."),
]


class Runs(StrEnum):
    """What runs on a host."""

    SERVE, FORWARD, APP = "serve", "forward", "app"


def existing_spool(config: Path | None) -> SpoolConfig:
    """The spool that the settings name. Where nothing is there yet, says so on stderr: the place may be the wrong one."""
    spool = settings.load(config).spool_config()
    if not begun(spool):
        scheme, _, place = spool.url.partition(":")
        where = Path(place).absolute() if scheme == "sqlite" else spool.url
        print(f"beacon-proxy: there is no spool yet at {plain(str(where))} (setting spool)", file=sys.stderr)
    else:
        look_into(spool)
    return spool


class LanesHere(NamedTuple):
    """Where this host keeps lanes."""

    directory: Path
    disk: Disk
    is_fallback: bool
    """Of a nats:// spool, that is: other beacons are on its servers."""


def lanes_here(config: Path | None) -> LanesHere:
    """The spool's directory, or its fallback's. Raises SpoolError where there is none."""
    spool = settings.load(config).spool_config()
    directory = lane_directory(spool)
    is_fallback = spool.url.startswith("nats:")
    setting = "fallback" if is_fallback else "spool"
    if directory is None:
        found = "none, and the nats:// spool's beacons are on its servers" if is_fallback else spool.url
        raise SpoolError(f"{setting}: found {found}; expected sqlite:DIR: only there are beacons in files of this host")
    if not directory.is_dir():
        raise SpoolError(
            f"{setting}: there is no directory {directory.absolute()} yet; expected that of `serve`. Start it once before"
        )
    look_into_directory(directory)
    return LanesHere(directory, Disk(directory, spool.max_bytes), is_fallback)
