"""The files under deploy/ and the Dockerfile: held against the programs and schemas that read them, and each other."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from conftest import DEADLINE_S, ProxyProcess, SandboxProcess, free_port, kill_tree, listening, need, wait_for

from proxy.cli.init import run as init
from proxy.settings import Settings, load

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMMAND = "/opt/beacon-proxy/bin/"
UNITS = sorted(path.name for path in (DEPLOY / "systemd").glob("beacon-proxy*.s*"))
DEFAULTS = Settings()


def unit(name: str) -> dict[str, list[str]]:
    """What a unit says, without its comments; a name may stand there several times."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            found.setdefault(line.partition("=")[0], []).append(line.partition("=")[2])
    return found


def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    """A misspelt directive is only warned of, and without effect: a hardening that is not there."""
    analyze = need("systemd-analyze", "systemd")
    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace(COMMAND, f"{Path(sys.executable).parent}/"))
    assert len(UNITS) == 3
    run = subprocess.run([analyze, "verify", *UNITS], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_systemd_rates_the_services_as_well_confined(name: str) -> None:
    """Exposure 2.0 of 10 at most; 5 would still be called medium."""
    analyze = need("systemd-analyze", "systemd")
    run = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", DEPLOY / "systemd" / name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout
    assert " OK " in run.stdout.splitlines()[-1]


def calls(group: str) -> set[str]:
    """The system calls of a systemd group."""
    found: set[str] = set()
    out = subprocess.run(
        [need("systemd-analyze", "systemd"), "syscall-filter", "--no-pager", group], capture_output=True, text=True, check=True
    )
    for word in (line.strip() for line in out.stdout.splitlines()[1:]):
        if word and not word.startswith("#"):
            found |= calls(word) if word.startswith("@") else {word}
    return found


UNWRITABLE_CODE = (
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"
)
"""PR_SET_MDWE, which is what MemoryDenyWriteExecute=yes asks of the kernel (since Linux 6.3)."""


def test_the_service_does_its_work_within_the_unit_s_confinement(sandbox: SandboxProcess, tmp_path: Path) -> None:
    """No system call that the filter forbids, no memory that is both written and executed, no other kind of socket."""
    said = unit("beacon-proxy.service")
    assert said["SystemCallFilter"] == ["@system-service", "~@privileged"]
    allowed = calls("@system-service") - calls("@privileged")
    port = free_port()
    trace = tmp_path / "trace"
    tracing = [need("strace", "strace"), "-f", "-qq", "-c", "-U", "name", "-o", trace]
    settings = {
        "API_KEY": "k",
        "UPSTREAM": sandbox.url,
        "SPOOL": f"sqlite:{tmp_path}/spool",
        "PORT": str(port),
        "ADMIN_PORT": "0",
    }
    run = subprocess.Popen(
        [*tracing, sys.executable, "-c", UNWRITABLE_CODE, sys.executable, "-m", "proxy", "serve"],
        env={"PATH": "/usr/bin:/bin", **{f"BEACON_PROXY_{name}": value for name, value in settings.items()}},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: run.poll() is not None or listening(port), "the proxy")
        assert run.poll() is None, run.stderr.read() if run.stderr else ""
        assert httpx.get(f"http://127.0.0.1:{port}/e?_n=confined&_p=me", timeout=20).status_code == 200
        sandbox.wait(1)
        supervisor = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0]
        subprocess.run(["kill", supervisor], check=True)
        run.wait(DEADLINE_S)
    finally:
        kill_tree(run.pid)
        run.wait()
    used = set(re.findall(r"^[a-z]\w+$", trace.read_text(), re.MULTILINE)) - {"syscall", "total"}
    assert {"accept4", "sched_setscheduler"} <= used
    assert used - allowed <= {"fchown"}  # SQLite's, where it is root: it gives its files to the owner of the directory


def test_a_stop_has_time_enough_wherever_it_is_asked_for() -> None:
    """Whoever is less patient than shutdown_grace kills what is still answering."""
    grace = DEFAULTS.shutdown_grace
    for name in UNITS:
        if name.endswith(".service"):
            assert int(unit(name)["TimeoutStopSec"][0]) > grace
    assert int(compose()["services"]["proxy"]["stop_grace_period"].removesuffix("s")) > grace
    [stateful] = of_kind("StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    pause = re.search(r"sleep\((\d+)\)", pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pause is not None
    assert pod["terminationGracePeriodSeconds"] > grace + int(pause[1])


def made(place: Path) -> Path:
    """The file that `init` makes, with which all documents begin."""
    file = place / "beacon-proxy.toml"
    init(file, "", True, False, None)
    return file


def test_the_unit_s_settings_are_settings(tmp_path: Path) -> None:
    """A wrong name would stop the service at its start."""
    file = made(tmp_path)
    for name in (name for name in UNITS if name.endswith(".service")):
        environment = dict(pair.split("=", 1) for pair in unit(name).get("Environment", []))
        assert Path(environment.pop("BEACON_PROXY_CONFIG", "beacon-proxy.toml")).name == "beacon-proxy.toml"
        assert load(file, environment).spool == "sqlite:%S/beacon-proxy"


def dockerfile() -> list[tuple[str, str]]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined]


def test_the_image_runs_the_command_itself_as_a_user_without_rights() -> None:
    """A shell in between would swallow SIGTERM; Kubernetes can tell only a number from root."""
    lines = dockerfile()
    last = dict(lines)
    assert last["ENTRYPOINT"] == '["beacon-proxy"]'
    assert last["CMD"] == '["serve"]'
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert 'CMD ["python"' in last["HEALTHCHECK"]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        name.removeprefix("./") for word, rest in lines if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    ]
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    return found


def test_compose_mounts_what_is_there_and_publishes_no_admin_port() -> None:
    """Docker makes an empty directory of a file that is missing, and the container fails far away from the cause."""
    file = compose()
    declared = {"volumes": set(file["volumes"]), "secrets": set(file["secrets"])}
    missing = []
    for service in file["services"].values():
        for source in (mount.split(":")[0] for mount in service.get("volumes", [])):
            if source.startswith("."):
                missing += [source] if not (DEPLOY / "compose" / source).exists() else []
            else:
                assert source in declared["volumes"]
        assert set(service.get("secrets", [])) <= declared["secrets"]
        assert all(not port.endswith(":8001") for port in service.get("ports", []))
        assert "latest" not in service["image"]
    assert missing == []
    proxy = file["services"]["proxy"]
    assert proxy["read_only"] is True
    assert "BEACON_PROXY_API_KEY" not in proxy["environment"]
    environment = {name: value for name, value in proxy["environment"].items() if name.startswith("BEACON_PROXY_")}
    settings = load(None, environment)
    [job] = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"proxy:{settings.admin_port}"]
    assert settings.admin_host == "0.0.0.0"


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[int], int]]:
    """Starts nginx with the files that compose mounts, only the places and ports changed; its port."""
    program = need("nginx", "nginx-light")
    started: list[subprocess.Popen[bytes]] = []

    def start(collector: int) -> int:
        port = free_port()
        beacon = tmp_path / "beacon"
        beacon.mkdir()
        moved = {
            "/var/log/nginx": str(tmp_path),
            "/var/cache/nginx-beacon": f"{tmp_path}/cache",
            "127.0.0.1:8000": f"127.0.0.1:{collector}",
        }
        moved |= {"/var/run/": f"{tmp_path}/", "/etc/nginx/beacon": str(beacon), "listen 80;": f"listen 127.0.0.1:{port};"}
        for path in [DEPLOY / "compose/nginx.conf", *(DEPLOY / "nginx").glob("beacon-*.conf")]:
            text = path.read_text()
            for old, new in moved.items():
                text = text.replace(old, new)
            (tmp_path if path.parent.name == "compose" else beacon).joinpath(path.name).write_text(text)
        command = [program, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "start.log", "-g", "daemon off;"]
        started.append(subprocess.Popen(command))
        wait_for(lambda: started[0].poll() is not None or listening(port), "nginx")
        assert started[0].poll() is None, (tmp_path / "start.log").read_text()
        return port

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def test_a_beacon_goes_through_the_nginx_of_compose(
    serve: Callable[..., ProxyProcess], sandbox: SandboxProcess, nginx: Callable[[int], int]
) -> None:
    """The whole way of `docker compose up`, but for the containers around it."""
    proxy = serve(prefix="/x7", address_property="_ip")
    port = nginx(proxy.port)
    forged = {"x-forwarded-for": "203.0.113.9"}
    assert httpx.get(f"http://127.0.0.1:{port}/x7/e?_n=Composed&_p=me", headers=forged, timeout=15).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{port}/", timeout=15).status_code == 404
    assert sandbox.wait(1)[0]["params"]["_ip"] == "127.0.0.1"


MASKED = ("/etc/nginx", "/var/cache", "/var/log", "/run")
"""Where nginx's container has something else than this machine."""


def as_a_container(service: dict[str, Any], collectors: Path) -> str:
    """Shell lines that make, in a mount namespace, what a container of that service sees there: all is read-only but what compose
    makes writable. `collectors` is a file that knows their addresses."""
    lines = [f"mount -t tmpfs none {place}" for place in MASKED]
    for mount in service["volumes"]:
        source, target = mount.split(":")[:2]
        if source.startswith("."):
            path = (DEPLOY / "compose" / source).resolve()
            lines.append(f"{'mkdir' if path.is_dir() else 'touch'} {target}; mount --bind -o ro {path} {target}")
        else:
            lines.append(f"mkdir {target}; mount -t tmpfs none {target}")
    for target in (place.replace("/var/run", "/run") for place in service["tmpfs"]):
        assert target.startswith(MASKED)  # nothing is made on the machine itself
        lines.append(f"mkdir -p {target}; mount -t tmpfs none {target}" if target != "/run" else ":")
    lines.append("mount --bind /var/cache/nginx /var/lib/nginx")  # where the image's nginx has its temporary files, and Debian's
    lines += [f"mount -o remount,ro {place}" for place in MASKED if place not in ("/run", *service["tmpfs"])]
    return "\n".join([*lines, f"mount --bind {collectors} /etc/hosts", ""])


@pytest.mark.parametrize("name", ["compose.yaml", "cluster.yaml"])
def test_nginx_starts_where_compose_lets_it_write_and_nowhere_else(name: str, tmp_path: Path) -> None:
    """Its root is read-only: a directory that its files name and compose does not make writable keeps it from starting."""
    for program, package in (("nginx", "nginx-light"), ("unshare", "util-linux")):
        need(program, package)
    service = yaml.safe_load((DEPLOY / "compose" / name).read_text())["services"]["nginx"]
    assert service["read_only"] is True
    (tmp_path / "hosts").write_text("127.0.0.1 collector-1 collector-2\n")
    [*_, command] = service.get("command", ["exec nginx -g 'daemon off;'"])
    assert "exec nginx -g 'daemon off;'" in command
    script = as_a_container(service, tmp_path / "hosts") + command.replace("nginx -g 'daemon off;'", "nginx -t -g 'user root;'")
    # In namespaces of its own it may do all that (but there is one user), and the machine sees none of it.
    apart = ["unshare", "--mount", "--net", "--map-root-user", "/bin/sh", "-ec"]
    if subprocess.run([*apart, "mount -t tmpfs none /run"], capture_output=True, timeout=20).returncode:
        pytest.skip("this machine lets nobody have namespaces")
    run = subprocess.run([*apart, script], capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr


def manifests() -> list[dict[str, Any]]:
    return [found for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [found for found in manifests() if found["kind"] == kind]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda found: f"{found['kind']} {found['metadata']['name']}")
def test_a_manifest_is_what_kubernetes_understands(manifest: dict[str, Any]) -> None:
    """A misspelt field is ignored by some servers: a probe or a limit that is not there."""
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        pytest.skip("no schema is shipped for ServiceMonitor; its shape is looked at below")
    kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_the_manifests_agree_with_each_other_and_with_the_settings(tmp_path: Path) -> None:
    """Names in one file mean something in another; no schema sees that."""
    [stateful] = of_kind("StatefulSet")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    pod = stateful["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {variable["name"]: str(variable["value"]) for variable in container["env"]}
    config = Path(environment.pop("BEACON_PROXY_CONFIG"))
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}["settings"] == str(config.parent)
    settings = load(made(tmp_path), environment)
    assert settings.spool == "sqlite:/spool/beacons"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.port, "admin": settings.admin_port}
    services = {service["metadata"]["name"]: service for service in of_kind("Service")}
    assert stateful["spec"]["serviceName"] in services
    selectors = [service["spec"]["selector"] for service in services.values()]
    selectors += [found["spec"]["selector"]["matchLabels"] for found in (stateful, *of_kind("PodDisruptionBudget"))]
    selectors += [found["spec"]["podSelector"]["matchLabels"] for found in of_kind("NetworkPolicy")]
    assert [selector for selector in selectors if not selector.items() <= labels.items()] == []
    assert [port["targetPort"] for port in services["beacon-proxy"]["spec"]["ports"]] == ["http"]
    key = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}["api-key"]
    assert settings.api_key is None
    assert str(settings.api_key_file) == f"{key}/api_key"
    storage = stateful["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert int(storage.removesuffix("Gi")) * 1024**3 > settings.max_bytes
    user = pod["securityContext"]["runAsUser"]
    assert dict(dockerfile())["USER"] == f"{user}:{pod['securityContext']['runAsGroup']}"
    assert {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness")} == {"/healthz"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_prometheus_alone_reaches_the_admin_port() -> None:
    """It holds no secret, but says how much is going on; and it finds what the ServiceMonitor names."""
    [policy] = of_kind("NetworkPolicy")
    rules = {port["port"]: rule for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert set(rules) == {"http", "admin"}
    assert rules["admin"]["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    [monitor] = of_kind("ServiceMonitor")
    assert set(monitor["spec"]) == {"jobLabel", "selector", "endpoints"}
    wanted = monitor["spec"]["selector"]["matchLabels"]
    [seen] = [found for found in of_kind("Service") if wanted.items() <= found["metadata"]["labels"].items()]
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [port["name"] for port in seen["spec"]["ports"]]
    assert seen["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "beacon-proxy"  # the job's name in the alert rules
