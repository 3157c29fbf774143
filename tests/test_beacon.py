"""parse(): what a hit is understood to say. Every rule of the API, one example each."""

import pytest

from proxy.beacon import MAX_PROPERTIES, Beacon, parse, reserved_name, timestamp
from proxy.hit import Hit
from proxy.outcome import Outcome

RECEIVED_MS = 1_700_000_000_999


def hit(query: str | bytes, kind: str = "e", body: bytes = b"") -> Hit:
    raw = query.encode() if isinstance(query, str) else query
    return Hit(kind, raw, body, "default", "shop.example", "", "", "", "", RECEIVED_MS)


def beacon(query: str | bytes, kind: str = "e", body: bytes = b"") -> Beacon:
    found = parse(hit(query, kind, body))
    assert isinstance(found, Beacon), found
    return found


def test_names_values_and_the_reserved_ones_come_apart() -> None:
    """Everything that is not the API's own is a property."""
    found = beacon("Plan=Pro&_n=Viewed&_p=me&_d=0&Price=24.50")
    assert (found.person, found.name, found.properties) == ("me", "Viewed", {"Plan": "Pro", "Price": "24.50"})


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("a+b", "a b"),
        ("a%20b", "a b"),
        ("a%2Bb", "a+b"),
        ("100%", "100%"),
        ("%zz%4", "%zz%4"),
        ("%ff%fe", "\ufffd\ufffd"),
        ("%C3%BC", "ü"),
        ("a=b=c", "a=b=c"),
        ("", ""),
        (b"\xc3\xbc".decode("latin-1").encode("latin-1").decode("utf-8"), "ü"),
    ],
)
def test_values_are_decoded_as_forms_are(raw: str, value: str) -> None:
    """ "+" and "%20" are both spaces; what is no escape stays; broken UTF-8 is marked, never an error."""
    assert beacon(f"_n=n&_p=p&v={raw}").properties == {"v": value}


def test_empty_pairs_are_skipped_and_a_leaked_ampersand_is_an_empty_property() -> None:
    """A client in the field sends `_k=KEY&&…`; another leaks "&" from values, and the vendor reads it like this too."""
    assert beacon("&&_n=Tom%20&%20Jerry&_p=p&&=lost&").properties == {" Jerry": ""}


def test_the_last_of_repeated_names_wins_whatever_its_case() -> None:
    """Upstream property names ignore case: two spellings would be one property with two values."""
    found = beacon("color=red&_p=a&_n=x&Color=blue&_p=b&_n=y")
    assert (found.person, found.name, found.properties) == ("b", "y", {"Color": "blue"})


@pytest.mark.parametrize(
    "spelling",
    [
        "_k",
        "_K",
        " _k",
        "_k ",
        "_k[]",
        "_k[a]",
        ".k",
        "[k",
        "_k\x00",
        "\u200b_k",
        "\uff3fk",
        "_\uff2b",
        "_\x00k",
        "_k\x00x",
        "_k,",
        ",_k",
        "_k;",
        "_k=",
        "_k\ufe0f",
        "_k\u3164",
    ],
)
def test_every_spelling_of_a_reserved_name_is_recognised(spelling: str) -> None:
    """Some server somewhere reads each of these as `_k`."""
    assert reserved_name(spelling) == "_k"


@pytest.mark.parametrize("name", ["k", "_kind", "Plan", "_ip", "x_k", "__k", "K", "Ünï"])
def test_ordinary_names_are_not_taken_for_reserved_ones(name: str) -> None:
    """Nothing is lost by the caution."""
    assert reserved_name(name) is None


@pytest.mark.parametrize(
    ("kind", "query", "outcome"),
    [
        ("e", "_n=Viewed", Outcome.NO_PERSON),
        ("e", "_n=Viewed&_p=", Outcome.NO_PERSON),
        ("e", "_n=Viewed&_p=%20", Outcome.NO_PERSON),
        ("e", "_p=me", Outcome.NO_NAME),
        ("e", "_p=me&_n=", Outcome.NO_NAME),
        ("s", "Plan=Pro", Outcome.NO_PERSON),
        ("a", "_p=me", Outcome.NO_PERSON),
        ("a", "_n=me", Outcome.NO_PERSON),
        ("e", "_n=n&_p=" + "x" * 256, Outcome.PERSON_TOO_LONG),
        ("a", "_p=p&_n=" + "x" * 256, Outcome.PERSON_TOO_LONG),
        ("e", "", Outcome.NO_PERSON),
    ],
)
def test_what_is_required_by_kind(kind: str, query: str, outcome: Outcome) -> None:
    """A beacon that the vendor could not use is dropped, with the reason counted."""
    assert parse(hit(query, kind)) is outcome


def test_over_long_names_and_values_are_shortened_and_that_is_noted() -> None:
    """An event under a shortened name is better than none; an identity is another matter."""
    found = beacon("_n=" + "n" * 300 + "&_p=p&" + "k" * 300 + "=" + "v" * 600)
    assert found.trimmed
    assert (len(found.name), [(len(k), len(v)) for k, v in found.properties.items()]) == (255, [(255, 512)])
    assert not beacon("_n=n&_p=" + "%C3%BC" * 255).trimmed


def test_the_number_of_properties_is_bounded() -> None:
    """A hostile client cannot make the proxy build endless requests."""
    found = beacon("_n=n&_p=p&" + "&".join(f"p{n}=v" for n in range(1000)))
    assert (len(found.properties), found.trimmed) == (MAX_PROPERTIES, True)


def test_an_alias_carries_two_identities_and_nothing_else() -> None:
    """The API knows no properties and no time for it."""
    found = beacon("_p=a&_n=b&_t=1600000000&_d=1&Plan=Pro", "a")
    assert (found.person, found.name, found.properties) == ("a", "b", {})


@pytest.mark.parametrize(
    ("t", "d", "expected"),
    [
        ("1600000000", "1", 1_600_000_000),
        ("1600000000.75", "1", 1_600_000_000),
        ("1600000000123", "1", 1_600_000_000),
        ("1700003600", "1", 1_700_003_600),
        ("1600000000", "", None),
        ("1600000000", "0", None),
        ("1230767999", "1", None),
        ("1230768000", "1", 1_230_768_000),
        ("1700003602", "1", None),
        ("0", "1", None),
        ("-5", "1", None),
        ("9" * 40, "1", None),
        ("1e9", "1", None),
        ("nan", "1", None),
        ("", "1", None),
        ("\u0661\u0662\u0663", "1", None),
    ],
)
def test_the_clients_time_counts_when_it_says_so_and_is_sane(t: str, d: str, expected: int | None) -> None:
    """Only with `_d=1`, from 2009 to an hour ahead; floats and milliseconds are understood; else receipt time."""
    assert timestamp(t, d, RECEIVED_MS) == (expected if expected is not None else 1_700_000_000)


def test_query_and_body_are_one_list_of_parameters() -> None:
    """sendBeacon posts what an image puts in its address."""
    found = beacon("_n=n&Plan=Old", body=b"_p=p&Plan=New\r\n")
    assert (found.person, found.properties) == ("p", {"Plan": "New"})
