"""The command `beacon-proxy`. Each command is one file's function; here they are only named, documented and connected."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from proxy import __version__, settings
from proxy.cli import dead, lanes
from proxy.cli.cluster import Missing
from proxy.cli.options import ConfigOption, HostOption, HostsOption, Runs, existing_spool
from proxy.cli.plain import plain
from proxy.enrich import EnricherError
from proxy.forward.config import CannotTrace
from proxy.lists.engine import CannotRead, NoEngine
from proxy.paste.configuration import CannotWrite
from proxy.paste.nginx import CannotPaste
from proxy.spool.port import SpoolError

app = typer.Typer(
    name="beacon-proxy",
    help="A first-party beacon proxy: takes a site's tracking beacons without the API key, keeps them safe on disk, and delivers "
    "them to the vendor with the key put in on the server.",
    epilog="Start with `beacon-proxy demo` (needs nothing); then `init` for settings of your own, `check` and `serve`.",
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
    concern. Needs api_key, unless the setting forward is off.
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
        url=supervisor.url + loaded.prefix[0],
        admin=supervisor.admin_url,
        spool=loaded.spool,
        durability=loaded.durability,
    )
    own_process()
    raise typer.Exit(supervisor.run())


@app.command()
def forward(config: ConfigOption = None) -> None:
    """Run a forwarder alone, beside collectors that run elsewhere (a WSGI host, say) on the same spool.

    If another forwarder is at work on a spool directory, this one waits and takes over when that one ends. On a nats:// spool any
    number work at once and share what may be in flight to an upstream. Needs api_key.
    """
    from proxy.cli.forward import run
    from proxy.log import configure, log, own_process

    loaded = settings.load(config)
    configure(loaded.log_level, loaded.log_format)
    forwarding = loaded.forwarder()
    own_process()
    log.info("forwarding", spool=loaded.spool)
    run(forwarding)


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port of the demo shop on 127.0.0.1.", min=0, max=65535)] = 8000,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Three brokers, two collectors, two forwarders; one after the other is killed.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(help="With --cluster: end after so long, with the account.", min=1, metavar="SECONDS")
    ] = None,
) -> None:
    """Show it at work: a pretend shop, the proxy, and a stand-in for the vendor, all on this machine. Needs no settings.

    With --cluster (which needs nats-server and nginx) a small load runs while parts are killed, and a table shows that nothing is
    lost: exit status 0 if all that was answered 200 was counted by the vendor, else 1.
    """
    if seconds is not None and not cluster:
        raise typer.BadParameter("found it without --cluster; expected both", param_hint="--seconds")
    if cluster:
        from proxy.cli.cluster import demo as of_cluster

        raise typer.Exit(of_cluster.run(port, seconds))
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


@app.command(epilog="Example: beacon-proxy init /etc/beacon-proxy/beacon-proxy.toml --host www.shop.example")
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path("beacon-proxy.toml"),
    host: HostOption = "",
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE if it is there; pages with its old names lose their beacons.")
    ] = False,
    all_names: Annotated[
        bool, typer.Option("--all-names", help="Hide the names of properties too, by a mark and base64url (docs/paths.md).")
    ] = False,
    spool: Annotated[
        Path | None, typer.Option(help="Where beacons wait; without it in `spool` beside FILE.", metavar="DIR")
    ] = None,
) -> None:
    """Write a configuration with names of its own, drawn by lot, and say what goes into nginx and into pages.

    Filter lists block paths, script names and parameters that they know; they cannot know names that no other installation has.
    An existing FILE is left as it is. Exit status 0 or 2.
    """
    from proxy.cli.init import run

    print(run(file, host, force, all_names, spool))


@app.command(epilog="Example: beacon-proxy snippet nginx --output /etc/nginx/snippets/beacon-location.conf")
def snippet(
    part: Annotated[str, typer.Argument(metavar="[nginx|html|csp]", help="Print this alone; without it all three.")] = "",
    config: ConfigOption = None,
    host: HostOption = "",
    output: Annotated[
        Path | None,
        typer.Option(help="Write it into FILE, whole or not at all.", metavar="FILE"),
    ] = None,
) -> None:
    """Print what goes elsewhere for a configuration: nginx's locations, a page's HTML, the Content-Security-Policy.

    nginx gets a block for every live prefix; pages get the first of prefixes and names. Exit status 0 or 2.
    """
    from proxy.cli.snippet import PARTS, everything, port_hint, text
    from proxy.paste.configuration import write

    if part and part not in PARTS:
        raise typer.BadParameter(f"found {part!r}; expected one of {', '.join(PARTS)}, or none for all", param_hint="PART")
    if output and not part:
        raise typer.BadParameter(f"found no part; expected one of {', '.join(PARTS)} before it", param_hint="--output")
    loaded = settings.load(config)
    collector = loaded.collector()
    told = text(collector, part, host) if part else everything(collector, host)
    if output:
        write(output, told, over=True, mode=0o644)
    else:
        print(told, end="")
    if part in ("", "nginx") and (hint := port_hint(loaded)):
        print(f"beacon-proxy: {hint}", file=sys.stderr)


@app.command(
    "check-path",
    epilog="Examples: beacon-proxy check-path --json; beacon-proxy check-path easyprivacy.txt my-lists/ --host www.shop.example",
)
def check_path(
    lists: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[LIST]...", help="Filter lists, or directories of *.txt; without any the official ones, fetched."
        ),
    ] = None,
    config: ConfigOption = None,
    host: HostsOption = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask for the official lists even if the copies are fresh.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nobody: only the copies of earlier runs.")] = False,
    query: Annotated[
        list[str] | None,
        typer.Option(help="Names that your pages send, as an event's query; may be given several times.", metavar="NAME=VALUE&…"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for scripts.")] = False,
) -> None:
    """Ask the filter lists that browsers use whether they block the configured names; propose others that pass.

    Every live prefix with every name of the endpoints and the script is asked for as image, ping, xhr and script, with typical
    parameters and those of the beacons in the spool (no value is shown). Each list is asked alone. Official: EasyList,
    EasyPrivacy, Peter Lowe's, uBlock's; their copies in the user's cache are good for 4 days. Needs `pip install adblock`.
    Exit status: 0 all passes, 1 something is blocked, 2 wrong use, or lists that do not even block the vendor. See docs/paths.md.
    """
    from proxy.cli.check_path import run

    if lists and (refresh or offline):
        raise typer.BadParameter("found LIST too; expected it without, for the official lists", param_hint="--refresh, --offline")
    if refresh and offline:
        raise typer.BadParameter("found both; expected one", param_hint="--refresh, --offline")
    for text in query or ():
        if "=" not in text:
            raise typer.BadParameter(f"found {text!r}; expected NAME=VALUE&OTHER=VALUE", param_hint="--query")
    raise typer.Exit(run(settings.load(config), lists or [], host or [], query or [], refresh, offline, as_json))


@app.command()
def status(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for scripts.")] = False,
) -> None:
    """The ledger, summed over all lanes, running or not: received = delivered + dropped + dead + pending.

    Then each upstream: whether it takes beacons, how many are in flight of how many it is given at most, how many are delivered a
    second, and how long its backlog will take at that rate.
    """
    from proxy.admin import summary

    found = summary.status(existing_spool(config))
    print(json.dumps(found) if as_json else summary.render(found))


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Logs as nginx keeps them; `-` is standard input.")],
    config: ConfigOption = None,
    from_line: Annotated[int, typer.Option(help="Begin at this line of the (one) file.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing; count what would become of the lines.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for scripts.")] = False,
) -> None:
    """Take in beacons that nginx kept in its fallback log while no collector answered, as if they came in then.

    Safe while `serve` runs, and twice: what was taken in already counts once, by the vendor's own duplicate rule. Exit status 0
    if every line was taken (stored, or dropped by the settings), 1 if some could not be, 2 for wrong use. See docs/nginx.md.
    """
    from proxy.cli.ingest import run
    from proxy.log import configure

    if from_line > 1 and len(files) > 1:
        raise typer.BadParameter("found several files; expected one", param_hint="--from-line")
    loaded = settings.load(config)
    configure(loaded.log_level)
    try:
        status = run(files, loaded, from_line, dry_run, as_json)
    except OSError as error:
        if error.filename is None or str(error.filename) not in files:
            raise
        raise typer.BadParameter(
            f"cannot read {Path(error.filename)}: {error.strerror}; expected a log file", param_hint="FILE"
        ) from None
    raise typer.Exit(status)


@app.command(epilog="Example: beacon-proxy backup /backup/spool-2026-01-31")
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it must not exist yet, or be empty.")],
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for scripts.")] = False,
) -> None:
    """Copy the spool into DIR while it runs, or not, and check the copy: beacons that wait, dead letters, the ledger.

    However much comes in meanwhile: each lane is copied as it was at one moment. To restore, stop beacon-proxy, move the spool's
    directory away, put DIR in its place, and start (docs/upgrade.md). Of a nats:// spool this host's fallback is copied.
    Exit status: 0 all is copied and checked, 1 a lane is damaged, 2 wrong use, or no room.
    """
    from proxy.cli.backup import run

    raise typer.Exit(run(config, directory, as_json))


app.add_typer(dead.app)
app.add_typer(lanes.app)


@app.command(epilog="Example: beacon-proxy tail --failing --name 'Purchas*' -n 10")
def tail(
    config: ConfigOption = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Only this site; may be given several times, as may the next two.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only this call: e, s or a.", metavar="e|s|a")] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(help="Only what ends so: delivered, no_person, rejected, … (docs/outcomes.md), refused, retry."),
    ] = None,
    name: Annotated[str, typer.Option(help="Only events of this name; * and ? stand for anything, case does not count.")] = "",
    failing: Annotated[bool, typer.Option("--failing", help="Only what was not delivered.")] = False,
    most: Annotated[int | None, typer.Option("-n", help="Stop after so many.", min=1, metavar="N")] = None,
    seconds: Annotated[float | None, typer.Option("--for", help="Stop after so many seconds.", min=0, metavar="SECONDS")] = None,
    values: Annotated[bool, typer.Option("--values", help="Show persons and values; they are visitors' data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object a line, for scripts.")] = False,
) -> None:
    """Follow beacons live: each attempt to deliver one, and each that is dropped or refused at the door.

    Costs the visitors nothing: who does not keep up misses some, and is told how many. Persons are shown as a sign that changes
    with each run, values as "…". Ctrl-C ends it.
    """
    from proxy.cli.tail import KINDS, OUTCOMES, Wanted, follow, unknown

    for option, found, known in (("--kind", kind or [], KINDS), ("--outcome", outcome or [], OUTCOMES)):
        for wrong in unknown(found, known):
            raise typer.BadParameter(f"found {wrong!r}; expected one of {', '.join(known)}", param_hint=option)
    wanted = Wanted(tuple(site or ()), tuple(kind or ()), tuple(outcome or ()), name, failing)
    follow(settings.load(config).spool_config(), wanted, most, seconds, values=values, as_json=as_json)


@app.command(epilog="Example: beacon-proxy doctor --url https://www.shop.example/x7")
def doctor(
    config: ConfigOption = None,
    url: Annotated[
        str,
        typer.Option(
            help="The public address as browsers see it, with the prefix; without it nothing is looked at from outside."
        ),
    ] = "",
    site_url: Annotated[str, typer.Option(help="An address of the site's own pages, to compare the hosts.")] = "",
    ca: Annotated[
        Path | None, typer.Option(help="A PEM file with a certificate authority of your own, for --url.", metavar="FILE")
    ] = None,
    canary: Annotated[
        str, typer.Option(help="Send one event of this name and follow it to the vendor, where it counts.", metavar="NAME")
    ] = "",
    runs: Annotated[
        Runs, typer.Option(help="What runs on this host: `serve`, `forward` alone, or the application inside another server.")
    ] = Runs.SERVE,
    as_json: Annotated[bool, typer.Option("--json", help="One object with all findings, for scripts.")] = False,
) -> None:
    """Look at a running installation from inside and from outside, and say of each thing whether it is well and how to mend it.

    Run it on the proxy's machine (of many on each), as the proxy's user and with its settings. Without --canary nothing reaches
    the vendor: the beacons sent through --url have no name, so they end as `no_name`. Takes a few seconds, two minutes at the
    most.
    Exit status: 0 nothing is wrong, 1 something is wrong, 2 wrong use.
    """
    from proxy.cli.doctor import run

    raise typer.Exit(run(config, url, site_url, ca, canary, as_json, runs))


PLAIN = (settings.SettingsError, SpoolError, EnricherError, CannotTrace, NoEngine, CannotRead, CannotWrite, CannotPaste, Missing)
"""What says of itself what was found, what was expected and what to do."""


def main() -> None:
    """Entry point. A mistake of the user's is told in plain words, with exit status 2; never as a traceback."""
    try:
        app()
    except PLAIN as error:
        tell(error)
        sys.exit(2)


def tell(error: Exception) -> None:
    """A mistake of the user's, in plain words."""
    for line in str(error).splitlines():
        print(f"beacon-proxy: {plain(line)}", file=sys.stderr)
