"""The command `beacon-proxy`. Each command is one file's function; here they are only named, documented and connected."""

import json
import sqlite3
import sys
from typing import Annotated

import typer

from proxy import __version__, settings
from proxy.cli import dead
from proxy.cli.options import ConfigOption, existing_spool
from proxy.enrich import EnricherError
from proxy.spool.port import SpoolError

app = typer.Typer(
    name="beacon-proxy",
    help="A first-party beacon proxy: takes a site's tracking beacons without the API key, keeps them safe on disk, and delivers "
    "them to the vendor with the key put in on the server.",
    epilog="Start with `beacon-proxy demo` (needs nothing), then `beacon-proxy check` with your settings, then `serve`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"beacon-proxy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigOption = None,
    workers: Annotated[int | None, typer.Option(help="Collector processes; wins over the setting.", min=1, max=256)] = None,
) -> None:
    """Run the collectors, the forwarder and the admin listener until stopped.

    Each is a process of its own and is restarted if it dies. SIGTERM and Ctrl-C stop them: what was accepted is answered, what is
    not delivered stays in the spool. SIGHUP reads the settings anew, a key file for example, and replaces the processes that they
    concern. Needs api_key.
    """
    from proxy.cli.supervisor import Supervisor
    from proxy.log import configure, log, own_process

    def load() -> settings.Settings:
        loaded = settings.load(config)
        return loaded if workers is None else loaded.model_copy(update={"workers": workers})

    loaded = load()
    configure(loaded.log_level, loaded.log_format)
    supervisor = Supervisor(loaded, load)
    log.info(
        "listening",
        url=supervisor.url + loaded.prefix,
        admin=supervisor.admin_url,
        spool=loaded.spool,
        durability=loaded.durability,
    )
    own_process()
    raise typer.Exit(supervisor.run())


@app.command()
def forward(config: ConfigOption = None) -> None:
    """Run a forwarder alone, beside collectors that run elsewhere (a WSGI host, say) on the same spool directory.

    If another forwarder is at work on the spool, this one waits and takes over when that one ends. Needs api_key.
    """
    import asyncio
    import signal
    from collections.abc import Callable

    from proxy.cli.child import loop_factory, run_forwarder
    from proxy.log import configure, log, own_process

    loaded = settings.load(config)
    configure(loaded.log_level, loaded.log_format)
    forwarding = loaded.forwarder()

    def until(stop: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)

    own_process()
    log.info("forwarding", spool=loaded.spool)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run_forwarder(forwarding, until))


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port of the demo shop on 127.0.0.1.", min=0, max=65535)] = 8000,
) -> None:
    """Show it at work: a pretend shop, the proxy, and a stand-in for the vendor, all on this machine. Needs no settings."""
    from proxy.cli.demo import run

    raise typer.Exit(run(port))


@app.command()
def check(
    config: ConfigOption = None,
    table: Annotated[bool, typer.Option("--settings-table", help="Print all settings as a Markdown table instead.")] = False,
) -> None:
    """Say in plain words what a configuration will do; refuse a wrong one. Starts and sends nothing. Exit status 0 or 2."""
    from proxy.cli.check import describe

    print(settings.table() if table else describe(settings.load(config)))


@app.command()
def status(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for scripts.")] = False,
) -> None:
    """The ledger, summed over all lanes, running or not: received = delivered + dropped + dead + pending.

    Then each upstream: whether it takes beacons, how many are in flight of how many it is given at most, how many are delivered a
    second, and how long its backlog will take at that rate.
    """
    from proxy.admin.summary import read, render

    found = read(existing_spool(config))
    print(json.dumps(found) if as_json else render(found))


app.add_typer(dead.app)


def main() -> None:
    """Entry point. A mistake of the user's is told in plain words, with exit status 2; never as a traceback."""
    try:
        app()
    except sqlite3.Error as error:
        print(f"beacon-proxy: spool: {error}; expected a readable spool directory (setting spool)", file=sys.stderr)
        sys.exit(1)
    except (settings.SettingsError, SpoolError, EnricherError) as error:
        for line in str(error).splitlines():
            print(f"beacon-proxy: {line}", file=sys.stderr)
        sys.exit(2)
