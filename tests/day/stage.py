"""What stands on the stage of the day: the installed package, a service manager, nginx with TLS, a photographer."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import clean_environment, free_port, listening, wait_for

ROOT = Path(__file__).resolve().parents[2]
HOST = "www.example.com"
PREFIX = "/x7"


class Installation:
    """The package in a virtual environment of its own, and its later version."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.python = place / "venv" / "bin" / "python"
        self.command = str(place / "venv" / "bin" / "beacon-proxy")
        subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)

    def install(self, after: str = "") -> str:
        """Build a wheel of this checkout, with `after` at the end of its version, and install it; the version that it says."""
        source, dist = self._place / f"source{after}", self._place / f"dist{after}"
        ignored = shutil.ignore_patterns(".git", ".venv", "dist", "site", ".*_cache", ".bench-*", "__pycache__")
        shutil.copytree(ROOT, source, ignore=ignored)
        module = source / "proxy" / "__init__.py"
        lines = module.read_text().splitlines()
        module.write_text("\n".join(f'{line[:-1]}{after}"' if line.startswith("__version__") else line for line in lines) + "\n")
        run = {"check": True, "capture_output": True, "cwd": source}
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", dist], **run)  # type: ignore[call-overload]
        [wheel] = dist.glob("*.whl")
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", wheel]
        subprocess.run(pip, **run)  # type: ignore[call-overload]
        return subprocess.run([self.command, "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]

    def run(self, *arguments: str) -> str:
        """The command's standard output."""
        done = subprocess.run(
            [self.command, *arguments], check=True, capture_output=True, text=True, env=clean_environment(), cwd=self._place
        )
        return done.stdout


class Service:
    """The service, under a manager that holds its listening socket, as systemd does with the units in deploy/systemd."""

    def __init__(self, installation: Installation, config: Path, log: Path) -> None:
        self._installation, self._config, self._log = installation, config, log
        self.port = free_port()
        self._listener: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once: who connects before it is ready waits in the socket's queue."""
        self._listener = self._listener or socket.create_server(("127.0.0.1", self.port), backlog=1024)
        fd = self._listener.fileno()

        def hand_over() -> None:
            os.dup2(fd, 3, inheritable=True)

        # The variables must name the service's own process: so a shell sets them and becomes it.
        shell = ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"', self._installation.command]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*shell, "serve", "--config", str(self._config)],
                pass_fds=[3],
                preexec_fn=hand_over,
                env=clean_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """As `systemctl stop beacon-proxy.service`: the socket stays."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)
        self.process = None

    def reload(self) -> None:
        """As `systemctl reload`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def vanish(self) -> None:
        """The whole host is gone, with its socket."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None


class Nginx:
    """The real one, with deploy/nginx's files; only addresses, ports and paths are those of the stage."""

    def __init__(self, place: Path, collector: int) -> None:
        self._place = place
        self.port, plain = free_port(), free_port()
        self.lost = place / "beacon-lost.jsonl"
        self.certificate, key = place / "site.pem", place / "site.key"
        subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*made, "-keyout", key, "-out", self.certificate], check=True, capture_output=True)
        said = {
            "127.0.0.1:8000": f"127.0.0.1:{collector}",
            "listen [::]:80;": "",
            "listen [::]:443 ssl http2;": "",
            "listen 80;": f"listen 127.0.0.1:{plain};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2;",
            "/etc/letsencrypt/live/www.example.com/fullchain.pem": str(self.certificate),
            "/etc/letsencrypt/live/www.example.com/privkey.pem": str(key),
            "/etc/nginx/snippets/": f"{place}/",
            "/var/log/nginx/": f"{place}/",
            "/var/cache/nginx-beacon": f"{place}/cache",
            "/var/www/html": str(place),
            "rate=50r/s": "rate=100000r/s",  # the day's traffic comes from one address
            "burst=200": "burst=100000",
        }
        for name in ("beacon-http.conf", "beacon-location.conf", "example-server.conf"):
            text = (ROOT / "deploy" / "nginx" / name).read_text()
            for written, meant in said.items():
                text = text.replace(written, meant)
            (place / name).write_text(text)
        temp = "".join(f"{name}_temp_path {place}/t-{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (place / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; error_log {place}/nginx-error.log; pid {place}/nginx.pid;\n"
            f"events {{ worker_connections 1024; }}\nhttp {{ {temp}\n"
            f"include {place}/beacon-http.conf; include {place}/example-server.conf; }}\n"
        )
        self.process = subprocess.Popen(["nginx", "-p", str(place), "-c", str(place / "nginx.conf")])
        wait_for(lambda: listening(self.port), "nginx")

    def reopen_logs(self) -> Path:
        """As logrotate does; the log that was."""
        taken = self.lost.with_suffix(".1")
        self.lost.rename(taken)
        self.process.send_signal(signal.SIGUSR1)
        wait_for(self.lost.exists, "a new log")
        return taken

    def stop(self) -> None:
        """Ended."""
        self.process.terminate()
        self.process.wait(10)


class Photographer:
    """A headless browser, started for each picture, where there is one and somewhere to put them."""

    def __init__(self, pictures: Path | None, admin: int) -> None:
        self._pictures, self._admin = pictures, admin
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)

    def take(self, name: str, width: int = 1280, height: int = 900) -> None:
        """NAME.png."""
        browser = shutil.which("chromium")
        if self._pictures is None or browser is None:
            return
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            page = opened.new_page(viewport={"width": width, "height": height})
            page.goto(f"http://127.0.0.1:{self._admin}/")
            page.wait_for_timeout(4000)  # the charts fill
            page.screenshot(path=self._pictures / f"{name}.png", full_page=True)
            opened.close()
