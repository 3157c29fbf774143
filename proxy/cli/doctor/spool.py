"""Where beacons wait on this host, the spool's directory or the fallback's: whose it is, who may read it, on what it lies, and
whether there is room. Before it the servers, where the spool is theirs.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from proxy.cli.doctor import servers
from proxy.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from proxy.cli.doctor.installation import Installation
from proxy.cli.options import Runs
from proxy.spool import fallback_pending, spool_bytes
from proxy.spool.port import SpoolConfig, beacons_wait
from proxy.spool.sqlite.database import version
from proxy.spool.sqlite.disk import RESERVE, Disk, mounted
from proxy.spool.sqlite.survey import held_logs

NETWORK = frozenset(
    (
        "nfs",
        "nfs3",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "afs",
        "gfs2",
        "ocfs2",
        "beegfs",
    )
)
FORGETFUL = frozenset(("tmpfs", "ramfs"))
LAYERED = frozenset(("overlay", "aufs"))
LEAST_FREE_BYTES = 64 * 1024**2
MIB = 1024**2
MOUNTS = Path("/proc/self/mountinfo")


def look(installation: Installation) -> Iterator[Finding]:
    place, fallback = installation.directory, installation.spool.fallback
    if installation.spool.url.startswith("nats:"):
        yield from servers.look(installation)
        if place is None:
            yield skipped("there is no fallback: what the servers do not take is answered 503 (setting fallback)")
            return
    if place is None:
        yield skipped("it is in memory: whatever stops the process loses it")
    elif fallback and installation.runs is Runs.FORWARD and not place.is_dir():
        yield ok(f"no beacon fell back on this host: there is no {place.absolute()}")
    elif not place.is_dir():
        yield wrong(
            f"there is none at {place.absolute()} yet",
            "start `beacon-proxy serve`, or run doctor with the service's settings and from its directory (setting "
            f"{'fallback' if fallback else 'spool'})",
        )
    else:
        yield ok(f"lanes run on SQLite {version()}, which keeps what it committed")
        yield rights(place)
        if MOUNTS.exists():
            yield file_system(place.resolve(), MOUNTS.read_text("utf-8", "replace"))
        else:
            yield skipped("on which file system it lies: this system does not say")
        yield from room(installation, place)
        if fallback:
            yield waits(fallback_pending(installation.spool), place)


def waits(n: int, place: Path) -> Finding:
    """So many beacons, in the fallback."""
    if not n:
        return ok(f"nothing waits in {place} for the servers")
    return warning(
        f"{beacons_wait(n)} in {place} until the servers take them",
        "`serve`, `forward` and the application move them as soon as the servers take them: if it lasts, their log says why",
    )


def rights(place: Path) -> Finding:
    """Visitors' data waits there."""
    found = place.stat()
    mode = stat.S_IMODE(found.st_mode)
    strangers = sorted({_name(path.stat().st_uid) for path in place.glob("lane-*.db") if path.stat().st_uid != found.st_uid})
    if strangers:
        owner = _name(found.st_uid)
        return wrong(f"{place} is {owner}'s, but holds files of {', '.join(strangers)}", f"chown -R {owner}: {place}")
    if mode & 0o077:
        who = "everybody" if mode & 0o007 else "its group"
        return wrong(
            f"{place} is open to {who} ({mode:04o}): visitors' data waits there",
            f"chmod 0700 {place} (systemd: StateDirectoryMode=0700)",
        )
    if os.geteuid() not in (0, found.st_uid):
        return wrong(f"{place} is {_name(found.st_uid)}'s, not this user's", f"run doctor as {_name(found.st_uid)}")
    return ok(f"{place} is {_name(found.st_uid)}'s alone ({mode:04o})")


def file_system(place: Path, mounts: str) -> Finding:
    """`mounts` is /proc/self/mountinfo (proc(5))."""
    best, kind = mounted(place, mounts)
    if kind in NETWORK or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs"):
        return wrong(
            f"it lies on a network file system ({kind}, mounted at {best}): SQLite's locks and fsync cannot be relied on there",
            "put the spool on a disk of this machine (setting spool)",
        )
    if kind in FORGETFUL:
        return warning(
            f"it lies in memory ({kind}, mounted at {best}): a restart of the machine loses it",
            "put it on a disk (setting spool)",
        )
    if kind in LAYERED or kind == "fuse.fuse-overlayfs":
        return warning(
            f"it lies in the container's own layer ({kind}): it is lost with the container",
            "mount a volume there, or name one (setting spool)",
        )
    return ok(f"on a local file system ({kind}, mounted at {best})")


def room(installation: Installation, place: Path) -> Iterator[Finding]:
    """max_bytes is a promise that the disk has to keep."""
    of = os.statvfs(place)
    free, used = of.f_bavail * of.f_frsize, spool_bytes(SpoolConfig(f"sqlite:{place}"))
    most = installation.settings.max_bytes
    disk = Disk(place, most)
    for held in held_logs(place, most):
        yield warning(held, "beacons are refused when it has taken the room there is (docs/reliability.md)")
    if not (place / RESERVE).exists():
        yield wrong(disk.stuck_reason(), "it goes on by itself then")
    elif free < LEAST_FREE_BYTES:
        yield wrong(f"the disk is full: {free // MIB:,} MiB free; beacons are refused", "make room on the disk")
    elif used >= most:
        yield wrong(
            f"{place} is full: {used // MIB:,} of {most // MIB:,} MiB; beacons are refused", "let it drain, or raise max_bytes"
        )
    elif free < most - used:
        yield warning(
            f"{free // MIB:,} MiB are free, but max_bytes lets the spool grow by {(most - used) // MIB:,} MiB more",
            "lower max_bytes, or give it a larger disk",
        )
    elif used > most * 0.8:
        yield warning(
            f"{used // MIB:,} of {most // MIB:,} MiB are used",
            "see why it does not drain (`beacon-proxy status`), or raise max_bytes",
        )
    else:
        yield ok(f"{used // MIB:,} MiB used of {most // MIB:,} MiB; {free // MIB:,} MiB are free on the disk")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
