"""What holds for any bytes a client may send: the pure way from a hit to the vendor's request, attacked by hypothesis."""

from urllib.parse import parse_qsl, quote, quote_plus

from hypothesis import given
from hypothesis import strategies as st

from proxy.beacon import EARLIEST_S, FUTURE_MS, MAX_NAME, MAX_PROPERTIES, MAX_VALUE, Beacon, fold, parse, reserved_name
from proxy.delivery import retry_after_ms
from proxy.enrich import load
from proxy.enrich.config import EnrichConfig
from proxy.forward.config import ForwarderConfig, Site
from proxy.forward.forwarder import Prepared, prepare
from proxy.forward.sign import escape
from proxy.hit import KINDS, Hit, decode, encode
from proxy.outcome import Outcome
from proxy.spool.port import SpoolConfig

NOW_MS = 1_750_000_000_000
CONFIG = ForwarderConfig(SpoolConfig("memory:"), {"default": Site("https://vendor.example", "OUR+KEY&1")}, address_property="_ip")
ENRICHMENT = load(EnrichConfig(("page", "search", "campaign", "clicks", "client", "language", "bot")))

PIECES = (
    b"_k|_p|_n|_t|_d|=|&|%|%5f|%5Fk|+|[|]|.k| |\0|#|%00|\xff|_K|\xef\xbc\xbfk|1|17e9|1700000000|1700000000123|a|%E9|;|_ip|_p[]"
)
pieces = st.sampled_from(PIECES.split(b"|"))
junk = st.one_of(st.binary(max_size=300), st.lists(pieces, max_size=40).map(b"".join))
headers = st.text(st.characters(max_codepoint=255), max_size=200)
any_hit = st.builds(
    Hit,
    kind=st.sampled_from(KINDS),
    query=junk,
    body=junk,
    site=st.just("default"),
    host=headers,
    address=st.sampled_from(["", "192.0.2.1", "2001:db8::1"]),
    user_agent=headers,
    referer=headers,
    language=headers,
    received_ms=st.integers(EARLIEST_S * 1000, 4_000_000_000_000),
)


@given(any_hit)
def test_any_bytes_are_a_beacon_within_the_limits_or_one_outcome(hit: Hit) -> None:
    beacon = parse(hit)
    if isinstance(beacon, Outcome):
        assert beacon in (Outcome.NO_PERSON, Outcome.NO_NAME, Outcome.PERSON_TOO_LONG)
        return
    assert beacon.person.strip()
    assert len(beacon.person) <= MAX_NAME
    assert len(beacon.name) <= MAX_NAME
    assert bool(beacon.name) == (hit.kind != "s")
    assert EARLIEST_S <= beacon.time_s <= (hit.received_ms + FUTURE_MS) // 1000
    assert len(beacon.properties) <= MAX_PROPERTIES
    assert all(0 < len(name) <= MAX_NAME and len(value) <= MAX_VALUE for name, value in beacon.properties.items())
    assert not any(reserved_name(name) for name in beacon.properties)
    assert len({fold(name) for name in beacon.properties}) == len(beacon.properties)


@given(any_hit)
def test_the_vendor_reads_one_key_and_it_is_ours_and_a_resend_is_the_same_bytes(hit: Hit) -> None:
    prepared = prepare(hit, CONFIG, ENRICHMENT)
    assert prepare(decode(encode(hit)), CONFIG, ENRICHMENT) == prepared
    if isinstance(prepared, Outcome):
        return
    request = prepared.request
    query = request.body.decode("ascii") if request.body is not None else request.url.partition("?")[2]
    assert request.url.startswith(f"https://vendor.example/{hit.kind}")
    assert query.isascii()
    assert " " not in request.url
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    names = [name for name, _ in pairs]
    assert [value for name, value in pairs if name.strip().lower() == "_k"] == ["OUR+KEY&1"]
    assert [name for name in names if reserved_name(name)] == [name for name in ("_n", "_k", "_p", "_t", "_d") if name in names]
    assert ("_d" in names) == ("_t" in names) == (hit.kind != "a")


values = st.text(max_size=MAX_VALUE).filter(lambda text: text.isprintable() or text == "")
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=40)


@given(
    person=st.text(min_size=1, max_size=MAX_NAME).filter(lambda s: s.strip()),
    name=st.text(min_size=1, max_size=MAX_NAME).filter(lambda s: s.strip()),
    properties=st.dictionaries(names, values, max_size=10),
    plus=st.booleans(),
    in_body=st.booleans(),
)
def test_what_a_page_says_arrives_unchanged(
    person: str, name: str, properties: dict[str, str], plus: bool, in_body: bool
) -> None:
    escape = quote_plus if plus else (lambda text: quote(text, safe=""))
    pairs = [("_p", person), ("_n", name), *properties.items()]
    said = "&".join(f"{escape(n)}={escape(v)}" for n, v in pairs).encode()
    hit = Hit("e", b"" if in_body else said, said if in_body else b"", "default", "", "", "", "", "", NOW_MS)
    beacon = parse(hit)
    assert isinstance(beacon, Beacon)
    kept = {fold(n): (n, v) for n, v in properties.items()}
    assert beacon == Beacon("e", person, name, NOW_MS // 1000, dict(kept.values()), trimmed=False)
    prepared = prepare(hit, CONFIG, ENRICHMENT)
    assert isinstance(prepared, Prepared)
    sent = prepared.request.body.decode() if prepared.request.body is not None else prepared.request.url.partition("?")[2]
    received = dict(parse_qsl(sent, keep_blank_values=True))
    assert {n: received[n] for n in beacon.properties} == beacon.properties
    assert (received["_p"], received["_n"]) == (person, name)


@given(any_hit)
def test_enrichment_only_fills_blanks(hit: Hit) -> None:
    beacon = parse(hit)
    if isinstance(beacon, Beacon):
        filled = ENRICHMENT.fill(beacon, hit)
        assert {name: filled[name] for name in beacon.properties} == beacon.properties


@given(st.text(max_size=60), st.integers(0, 4_000_000_000_000))
def test_any_retry_after_is_a_wait_of_at_most_an_hour(header: str, now_ms: int) -> None:
    assert 0 <= retry_after_ms(header, now_ms) <= 3_600_000


@given(st.text())
def test_escaping_is_what_the_standard_library_does(text: str) -> None:
    assert escape(text) == quote(text, safe="", errors="replace")
