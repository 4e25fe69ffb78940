"""Imported by Python at the start of a program under `otel-letta run`. Never raises: the program shall run anyway."""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib takes longer to import than this
sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != _here]  # noqa: PTH100
_others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != _here]
# Only this program reports, not every Python that it starts.
if _others:
    os.environ["PYTHONPATH"] = os.pathsep.join(_others)
else:
    os.environ.pop("PYTHONPATH", None)

_this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore[import-not-found, unused-ignore]  # noqa: F401 - the one behind this one
except ImportError:
    sys.modules["sitecustomize"] = _this

try:
    from otel_letta.cli.run.startup import start
except ImportError as _error:
    print(
        f"otel-letta run: nothing is reported, {_error.name} is not installed for {sys.executable}: "
        "pip install otel-letta there",
        file=sys.stderr,
    )
else:
    start()
