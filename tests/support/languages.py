"""The programs of `examples/languages`, built as their README says, outside the checkout."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs.install import cache_folder, locked

__all__ = ["LANGUAGES", "Example", "build"]

FOLDER = Path(__file__).parents[2] / "examples" / "languages"
_TIMEOUT = 1_200.0

BLOCKS: dict[str, list[str]] = {
    name: commands.splitlines()
    for name, commands in re.findall(
        r"^```sh\ncd examples/languages/(\w+)\n(.*?)^```$",
        (FOLDER / "README.md").read_text("utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
}
"""By language, the commands of the README: those that build, and at last one that runs the program with two files."""

LANGUAGES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@dataclass(frozen=True)
class Example:
    """A program that was built: the folder it runs in, and its command without files."""

    folder: Path
    command: list[str]


def build(name: str) -> Example:
    """Return the program, from the tests' cache, or built there if its sources or commands have changed.

    RuntimeError if it cannot be built: never a reason to skip.
    """
    *steps, last = BLOCKS[name]
    folder = cache_folder() / f"language-{name}"
    marker = folder / "BUILT"
    sources = _sources(name)
    digest = hashlib.sha256(repr((steps, [(path.name, path.read_bytes()) for path in sources])).encode()).hexdigest()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not (marker.exists() and marker.read_text() == digest):
                print(f"[languages] building {name} in {folder} (once)", file=sys.stderr, flush=True)
                _build(folder, sources, steps)
                marker.write_text(digest)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stdout", None) or "") + (getattr(error, "stderr", None) or "")
        raise RuntimeError(f"cannot build {name} in {folder}: {error}\n{said[-4000:]}") from error
    *command, first, second = shlex.split(last)
    assert (folder / first).is_file(), last
    assert (folder / second).is_file(), last
    return Example(folder, command)


def _sources(name: str) -> list[Path]:
    """Return the files of the example; what somebody built beside them is left out."""
    known = {".js", ".json", ".go", ".mod", ".sum", ".java", ".xml"}
    return sorted(path for path in (FOLDER / name).iterdir() if path.suffix in known)


def _build(folder: Path, sources: list[Path], steps: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for source in sources:
        shutil.copy(source, folder)
    for step in steps:
        subprocess.run(
            step,
            shell=True,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT,
        )
