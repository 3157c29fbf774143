"""`init`: a configuration with names of its own, and what to do next."""

import tomllib
from pathlib import Path

from proxy.cli import snippet
from proxy.lists.naming import Names, Naming
from proxy.paste import configuration
from proxy.settings import Settings


def run(path: Path, host: str, force: bool, all_names: bool, spool: Path | None) -> str:
    """Write the file; what to tell the user. `spool`: None is a directory beside it. Raises CannotWrite or CannotPaste."""
    spool = (spool or path.parent / "spool").absolute()
    for place in (str(path), str(spool)):
        if not place.isprintable():
            raise configuration.CannotWrite(f"found {place!r}; expected a path of printable characters")
    content = configuration.text(Names(Naming()), all_names, spool)
    config = Settings.model_validate(tomllib.loads(content)).collector()
    told = snippet.everything(config, host)
    configuration.write(path, content, over=force)
    return f"""\
{path} is written; its names are this installation's own. Beacons will wait in {spool}.

{told}
== Next

  put the vendor's key into BEACON_PROXY_API_KEY, or into the file that api_key_file names
  beacon-proxy check --config {path}           says in plain words what it will do
  beacon-proxy check-path --config {path}      asks the filter lists whether the names pass
  beacon-proxy serve --config {path}
  beacon-proxy snippet --config {path}         prints the above again"""
