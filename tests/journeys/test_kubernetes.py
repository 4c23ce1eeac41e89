"""`ops/kubernetes` and `ops/systemd` without a cluster: published schemas, references between objects, and settings."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

OLDEST, NEWEST = "1.29", "1.37"  # of Kubernetes: native sidecars and restricted pods are older than the first
DRAIN_SECONDS = 10.0  # longest shutdown of an API process or a worker (docs/operations.md)
NAME = "app.kubernetes.io/name"
# spec of a ScaledObject, https://keda.sh/docs/2.19/reference/scaledobject-spec/
SCALED_OBJECT = {
    "scaleTargetRef",
    "pollingInterval",
    "cooldownPeriod",
    "initialCooldownPeriod",
    "minReplicaCount",
    "maxReplicaCount",
    "idleReplicaCount",
    "fallback",
    "advanced",
    "triggers",
}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "ops" / "kubernetes"


@pytest.fixture(scope="module")
def objects(folder: Path) -> dict[tuple[str, str], Manifest]:
    """The objects of the base by kind and name."""
    kustomization = read(folder / "base" / "kustomization.yaml")[0]
    found = [each for name in kustomization["resources"] for each in read(folder / "base" / name)]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def read(path: Path) -> list[Manifest]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def pods(objects: dict[tuple[str, str], Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name, pod template) of every workload."""
    for (kind, name), each in objects.items():
        if kind in {"Deployment", "StatefulSet"}:
            yield name, each["spec"]["template"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_follows_the_published_schema(objects: dict[tuple[str, str], Manifest], version: str) -> None:
    for each in objects.values():
        assert kubernetes_validate.validate(each, version, strict=True)


def test_the_schemas_refuse_an_unknown_field(objects: dict[tuple[str, str], Manifest]) -> None:
    wrong = {**objects["Service", "denoised-api"], "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_every_file_belongs_to_a_kustomization(folder: Path) -> None:
    for path in folder.rglob("kustomization.yaml"):
        (kustomization,) = read(path)
        listed = {*kustomization.get("resources", ()), *(each["path"] for each in kustomization.get("patches", ()))}
        assert listed == {each.name for each in path.parent.glob("*.yaml")} - {path.name}


def test_selectors_find_their_pods(objects: dict[tuple[str, str], Manifest]) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects)}
    for (kind, name), each in objects.items():
        selector = each.get("spec", {}).get("selector")
        if selector is not None:
            wanted = selector if kind == "Service" else selector["matchLabels"]
            assert wanted.items() <= labels[name].items(), (kind, name)
    allowed = objects["NetworkPolicy", "store-from-denoised"]["spec"]["ingress"][0]["from"][0]["podSelector"]
    assert set(allowed["matchExpressions"][0]["values"]) == {labels[name][NAME] for name in labels} - {"valkey"}


def test_services_and_policies_open_the_ports_that_containers_have(objects: dict[tuple[str, str], Manifest]) -> None:
    ports = {
        name: {each["name"]: each["containerPort"] for each in pod["spec"]["containers"][0].get("ports", ())}
        for name, pod in pods(objects)
    }
    assert objects["Service", "denoised-api"]["spec"]["ports"][0]["targetPort"] in ports["denoised-api"]
    assert objects["Service", "valkey"]["spec"]["ports"][0]["port"] == ports["valkey"]["redis"]
    policies = {"api-from-cluster": "denoised-api", "store-from-denoised": "valkey"}
    for policy, workload in policies.items():
        (opened,) = objects["NetworkPolicy", policy]["spec"]["ingress"][0]["ports"]
        assert opened["port"] in ports[workload].values()
    assert objects["NetworkPolicy", "deny-ingress"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_nothing_runs_as_root_or_writes_to_its_image(objects: dict[tuple[str, str], Manifest]) -> None:
    for name, pod in pods(objects):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_user_of_the_images_is_the_user_of_the_pods(
    objects: dict[tuple[str, str], Manifest], repository: Path
) -> None:
    for name, pod in pods(objects):
        if name != "valkey":
            user = pod["spec"]["securityContext"]["runAsUser"]
            assert f"useradd --system --uid {user} " in (repository / "Dockerfile").read_text(encoding="utf-8")


def test_a_pod_has_more_time_to_end_than_it_takes(objects: dict[tuple[str, str], Manifest]) -> None:
    for name, pod in pods(objects):
        hook = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        before = float(hook[1]) if hook else 0.0
        assert pod["spec"]["terminationGracePeriodSeconds"] >= before + 2 * DRAIN_SECONDS, name


def test_no_service_variable_replaces_a_setting(objects: dict[tuple[str, str], Manifest]) -> None:
    """Kubernetes sets DENOISED_PORT=tcp://… for a Service named `denoised`, in pods that ask for such variables."""
    assert all(pod["spec"]["enableServiceLinks"] is False for _, pod in pods(objects))


def test_every_setting_exists_and_every_secret_is_defined(
    objects: dict[tuple[str, str], Manifest], folder: Path, repository: Path
) -> None:
    settings = (repository / "docs" / "settings.md").read_text(encoding="utf-8")
    secrets = {
        each["metadata"]["name"]: each["stringData"] for path in folder.glob("*/secret.yaml") for each in read(path)
    }
    patches = [
        (str(path), each["spec"]["template"])
        for path in (*folder.glob("gpu/worker.yaml"), *folder.glob("bucket/[aw]*.yaml"))
        for each in read(path)
    ]
    names = []
    for _, pod in [*pods(objects), *patches]:
        for variable in pod["spec"]["containers"][0].get("env", ()):
            names.append(variable["name"])
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] in secrets[reference["name"]]
    denoised = {name for name in names if name.startswith(("DENOISED_", "HF_"))} | {"REDIS_URL"}
    assert [name for name in sorted(denoised) if f"`{name}`" not in settings] == []
    assert {"DENOISED_HOST", "DENOISED_API_KEYS_FILE", "DENOISED_DEVICE", "DENOISED_RESULTS_URL"} <= denoised


def test_the_probes_are_routes_that_do_what_they_are_for(objects: dict[tuple[str, str], Manifest]) -> None:
    """`/healthz` does not depend on Redis; `/readyz` does (API.md)."""
    container = objects["Deployment", "denoised-api"]["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_the_gpu_component_changes_the_worker_s_container(
    folder: Path, objects: dict[tuple[str, str], Manifest]
) -> None:
    (patch,) = read(folder / "gpu" / "worker.yaml")
    target = objects[patch["kind"], patch["metadata"]["name"]]
    (changed,) = patch["spec"]["template"]["spec"]["containers"]
    assert changed["name"] in {each["name"] for each in target["spec"]["template"]["spec"]["containers"]}
    assert changed["resources"]["limits"]["nvidia.com/gpu"] == "1"
    merged = {**target["spec"]["template"]["spec"], **patch["spec"]["template"]["spec"]}
    template = {**target["spec"]["template"], "spec": merged}
    assert kubernetes_validate.validate(
        {**target, "spec": {**target["spec"], "template": {**template, "spec": {**merged, "containers": [changed]}}}},
        NEWEST,
        strict=True,
    )


def test_the_bucket_component_gives_api_and_worker_the_same_place(
    folder: Path, objects: dict[tuple[str, str], Manifest]
) -> None:
    """Programs refuse to start if the others have another one. Kustomize merges lists of variables by name."""
    patches = [each for name in ("api", "worker") for each in read(folder / "bucket" / f"{name}.yaml")]
    added = []
    for patch in patches:
        target = copy.deepcopy(objects[patch["kind"], patch["metadata"]["name"]])
        (container,) = target["spec"]["template"]["spec"]["containers"]
        (changed,) = patch["spec"]["template"]["spec"]["containers"]
        assert changed.keys() == {"name", "env"}
        assert changed["name"] == container["name"]
        assert not {each["name"] for each in container["env"]} & {each["name"] for each in changed["env"]}
        container["env"] += changed["env"]
        assert kubernetes_validate.validate(target, NEWEST, strict=True)
        added.append(changed["env"])
    assert added[0] == added[1]
    assert {each["name"]: each.get("value", "") for each in added[0]}["DENOISED_RESULTS_URL"].startswith("s3://")
    (secret,) = read(folder / "bucket" / "secret.yaml")
    assert kubernetes_validate.validate(secret, NEWEST, strict=True)


def test_workers_are_scaled_by_a_query_of_metrics_that_exist(
    folder: Path, objects: dict[tuple[str, str], Manifest], repository: Path, tmp_path: Path
) -> None:
    (scaled,) = read(folder / "keda" / "scaled-object.yaml")
    spec = scaled["spec"]
    assert spec.keys() <= SCALED_OBJECT
    assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) in objects
    (trigger,) = spec["triggers"]
    query = trigger["metadata"]["query"]
    assert spec["minReplicaCount"] == 0
    (patch,) = read(folder / "keda" / "api.yaml")
    assert (patch["kind"], patch["metadata"]["name"]) in objects
    assert patch["spec"]["template"]["spec"]["containers"][0]["env"] == [
        {"name": "DENOISED_QUEUE_WITHOUT_WORKER", "value": "true"}
    ]
    metrics = (repository / "docs" / "operations.md").read_text(encoding="utf-8")
    for name in ("denoised_drain_seconds", "denoised_workers"):
        assert name in query
        assert f"`{name}`" in metrics
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "keda", "rules": [{"record": "work", "expr": query}]}]}))
    subprocess.run([promtool, "check", "rules", rules], check=True, capture_output=True)


def test_the_systemd_unit_is_valid(repository: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    text = (repository / "ops" / "systemd" / "denoised.service").read_text(encoding="utf-8")
    program = "/opt/denoised/.venv/bin/denoised"
    assert f"ExecStart={program} serve\n" in text
    unit = tmp_path / "denoised.service"
    unit.write_text(text.replace(program, "/bin/true"), encoding="utf-8")
    checked = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert [line for line in checked.stderr.splitlines() if "denoised.service" in line] == []
    assert checked.returncode == 0
