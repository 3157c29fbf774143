"""nginx before the collectors, with the files of deploy/nginx: only ports, paths and the limit for one address are changed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from proxy.cli.cluster import Missing
from proxy.cli.cluster.part import Part
from proxy.cli.fallback_log import START
from proxy.paste.nginx import source

PREFIX = "/x7"
"""As in the files."""
ONE_SERVER = "    server 127.0.0.1:8000 max_fails=1 fail_timeout=2s;\n"
ELSEWHERE = "/usr/sbin:/usr/local/sbin"
"""Where Debian has it, and a user's PATH does not look."""
LOGS = "/var/log/nginx/"
ANY_RATE = {"rate=50r/s": "rate=100000r/s", "burst=200": "burst=100000", "beacon_connections 100": "beacon_connections 10000"}
"""All of the demo's traffic comes from one address."""
NGINX = """\
daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/error.log crit;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
    uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; access_log off;
    include {place}/beacon-http.conf;
    server {{
        listen 127.0.0.1:{port};
        large_client_header_buffers 4 64k;
        include {place}/beacon-location.conf;
        location / {{ proxy_pass http://127.0.0.1:{shop}; }}
    }}
}}
"""


def program() -> str:
    """nginx's path. Raises Missing."""
    found = shutil.which("nginx") or shutil.which("nginx", path=ELSEWHERE)
    if found is None:
        raise Missing(
            "nginx is not on this machine; install it with your system's packages (Debian: apt-get install nginx-light)"
        )
    return found


class Front(Part):
    """One nginx, one process."""

    def __init__(self, place: Path, port: int, collectors: Sequence[int], shop: int) -> None:
        directory = place / "nginx"
        directory.mkdir()
        self._pid = directory / "nginx.pid"
        self.kept = directory / "beacon-lost.jsonl"
        """What no collector took, for `ingest`."""
        servers = "".join(ONE_SERVER.replace("8000", str(collector)) for collector in collectors)
        for name in ("beacon-http.conf", "beacon-location.conf"):
            text = source(name).replace(ONE_SERVER, servers).replace(LOGS, f"{directory}/")
            for written, meant in ANY_RATE.items():
                text = text.replace(written, meant)
            (directory / name).write_text(text)
        config = directory / "nginx.conf"
        config.write_text(NGINX.format(place=directory, port=port, shop=shop))
        super().__init__(
            "nginx",
            [program(), "-p", str(directory), "-c", str(config), "-e", str(directory / "error.log")],
            directory / "said.log",
        )

    def ready(self) -> bool:
        """Whether the port is this nginx's, and not somebody else's who answers there: it writes its number once it listens."""
        return self._pid.exists()

    def kept_lines(self) -> int:
        """Records, which may have newlines at both ends."""
        return self.kept.read_bytes().count(START) if self.kept.exists() else 0
