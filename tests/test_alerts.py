"""What is deployed beside the proxy for those who watch it: alert rules, scrape configuration, dashboard. Each is tried with the
program it is for, where there is one, and held against what `/metrics` and the documentation really have."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import need

from proxy.admin.config import AdminConfig
from proxy.admin.metrics import OWN, Reading, Seen, exposition
from proxy.admin.report import Report, StatsReport, UpstreamReport
from proxy.histogram import SECONDS, Histogram
from proxy.spool.port import IntakeStats, Ledger, SpoolConfig

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [rule["expr"] for rule in RULES]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def filled(query: str, job: str = ".+") -> str:
    """With the variables' values, as Grafana asks."""
    return re.sub(r"\$\w+", ".+", query.replace("$__rate_interval", "5m").replace("$job", job))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([need("promtool", "prometheus"), *arguments], capture_output=True, text=True, timeout=60)


def scrape(spool: str) -> str:
    """One that holds every name there is."""
    stats = StatsReport({"200": 1}, Histogram(SECONDS), Histogram(SECONDS))
    told = Report(0, {"http://vendor.example": UpstreamReport("closed", stats=stats)})
    seen = Seen(Ledger({}, 0, None), told, IntakeStats(), 0, 0)
    return exposition(Reading(AdminConfig(SpoolConfig(spool), ("default",)), 0.0, True, seen)).decode()


def exposed() -> set[str]:
    """Every name that a scrape can hold."""
    return set(re.findall(r"^(beacon_proxy_\w+)", scrape("memory:"), re.MULTILINE))


def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    """By Prometheus' own tool; the configuration's check reads the rules, too."""
    done = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_the_rules_fire_when_they_should_and_not_otherwise() -> None:
    """Prometheus' own unit tests of rules: series in, alerts out."""
    done = promtool("test", "rules", PROMETHEUS / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_a_rule_that_never_fired_would_be_noticed(alert: str, tmp_path: Path) -> None:
    """Each rule is tested: with that one silenced, the unit tests fail."""
    text = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    [rule] = [rule for rule in text["groups"][0]["rules"] if rule["alert"] == alert]
    rule["expr"] = "vector(0) == 1"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(text))
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())
    tests["tests"] = [test for test in tests["tests"] if alert in yaml.safe_dump(test)]  # the others only take time
    (tmp_path / "alerts_test.yml").write_text(yaml.safe_dump(tests))
    assert promtool("test", "rules", tmp_path / "alerts_test.yml").returncode == 1


def test_alerts_and_dashboard_ask_only_for_what_is_exposed() -> None:
    """A metric that was renamed would leave a panel empty and an alert silent for ever."""
    names = exposed()
    asked = {
        name
        for query in [*QUERIES, json.dumps(DASHBOARD["templating"]), *EXPRESSIONS]
        for name in re.findall(r"beacon_proxy_\w+", query)
    }
    assert asked - names == set()
    families = {re.sub(r"_(total|info|bucket|sum|count)$", "", name) for name in names}
    shown = {re.sub(r"_(total|info|bucket|sum|count)$", "", name) for name in asked}
    assert families - shown == set(), "on the dashboard or in an alert there is everything that is exposed"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    """Whoever is woken at night knows nothing of this proxy."""
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert len(notes["summary"]) < 90
    assert notes["description"].endswith(".")
    page, _, anchor = notes["runbook_url"].rpartition("#")
    assert page.endswith("/operations/")
    assert anchor == rule["alert"].lower()
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert rule["alert"] in headings


def test_the_dashboard_can_be_imported() -> None:
    """An id of its own, the data source a variable, each panel once and in a place of its own."""
    assert DASHBOARD["uid"] == "beacon-proxy"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    used = set(re.findall(r"\$(\w+)", " ".join(QUERIES))) - {"__rate_interval"}
    assert used <= set(variables)


def test_the_dashboards_queries_can_be_read(tmp_path: Path) -> None:
    """By Prometheus' own parser, once the variables have values."""
    rules = []
    for query in QUERIES:
        rules.append({"record": f"q:{len(rules)}", "expr": filled(query)})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", tmp_path / "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def series(job: str, instance: str, spool: str) -> list[dict[str, str]]:
    """What Prometheus has of a host for ten minutes. All rises, so that all has a rate; a wide bucket faster than a narrow."""
    found = []
    for name, labels in re.findall(r"^(beacon_proxy_\w+)(?:{(.*)})? ", scrape(spool), re.MULTILINE):
        whose = ",".join(filter(None, (f'job="{job}",instance="{instance}"', labels)))
        step = 60 if 'le="+Inf"' in labels or name.endswith("_count") else 30
        found.append({"series": f"{name}{{{whose}}}", "values": f"0+{step}x10"})
    return found


def test_the_dashboard_counts_a_beacon_once_however_many_hosts_tell_of_the_spool(tmp_path: Path) -> None:
    """Over NATS each host tells the whole ledger: two hosts make of it what one does. Two embedded spools are two."""
    told = series("one", "a", "nats://n?stream=shop")
    for instance in "bc":
        told += series("two", instance, "nats://n?stream=shop") + series("embedded", instance, "sqlite:spool")
    tests = []
    for query in QUERIES:
        one, two, embedded = (filled(query, job=job) for job in ("one", "two", "embedded"))
        if not any(name in query for name in OWN):
            tests.append(f"count(({two}) == ignoring (job) ({one})) == bool count({one})")
        if "received_total" in query:
            tests.append(f"sum({embedded}) == bool 2 * sum({one})")
    assert len(tests) > 25
    true = [{"expr": test, "eval_time": "8m", "exp_samples": [{"labels": "{}", "value": 1}]} for test in tests]
    text = yaml.safe_dump({"tests": [{"interval": "1m", "input_series": told, "promql_expr_test": true}]})
    (tmp_path / "test.yml").write_text(text)
    done = promtool("test", "rules", tmp_path / "test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
