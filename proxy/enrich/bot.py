"""Whether the visitor is a robot, by its user agent: the crawler-user-agents project's list."""

from functools import lru_cache

from proxy.beacon import Beacon
from proxy.hit import Hit


def bot(beacon: Beacon, hit: Hit) -> dict[str, str]:
    """`Bot`: "true" for a robot; nothing for anybody else."""
    return {"Bot": "true"} if is_bot(hit.user_agent) else {}


@lru_cache(4096)
def is_bot(user_agent: str) -> bool:
    """Of no user agent nothing is said: some of the API's own clients send none."""
    from crawleruseragents import is_crawler

    return bool(user_agent) and bool(is_crawler(user_agent))
