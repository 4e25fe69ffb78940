"""All benchmarks, one table.

    python -m benchmarks                     # some five minutes
    python -m benchmarks --quick             # under one, and noisier
    python -m benchmarks --only spans import
    python -m benchmarks --real              # also against a real Letta 0.16.8, which the first time gets installed
    python -m benchmarks --json figures.json

Run it from the repository's root, with the extra ``test`` installed. A missed target is a line of the table, not a
failure: exit code 1 means that something could not be measured. Settings, proxies and `.env` files of the machine take
no part.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import opentelemetry.sdk.version

import otel_letta
from benchmarks.figures import Figure, Run

# By name: the module, each with a docstring that says what is measured and how.
_ALL = {
    "spans": "span_cost",
    "export": "export_cost",
    "latency": "latency",
    "exit": "exit_time",
    "idle": "idle_cpu",
    "import": "import_time",
    "long": "long_task",
    "flood": "flood",
    "delivery": "delivery",
    "translation": "translation",
    "bridge": "bridge",
}
_REAL = {"real": "real_letta"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What otel_letta costs, measured. Figures go to stdout as a table."
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples and smaller numbers: under a minute")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*_ALL, *_REAL], help=f"of {', '.join(_ALL)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the unrounded figures there too")
    parser.add_argument("--real", action="store_true", help="also against a real Letta (installed when first needed)")
    options = parser.parse_args(arguments)
    json_file = options.json.absolute() if options.json else None

    _leave_the_machine_out()
    run = Run(quick=options.quick)
    names = options.only or list(_ALL)
    if options.real and "real" not in names:
        names = [*names, "real"]
    began = time.monotonic()
    figures, failed = _measure(run, names)
    about = _about(run, time.monotonic() - began)
    print(_table(figures))
    print(about)
    if json_file is not None:
        document = {"about": about, "figures": [{**vars(figure), "verdict": figure.verdict} for figure in figures]}
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _leave_the_machine_out() -> None:
    # Spawned processes find this package by sys.path, which `python -m` made absolute.
    empty = tempfile.mkdtemp(prefix="otel_letta_bench_")
    atexit.register(shutil.rmtree, empty, ignore_errors=True)
    os.chdir(empty)
    for name in list(os.environ):
        ours = name.startswith(("LETTA_", "OTEL_")) and name != "OTEL_LETTA_TEST_CACHE"
        if ours or name.upper().endswith("_PROXY"):
            del os.environ[name]
    # What goes wrong on purpose here (a dead server, reports that are cut off) is no news.
    logging.getLogger("otel_letta").setLevel(logging.CRITICAL)


def _measure(run: Run, names: Sequence[str]) -> tuple[list[Figure], bool]:
    figures: list[Figure] = []
    failed = False
    for name in names:
        try:
            module = importlib.import_module(f"benchmarks.{ {**_ALL, **_REAL}[name] }")
            figures += module.measure(run)
        except Exception as error:
            failed = True
            figures.append(Figure(f"{name}: not measured", "–", note=f"{type(error).__name__}: {error}"))
            logging.getLogger("benchmarks").exception("%s could not be measured", name)
    return figures, failed


def _table(figures: Sequence[Figure]) -> str:
    """Markdown that reads well as plain text; what is to be said about a figure stands below, by number."""
    rows = [("what", "figure", "target", "")]
    notes = []
    for figure in figures:
        what = figure.what
        if figure.note:
            notes.append(textwrap.fill(figure.note, 110, initial_indent=f"{len(notes) + 1}. ", subsequent_indent="   "))
            what += f" [{len(notes)}]"
        rows.append((what, figure.figure, figure.target, figure.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * max(width, 3) for width in widths) + " |")
    return "\n".join([*lines, "", *notes])


def _about(run: Run, seconds: float) -> str:
    loads = " ".join(f"{load:.1f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return (
        f"\n{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}, opentelemetry-sdk {opentelemetry.sdk.version.__version__}, "
        f"otel_letta {_version()}; load afterwards {loads}; took {seconds:.0f} s{', --quick' if run.quick else ''}"
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("otel-letta")
    except PackageNotFoundError:
        return getattr(otel_letta, "__version__", "from source")


if __name__ == "__main__":
    sys.exit(main())
