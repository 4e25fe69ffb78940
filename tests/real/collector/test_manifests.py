"""`collector/kubernetes/` and `collector/compose.yaml`, as far as they can be judged without an engine: by Kubernetes'
own schemas, by the parser of Docker Compose, and by what they refer to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_letta.testing import InMemoryLetta
from tests.support.collector import validate
from tests.support.collector_keys import FOLDER
from tests.support.collector_manifests import configuration
from tests.support.collector_run import Bridge, gateway
from tests.support.collector_tasks import PATIENCE, ends
from tests.support.kubernetes_schemas import NEWEST, OLDEST, faults
from tests.support.waiting import until

_KUBERNETES = FOLDER / "kubernetes"
_OF_A_POD = {
    # Fields of the operator's resource that are a pod's or a container's, by their names there.
    "podSecurityContext": "securityContext",
    "terminationGracePeriodSeconds": "terminationGracePeriodSeconds",
    "volumes": "volumes",
}
_OF_A_CONTAINER = ("image", "env", "resources", "securityContext", "volumeMounts")
_OF_A_SET = ("replicas", "volumeClaimTemplates")
_OF_THE_OPERATOR = {"mode", "podDisruptionBudget", "config"}


def _resources() -> list[dict[str, Any]]:
    names = yaml.safe_load((_KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert {*names, "kustomization.yaml"} == {path.name for path in _KUBERNETES.iterdir()}
    return [found for name in names for found in yaml.safe_load_all((_KUBERNETES / name).read_text("utf-8"))]


def _of(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in _resources() if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def _as_stateful_set(collector: dict[str, Any]) -> dict[str, Any]:
    """Return what the operator makes of its resource, of the fields that it hands on as they are."""
    spec = collector["spec"]
    labels = {"app.kubernetes.io/component": "opentelemetry-collector"}
    container = {key: spec[key] for key in _OF_A_CONTAINER if key in spec}
    pod = {name: spec[key] for key, name in _OF_A_POD.items() if key in spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": collector["metadata"],
        "spec": {
            **{key: spec[key] for key in _OF_A_SET},
            "serviceName": "gateway",
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {**pod, "containers": [{"name": "otc-container", **container}]},
            },
        },
    }


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_resource(version: str) -> None:
    collector = _of("OpenTelemetryCollector", "gateway")
    known = {*_OF_A_POD, *_OF_A_CONTAINER, *_OF_A_SET, *_OF_THE_OPERATOR}
    assert set(collector["spec"]) <= known, "the test has to learn of it"
    ours = [each for each in _resources() if each["kind"] != "OpenTelemetryCollector"]
    ours.append(_as_stateful_set(collector))
    assert {each["kind"] for each in ours} >= {"Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    assert [each for each in zip(faults(ours, version), [each["kind"] for each in ours], strict=True) if each[0]] == []


def test_the_schemas_find_a_wrong_name() -> None:
    bad = _of("Deployment", "otel-letta")
    bad["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    assert faults([bad], NEWEST) != [None]


def test_the_collector_takes_the_configuration_that_the_operator_gets(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(_of("OpenTelemetryCollector", "gateway")["spec"]["config"], allow_unicode=True))
    done = validate([file], {"LETTA_BRIDGE_TOKEN": "token"})
    assert done.returncode == 0, done.stderr


def test_what_the_resources_name_is_there() -> None:
    deployment, service = _of("Deployment", "otel-letta"), _of("Service", "otel-letta")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        _of("PodDisruptionBudget", "otel-letta")["spec"]["selector"]["matchLabels"],
        _of("NetworkPolicy", "otel-letta")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= pod["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert {container[probe]["httpGet"]["port"] for probe in container if probe.endswith("Probe")} <= set(ports)
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    collector = _of("OpenTelemetryCollector", "gateway")["spec"]
    environ = {each["name"]: each.get("value", "") for each in collector["env"]}
    url = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert environ["LETTA_BRIDGE"] == url
    read = set(re.findall(r"\$\{env:(\w+)", json.dumps(configuration())))
    assert set(environ) - {"GOMEMLIMIT"} <= read
    paths = [mount["mountPath"] for mount in collector["volumeMounts"]]
    for storage in ("file_storage/letta", "file_storage/hop"):
        folder = configuration()["extensions"][storage]["directory"].partition(":-")[2].rstrip("}")
        assert any(Path(folder).is_relative_to(path) for path in paths), "it has to be on a volume"


def test_nobody_is_root_or_writes_beside_the_volumes_and_every_image_has_a_version() -> None:
    pods = [_of("Deployment", "otel-letta"), _as_stateful_set(_of("OpenTelemetryCollector", "gateway"))]
    for pod in (each["spec"]["template"]["spec"] for each in pods):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
        assert re.fullmatch(r"[\w/-]+:\d+[.]\d+[.]\d+", container["image"])


# --- Docker Compose ---------------------------------------------------------------------------------------------------

_ENVIRON = {"LETTA_AGENT_ID": "agent-1", "LETTA_BRIDGE_TOKEN": "token"}


def _compose(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", "run", ".", str(FOLDER / "compose.yaml")],
        cwd=Path(__file__).parent / "compose",
        env={**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false", **environ},
        capture_output=True,
        text=True,
        timeout=1_200,
        check=False,
    )


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    done = _compose(_ENVIRON)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("missing", _ENVIRON)
def test_compose_says_which_variable_is_missing(missing: str) -> None:
    done = _compose({name: value for name, value in _ENVIRON.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_what_the_services_name_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        binds = [volume for volume in service.get("volumes", []) if volume["type"] == "bind"]
        assert all(Path(volume["source"]).is_file() for volume in binds)
        assert re.search(r":\d+[.]\d+", service.get("image", "")) or "build" in service
    read = set(re.findall(r"\$\{env:(\w+)", (FOLDER / "gateway.yaml").read_text("utf-8")))
    collector = services["collector"]["environment"]
    assert set(collector) <= read
    listens = {name: collector[name].rpartition(":")[2] for name in ("OTLP_GRPC_LISTEN", "OTLP_HTTP_LISTEN")}
    assert {port["target"] for port in services["collector"]["ports"]} == {int(port) for port in listens.values()}
    assert all(port["host_ip"] == "127.0.0.1" for each in services.values() for port in each.get("ports", []))
    for address in (
        services["agent"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"],
        *(collector[name] for name in ("LETTA_BRIDGE", "BACKEND_ENDPOINT")),
    ):
        assert address.rpartition("//")[2].partition(":")[0] in services
    dockerfile = Path(services["bridge"]["build"]["context"], services["bridge"]["build"]["dockerfile"]).read_text()
    assert f"EXPOSE 4317 {collector['LETTA_BRIDGE'].rpartition(':')[2]}\n" in dockerfile
    assert "/run/secrets/tokens" in dockerfile
    assert [secret["source"] for secret in services["bridge"]["secrets"]] == ["tokens"]
    assert compose["secrets"]["tokens"]["environment"] == "LETTA_BRIDGE_TOKEN"


def test_the_collector_takes_what_compose_gives_it(compose: dict[str, Any]) -> None:
    service = compose["services"]["collector"]
    files = [Path(argument).name for argument in service["command"]]
    done = validate([FOLDER / file for file in files], service["environment"])
    assert done.returncode == 0, done.stderr


def test_the_demo_program_reports_through_the_gateway(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url) as running:
        bridge.start()
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": running.http, "DEMO_TASKS": "3", "DEMO_PAUSE": "0.01"}
        command = [sys.executable, str(FOLDER / "demo_agent.py")]
        subprocess.run(command, env={**os.environ, **environ}, check=True, timeout=300)
        assert until(lambda: len(ends(letta, agent)) == 3, PATIENCE), bridge.log
        statuses = [report["status"] for report in letta.reports(agent) if report["status"] != "in_progress"]
        assert sorted(statuses) == ["completed", "completed", "failed"]
        assert until(lambda: len(running.backend.spans) == 6, PATIENCE)
        assert any(b"stays in the tracing backend" in body for body in running.backend.raw)
