"""Every setting: its name, type, default and meaning. The settings table in the docs is made from this file."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator

from proxy.collector.config import CollectorConfig, ConsentRules, ScriptRules, SiteRules
from proxy.delivery import Policy
from proxy.enrich.config import DEFAULT as DEFAULT_ENRICHERS
from proxy.enrich.config import EnrichConfig
from proxy.forward.config import ForwarderConfig, Site
from proxy.hit import DEFAULT_SITE
from proxy.settings import paths, values
from proxy.settings.names import SettingsError, missing
from proxy.spool.port import SpoolConfig

VENDOR = "https://trk.kissmetrics.io"
FALLBACK = "sqlite:fallback"
"""Not the directory that a sqlite: spool has by default: what is in that one may be meant for another vendor."""


class SiteSettings(BaseModel):
    """One site of several."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hosts: Annotated[list[str], BeforeValidator(values.hosts)] = Field(
        description="Host names of the site; `*.example.com` stands for every name below it."
    )
    api_key: values.ApiKey | None = Field(None, description="The site's key; without one the top-level `api_key`.")
    api_key_file: Path | None = Field(None, description="A file with the site's key.")
    upstream: values.Url | None = Field(None, description="The site's upstream; without one the top-level `upstream`.")
    origins: values.Origins = Field([], description="The site's allow-list of pages; without one the top-level `origins`.")
    cookie_domain: values.CookieDomain = Field("", description="The site's `cookie_domain`; without one the top-level.")


class Settings(BaseModel):
    """All settings. The descriptions are the docs table."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    api_key: values.ApiKey | None = Field(None, description="The vendor's API key (secret). Only the forwarder gets it.")
    api_key_file: Path | None = Field(None, description="A file with the key instead (Docker secret, systemd credential).")
    upstream: values.Url = Field(VENDOR, description="Base URL of the vendor's beacon API.")
    spool: Annotated[str, BeforeValidator(values.spool)] = Field(
        "sqlite:spool",
        description="Where beacons wait: `sqlite:DIR`; `nats://HOST[:PORT],…?stream=NAME&replicas=N` (many machines; port 4222, "
        "stream `beacons`, replicas 3 where three hosts or more are named, else 1; logins: docs/scale-out.md); or `memory:` (a "
        "single process that may forget).",
    )
    fallback: Annotated[str | None, BeforeValidator(values.fallback)] = Field(
        None,
        description="Of a `nats://` spool: `sqlite:DIR`, where this host keeps beacons while the servers do not take them, until "
        "they do; without the setting `sqlite:fallback`. Empty: none, such beacons are answered 503.",
    )
    durability: Literal["disk", "os"] = Field(
        "disk",
        description="When a beacon counts as stored: `disk` (fsync; survives a power cut) or `os` (survives the process only).",
    )
    max_bytes: Annotated[int, BeforeValidator(values.size), Field(ge=1024 * 1024)] = Field(
        10 * 1024**3, description="Size of the spool at which new beacons are refused (503). `10GiB` and the like are understood."
    )
    prefix: Annotated[list[str], BeforeValidator(paths.prefixes)] = Field(
        [""],
        description="Path before `/e`, `/s`, `/a` and `/b`; of several all are taken, the first is for new pages.",
    )
    script: Annotated[list[str], BeforeValidator(paths.script_names)] = Field(
        [], description="Name of the browser script, `{prefix}/NAME.js`, or several. None: no script is served."
    )
    script_events: Annotated[list[str], BeforeValidator(values.script_events)] = Field(
        ["visited_site", "search_engine", "ad_campaign"], description="What the script records unasked; see docs/script.md."
    )
    script_beside_vendor: bool = Field(
        False, description="The vendor's own script is on the page as well and shares the queue `_kmq`: for comparing counts."
    )
    endpoints: Annotated[dict[Literal["e", "s", "a", "b"], list[str]], BeforeValidator(paths.endpoints)] = Field(
        {}, description="`[endpoints]`: other names for `e`, `s`, `a` and `b` under the prefix, which stay good themselves."
    )
    parameters: Annotated[dict[str, list[str]], BeforeValidator(paths.parameters)] = Field(
        {},
        description='`[parameters]`: other names in requests for `_p`, `_n`, `_t`, `_d` and properties; `"*"`: a mark before '
        "any property's name in base64url. See docs/paths.md.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address the public listener binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the public listener; 0 takes a free one.")
    admin_host: str = Field("127.0.0.1", min_length=1, description="Address the admin listener binds to.")
    admin_port: int = Field(8001, ge=0, le=65535, description="Port of the admin listener; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Collector processes.")
    trusted_proxies: Annotated[list[str], BeforeValidator(values.networks)] = Field(
        ["127.0.0.0/8", "::1/128"],
        validate_default=True,
        description="Networks (CIDR, or `loopback`, `private`) whose `X-Forwarded-For` is believed.",
    )
    address_property: Annotated[str, BeforeValidator(values.address_property)] = Field(
        "", description="Property under which the client's address goes upstream, such as `_ip`; none by default."
    )
    identity: bool = Field(
        True,
        description="When the page names no person: take the cookies `km_ni`, `km_ai`, else set a new anonymous `km_ai`. "
        "Off: such beacons are dropped (`no_person`).",
    )
    cookie_domain: values.CookieDomain = Field("", description="Domain of that cookie; none means the host alone.")
    cookie_http_only: bool = Field(False, description="Keep that cookie from scripts.")
    honour_gpc: bool = Field(True, description="Forget beacons of browsers that send `Sec-GPC: 1`.")
    honour_dnt: bool = Field(False, description="Forget beacons of browsers that send `DNT: 1`.")
    opt_out_cookie: values.CookieTest = Field("", description="Forget beacons with this cookie (`NAME`, or `NAME=VALUE`).")
    consent_cookie: values.CookieTest = Field("", description="Forget beacons without this cookie (`NAME`, or `NAME=VALUE`).")
    addresses: Literal["keep", "truncate", "forget"] = Field(
        "keep", description="What is stored of the client's address: all, its network (IPv4 /24, IPv6 /48), or nothing."
    )
    redact: Annotated[list[str], BeforeValidator(values.patterns)] = Field(
        [], description="Parameters never stored: names, or patterns such as `*email*`. Case is ignored."
    )
    mask_personal: bool = Field(
        False, description="Mask what looks like an e-mail address or a card number in values and addresses before storing."
    )
    origins: values.Origins = Field([], description="Pages that may send beacons: hosts, `*.example.com`, or origins. None: all.")
    missing_origin: Literal["allow", "deny"] = Field(
        "allow", description="Where there is an allow-list: what to do with a request that names no page."
    )
    rate_limit: int = Field(
        0,
        ge=0,
        description="Most beacons of one address (IPv6: one /64) in a minute, for each collector process; 0: no limit.",
    )
    debug_token: SecretStr | None = Field(
        None,
        description="Secret: a request that bears it as `X-Beacon-Debug` is told its outcome, and the "
        "address it was taken to come from, in `X-Beacon-Outcome`.",
    )
    enrichers: Annotated[list[str], BeforeValidator(values.enrichers)] = Field(
        list(DEFAULT_ENRICHERS), description="What is filled in on events; see docs/enrichment.md."
    )
    rename: Annotated[dict[str, Annotated[str, BeforeValidator(values.property_name)]], BeforeValidator(values.rename)] = Field(
        {}, description="`[rename]`: an enricher's property name → the name to send; empty leaves it out."
    )
    bots: Literal["flag", "drop", "ignore"] = Field("flag", description="Robots: property `Bot`, dropped, or not looked at.")
    geo_database: Path | None = Field(None, description="A MaxMind-format database; fills in `Country`, `Region`, `City`.")
    engine: Literal["pyreqwest", "httpx"] = Field("pyreqwest", description="The HTTP client towards the upstream.")
    concurrency: int = Field(
        128,
        ge=1,
        le=1024,
        description="Most requests in flight to one upstream, of all forwarders on the spool; what it takes is found out.",
    )
    attempt_timeout: float = Field(10.0, gt=0, le=300, description="Seconds one attempt may take.")
    backoff_base: float = Field(0.5, gt=0, le=3600, description="Seconds of the first back-off; doubles with each attempt.")
    backoff_cap: float = Field(60.0, gt=0, le=86400, description="Longest back-off in seconds.")
    max_attempts: int = Field(
        20, ge=1, le=1000, description="Failures after which a beacon is a dead letter, if others were delivered meanwhile."
    )
    max_age: float = Field(7 * 86400.0, gt=0, description="Seconds after which an undelivered beacon becomes a dead letter.")
    commit_timeout: float = Field(
        5.0, gt=0, le=300, description="Seconds a beacon may wait for the disk; then it is answered 503."
    )
    trace_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of beacons of which OpenTelemetry traces are told, 0 to 1 (extra `traces`); see docs/traces.md.",
    )
    forward: bool = Field(
        True,
        description="Whether `serve` runs a forwarder beside the collectors. Off: `forward`, or another machine's `serve`, "
        "delivers, and no `api_key` is needed here.",
    )
    embedded_forwarder: bool = Field(
        False, description="`proxy.asgi:app` only: deliver from the application's own process (its lifespan)."
    )
    shutdown_grace: float = Field(10.0, gt=0, le=600, description="Seconds a stop may take.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="A line of JSON each, or for eyes; `auto`: JSON unless standard error is a terminal."
    )
    sites: dict[str, SiteSettings] = Field({}, description="Several sites in one proxy, `[sites.NAME]`; see below.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("expected a value, not true or false")
        return value

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        if self.port and self.port == self.admin_port and self.host == self.admin_host:
            raise ValueError(f"port, admin_port: found {self.port} for both; expected the admin listener on a port of its own")
        return self

    @model_validator(mode="after")
    def _only_servers_have_a_fallback(self) -> Self:
        if self.fallback and not self.spool.startswith("nats:"):
            scheme = self.spool.partition(":")[0]
            raise ValueError(f"fallback: found {self.fallback} beside a {scheme}: spool; expected it with a nats:// spool alone")
        return self

    @model_validator(mode="after")
    def _script_reads_the_cookie(self) -> Self:
        if self.script and self.cookie_http_only:
            raise ValueError("cookie_http_only: found true beside script, which reads that cookie; expected false, or no script")
        return self

    @model_validator(mode="after")
    def _names_pass_together(self) -> Self:
        paths.together(self.prefix, self.script, self.endpoints.items())
        return self

    @model_validator(mode="after")
    def _sites_agree(self) -> Self:
        if DEFAULT_SITE in self.sites:
            raise ValueError('sites: the name "default" is taken by the top-level settings; choose another')
        for name in self.sites:
            if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError(f'sites: found {name!r} as a name; expected letters, digits, "-", "_" and "."')
        seen: dict[str, str] = {}
        for name, site in self.sites.items():
            for host in site.hosts:
                if host in seen:
                    raise ValueError(f"sites: {host} is in both {seen[host]!r} and {name!r}; expected each host in one site")
                seen[host] = name
        return self

    def spool_config(self) -> SpoolConfig:
        """The spool's part."""
        fallback = self.fallback
        if fallback is None:
            fallback = FALLBACK if self.spool.startswith("nats:") else ""
        return SpoolConfig(self.spool, self.durability, self.max_bytes, self.commit_timeout, fallback)

    def site_names(self) -> tuple[str, ...]:
        """Of all sites that take beacons."""
        return ((DEFAULT_SITE,) if self._has_default_site() else ()) + tuple(self.sites)

    def _has_default_site(self) -> bool:
        return not self.sites or self.api_key is not None or self.api_key_file is not None

    def collector(self) -> CollectorConfig:
        """The collector's part: without any key."""
        return CollectorConfig(
            spool=self.spool_config(),
            prefixes=tuple(self.prefix),
            endpoints={kind: tuple(names) for kind, names in self.endpoints.items()},
            parameters={name: tuple(names) for name, names in self.parameters.items()},
            script=ScriptRules(tuple(self.script), tuple(self.script_events), self.script_beside_vendor),
            hosts={host: name for name, site in self.sites.items() for host in site.hosts},
            default_site=self._has_default_site(),
            sites={
                DEFAULT_SITE: SiteRules(tuple(self.origins), self.cookie_domain),
                **{
                    name: SiteRules(tuple(site.origins or self.origins), site.cookie_domain or self.cookie_domain)
                    for name, site in self.sites.items()
                },
            },
            trusted_proxies=tuple(self.trusted_proxies),
            identity=self.identity,
            cookie_http_only=self.cookie_http_only,
            consent=ConsentRules(self.honour_gpc, self.honour_dnt, self.opt_out_cookie, self.consent_cookie),
            missing_origin=self.missing_origin == "allow",
            addresses=self.addresses,
            redact=tuple(self.redact),
            mask_personal=self.mask_personal,
            rate_limit=self.rate_limit,
            debug_token=self.debug_token.get_secret_value() if self.debug_token else "",
            traces=self.trace_ratio > 0,
            log_level=self.log_level,
            log_format=self.log_format,
            shutdown_grace_s=self.shutdown_grace,
        )

    def forwarder(self) -> ForwarderConfig:
        """The forwarder's part, with the keys. Raises SettingsError when one is missing."""
        sites: dict[str, Site] = {}
        own_key = _key_of(self, "")
        if own_key is not None:
            sites[DEFAULT_SITE] = Site(self.upstream, own_key)
        for name, site in self.sites.items():
            key = _key_of(site, f"sites.{name}.") or own_key
            if key is None:
                raise SettingsError(missing(f"sites.{name}.api_key"))
            sites[name] = Site(site.upstream or self.upstream, key)
        if not sites:
            raise SettingsError(missing("api_key"))
        return ForwarderConfig(
            spool=self.spool_config(),
            sites=sites,
            engine=self.engine,
            concurrency=self.concurrency,
            attempt_timeout_s=self.attempt_timeout,
            policy=Policy(
                int(self.backoff_base * 1000), int(self.backoff_cap * 1000), int(self.max_age * 1000), self.max_attempts
            ),
            address_property=self.address_property,
            trace_ratio=self.trace_ratio,
            enrich=EnrichConfig(
                tuple(self.enrichers), self.rename, self.bots, str(self.geo_database) if self.geo_database else ""
            ),
            log_level=self.log_level,
            log_format=self.log_format,
            shutdown_grace_s=self.shutdown_grace,
        )


def _key_of(part: "Settings | SiteSettings", where: str) -> str | None:
    """The key, from the setting or its file. Raises SettingsError."""
    if part.api_key_file is None:
        return part.api_key.get_secret_value() if part.api_key is not None else None
    name = f"{where}api_key_file"
    if part.api_key is not None:
        raise SettingsError(f"{name}: found beside {where}api_key; expected one of the two")
    try:
        text = part.api_key_file.read_text("utf-8").strip()
        return str(values.key(text))
    except OSError as error:
        raise SettingsError(f"{name}: cannot read {part.api_key_file}: {error.strerror}; expected a file with the key") from None
    except ValueError as error:
        raise SettingsError(f"{name}: what {part.api_key_file} holds is not shown; {error}") from None
