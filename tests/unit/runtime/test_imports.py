"""Actions for when a module has been imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from otel_letta.runtime.imports import when_imported


def test_an_import_is_announced_once_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "otel_letta_probe.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls: list[str] = []
    before = list(sys.meta_path)
    when_imported("otel_letta_probe", lambda: calls.append("imported"))
    probe = __import__("otel_letta_probe")
    assert calls == ["imported"]
    assert sys.meta_path == before
    assert type(probe.__loader__).__name__ == type(probe.__spec__.loader).__name__ == "SourceFileLoader"
    when_imported("otel_letta_probe", lambda: calls.append("there already"))
    assert calls[-1] == "there already"
    del sys.modules["otel_letta_probe"]


def test_finding_a_spec_without_importing_gives_a_whole_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "otel_letta_probe.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    when_imported("otel_letta_probe", lambda: pytest.fail("not imported"))
    try:
        spec = importlib.util.find_spec("otel_letta_probe")
        assert spec is not None
        assert spec.loader.get_source("otel_letta_probe") == "value = 1\n"  # type: ignore[union-attr]
    finally:
        sys.meta_path[:] = before


def test_an_import_that_does_not_exist_fails_as_ever() -> None:
    before = list(sys.meta_path)
    when_imported("otel_letta_no_such_module", lambda: pytest.fail("not imported"))
    try:
        with pytest.raises(ModuleNotFoundError, match="otel_letta_no_such_module"):
            __import__("otel_letta_no_such_module")
    finally:
        sys.meta_path[:] = before
