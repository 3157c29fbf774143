"""The constant answers: the 43-byte transparent GIF and its headers, made once at import."""

GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
"""43 bytes: 1x1, transparent."""

Headers = list[tuple[bytes, bytes]]

GIF_HEADERS: Headers = [
    (b"content-type", b"image/gif"),
    (b"content-length", b"43"),
    # Each for caches that ignore the others: browsers, HTTP/1.0 proxies, CDNs (RFC 9213), Varnish and Fastly.
    (b"cache-control", b"no-store, no-cache, must-revalidate, max-age=0, private"),
    (b"pragma", b"no-cache"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 GMT"),
    (b"cdn-cache-control", b"no-store"),
    (b"surrogate-control", b"no-store"),
]

ALLOW = b"GET, HEAD, POST, OPTIONS"


def cors_headers(allowed: bytes) -> Headers:
    """What lets a script of that origin read the answer. Credentials never with "*" (Fetch standard, "CORS protocol and
    credentials")."""
    named: Headers = [(b"access-control-allow-credentials", b"true"), (b"vary", b"Origin")]
    return [(b"access-control-allow-origin", allowed), *(named if allowed != b"*" else [])]


def preflight_headers(allowed: bytes) -> Headers:
    """The answer to OPTIONS; `allowed` is the origin, "*", or b"" for an origin that may not."""
    headers: Headers = [(b"allow", ALLOW), (b"cache-control", b"no-store")]
    if allowed:
        headers += [
            *cors_headers(allowed),
            (b"access-control-allow-methods", ALLOW),
            (b"access-control-allow-headers", b"content-type"),
            (b"access-control-max-age", b"86400"),
        ]
    return headers


WRONG_METHOD_HEADERS: Headers = [(b"allow", ALLOW), (b"content-type", b"text/plain"), (b"content-length", b"0")]
