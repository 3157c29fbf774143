"""The files for many machines: deploy/compose/cluster.yaml and deploy/kubernetes/cluster, held against what reads them."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import free_port, need
from nats_server import BINARY
from test_deploy import COMMAND, DEFAULTS, DEPLOY, ROOT, dockerfile, made
from test_deploy import manifests as single

from proxy.cli.check import describe
from proxy.settings import Settings, load
from proxy.spool.jetstream.address import Address, parse

SYSTEMD = (ROOT / "docs/systemd.md").read_text()
CLUSTER = DEPLOY / "kubernetes/cluster"


def settings_of(environment: dict[str, str]) -> Settings:
    return load(None, {name: value for name, value in environment.items() if name.startswith("BEACON_")})


def servers(address: Address) -> list[str]:
    return [server.removeprefix("nats://").rpartition(":")[0] for server in address.servers]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/cluster.yaml").read_text())
    return found


def test_compose_names_what_is_there() -> None:
    """Docker makes an empty directory of a file that is missing; a secret or volume that is not declared stops it."""
    file = compose()
    for name, service in file["services"].items():
        for source in (mount.split(":")[0] for mount in service.get("volumes", [])):
            assert (DEPLOY / "compose" / source).exists() if source.startswith(".") else source in file["volumes"]
        assert set(service.get("secrets", [])) <= set(file["secrets"])
        assert set(service.get("depends_on", {})) <= set(file["services"])
        assert "latest" not in service["image"]
        assert service["read_only"] is True
        assert service.get("ports", []) == (["8080:80"] if name == "nginx" else [])


def test_the_settings_of_compose_are_settings_and_only_forwarders_hold_the_key() -> None:
    """Every broker is named, each collector has a volume of its own, and a stop has time enough."""
    services = compose()["services"]
    collectors = {name: service for name, service in services.items() if name.startswith("collector-")}
    forwarders = {name: service for name, service in services.items() if name.startswith("forwarder-")}
    brokers = [name for name in services if name.startswith("nats-")]
    assert (len(collectors), len(forwarders), len(brokers)) == (2, 2, 3)
    assert len({service["volumes"][0] for service in collectors.values()}) == 2
    for service in (*collectors.values(), *forwarders.values()):
        settings = settings_of(service["environment"])
        address = parse(settings.spool)
        assert (servers(address), address.replicas, address.token_file) == (brokers, 3, "/run/secrets/nats_token")
        assert "nats_token" in service["secrets"]
        assert int(service["stop_grace_period"].removesuffix("s")) > DEFAULTS.shutdown_grace
    assert not any("api_key" in service["secrets"] for service in collectors.values())
    assert all(str(settings_of(service["environment"]).api_key_file) == "/run/secrets/api_key" for service in forwarders.values())
    assert all(service["command"] == ["forward"] for service in forwarders.values())


def test_nats_server_takes_the_configuration_of_compose(tmp_path: Path) -> None:
    """The secret too is found from there."""
    (tmp_path / "etc/nats").mkdir(parents=True)
    (tmp_path / "run/secrets").mkdir(parents=True)
    (tmp_path / "etc/nats/nats.conf").write_text((DEPLOY / "compose/nats.conf").read_text())
    (tmp_path / "run/secrets/nats_login").write_text('token: "s3cret"\n')
    command = [BINARY, "-t", "-c", tmp_path / "etc/nats/nats.conf"]
    run = subprocess.run(command, env={"NATS_NAME": "nats-1"}, capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr
    routes = re.findall(r"nats://([^:]+):6222", (DEPLOY / "compose/nats.conf").read_text())
    assert routes == [name for name in compose()["services"] if name.startswith("nats-")]


def test_nginx_takes_what_the_command_of_compose_makes_of_the_files(tmp_path: Path) -> None:
    """Both collectors are in it, and only they."""
    program = need("nginx", "nginx-light")
    [shell, option, script] = compose()["services"]["nginx"]["command"]
    made = tmp_path / "beacon"
    made.mkdir()
    lines = (
        script.rpartition("exec ")[0]
        .replace("/etc/nginx/original", str(DEPLOY / "nginx"))
        .replace("/etc/nginx/beacon", str(made))
    )
    subprocess.run([shell, option, lines], check=True, timeout=10)
    text = (made / "beacon-http.conf").read_text()
    assert re.findall(r"^ *server (\S+)", text, re.MULTILINE) == ["collector-1:8000", "collector-2:8000"]
    (made / "beacon-http.conf").write_text(re.sub(r"collector-\d", "127.0.0.1", text))
    moved = {"/var/log/nginx": str(tmp_path), "/var/run/": f"{tmp_path}/", "/etc/nginx/beacon": str(made)}
    for path in (DEPLOY / "compose/nginx.conf", made / "beacon-location.conf"):
        text = path.read_text().replace("listen 80;", f"listen 127.0.0.1:{free_port()};")
        for old, new in moved.items():
            text = text.replace(old, new)
        (tmp_path if path.parent.name == "compose" else made).joinpath(path.name).write_text(text)
    command = [program, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "start.log"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr


UNITS = {"collector": "beacon-proxy.service", "forwarder": "beacon-proxy-forward.service"}


@pytest.fixture(params=UNITS.items(), ids=UNITS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A kind of host, and its unit, with the drop-in where systemd looks for it."""
    kind, name = request.param
    for unit in (DEPLOY / "systemd").glob("beacon-proxy*.s*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace(COMMAND, f"{Path(sys.executable).parent}/"))
    (tmp_path / f"{name}.d").mkdir()
    shutil.copy(DEPLOY / f"systemd/cluster/{kind}.conf", tmp_path / f"{name}.d/cluster.conf")
    return kind, tmp_path / name


def test_systemd_finds_nothing_to_say_about_the_units_of_many_machines(host: tuple[str, Path]) -> None:
    """Drop-ins are read with the unit; a misspelt directive would be without effect."""
    _, unit = host
    command = [need("systemd-analyze", "systemd"), "verify", unit.name]
    run = subprocess.run(command, cwd=unit.parent, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_units_of_many_machines_leave_spool_and_key_to_whom_they_belong(host: tuple[str, Path], tmp_path: Path) -> None:
    """What the unit for one machine sets would win over the file: the beacons would wait for a forwarder that is not there."""
    kind, unit = host
    said: dict[str, list[str]] = {}
    for file in (unit, *Path(f"{unit}.d").iterdir()):
        for name, value in re.findall(r"^(\w+)=(.*)", file.read_text(), re.MULTILINE):
            said[name] = [*said.get(name, []), value] if value else []  # as systemd has it
    credentials = dict(credential.split(":") for credential in said["LoadCredential"])
    environment = dict(pair.split("=", 1) for pair in said["Environment"])
    assert environment.pop("BEACON_PROXY_CONFIG") == "/etc/beacon-proxy/beacon-proxy.toml"
    [written] = [
        block for block in re.findall(r"(?:^    .+\n)+", SYSTEMD, re.MULTILINE) if f"/run/credentials/{unit.name}/" in block
    ]
    (tmp_path / "beacon-proxy.toml").write_text(textwrap.dedent(written))
    settings = load(tmp_path / "beacon-proxy.toml", environment)
    address = parse(settings.spool)
    assert address.replicas == 3
    assert address.token_file == f"/run/credentials/{unit.name}/nats_token"
    assert settings.forward is (kind == "forwarder")
    assert settings.fallback == ("sqlite:/var/lib/beacon-proxy/fallback" if kind == "collector" else "")
    assert set(credentials) == ({"nats_token"} if kind == "collector" else {"nats_token", "api_key"})
    assert (str(settings.api_key_file) == "%d/api_key") is (kind == "forwarder")
    assert (said["DynamicUser"][-1], said["User"][-1]) == ("yes", "beacon-proxy")


def manifests() -> list[dict[str, Any]]:
    """What `kubectl apply -f deploy/kubernetes/cluster/` takes: each file of the directory, and none below it."""
    return [found for path in sorted(CLUSTER.glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [found for found in manifests() if found["kind"] == kind]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda found: f"{found['kind']} {found['metadata']['name']}")
def test_a_manifest_of_the_cluster_is_what_kubernetes_understands(manifest: dict[str, Any]) -> None:
    """A misspelt field is ignored by some servers: a probe or a limit that is not there."""
    kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_the_manifests_of_the_cluster_agree_with_each_other_and_with_the_settings(tmp_path: Path) -> None:
    """Names in one file mean something in another; no schema sees that."""
    [collectors], [forwarders] = of_kind("StatefulSet"), of_kind("Deployment")
    file = made(tmp_path)
    values = yaml.safe_load((CLUSTER / "nats/values.yaml").read_text())
    for workload in (collectors, forwarders):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        pod = workload["spec"]["template"]["spec"]
        [container] = pod["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        config = Path(environment.pop("BEACON_PROXY_CONFIG"))
        settings = load(file, environment)
        address = parse(settings.spool)
        assert servers(address) == [f"nats-{n}.nats-headless" for n in range(values["config"]["cluster"]["replicas"])]
        secret = values["container"]["env"]["NATS_TOKEN"]["valueFrom"]["secretKeyRef"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert address.token_file == f"{mounts['nats-token']}/{secret['key']}"
        assert mounts["settings"] == str(config.parent)
        assert {"name": "settings", "configMap": {"name": "beacon-proxy"}} in pod["volumes"]
        secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        assert secrets["nats-token"] == secret["name"]
        component = {
            "app.kubernetes.io/name": "beacon-cluster",
            "app.kubernetes.io/component": labels["app.kubernetes.io/component"],
        }
        name = workload["metadata"]["name"]
        selectors = [workload["spec"]["selector"]["matchLabels"]]
        selectors += [found["spec"]["selector"]["matchLabels"] for found in of_kind("PodDisruptionBudget") if name in str(found)]
        selectors += [found["spec"]["podSelector"]["matchLabels"] for found in of_kind("NetworkPolicy") if name in str(found)]
        assert selectors == [component] * 3
        user = pod["securityContext"]
        assert dict(dockerfile())["USER"] == f"{user['runAsUser']}:{user['runAsGroup']}"
        assert pod["terminationGracePeriodSeconds"] > settings.shutdown_grace + ("preStop" in str(container)) * 5
        assert ("api-key" in secrets) == (workload is forwarders)
        assert settings.fallback == ("sqlite:/spool/fallback" if workload is collectors else "")
    assert settings.api_key_file is not None
    assert forwarders["spec"]["template"]["spec"]["containers"][0]["args"] == ["forward"]
    services = {service["metadata"]["name"]: service for service in of_kind("Service")}
    assert collectors["spec"]["serviceName"] in services
    assert [port["targetPort"] for port in services["beacon-collector"]["spec"]["ports"]] == ["http"]


def test_the_cluster_and_the_single_installation_leave_each_other_s_pods_alone() -> None:
    """They may stand side by side, when one moves to many. A pod of two disruption budgets can't be evicted, and what a Service
    or a policy selects too much of gets beacons, or is shut off."""

    def pods(found: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [one["spec"]["template"]["metadata"]["labels"] for one in found if one["kind"] in ("StatefulSet", "Deployment")]

    def selectors(found: list[dict[str, Any]]) -> list[dict[str, str]]:
        """None is of a ServiceMonitor, which selects Services."""
        specs = [one["spec"] for one in found if one["kind"] != "ServiceMonitor"]
        chosen = [spec.get("podSelector", spec.get("selector")) for spec in specs]
        return [one.get("matchLabels", one) for one in chosen]

    for one, other in ((manifests(), single()), (single(), manifests())):
        assert len(selectors(one)) > 3
        assert [selector for selector in selectors(one) for labels in pods(other) if selector.items() <= labels.items()] == []


def test_one_service_monitor_finds_both() -> None:
    """By the labels of the Services that hold the admin port; the job is the one that the alerts look for."""
    [monitor] = [found for found in single() if found["kind"] == "ServiceMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [found for found in single() + manifests() if found["kind"] == "Service"]
    seen = {found["metadata"]["name"] for found in services if wanted <= found["metadata"]["labels"].items()}
    assert seen == {"beacon-proxy-headless", "beacon-collector-headless"}


def test_the_brokers_have_room_for_more_than_the_collectors_store() -> None:
    """A store that is full takes no word of what was delivered either; and a volume that is full stops the broker."""

    def in_bytes(size: str) -> float:
        number, unit = re.fullmatch(r"(\d+)(Gi|GiB|GB)", size).groups()  # type: ignore[union-attr]
        return int(number) * (1000**3 if unit == "GB" else 1024**3)

    [collectors] = of_kind("StatefulSet")
    environment = {
        variable["name"]: variable["value"] for variable in collectors["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    store = yaml.safe_load((CLUSTER / "nats/values.yaml").read_text())["config"]["jetstream"]["fileStore"]
    assert in_bytes(store["pvc"]["size"]) >= 1.25 * in_bytes(store["maxSize"])
    assert in_bytes(store["maxSize"]) >= 1.25 * in_bytes(environment["BEACON_PROXY_MAX_BYTES"])
    [most] = re.findall(r"max_file_store: (\w+)", (DEPLOY / "compose/nats.conf").read_text())
    assert in_bytes(most) >= 1.25 * DEFAULTS.max_bytes


def test_the_image_holds_what_the_brokers_need() -> None:
    """The client of the brokers is an extra of the package."""
    assert any("'.[nats]'" in rest for word, rest in dockerfile() if word == "RUN")


@pytest.mark.parametrize(
    ("spool", "warned"), [("nats://a", False), ("nats://a,b", True), ("nats://a,b,c", False), ("nats://a,b,c?replicas=1", True)]
)
def test_check_warns_where_one_of_several_brokers_keeps_all(spool: str, warned: bool) -> None:
    """Whoever names several wants to survive the death of one. Three are three replicas unasked."""
    assert ("WARNING: with replicas=1" in describe(Settings(spool=spool, forward=False))) is warned
