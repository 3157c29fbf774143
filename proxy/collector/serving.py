"""Stub: the script of a site."""

from proxy.collector.config import CollectorConfig
from proxy.script import Script, make


def script_of(config: CollectorConfig, site: str) -> Script:
    return make({"prefix": config.prefixes[0], "site": site})
