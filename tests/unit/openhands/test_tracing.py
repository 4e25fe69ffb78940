"""`attach` beside packages that behave like OpenHands and Laminar, in programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def fake_sdk(tmp_path: Path) -> Path:
    """Packages that behave as lmnr and openhands.sdk do: the first traces, to a provider of its own, if an endpoint is
    set when the second is imported."""
    tracing = tmp_path / "site" / "lmnr" / "opentelemetry_lib" / "tracing"
    sdk = tmp_path / "site" / "openhands" / "sdk"
    for folder in (tracing, sdk):
        folder.mkdir(parents=True)
    (tracing / "__init__.py").write_text("class TracerWrapper:\n    instance = None\n")
    (tracing.parent / "__init__.py").touch()
    (tracing.parent.parent / "__init__.py").write_text(
        "import os\n"
        "from lmnr.opentelemetry_lib.tracing import TracerWrapper\n"
        "class Laminar:\n"
        "    @staticmethod\n"
        "    def is_initialized():\n        return TracerWrapper.instance is not None\n"
    )
    (sdk / "__init__.py").write_text(
        "import os, lmnr\n"
        "if os.environ.get('OTEL_EXPORTER_OTLP_ENDPOINT'):\n"
        "    from opentelemetry.sdk.trace import TracerProvider\n"
        "    wrapper = lmnr.TracerWrapper()\n"
        "    wrapper._tracer_provider = TracerProvider(shutdown_on_exit=False)\n"
        "    lmnr.TracerWrapper.instance = wrapper\n"
    )
    return tmp_path / "site"


ATTACH = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from otel_letta.integrations import openhands
{first}
{second}
import lmnr
wrapper = lmnr.TracerWrapper.instance
print("attached:", wrapper is not None and any(
    type(p).__name__ == "LettaSpanProcessor" for p in wrapper._tracer_provider._active_span_processor._span_processors))
"""
ORDERS = pytest.mark.parametrize(
    "steps",
    [("import openhands.sdk", "openhands.attach()"), ("openhands.attach()", "import openhands.sdk")],
    ids=["after the import", "before the import"],
)


def _attach(site: Path, steps: tuple[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
    first, second = (step.replace("import openhands.sdk", "__import__('openhands.sdk')") for step in steps)
    return subprocess.run(
        [sys.executable, "-c", ATTACH.format(first=first, second=second)],
        env={
            "PATH": "",
            "PYTHONPATH": os.pathsep.join([str(site), *sys.path]),
            "LETTA_BASE_URL": "http://127.0.0.1:1",
            "LETTA_AGENT_ID": "agent-1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@ORDERS
def test_attach_finds_the_provider_in_either_order(fake_sdk: Path, steps: tuple[str, str]) -> None:
    done = _attach(fake_sdk, steps, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert done.stdout == "attached: True\n", done.stderr


@ORDERS
def test_attach_logs_that_tracing_is_off_and_how_to_switch_it_on(fake_sdk: Path, steps: tuple[str, str]) -> None:
    done = _attach(fake_sdk, steps)
    assert done.stdout == "attached: False\n"
    assert "ERROR OpenHands' tracing is off" in done.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT before openhands.sdk is imported" in done.stderr


def test_nothing_of_openhands_is_imported(fake_sdk: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, otel_letta.integrations.openhands as o; o.attach(); print('openhands' in sys.modules)",
        ],
        env={"PATH": "", "PYTHONPATH": os.pathsep.join([str(fake_sdk), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"
