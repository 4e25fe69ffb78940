"""The page of a receiver in a real browser: the Chromium that is installed, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.serve.server import Service

__all__ = ["axe", "browsing", "fill", "report"]

_AXE = "4.14.1"
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Nothing that goes to other hosts by itself: a machine without a network refuses many connections at a time.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000
"""Milliseconds that a condition on the page may take."""


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """A browser of Playwright's, for pages in contexts of their own."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("OTEL_LETTA_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium is needed: install it, or set OTEL_LETTA_TEST_CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS, timeout=2 * PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


def axe() -> str:
    """The source of axe-core, from npm once."""
    chosen = os.environ.get("OTEL_LETTA_TEST_CACHE") or Path.home() / ".cache" / "otel-letta-tests"
    file = Path(chosen) / f"axe-core-{_AXE}.js"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["npm", "pack", "--silent", f"axe-core@{_AXE}"], cwd=folder, check=True, timeout=300)
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                member = archive.extractfile("package/axe.min.js")
                assert member is not None
                part = file.with_suffix(f".{os.getpid()}")
                part.write_bytes(member.read())
                part.replace(file)
    return file.read_text(encoding="utf-8")


def report(task: str, *, ago: float = 200.0, **more: Any) -> ProgressReport:
    """A report of now, of a task that started so many seconds ago."""
    now = datetime.now(timezone.utc)
    fields = {"task_id": task, "name": task, "timestamp": now, "started": now - timedelta(seconds=ago)}
    return ProgressReport(**{**fields, "duration": ago, **more})


def fill(service: Service) -> None:
    """Have tasks of each kind, as people have them."""
    for each in (
        report("Import of orders", progress=0.62, content="1,240 of 2,000 rows", chat_id="sales", service="importer"),
        report("Nightly report", ago=4_000, progress=0.1, content="Reading the ledgers", service="reports"),
        report("Translate the handbook", ago=30, content="Translate the handbook started", chat_id="docs"),
        report(
            "Deploy to production",
            ago=700,
            progress=0.8,
            waiting=True,
            content="Waits for an approval: deploy version 2.4?",
            chat_id="releases",
            service="deployer",
        ),
        report("Backup", ago=61, status=TaskStatus.COMPLETED, result="3 volumes, 41 GB", service="backup"),
        report("Resize images", ago=12, status=TaskStatus.FAILED, error="MemoryError: image 17 is too large"),
        report("Count the users", ago=2, status=TaskStatus.COMPLETED, result="48,210 users"),
    ):
        service.intake.tasks.take(each)
