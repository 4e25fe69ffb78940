"""Tasks as they are shown: one line anywhere, a bar in a notebook."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracer, Tracer

from otel_letta import task


@pytest.fixture
def tracer() -> Tracer:
    return TracerProvider(shutdown_on_exit=False).get_tracer("test")


def test_a_task_that_runs(tracer: Tracer) -> None:
    with task("Import", tracer=tracer) as t:
        assert repr(t) == "<Task 'Import', in progress>"
        t.progress(0.5, "halfway")
        assert repr(t) == "<Task 'Import', in progress 50%: halfway>"
        bundle = t._repr_mimebundle_()
        assert bundle["text/plain"] == repr(t)
        assert '<b>Import</b> <progress max=1 value="0.500"></progress> 50% in progress: halfway' in bundle["text/html"]


def test_a_task_that_completed(tracer: Tracer) -> None:
    with task("Import", tracer=tracer) as t:
        t.result("3 rows")
    assert repr(t) == "<Task 'Import', completed 100%: 3 rows>"


def test_a_task_that_failed(tracer: Tracer) -> None:
    with pytest.raises(ValueError), task("Import", tracer=tracer) as t:
        t.progress(0.25)
        raise ValueError("bad row")
    assert repr(t) == "<Task 'Import', failed 25%: ValueError: bad row>"


def test_a_task_that_nobody_records() -> None:
    with task("Import", tracer=NoOpTracer()) as t:
        assert repr(t) == "<Task '', not recorded>"
        assert "text/html" in t._repr_mimebundle_()


def test_a_loop(tracer: Tracer) -> None:
    with task("Import", tracer=tracer) as t:
        rows = t.track([1, 2])
        list(rows)
        assert repr(rows) == "<Track 2/2 of <Task 'Import', in progress 100%: 2/2>>"
        assert repr(t.track(row for row in ())).startswith("<Track 0/? of ")
        assert rows._repr_mimebundle_() == t._repr_mimebundle_()


def test_hostile_text_is_text(tracer: Tracer) -> None:
    with task("<script>alert(1)</script>", tracer=tracer) as t:
        t.content("</progress><img src=x onerror=alert(1)>\x1b[31m")
        html = t._repr_mimebundle_()["text/html"]
    assert "<script" not in html and "<img" not in html and "\x1b" not in html
