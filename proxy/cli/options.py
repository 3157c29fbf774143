"""What several commands share: the option that names the settings, and the spool they look at."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from proxy import settings
from proxy.spool import begun, look_into
from proxy.spool.port import SpoolConfig

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file with the settings; the environment wins over it.", metavar="FILE")
]


def existing_spool(config: Path | None) -> SpoolConfig:
    """The spool that the settings name. Where nothing is there yet, says so on stderr: the place may be the wrong one."""
    spool = settings.load(config).spool_config()
    if not begun(spool):
        scheme, _, place = spool.url.partition(":")
        where = Path(place).absolute() if scheme == "sqlite" else spool.url
        print(f"beacon-proxy: there is no spool yet at {where} (setting spool)", file=sys.stderr)
    else:
        look_into(spool)
    return spool
