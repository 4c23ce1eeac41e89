"""`ops/`: the dashboard, the alert rules and their tests load in the real tools and name only published metrics.

The page that documents the alerts is held to the same metrics and rules.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.journeys.conftest import free_port, wait_for

METRIC = re.compile(r"\b(?:denoised|process)_[a-z0-9_]+\b")
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (Debian: apt install prometheus)")


@pytest.fixture(scope="module")
def ops(repository: Path) -> Path:
    return repository / "ops"


@pytest.fixture(scope="module")
def dashboard(ops: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ops / "grafana-dashboard.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def rules(ops: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((ops / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def published(service: Any) -> set[str]:
    """Names of the samples that a service publishes once it has done a job and reported its speed."""
    with service.client() as client:
        client.post("/generate", json={"model": "digits", "steps": 2}, headers={"Prefer": "wait=60"})
        wait_for(lambda: "denoised_drain_seconds{" in client.get("/metrics").text, "a measured speed")
        lines = client.get("/metrics").text.splitlines()
    return {re.split(r"[{ ]", line, maxsplit=1)[0] for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module")
def section(repository: Path) -> str:
    return (repository / "docs/operations.md").read_text().split("## Metrics and alerts")[1].split("\n## ")[0]


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "1m")


def test_dashboard_and_alerts_name_only_published_metrics(
    dashboard: dict[str, Any], rules: list[dict[str, Any]], published: set[str]
) -> None:
    used = {name for text in [*queries(dashboard), *(rule["expr"] for rule in rules)] for name in METRIC.findall(text)}
    assert len(used) > 20
    assert used - published == set()


def test_the_dashboard_shows_every_metric_of_denoised(dashboard: dict[str, Any], published: set[str]) -> None:
    ours = {name for name in published if name.startswith("denoised_") and not name.endswith(("_created", "_sum"))}
    used = {name for text in queries(dashboard) for name in METRIC.findall(text)}
    assert ours - used == set()


def test_panels_do_not_overlap_and_are_described(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["title"] and panel["description"] and panel["targets"])


def test_the_page_lists_every_metric_and_every_alert(
    section: str, rules: list[dict[str, Any]], published: set[str]
) -> None:
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| (.*) \|$", section, flags=re.MULTILINE))
    suffixes = ("_bucket", "_count", "_sum", "_created")
    ours = {name for name in published if name.startswith("denoised_") and not name.endswith(suffixes)}
    assert ours - set(rows) == set()
    assert {name for name in rows if name.startswith("denoised_")} - published == {"denoised_http_request_seconds"}
    alerts = {rule["alert"]: rule["annotations"]["runbook"] for rule in rules}
    assert {name for name in rows if name.startswith("Denoised")} == set(alerts)
    for name, runbook in alerts.items():
        assert rows[name].replace("`", "").endswith(runbook), name


def test_every_alert_fires_in_a_test_and_most_stay_silent_in_another(ops: Path, rules: list[dict[str, Any]]) -> None:
    cases = yaml.safe_load((ops / "alerts_test.yml").read_text())["tests"]
    tested = [
        (check["alertname"], bool(check.get("exp_alerts"))) for case in cases for check in case["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules}
    assert {name for name, raised in tested if raised} == names
    assert len({name for name, raised in tested if not raised}) > len(names) / 2


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]],
)
def test_promtool_accepts_rules_configuration_and_tests(command: list[str], ops: Path) -> None:
    done = subprocess.run(["promtool", *command], cwd=ops, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@needs_promtool
def test_promtool_accepts_the_queries_of_the_dashboard(dashboard: dict[str, Any], tmp_path: Path) -> None:
    recording = [{"record": f"panel:{k}", "expr": query} for k, query in enumerate(queries(dashboard))]
    assert len(recording) > 20
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recording}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_published_metrics(service: Any) -> None:
    """promtool reports counters without _total, and wrong units and names."""
    with service.client() as client:
        text = client.get("/metrics").text
    text = "\n".join(line for line in text.splitlines() if "_created" not in line) + "\n"
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here (Debian: apt install prometheus)")
def test_prometheus_scrapes_a_service_and_answers_the_queries_of_the_dashboard(
    service: Any, ops: Path, dashboard: dict[str, Any], tmp_path: Path
) -> None:
    settings = yaml.safe_load((ops / "prometheus.yml").read_text())
    settings["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(ops / "alerts.yml")]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
    path, port = tmp_path / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(settings))
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client,
            service.client() as api,
        ):
            wait_for(lambda: _answers(client), "prometheus", seconds=60)
            end = time.monotonic() + 20
            while time.monotonic() < end:
                api.post("/generate", json={"model": "digits", "steps": 5}, headers={"Prefer": "wait=9"})
            for query in queries(dashboard):
                found = client.get("/query", params={"query": query}).json()
                assert found["status"] == "success", query
                assert found["data"]["result"], query
            rate = client.get("/query", params={"query": "max(rate(denoised_turns_total[15s]))"}).json()
            assert float(rate["data"]["result"][0]["value"][1]) > 1
            loaded = client.get("/rules").json()["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in loaded} == {"ok"}
            assert {rule["state"] for rule in loaded} == {"inactive"}
    finally:
        running.terminate()
        running.wait(60)


def _answers(client: httpx.Client) -> bool:
    try:
        answer = client.get("/query", params={"query": "denoised_redis_up"})
        return answer.is_success and bool(answer.json()["data"]["result"])  # 503 while it starts
    except httpx.TransportError:
        return False
