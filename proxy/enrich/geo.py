"""Where the visitor is, by address: country, region and city from a MaxMind-format database that the operator supplies.

The file is looked at every ten seconds, and opened anew when it was replaced. A beacon that is sent again after that may be
placed elsewhere than before; so what was looked up is remembered for as long as a resend is likely.
"""

import os
import time
from functools import lru_cache
from typing import Any

import maxminddb

from proxy.beacon import Beacon
from proxy.hit import Hit

LOOK_S = 10.0
REMEMBERED = 16_384


class Geo:
    """The enricher. Raises ValueError for a file that is no such database."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader, self._stamp = self._open()
        self._looked = time.monotonic()
        self._place = lru_cache(REMEMBERED)(self._look_up)

    def __call__(self, beacon: Beacon, hit: Hit) -> dict[str, str]:
        """`Country` (ISO code), `Region`, `City`, as far as the database knows."""
        if not hit.address:
            return {}
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self._open_anew_if_replaced()
        return self._place(hit.address)

    def _look_up(self, address: str) -> dict[str, str]:
        try:
            found: Any = self._reader.get(address)
        except ValueError:  # no address, or IPv6 in a database of IPv4
            return {}
        if not isinstance(found, dict):
            return {}
        region = (found.get("subdivisions") or [{}])[0]
        country = found.get("country") or found.get("registered_country") or {}
        place = {"Country": country.get("iso_code", ""), "Region": _english(region), "City": _english(found.get("city") or {})}
        return {name: str(value) for name, value in place.items() if value}

    def _open_anew_if_replaced(self) -> None:
        try:
            if _stamp(self._path) != self._stamp:
                self._reader, self._stamp = self._open()
                self._place.cache_clear()
        except (OSError, ValueError):
            pass  # half written, or gone: the one we have is good enough until the next look

    def _open(self) -> tuple[maxminddb.Reader, tuple[int, int, int]]:
        try:
            stamp = _stamp(self._path)
            return maxminddb.open_database(self._path, maxminddb.MODE_MEMORY), stamp
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            what = error.strerror if isinstance(error, OSError) else "no MaxMind database"
            raise ValueError(
                f"geo_database: found {self._path} ({what}); expected a readable file such as GeoLite2-City.mmdb: "
                "put it there, or leave the setting out"
            ) from None


def _english(named: Any) -> Any:
    return (named.get("names") or {}).get("en", "") if isinstance(named, dict) else ""


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size
