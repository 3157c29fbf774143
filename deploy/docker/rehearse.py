"""The Dockerfile without Docker: each of its lines is carried out in a bare Debian root, and its command then run there.

As in a container the command is process 1, without the host's network, as the image's user, on a root that is read-only but for
the volume. `make rehearse-docker`; needs root, debootstrap, and Debian's archive for the base (kept in /var/tmp).
What differs from a real build: the base is Debian with its own Python, not the image that FROM names.
"""

import ctypes
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

CONTEXT = Path(__file__).parents[2]
BASE = Path("/var/tmp/beacon-proxy-rehearsal-base")
INCLUDE = "python3,python3-pip,python3-venv,ca-certificates"
CLONE_NEWNET = 0x40000000
KEY = "rehearsal-key"
PLACE = Path("/mnt")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(word) for word in command], check=True, **options)  # type: ignore[call-overload, no-any-return]


def base() -> Path:
    """A minimal Debian with Python, made once."""
    if not BASE.exists():
        archive = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI)",
                "Created-By: Packages",
                "Component: main",
                "Codename: bookworm",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0]
        unfinished = BASE.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        run(
            "debootstrap", "--variant=minbase", f"--include={INCLUDE}", "bookworm", unfinished, archive, stdout=subprocess.DEVNULL
        )
        (unfinished / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        unfinished.rename(BASE)
    return BASE


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Stage:
    """One FROM and what follows it."""

    def __init__(self, place: Path) -> None:
        for name in ("upper", "work", "root"):
            (place / name).mkdir(parents=True)
        self.root, self.upper = place / "root", place / "upper"
        layers = f"lowerdir={base()},upperdir={self.upper},workdir={place / 'work'}"
        run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        run("mount", "-t", "proc", "proc", self.root / "proc")
        run("mount", "-t", "tmpfs", "tmpfs", self.root / "dev")
        for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
            run("mknod", "-m", "666", self.root / "dev" / name, "c", "1", str(minor))
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.directory, self.user, self.volumes = "/", "0:0", list[str]()
        self.entrypoint, self.command, self.health = list[str](), list[str](), list[str]()

    def inside(self, *command: str, environment: dict[str, str] | None = None) -> list[str]:
        """The command as it is run in the image."""
        variables = [f"{name}={value}" for name, value in {**self.environment, **(environment or {})}.items()]
        root = ["chroot", f"--userspec={self.user}", str(self.root), "env", "--chdir", self.directory, "-i"]
        return [*root, *variables, *command]

    def carry_out(self, instruction: str, rest: str, stages: dict[str, "Stage"]) -> None:
        if instruction == "RUN":
            # The machine's own way to the package index, as a build host would have it.
            for path in map(Path, ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")):
                if path.exists():
                    shutil.copy(path, self.root / path.relative_to("/"))
            own = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_FIND_LINKS"}
            run(*self.inside("sh", "-c", rest, environment=own))
        elif instruction == "COPY":
            *sources, target = rest.split()
            from_root = CONTEXT
            if sources[0].startswith("--from="):
                from_root = stages[sources.pop(0).removeprefix("--from=")].root
            for source in sources:
                self._copy(from_root, source, self.root / os.path.join(self.directory, target).lstrip("/"), target.endswith("/"))
        elif instruction == "WORKDIR":
            self.directory = rest
            (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            for word in shlex.split(rest):
                name, _, value = word.partition("=")
                self.environment[name] = value.replace("$PATH", self.environment["PATH"])
        elif instruction == "USER":
            self.user = rest
        elif instruction == "VOLUME":
            self.volumes.append(rest)
        elif instruction == "ENTRYPOINT":
            self.entrypoint = json.loads(rest)
        elif instruction == "CMD":
            self.command = json.loads(rest)
        elif instruction == "HEALTHCHECK":
            self.health = json.loads(rest.partition("CMD ")[2])
        elif instruction not in ("EXPOSE", "LABEL", "STOPSIGNAL"):
            raise SystemExit(f"rehearse: {instruction} is not understood")

    def _copy(self, from_root: Path, source: str, target: Path, into: bool) -> None:
        found = from_root / source.lstrip("/")
        if from_root == CONTEXT and f"!{source.removeprefix('./')}" not in (CONTEXT / ".dockerignore").read_text().split():
            raise SystemExit(f"rehearse: {source} is kept out of the build by .dockerignore")
        if found.is_dir():
            shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(found, target / found.name if into else target)


def build(place: Path) -> Stage:
    """Carry out the Dockerfile; the last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for instruction, rest in instructions((CONTEXT / "Dockerfile").read_text()):
        print(f"    {instruction} {rest[:110]}", flush=True)
        if instruction == "FROM":
            name = rest.partition(" AS ")[2] or str(len(stages))
            stage = stages[name] = Stage(place / name)
        else:
            assert stage is not None
            stage.carry_out(instruction, rest, stages)
    assert stage is not None
    return stage


def say(what: str, good: bool) -> None:
    print(f"{'ok  ' if good else 'FAIL'} {what}", flush=True)
    if not good:
        sys.exit(1)


def answers(url: str) -> int:
    """The status; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until(what: str, condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            say(what, False)
        time.sleep(0.05)
    say(what, True)


def rehearse(place: Path) -> None:
    """Build, then run as a container is run."""
    image = build(place)
    size = subprocess.run(["du", "-sm", str(image.upper)], capture_output=True, text=True, check=True).stdout.split()[0]
    print(f"     {size} MB on top of the base")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("rehearse: no network of its own can be had; run as root")
    run("ip", "link", "set", "lo", "up")
    for name in image.volumes:
        there = image.root / name.lstrip("/")
        owner, volume = there.stat(), place / "volume"
        volume.mkdir(mode=0o700)
        os.chown(volume, owner.st_uid, owner.st_gid)
        run("mount", "--bind", volume, there)
    uid, gid = map(int, image.user.split(":"))
    secret = image.root / "run/secrets/api_key"
    secret.parent.mkdir(parents=True)
    secret.write_text(KEY + "\n")
    secret.chmod(0o400)
    os.chown(secret, uid, gid)
    run("mount", "-o", "remount,ro", image.root)

    vendor = subprocess.Popen([sys.executable, "-m", "proxy.sandbox", "--port", "9000"], cwd=CONTEXT)
    settings = {"BEACON_PROXY_API_KEY_FILE": "/run/secrets/api_key", "BEACON_PROXY_UPSTREAM": "http://127.0.0.1:9000"}
    command = image.inside(*image.entrypoint, *image.command, environment=settings)
    outer = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *command])
    try:
        public, admin = "http://127.0.0.1:8000", "http://127.0.0.1:8001"
        until("ready within 20 s", lambda: answers(f"{admin}/readyz") == 200)
        say(f"it runs as uid {uid}", Path(f"/proc/{first(outer.pid)}").stat().st_uid == uid)
        say("the root is read-only", subprocess.run(image.inside("touch", "/app/x"), capture_output=True).returncode != 0)
        say("HEALTHCHECK is content", subprocess.run(image.inside(*image.health)).returncode == 0)
        say("a beacon is answered 200", answers(f"{public}/e?_n=Rehearsed&_p=me") == 200)
        until("it reaches the vendor with the key from the secret's file", lambda: KEY in received())
        began = time.monotonic()
        os.kill(first(outer.pid), 15)
        status = outer.wait(15)
        say(f"SIGTERM ends it with status 0, after {time.monotonic() - began:.1f} s", status == 0)
        say(
            "HEALTHCHECK is not content any more",
            subprocess.run(image.inside(*image.health), capture_output=True).returncode != 0,
        )
        written = sorted(path.name for path in (place / "volume").iterdir())
        say(f"the volume holds the spool: {', '.join(written)}", "lane-0000.db" in written)
    finally:
        outer.kill()
        vendor.kill()


def first(outer: int) -> int:
    """Process 1 of the container, as this machine counts."""
    return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])


def received() -> str:
    with urllib.request.urlopen("http://127.0.0.1:9000/received", timeout=5) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    if "--here" not in sys.argv:  # first into a view of the mounts that ends with this process
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, "--here"])
    # A file system of its own, on a mount point that every machine has. All of it is gone with the view: nothing is ever deleted
    # from a tree in which something of the machine may be mounted.
    run("mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", PLACE)
    rehearse(PLACE)
    print("The Dockerfile works.")
