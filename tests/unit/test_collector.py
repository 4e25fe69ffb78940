"""The Collector's configurations, as far as they can be read without one; `tests/real/collector` runs them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from otel_letta import semconv
from otel_letta.tracking.conventions import CONVENTIONS, MARKS
from tests.support.collector_keys import FOLDER, blanked, passed, privacy

_TO_LETTA = ("otlp_http/letta", "load_balancing/letta")
_PRIVACY = ["transform/letta", "redaction/letta"]


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return found


def test_the_list_of_allowed_keys_is_what_the_records_make() -> None:
    assert (FOLDER / "privacy.yaml").read_text("utf-8") == privacy(), "python -m tests.support.collector_keys"


def test_all_that_tells_roles_and_tasks_passes_and_no_content_does() -> None:
    values, presence = set(passed()), set(blanked())
    assert values >= MARKS | semconv.DECLARING
    content = {name for record in CONVENTIONS for names in record.content.values() for name in names}
    content |= {name for record in CONVENTIONS for name in record.plans}
    assert not values & (content - semconv.INTERESTING)
    assert not values & presence


def test_redaction_fails_closed() -> None:
    redaction = _read("privacy.yaml")["processors"]["redaction/letta"]
    assert redaction["allow_all_keys"] is False
    assert redaction["allowed_keys"]
    assert "ignored_keys" not in redaction and "ignored_key_patterns" not in redaction


def test_statements_of_different_contexts_are_in_groups_of_their_own() -> None:
    """In one list all of them would run in the narrowest context: measured with 0.161.0."""
    processors = _read("privacy.yaml")["processors"]
    groups = [
        group["statements"]
        for name in ("transform/letta", "transform/letta_route")
        for kind in ("trace_statements", "log_statements")
        for group in processors[name].get(kind, [])
    ]
    assert len(groups) == 5
    for statements in groups:
        contexts = {
            context for context in _CONTEXTS for text in statements if f"{context}." in text.split(" where ")[0]
        }
        assert len(contexts) == 1, contexts


_CONTEXTS = ("spanevent", "(span", "resource", "(log")


@pytest.mark.parametrize("name", ["gateway.yaml", "scale-out.yaml"])
def test_nothing_goes_to_letta_that_did_not_pass_privacy_behind_the_hop(name: str) -> None:
    pipelines = _read(name)["service"]["pipelines"]
    ours = {key: value for key, value in pipelines.items() if {*value["exporters"]} & {*_TO_LETTA}}
    assert {key.partition("/")[0] for key in ours} == {"traces", "logs"}
    for pipeline in ours.values():
        assert pipeline["processors"][-len(_PRIVACY) :] == _PRIVACY
        assert pipeline["receivers"] == ["otlp/hop"]
        assert len(pipeline["exporters"]) == 1
    backend = [value for value in pipelines.values() if "otlp_grpc/backend" in value["exporters"]]
    assert [value["processors"] for value in backend] == [["memory_limiter"]]  # as it came


@pytest.mark.parametrize("name", ["gateway.yaml", "agent.yaml", "scale-out.yaml"])
def test_there_is_no_batch_processor_and_every_queue_tries_for_ever(name: str) -> None:
    found = _read(name)
    assert not [key for key in found["processors"] if key.partition("/")[0] == "batch"]
    for key, exporter in found["exporters"].items():
        assert exporter["sending_queue"]["queue_size"], key
        if "hop" in key:
            assert exporter["retry_on_failure"]["max_elapsed_time"] == "10s"  # a full queue must not fill the hop
            assert exporter["sending_queue"]["storage"] == "file_storage/hop"
        else:
            assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s", key
