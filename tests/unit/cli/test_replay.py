"""`otel-letta replay`: recorded spans and logs in, the reports that they make out; and the reader of OTLP-JSON under
it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode

from otel_letta.cli.main import app
from otel_letta.cli.replay import Replay
from otel_letta.otlp import lines
from otel_letta.otlp.batch import Batch, LogRecord
from otel_letta.otlp.json import read_batches
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.recorded import TRACES, traces

FIELDS = [
    "task_id",
    "name",
    "chat_id",
    "message_id",
    "status",
    "progress",
    "content",
    "sequence",
    "timestamp",
    "trace_id",
]


def replay(*arguments: str | Path, stdin: bytes | None = None, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(app(), ["replay", *map(str, arguments)], input=stdin, env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def recorded(name: str) -> Path:
    return TRACES / f"{name}.otlp.jsonl.gz"


@pytest.mark.parametrize("name", traces())
def test_every_task_has_exactly_one_end_and_it_is_the_last_word(name: str) -> None:
    result = replay("--dry-run", "--format", "json", recorded(name))
    assert result.exit_code == 0
    told = lines_of(result)
    assert all(list(line) == FIELDS for line in told)
    for task in {line["task_id"] for line in told}:
        mine = [line for line in told if line["task_id"] == task]
        assert [line["status"] == "in_progress" for line in mine] == [True] * (len(mine) - 1) + [False]
        assert [line["sequence"] for line in mine] == list(range(1, len(mine) + 1))
        assert [line["timestamp"] for line in mine] == sorted(line["timestamp"] for line in mine)


def test_people_read_one_line_for_each_report() -> None:
    out = replay("--dry-run", recorded("pydantic_ai.otel.tool_error")).stdout.splitlines()
    assert {line[8:26] for line in out} == {"  in_progress   0%", "  completed   100%"}
    assert [line.split("  reporter (chat thread-42): ")[1] for line in out] == [
        "Started 'reporter'",
        "Used tool search_docs (0.4 s); 1 tool used",
        "Tool send_report failed: mail service returned 503: ERR-REPORT quota exceeded; 2 tools used",
        "Finished 'reporter' in 2.2 s, 2 tools, 1 problem (board only)",
    ]


def test_files_are_read_as_lines_as_one_document_compressed_and_from_stdin(tmp_path: Path) -> None:
    lines = gzip.decompress(recorded("strands.native.success").read_bytes())
    requests = [json.loads(line) for line in lines.splitlines()]
    merged = {"resourceSpans": [spans for request in requests for spans in request["resourceSpans"]]}
    for name, content in (
        ("lines.jsonl", lines),
        ("lines.gz", gzip.compress(lines)),
        ("one.json", json.dumps(merged).encode()),
        ("indented.json", json.dumps(merged, indent=2).encode()),
        ("list.json", json.dumps(requests, indent=1).encode()),
        ("windows.jsonl", b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n")),
    ):
        (tmp_path / name).write_bytes(content)
        result = replay("--dry-run", tmp_path / name)
        assert result.exit_code == 0, name
        assert result.stdout.splitlines()[-1].endswith("Finished 'reporter' in 3.9 s, 2 tools (board only)"), name
    for content in (lines, gzip.compress(lines)):
        # Not through CliRunner, whose standard input is none that can be peeked into.
        command = [sys.executable, "-m", "otel_letta", "replay", "--dry-run", "-"]
        done = subprocess.run(command, input=content, capture_output=True, check=True, cwd=tmp_path)
        assert b"Finished 'reporter' in 3.9 s, 2 tools" in done.stdout


def a_run(start: int, *, logs: bool) -> list[str]:
    """The requests of a coding agent's run: its prompt and answer as logs, or its tool and root as spans."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "coder"}}]}
    trace, at = f"{start + 1:032x}", [str((1_800_000_000 + start + second) * 10**9) for second in range(5)]

    def attributes(**texts: str) -> list[dict[str, Any]]:
        return [{"key": k.replace("__", "."), "value": {"stringValue": v}} for k, v in texts.items()]

    if logs:
        records = [(at[0], "user_prompt"), (at[3], "assistant_response")]
        return [
            json.dumps(
                {
                    "resourceLogs": [
                        {
                            "resource": resource,
                            "scopeLogs": [
                                {
                                    "logRecords": [
                                        {
                                            "observedTimeUnixNano": time,
                                            "traceId": trace,
                                            "spanId": f"{1:016x}",
                                            "body": {"stringValue": "SECRET"},
                                            "attributes": attributes(event__name=name, prompt="SECRET"),
                                        }
                                    ]
                                }
                            ],
                        }
                    ]
                }
            )
            for time, name in records
        ]
    spans = [
        (2, 1, at[1], at[2], attributes(gen_ai__operation__name="execute_tool", gen_ai__tool__name="Bash")),
        (1, None, at[0], at[4], attributes(gen_ai__operation__name="invoke_agent")),
    ]
    return [
        json.dumps(
            {
                "resourceSpans": [
                    {
                        "resource": resource,
                        "scopeSpans": [
                            {
                                "spans": [
                                    {
                                        "traceId": trace,
                                        "spanId": f"{span_id:016x}",
                                        "parentSpanId": "" if parent is None else f"{parent:016x}",
                                        "name": "coder",
                                        "startTimeUnixNano": begin,
                                        "endTimeUnixNano": end,
                                        "attributes": more,
                                    }
                                ]
                            }
                        ],
                    }
                ]
            }
        )
        for span_id, parent, begin, end, more in spans
    ]


@pytest.mark.parametrize("logs_first", [True, False])
def test_several_files_are_read_side_by_side_in_the_order_of_their_times(tmp_path: Path, logs_first: bool) -> None:
    spans, logs = tmp_path / "spans.jsonl", tmp_path / "logs.jsonl.gz"
    spans.write_text("\n".join([*a_run(0, logs=False), *a_run(1_000, logs=False)]))
    logs.write_bytes(gzip.compress("\n".join([*a_run(0, logs=True), *a_run(1_000, logs=True)]).encode()))
    files = [logs, spans] if logs_first else [spans, logs]
    result = replay("--dry-run", "--format", "json", *files)
    assert (result.exit_code, result.stderr) == (0, "")
    told = lines_of(result)
    assert [line["content"] for line in told] == [
        "Started 'coder'",
        "Used tool Bash (1.0 s); 1 tool used",
        "Finished 'coder' in 4.0 s, 1 tool",
    ] * 2
    assert len({line["task_id"] for line in told}) == 2
    assert "SECRET" not in result.stdout


def test_files_of_one_kind_need_not_be_in_the_order_of_their_times(tmp_path: Path) -> None:
    result = replay("--dry-run", recorded("pydantic_ai.otel.tool_error"), recorded("strands.native.success"))
    assert result.stdout.count("Finished 'reporter'") == 2


def test_one_of_several_files_may_be_the_standard_input(tmp_path: Path) -> None:
    (tmp_path / "spans.jsonl").write_text("\n".join(a_run(0, logs=False)))
    command = [sys.executable, "-m", "otel_letta", "replay", "--dry-run", "-", "spans.jsonl"]
    text = "\n".join(a_run(0, logs=True)).encode()
    done = subprocess.run(command, input=text, capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.decode().count("'coder'") == 2
    assert b"Used tool Bash" in done.stdout


def test_lines_without_a_time_come_with_their_neighbours(tmp_path: Path) -> None:
    spans, logs = a_run(0, logs=False), a_run(0, logs=True)
    (tmp_path / "a").write_text("\n".join([spans[0], "nonsense", '{"resourceMetrics": []}', spans[1]]))
    (tmp_path / "b").write_text("\n".join(logs))
    result = replay("--dry-run", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert "a, line 2: not JSON" in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_logs_without_a_task_say_so(tmp_path: Path) -> None:
    path = tmp_path / "logs.jsonl"
    path.write_text(a_run(0, logs=True)[1])
    assert replay("--dry-run", path).stderr == "No task in 0 spans and 1 log record.\n"


def test_broken_lines_are_named_and_skipped(tmp_path: Path) -> None:
    lines = gzip.decompress(recorded("strands.native.success").read_bytes()).splitlines()
    bad = [b"{", b"nonsense \x1b[31m", b'{"resourceSpans": 5}', b"\xff\xfe", b"[" * 100_000]
    path = tmp_path / "spans.jsonl"
    path.write_bytes(b"\n".join([*lines[:2], *bad, *lines[2:]]))
    result = replay("--dry-run", path)
    assert result.exit_code == 1
    assert "Finished 'reporter' in 3.9 s, 2 tools" in result.stdout
    for number in range(3, 8):
        assert f"{path}, line {number}: " in result.stderr
    assert "\x1b" not in result.stderr


def test_a_broken_span_does_not_take_the_others_of_its_line_with_it(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in gzip.decompress(recorded("strands.native.success").read_bytes()).splitlines()]
    spans = lines[0]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans.insert(0, {"traceId": "zz", "name": "broken"})
    path = tmp_path / "spans.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    result = replay("--dry-run", path)
    assert (result.exit_code, "line 1: span 1: traceId is not 32" in result.stderr) == (1, True)
    assert "Finished 'reporter'" in result.stdout


@pytest.mark.parametrize("first", [b"{", b'{"resourceSpans":[{', b"", b"\x80"])
def test_a_first_line_that_was_cut_off_does_not_take_the_file_with_it(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(first + b"\n" + gzip.decompress(recorded("strands.native.success").read_bytes()))
    result = replay("--dry-run", path)
    assert (result.exit_code, result.stderr.count("line 1: not")) == ((1, 1) if first else (0, 0))
    assert "Finished 'reporter'" in result.stdout


def test_a_list_of_one_request_over_several_lines_is_one_document(tmp_path: Path) -> None:
    requests = gzip.decompress(recorded("strands.native.success").read_bytes()).splitlines()
    path = tmp_path / "spans.json"
    path.write_bytes(b"[\n" + b",\n".join(requests) + b"\n]\n")
    assert "Finished 'reporter'" in replay("--dry-run", path).stdout
    path.write_bytes(b"[\n" + requests[0] + b"\n]\n")
    assert replay("--dry-run", path).exit_code == 0


def test_input_without_a_task_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for path, spans in ((empty, 0), (recorded("celery_batch.success"), 10)):
        result = replay("--dry-run", path)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"No task in {spans} spans.\n")


def test_an_output_that_nobody_reads_is_not_called_broken_input() -> None:
    def close(report: object) -> None:
        raise BrokenPipeError

    player = Replay(Settings.resolve(require_agent=False, environ={}), [close])
    with pytest.raises(BrokenPipeError):
        player.read(str(recorded("strands.native.success")))
        player.finish()
    assert player.broken == 0


@pytest.mark.parametrize("cut", [5, 100, 400])
def test_a_truncated_archive_is_read_as_far_as_it_goes(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "spans.gz"
    path.write_bytes(recorded("strands.native.success").read_bytes()[:-cut])
    assert replay("--dry-run", path).exit_code == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = replay("--dry-run", tmp_path / "missing.jsonl", recorded("strands.native.success"))
    assert result.exit_code == 1
    assert "missing.jsonl: No such file" in result.stderr
    assert "Finished 'reporter'" in result.stdout


def test_a_dry_run_needs_no_settings_and_bad_ones_do_not_hinder_it(tmp_path: Path) -> None:
    result = replay("--dry-run", recorded("strands.native.success"), env={"LETTA_BASE_URL": "nonsense"})
    assert result.exit_code == 0


def test_without_an_agent_nothing_is_read_or_sent() -> None:
    result = replay(recorded("strands.native.success"), env={"LETTA_AGENT_ID": ""})
    assert (result.exit_code, result.stdout) == (1, "")
    assert "LETTA_AGENT_ID" in result.stderr


def test_without_an_agent_a_file_that_is_not_there_is_named_first(tmp_path: Path) -> None:
    result = replay(tmp_path / "missing.jsonl", recorded("strands.native.success"), env={"LETTA_AGENT_ID": ""})
    assert result.exit_code == 1
    file, agent = result.stderr.index("missing.jsonl: No such file"), result.stderr.index("LETTA_AGENT_ID")
    assert file < agent
    assert result.stderr.count("No such file") == 1


def test_what_is_printed_is_sent_too() -> None:
    with InMemoryLetta() as letta:
        agent = letta.create_agent()
        env = {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent, "LETTA_PASSWORD": "secret"}
        result = replay(recorded("pydantic_ai.otel.llm_error"), recorded("pydantic_ai.otel.success"), env=env)
        assert result.exit_code == 0
        assert [report["status"] for report in letta.reports(agent)] == ["failed"]
        assert "completed" in (letta.board(agent) or "")


def test_opt_ins_of_the_settings_count() -> None:
    env = {"OTEL_LETTA_TASKS": "scope:opentelemetry.instrumentation.celery*"}
    told = lines_of(replay("--dry-run", "--format", "json", recorded("celery_batch.tool_error"), env=env))
    assert [(line["name"], line["status"]) for line in told] == [("run/nightly.import_sales", "failed")]
    assert "bad row 1043: price is not a number" in told[0]["content"]


def test_a_service_that_the_settings_name_is_an_agent_without_tools_too(tmp_path: Path) -> None:
    call = {"gen_ai.operation.name": "chat", "gen_ai.conversation.id": "c-1", "gen_ai.response.finish_reasons": "stop"}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in call.items()]
    service = [{"key": "service.name", "value": {"stringValue": "chatbot"}}]
    spans = [{**SPAN, "attributes": attributes}]
    traces = [{"resource": {"attributes": service}, "scopeSpans": [{"spans": spans}]}]
    file = tmp_path / "spans.json"
    file.write_text(json.dumps({"resourceSpans": traces}))
    for patterns, told in (("service:chat*", ["in_progress", "completed"]), ("scope:chat*", [])):
        lines = lines_of(replay("--dry-run", "--format", "json", str(file), env={"OTEL_LETTA_TASKS": patterns}))
        assert [line["status"] for line in lines] == told
        assert {line["name"] for line in lines} <= {"chatbot"}


# -- the reader --------------------------------------------------------------------------------------------------------

SPAN: dict[str, Any] = {
    "traceId": "0AF7651916CD43DD8448EB211C80319C",
    "spanId": "b7ad6b7169203331",
    "name": "x",
    "startTimeUnixNano": "1544712660000000000",
    "endTimeUnixNano": "1544712661000000000",
}


def read(**more: Any) -> Batch:
    request = {"resourceSpans": [{"scopeSpans": [{"spans": [{**SPAN, **more}]}]}]}
    (batch,) = read_batches([json.dumps(request).encode()])
    return batch


def test_ids_times_and_enums_are_read_in_either_spelling() -> None:
    for more in (
        {"kind": 2, "status": {"code": 2, "message": "m"}},
        {"kind": "SPAN_KIND_SERVER", "status": {"code": "STATUS_CODE_ERROR", "message": "m"}},
        {"kind": "2", "status": {"code": "2", "message": "m"}, "startTimeUnixNano": 1544712660000000000},
    ):
        (span,) = read(**more, somethingNew={"a": [1]}).spans
        assert span.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
        assert (span.kind, span.status.status_code, span.status.description) == (SpanKind.SERVER, StatusCode.ERROR, "m")
        assert (span.start_time, span.end_time) == (1544712660000000000, 1544712661000000000)


@pytest.mark.parametrize(
    ("flags", "remote"), [(0, False), (0x100, False), (0x300, True), (0x200, False), ("768", True)]
)
def test_a_parent_is_in_another_process_if_the_flags_say_so(flags: Any, remote: bool) -> None:
    (span,) = read(parentSpanId="00f067aa0ba902b7", flags=flags).spans
    assert span.parent is not None
    assert span.parent.is_remote is remote


def test_every_kind_of_value_is_read() -> None:
    values = {
        "text": {"stringValue": "x"},
        "yes": {"boolValue": True},
        "number": {"intValue": "9007199254740993"},
        "plain": {"intValue": 5},
        "real": {"doubleValue": 0.5},
        "nan": {"doubleValue": "Infinity"},
        "bytes": {"bytesValue": "aGk="},
        "list": {"arrayValue": {"values": [{"intValue": 1}, {"stringValue": "a"}]}},
        "map": {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": 1}}]}},
        "nothing": {},
    }
    (span,) = read(attributes=[{"key": key, "value": value} for key, value in values.items()]).spans
    assert dict(span.attributes or {}) == {
        "text": "x",
        "yes": True,
        "number": 9007199254740993,
        "plain": 5,
        "real": 0.5,
        "nan": float("inf"),
        "bytes": b"hi",
        "list": (1, "a"),
        "map": '{"a": 1}',
        "nothing": None,
    }


@pytest.mark.parametrize(
    "more",
    [
        {"traceId": ""},
        {"spanId": "0" * 16},
        {"spanId": 5},
        {"name": ["x"]},
        {"endTimeUnixNano": "soon"},
        {"endTimeUnixNano": -5},
        {"attributes": {"a": 1}},
        {"attributes": [{"key": "a", "value": {"intValue": "x"}}]},
        {"attributes": [{"key": "a", "value": 5}]},
        {"events": [5]},
        {"status": "ERROR"},
    ],
    ids=str,
)
def test_a_span_that_is_none_is_said_to_be_broken(more: dict[str, Any]) -> None:
    batch = read(**more)
    assert batch.spans == []
    assert len(batch.broken) == 1


RECORD: dict[str, Any] = {
    "timeUnixNano": "1544712660000000000",
    "observedTimeUnixNano": 1544712661000000000,
    "eventName": "named",
    "traceId": "0AF7651916CD43DD8448EB211C80319C",
    "spanId": "b7ad6b7169203331",
    "body": {"stringValue": "nobody's business"},
    "attributes": [{"key": "event.name", "value": {"stringValue": "x.user_prompt"}}],
}


def read_record(**more: Any) -> Batch:
    logs = {
        "resource": {"attributes": [{"key": "a", "value": {"intValue": 1}}]},
        "scopeLogs": [{"scope": {"name": "s"}}],
    }
    logs["scopeLogs"][0]["logRecords"] = [{**RECORD, **more}]  # type: ignore[index]
    (batch,) = read_batches([json.dumps({"resourceLogs": [logs]}).encode()])
    return batch


def test_a_log_record_is_read_without_its_body() -> None:
    (record,) = read_record().records
    assert record == LogRecord(
        1544712660000000000,
        "named",
        {"event.name": "x.user_prompt"},
        0x0AF7651916CD43DD8448EB211C80319C,
        0xB7AD6B7169203331,
        record.resource,
        record.scope,
    )
    assert (record.resource.attributes["a"], record.scope.name) == (1, "s")
    assert read_record(timeUnixNano="0").newest == 1544712661000000000
    bare = read_record(traceId="", spanId=None, attributes=None, eventName=None).records[0]
    assert (bare.trace_id, bare.span_id, bare.attributes, bare.event_name) == (0, 0, {}, "")


@pytest.mark.parametrize(
    "more",
    [
        {"traceId": 7},
        {"spanId": 5},
        {"eventName": ["x"]},
        {"timeUnixNano": "soon"},
        {"timeUnixNano": -5},
        {"attributes": {"a": 1}},
        {"attributes": [{"key": "a", "value": {"intValue": "x"}}]},
    ],
    ids=str,
)
def test_a_log_record_that_is_none_is_said_to_be_broken(more: dict[str, Any]) -> None:
    batch = read_record(**more)
    assert batch.records == []
    assert [why.startswith("log record 1: ") for why in batch.broken] == [True]


def test_metrics_and_logs_are_no_spans_and_no_error() -> None:
    batches = list(read_batches([b'{"resourceMetrics": []}', b'{"resourceLogs": [{}]}', b"", b"{}"]))
    assert [(batch.spans, batch.broken) for batch in batches] == [([], [])] * 3


WORDS = [
    *SPAN,
    "key",
    "value",
    "events",
    "attributes",
    "intValue",
    "doubleValue",
    "arrayValue",
    "values",
    "status",
    "x",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(JSON, st.sampled_from(["resourceSpans", "scopeSpans", "spans", "attributes", "events", "status", "flags"]))
def test_no_input_raises(value: Any, where: str) -> None:
    documents: list[Any] = [value, {where: value}, {"resourceSpans": [{where: value, "scopeSpans": [{where: value}]}]}]
    documents += [{"resourceLogs": value}, {"resourceLogs": [{"scopeLogs": [{"logRecords": [{where: value}]}]}]}]
    for document in documents:
        for _ in read_batches([json.dumps(document).encode()]):
            pass
    read(**{where: value})
    read_record(**{where: value})


# -- bounds ------------------------------------------------------------------------------------------------------------

_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
from otel_letta.cli.main import main
sys.argv[1:] = ["replay", "--dry-run", *sys.argv[1:]]
main()
"""


def replay_with_little_memory(*files: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, files)], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/zero and RLIMIT_AS")
def test_an_input_without_lines_or_end_is_given_up() -> None:  # reads 256 MB
    done = replay_with_little_memory("/dev/zero")
    assert "/dev/zero: no line break in 256 MB, the rest is not read" in done.stderr
    assert done.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as bomb:
        bomb.write(b'{"resourceSpans": [')
        for _ in range(200):
            bomb.write(b"[]," * 2**18)
    assert path.stat().st_size < 2**20
    done = replay_with_little_memory(path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_a_line_that_is_too_long_is_named_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.otlp.lines.LONGEST_LINE", 50_000)
    with gzip.open(recorded(next(iter(traces())))) as file:
        good = next(line for line in file if len(line) < 50_000)
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"[" + b" " * 60_000 + b"]\n" + good + b" " * 60_000 + b"\n" + good)
    result = replay("--dry-run", path)
    assert result.exit_code == 1
    assert "line 1: longer than" in result.stderr
    assert "line 3" in result.stderr
    assert "line 2" not in result.stderr


def test_a_document_over_many_lines_has_a_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_letta.otlp.json.LONGEST_DOCUMENT", 5_000)
    path = tmp_path / "long.json"
    path.write_text("{\n" + '"more": 1,\n' * 4_000 + '"resourceSpans": []\n}\n')
    result = replay("--dry-run", path)
    assert result.exit_code == 1
    assert "a document of more than" in result.stderr


def test_a_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"resourceSpans": []}\n' * 1_000)
    with path.open("rb") as file, pytest.raises(lines.InputTooLongError):
        list(lines.bounded_lines(file, most=10_000))


# -- a file that is something else -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["name,value\n" * 50, "2026-11-29 INFO started\n" * 50, "\x89PNG\n\x00\x01\n" * 50],
    ids=["csv", "log", "binary"],
)
def test_a_file_that_is_no_otlp_says_so_once(text: str, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text(text, encoding="latin-1")
    result = CliRunner().invoke(app(), ["replay", "--dry-run", str(file)])
    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    assert first.startswith(f"{file} does not begin as OTLP-JSON (line 1: not ")
    assert "a Collector's file exporter writes" in first
    assert last == "No task in 0 spans."
