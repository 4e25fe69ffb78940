"""`otel-letta run`: programs report without a line of code, without a Collector, and as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from otel_letta.testing import InMemoryLetta

APP = """
from opentelemetry import trace

tracer = trace.get_tracer(__name__)
with tracer.start_as_current_span("Import", attributes={"letta.chat.id": "chat-1"}):
    print("working")
"""
OWN_PROVIDER = """
from opentelemetry import trace

tracer = trace.get_tracer(__name__)

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"own: {span.name}\\n")))
trace.set_tracer_provider(provider)
with tracer.start_as_current_span("Import", attributes={"letta.chat.id": "chat-1"}):
    print("working")
"""


def run(
    letta: InMemoryLetta, agent: str, folder: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "otel_letta", "run", "--", *command],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_AGENT_ID": agent,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ends(letta: InMemoryLetta, agent: str) -> list[tuple[str, str]]:
    return [(report["task"], report["status"]) for report in letta.reports(agent)]


def test_a_program_reports_and_prints_what_it_always_did(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = run(letta, agent, tmp_path, sys.executable, "app.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "working\n", "")
    assert ends(letta, agent) == [("Import", "completed")]


def test_a_program_with_a_provider_of_its_own_keeps_its_backend(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(OWN_PROVIDER)
    done = run(letta, agent, tmp_path, sys.executable, "app.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "working\nown: Import\n", "")
    assert ends(letta, agent) == [("Import", "completed")]


def test_exporters_that_somebody_asks_for_work_too(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = run(
        letta,
        agent,
        tmp_path,
        sys.executable,
        "app.py",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert done.returncode == 0, done.stderr
    assert '"name": "Import"' in done.stdout
    assert ends(letta, agent) == [("Import", "completed")]


def test_a_module_and_the_programs_own_sitecustomize(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import sitecustomize, os\nprint(sitecustomize.own, os.environ['PYTHONPATH'])" + APP
    )
    (tmp_path / "sitecustomize.py").write_text("own = 'mine'\n")
    done = run(letta, agent, tmp_path, sys.executable, "-m", "app", PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.stderr) == (f"mine {tmp_path}\nworking\n", "")
    assert ends(letta, agent) == [("Import", "completed")]


def test_a_python_that_the_program_starts_is_left_alone(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])\n")
    done = run(letta, agent, tmp_path, sys.executable, "app.py", "import sys; print('otel_letta' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("code", [0, 3])
def test_its_exit_code_is_the_programs(code: int, letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    assert run(letta, agent, tmp_path, sys.executable, "-c", f"raise SystemExit({code})").returncode == code


def test_a_command_that_is_not_there_is_127(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    done = run(letta, agent, tmp_path, "no-such-command")
    assert (done.returncode, done.stderr) == (127, "otel-letta run: no-such-command is not found\n")


def test_without_settings_the_program_runs_and_one_line_says_what_is_missing(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = run(letta, "", tmp_path, sys.executable, "app.py")
    assert (done.returncode, done.stdout) == (0, "working\n")
    assert done.stderr.count("\n") == 1
    assert "No Letta agent is named" in done.stderr


@pytest.mark.parametrize("app", [APP, OWN_PROVIDER], ids=["no provider", "a provider of its own"])
def test_a_program_that_configures_reporting_itself_hears_of_a_mistake_once(
    app: str, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    again = "import otel_letta\nprint(otel_letta.configure())\n"
    (tmp_path / "app.py").write_text(app + again)
    done = run(letta, "", tmp_path, sys.executable, "app.py")
    assert done.returncode == 0
    assert "does nothing: No Letta agent is named" in done.stdout
    assert done.stderr.count("No Letta agent is named") == 1


def test_another_mistake_of_the_program_is_another_line(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    again = f"otel_letta.configure(agent_id={agent!r}, base_url='nonsense')\n"
    (tmp_path / "app.py").write_text(f"import otel_letta\n{again}{again}")
    done = run(letta, "", tmp_path, sys.executable, "app.py")
    assert done.stderr.count("No Letta agent is named") == 1
    assert done.stderr.count("does nothing") == 3


def test_a_python_without_otel_letta_runs_the_program_and_says_so(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    venv.create(tmp_path / "other", symlinks=True)
    done = run(letta, agent, tmp_path, str(tmp_path / "other" / "bin" / "python"), "-c", "print('working')")
    assert (done.returncode, done.stdout) == (0, "working\n")
    assert "nothing is reported, otel_letta is not installed" in done.stderr


@pytest.mark.parametrize("flags", [["-I"], ["-E"], ["-S"], ["-X", "utf8", "-uI"]])
def test_a_python_that_ignores_the_environment_is_named(
    flags: list[str], letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    done = run(letta, agent, tmp_path, sys.executable, *flags, "-c", "print('working')")
    assert (done.returncode, done.stdout) == (0, "working\n")
    assert done.stderr == (
        f"otel-letta run: nothing is reported, python {flags[-1]} takes nothing from the environment\n"
    )


def test_flags_of_the_program_are_its_own(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = run(letta, agent, tmp_path, sys.executable, "-u", "app.py", "-I", "-S")
    assert (done.stdout, done.stderr) == ("working\n", "")
    assert ends(letta, agent) == [("Import", "completed")]
