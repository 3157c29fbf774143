"""A Hit: the facts of one request, as received, and how they are written to the spool.

Only facts live here, uninterpreted: parsing belongs to beacon.py, and the API key never comes near a Hit.
The encoding is an array (msgpack), so a new field is appended with a default and older spool files stay readable.
"""

import msgspec

KINDS = ("e", "s", "a")
"""The three calls of the beacon API: record an event, set properties, alias two identities."""

BATCH = "b"
"""The call of this proxy that brings several of the three at once; no Hit is of this kind."""

MAX_BEACON_BYTES = 61_440
"""60 KiB, query and body together; a larger beacon is dropped (`too_large`). The largest real one is a few KB."""

DEFAULT_SITE = "default"


class Hit(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One request's facts. Text headers are decoded as latin-1, so that no byte a client sends can fail."""

    kind: str
    """"e", "s" or "a"."""
    query: bytes
    """The raw query string, without "?"."""
    body: bytes
    """The raw body (urlencoded form, or text/plain as sendBeacon sends it); empty when there is none."""
    site: str
    host: str
    address: str
    """The client's address as far as trusted proxies vouch for it; "" if unknown."""
    user_agent: str
    referer: str
    language: str
    received_ms: int
    """Receipt, milliseconds since the epoch: every time upstream that the client did not set is derived from it."""
    identity: str = ""
    """The visitor's identity from the site's own cookies, or a new one; "" when the page names the person itself."""
    hints: str = ""
    """The client hints Sec-CH-UA, Sec-CH-UA-Mobile and Sec-CH-UA-Platform, a line each; "" when there are none."""
    trace: str = ""
    """The request's `traceparent`, where traces are told; else ""."""
    id: str = ""
    """The spool's alone, of no effect upstream: the message id under which it may have been published already; else ""."""


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Hit).decode
