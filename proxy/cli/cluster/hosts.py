"""The proxy's own processes in the cluster: hosts with collectors (`serve`), and forwarders (`forward`)."""

import os
import sys
from pathlib import Path

from proxy.cli.cluster import ports
from proxy.cli.cluster.part import Part
from proxy.cli.cluster.ports import says_ok
from proxy.settings import PREFIX

KEY = "cluster-key-0123456789"


def environment(**settings: object) -> dict[str, str]:
    """This process's, with those settings of the proxy and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**kept, **{PREFIX + name.upper(): str(value) for name, value in settings.items()}}


class CollectorHost(Part):
    """`beacon-proxy serve` without a forwarder and a key, with a directory of its own for what the brokers cannot take."""

    def __init__(self, name: str, place: Path, spool: str, **settings: object) -> None:
        self.port, self.admin_port = ports.free(2)
        own = {"spool": spool, "fallback": f"sqlite:{place / name}", "forward": False}
        own |= {"port": self.port, "admin_port": self.admin_port}
        command = [sys.executable, "-m", "proxy", "serve"]
        super().__init__(name, command, place / f"{name}.log", environment(**{**own, **settings}))

    @property
    def status_page(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}/"

    def ready(self) -> bool:
        return says_ok(f"{self.status_page}readyz")


class ForwarderHost(Part):
    """`beacon-proxy forward`."""

    def __init__(self, name: str, place: Path, spool: str, upstream: str, **settings: object) -> None:
        own = {"api_key": KEY, "spool": spool, "fallback": "", "upstream": upstream, **settings}
        super().__init__(name, [sys.executable, "-m", "proxy", "forward"], place / f"{name}.log", environment(**own))
