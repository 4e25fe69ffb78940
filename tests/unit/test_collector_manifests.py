"""The manifests for Kubernetes, as far as they can be read without its schemas; see `tests/real/collector`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.collector_keys import FOLDER
from tests.support.collector_manifests import TARGET, written

_ROOT = Path(__file__).parents[2]


def test_the_operators_resource_is_what_gateway_and_privacy_make() -> None:
    assert TARGET.read_text("utf-8") == written(), "python -m tests.support.collector_manifests"


def test_the_receivers_image_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (_ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    image = re.search(r"image: otel-letta:(\S+)$", (FOLDER / "kubernetes/bridge.yaml").read_text("utf-8"), re.MULTILINE)
    assert version is not None and image is not None
    assert image[1] == version[1]
