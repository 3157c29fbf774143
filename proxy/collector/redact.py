"""What is never stored: parameters by name, and, when switched on, what looks like an e-mail address or a card number.

Works on the raw query, and leaves the bytes of everything else as they are. The person (`_p`) and the API's other names are left
alone: an identity may well be an e-mail address, and without it the beacon is nothing.
"""

import fnmatch
import re
from urllib.parse import unquote_plus

from proxy.beacon import reserved_name

EMAIL = re.compile(r"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
CARD = re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])")
ESCAPED_AT = re.compile(r"%(?:25)*40", re.IGNORECASE)
MASK = "***"
ADDRESS = re.compile(rb"https?(:|%3A)(/|%2F){2}", re.IGNORECASE)
"""How a value begins that is an address: its query is redacted like the Referer's."""


class Redaction:
    """The rule for one configuration."""

    def __init__(self, names: tuple[str, ...], mask_personal: bool) -> None:
        self._names = [re.compile(fnmatch.translate(name.casefold())) for name in names]
        self._mask = mask_personal
        self.active = bool(names or mask_personal)

    def query(self, raw: bytes, within: bool = False) -> bytes:
        """An urlencoded query or body without what must not be kept. `within`: it is an address's own, and addresses in it are
        looked into no further."""
        kept = []
        for pair in raw.split(b"&"):
            raw_name, equals, raw_value = pair.partition(b"=")
            name = unquote_plus(raw_name.decode("utf-8", "replace"))
            if name and reserved_name(name) is None:
                if self.forbids(name):
                    continue
                is_address = not within and ADDRESS.match(raw_value) is not None
                if self._mask or is_address:
                    value = unquote_plus(raw_value.decode("utf-8", "replace"))
                    clean = self._address(value) if is_address else mask(value)
                    clean_name = mask(name) if self._mask else name
                    if clean != value or clean_name != name:
                        pair = _escape(clean_name) + equals + _escape(clean)
            kept.append(pair)
        return b"&".join(kept)

    def url(self, url: str) -> str:
        """An address (the Referer) with its query redacted in the same way, and its path masked."""
        head, mark, rest = url.partition("?")
        query, hash_, fragment = rest.partition("#")
        clean = self.query(query.encode("latin-1", "replace"), within=True).decode("latin-1")
        head, fragment = (mask(head), mask(fragment)) if self._mask else (head, fragment)
        return head + mark + clean + hash_ + fragment

    def _address(self, value: str) -> str:
        return self.url(value.encode("utf-8").decode("latin-1")).encode("latin-1").decode("utf-8", "replace")

    def forbids(self, name: str) -> bool:
        """Whether parameters of that name are not kept. Case is ignored."""
        folded = name.casefold()
        return any(pattern.match(folded) for pattern in self._names)


def mask(text: str) -> str:
    """The text with addresses and card numbers masked, also where they are escaped once more (an URL in a value)."""
    if "%" in text:
        text = ESCAPED_AT.sub("@", text) if EMAIL.search(ESCAPED_AT.sub("@", text)) else text
    if "@" in text:
        text = EMAIL.sub(MASK, text)
    return CARD.sub(lambda found: MASK if is_card(found[0]) else found[0], text)


def is_card(digits: str) -> bool:
    """Whether it has a card number's check digit (ISO/IEC 7812-1, the Luhn formula)."""
    numbers = [int(c) for c in digits if c.isdigit()]
    doubled = [sum(divmod(2 * n, 10)) for n in numbers[-2::-2]]
    return 13 <= len(numbers) <= 19 and len(set(numbers)) > 1 and (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0


def _escape(text: str) -> bytes:
    from urllib.parse import quote

    return quote(text, safe="*/:?").encode("ascii")
