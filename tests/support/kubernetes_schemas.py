"""Kubernetes' own schemas, which the package kubernetes-validate carries: in an environment of its own in the tests'
cache, for 100 MB are nothing that other tests should wait for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from tests.support.programs.install import cache_folder, locked

__all__ = ["NEWEST", "OLDEST", "faults"]

_PACKAGE = "kubernetes-validate==1.37.0"
OLDEST, NEWEST = "1.30", "1.37"
"""Releases of Kubernetes that the manifests are checked against."""
_TIMEOUT = 1_200.0
_PROGRAM = """
import json, sys
import kubernetes_validate
version, resources = json.load(sys.stdin)
found = []
for resource in resources:
    try:
        kubernetes_validate.validate(resource, version, strict=True)
        found.append(None)
    except Exception as error:
        found.append(f"{type(error).__name__}: {getattr(error, 'message', error)}")
print(json.dumps(found))
"""


def faults(resources: list[dict[str, Any]], version: str) -> list[str | None]:
    """Return for each resource what is wrong with it; None for nothing. Fields that are not in the schema are wrong."""
    done = subprocess.run(
        [str(_python()), "-c", _PROGRAM],
        input=json.dumps([version, resources]),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str | None] = json.loads(done.stdout)
    return found


def _python() -> Path:
    """Return the Python of the environment, made if it is missing; RuntimeError if it cannot be: no reason to skip."""
    root = cache_folder() / "kubernetes-schemas"
    python, marker = root / "bin" / "python", root / "INSTALLED"
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.with_name(f"{root.name}.lock")):
        if not (marker.exists() and marker.read_text() == _PACKAGE):
            print(f"[collector] installing {_PACKAGE} into {root} (once)", file=sys.stderr, flush=True)
            shutil.rmtree(root, ignore_errors=True)
            venv.create(root, with_pip=True)
            command = [str(python), "-m", "pip", "install", "--quiet", _PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode:
                raise RuntimeError(f"cannot install {_PACKAGE}: {done.stderr[-2000:]}")
            marker.write_text(_PACKAGE)
    return python
