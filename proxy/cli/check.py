"""`check`: a configuration in plain words."""

from pathlib import Path

from proxy.forward.trial import try_out
from proxy.hit import DEFAULT_SITE
from proxy.settings import Settings
from proxy.spool import look_at
from proxy.spool.fallback.intake import WAIT_S
from proxy.spool.jetstream import address as jetstream
from proxy.spool.sqlite.database import version

ELSEWHERE = "No forwarder runs beside the collectors: `forward`, or another machine's `serve` on the same spool, delivers."

ALONE = (
    "WARNING: with replicas=1 a single one of these servers keeps it: while that one is away it is not delivered, and with that "
    "one's disk it is lost. replicas=3 needs three servers."
)


def describe(settings: Settings) -> str:
    """What the configuration will do; no key is shown.

    Raises SettingsError when a key is missing, SpoolError, EnricherError or CannotTrace for what cannot be had.
    """
    look_at(settings.spool_config())
    if settings.forward:
        try_out(settings.forwarder())
    base = f"http://{settings.host}:{settings.port}{settings.prefix[0]}"
    lines = [
        f"Beacons are taken at {base}/e, /s and /a, several at once at /b; collector processes: {settings.workers}.",
        *_names(settings),
        _durability(settings),
        f"Beyond {settings.max_bytes:,} bytes in the spool new beacons are refused (503); what is stored stays.",
    ]
    lines.append(f"Health and status are answered at http://{settings.admin_host}:{settings.admin_port}/ (keep it private).")
    lines += [
        *(_delivery(settings) if settings.forward else [ELSEWHERE]),
        *_sites(settings),
        f"X-Forwarded-For is believed from {', '.join(settings.trusted_proxies) or 'nobody'}.",
        _identity(settings),
        _privacy(settings),
        "The configuration is good.",
    ]
    return "\n".join(lines)


def _sites(settings: Settings) -> list[str]:
    """Whose beacons go where."""

    def goes(upstream: str | None, key: str) -> str:
        return f" go to {upstream or settings.upstream}, with {key}" if settings.forward else " are taken"

    if not settings.sites:
        return [f"Beacons for every host{goes(None, 'the configured API key (not shown)')}."]
    lines = []
    for name, site in settings.sites.items():
        own = "its own API key" if site.api_key else "the top-level API key"
        lines.append(f"Site {name}: beacons for {', '.join(site.hosts)}{goes(site.upstream, own)}.")
    known = DEFAULT_SITE in settings.site_names()
    other = goes(None, "the top-level API key") if known else " are dropped (unknown_host)"
    lines.append(f"Beacons for any other host{other}.")
    if settings.forward and settings.spool.startswith("nats:"):
        lines.append(
            "Beacons that another machine took for a site that is none of these become dead letters here (unknown_site)."
        )
    return lines


def _delivery(settings: Settings) -> list[str]:
    """What the forwarder will do."""
    days = settings.max_age / 86400
    shared = " (of all forwarders on this spool together)" if settings.spool.startswith("nats:") else ""
    return [
        f"Up to {settings.concurrency} requests are in flight{shared}; an attempt may take {settings.attempt_timeout:g} s; "
        f"failures are tried again after {settings.backoff_base:g} s, doubling up to {settings.backoff_cap:g} s, "
        f"for {days:g} days.",
        f"The client's address goes upstream as {settings.address_property}."
        if settings.address_property
        else "The client's address does not go upstream.",
        f"On events is filled in: {', '.join(settings.enrichers) or 'nothing'}"
        + (f", and places from {settings.geo_database}." if settings.geo_database else "."),
    ]


def _names(settings: Settings) -> list[str]:
    """Other names, and the script."""
    lines = []
    if "" in settings.prefix:
        lines.append("That is without a prefix, for which `snippet nginx` has no file; `beacon-proxy init` draws one.")
    if len(settings.prefix) > 1:
        lines.append(f"Also, for older pages, under {', '.join(prefix or '/' for prefix in settings.prefix[1:])}.")
    other = [f"{name} is also {', '.join(names)}" for name, names in (settings.endpoints | settings.parameters).items() if names]
    if other:
        lines.append(f"Other names: {'; '.join(other)}.")
    if settings.script:
        events = ", ".join(settings.script_events) or "nothing"
        lines.append(
            f"The script is at {' and '.join(f'{settings.prefix[0]}/{name}.js' for name in settings.script)}; "
            f"it records unasked: {events}."
        )
    return lines


def _durability(settings: Settings) -> str:
    if settings.spool.startswith("memory:"):
        return (
            "They wait in memory: whatever stops the process loses them. (`serve` needs sqlite:DIR; this is for proxy.asgi:app.)"
        )
    if settings.spool.startswith("nats:"):
        spool = jetstream.parse(settings.spool)
        fallback = settings.spool_config().fallback.partition(":")[2]
        alone = len(spool.servers) > 1 and spool.replicas == 1
        return (
            f"Each is answered once JetStream has acknowledged it, at {', '.join(spool.servers)} (streams {spool.stream}_…, "
            f"replicas: {spool.replicas}); how soon the servers sync it to disk is their setting sync_interval, not durability. "
            + (f"{ALONE} " if alone else "")
            + (
                f"One that they do not take within {WAIT_S:g} s waits on this host under {fallback} (durability: "
                f"{settings.durability}), is answered all the same, and is moved to them when they are back."
                if fallback
                else "There is no fallback: one that they do not take is answered 503."
            )
        )
    place = Path(settings.spool.removeprefix("sqlite:")).absolute()
    if settings.durability == "disk":
        promise = f"Each is answered once it is on the disk under {place} (fsync): it survives a power cut."
    else:
        promise = f"Each is answered once the kernel has it for {place}: it survives a crash of the proxy, not a power cut."
    return f"{promise} The lanes run on SQLite {version()}."


def _identity(settings: Settings) -> str:
    if not settings.identity:
        return "A beacon without a person is dropped (no_person)."
    return "A beacon without a person is the visitor's by cookie (km_ni, km_ai); a new visitor gets an anonymous km_ai cookie."


def _privacy(settings: Settings) -> str:
    """Who is forgotten, and what of the others."""
    forgotten = [
        ("browsers that send Sec-GPC", settings.honour_gpc),
        ("browsers that send DNT", settings.honour_dnt),
        (f"visitors with the cookie {settings.opt_out_cookie}", settings.opt_out_cookie),
        (f"visitors without the cookie {settings.consent_cookie}", settings.consent_cookie),
        ("robots", settings.bots == "drop"),
    ]
    who = ", ".join(words for words, on in forgotten if on) or "nobody"
    masked = ", e-mail addresses and card numbers are masked" if settings.mask_personal else ""
    redacted = f", never stored: {', '.join(settings.redact)}" if settings.redact else ""
    return f"Forgotten at once: beacons of {who}. Addresses in the spool: {settings.addresses}{masked}{redacted}."
