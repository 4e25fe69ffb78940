"""`collector/kubernetes/collector.yaml`: gateway.yaml and privacy.yaml as the operator has it; so each stands once.

    python -m tests.support.collector_manifests        # write the file anew

`tests/unit/test_collector_manifests.py` fails if the file is another one than those make.
"""

from __future__ import annotations

from typing import Any

import yaml

from tests.support.collector import RELEASE
from tests.support.collector_keys import FOLDER

__all__ = ["TARGET", "collector_resource", "configuration", "written"]

TARGET = FOLDER / "kubernetes" / "collector.yaml"
IMAGE = f"otel/opentelemetry-collector-contrib:{RELEASE.removeprefix('v')}"
_USER = 10001
_HEAD = """\
# Made by `python -m tests.support.collector_manifests` from ../gateway.yaml and ../privacy.yaml: change those, and make
# it anew. For the OpenTelemetry operator (opentelemetry.io/v1beta1).
"""
_LISTENS = {
    # The operator reads these to make the Service and the probes, and does not look into variables.
    ("extensions", "health_check", "endpoint"): "0.0.0.0:13133",
    ("receivers", "otlp", "protocols", "grpc", "endpoint"): "0.0.0.0:4317",
    ("receivers", "otlp", "protocols", "http", "endpoint"): "0.0.0.0:4318",
    ("receivers", "otlp/hop", "protocols", "grpc", "endpoint"): "127.0.0.1:24317",
    ("exporters", "otlp_grpc/hop", "endpoint"): "127.0.0.1:24317",
}


def configuration() -> dict[str, Any]:
    """Return what gateway.yaml and privacy.yaml say together, as the Collector merges them, with fixed addresses."""
    found: dict[str, Any] = {}
    for name in ("gateway.yaml", "privacy.yaml"):
        _merge(found, yaml.safe_load((FOLDER / name).read_text("utf-8")))
    for path, value in _LISTENS.items():
        at = found
        for key in path[:-1]:
            at = at[key]
        assert path[-1] in at, path
        at[path[-1]] = value
    return found


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def collector_resource() -> dict[str, Any]:
    token = {"secretKeyRef": {"name": "otel-letta", "key": "bridge-token"}}
    return {
        "apiVersion": "opentelemetry.io/v1beta1",
        "kind": "OpenTelemetryCollector",
        "metadata": {"name": "gateway"},
        "spec": {
            "mode": "statefulset",  # each has a queue of its own on a volume that outlives it
            "replicas": 2,
            "image": IMAGE,
            "env": [
                {"name": "LETTA_BRIDGE_TOKEN", "valueFrom": token},
                {"name": "LETTA_BRIDGE", "value": "http://otel-letta:4318"},
                {"name": "BACKEND_ENDPOINT", "value": "jaeger-collector.tracing:4317"},
                {"name": "GOMEMLIMIT", "value": "700MiB"},
            ],
            "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
            "podDisruptionBudget": {"maxUnavailable": 1},
            "terminationGracePeriodSeconds": 60,
            "podSecurityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumes": [{"name": "hop", "emptyDir": {"medium": "Memory", "sizeLimit": "160Mi"}}],
            "volumeMounts": [
                {"name": "queue", "mountPath": "/var/lib/otelcol"},
                {"name": "hop", "mountPath": "/dev/shm"},
            ],
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "queue"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
                }
            ],
            "config": configuration(),
        },
    }


def written() -> str:
    """Return the text of the file."""
    return _HEAD + yaml.safe_dump(collector_resource(), sort_keys=False, allow_unicode=True, width=1_000_000)


if __name__ == "__main__":
    TARGET.write_text(written(), "utf-8")
