"""Sources of settings: keywords, the environment, a `.env` file, the defaults; and complaints about what they hold."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings.kinds import Refused, ServerKind
from otel_letta.settings.secret import Secret
from otel_letta.settings.table import BY_NAME, OTHER_VARIABLES, VARIABLES, Variable
from otel_letta.settings.urls import CLOUD_BASE_URL

_logger = logging.getLogger(__name__)

OPTIONS = frozenset({"settings", "dotenv_path", *BY_NAME})
"""The keywords of a component: those of `SettingsOptions`."""
REFUSED = "refused"
"""The source of a default that stands in for a value that cannot be used."""
SECRETS = frozenset(variable.name for variable in VARIABLES if variable.secret)
_OF_CONNECTIONS = frozenset({"certificate", "client_certificate", "client_key"})
"""Settings that a searched file may make for the server that it names, and for no other."""


class Layer(NamedTuple):
    """The raw values of one source, by setting; those that are secret are sealed already."""

    source: str
    values: Mapping[str, object]
    searched: bool = False
    """Whether it is a file that nobody named: it was found upward from the working directory."""


class _Environments:
    """The value of a setting in a searched file that would take something of the environment along."""


def read(
    layers: Iterable[Layer], complaints: dict[str, LettaConfigurationError] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value and the source of every setting; of several layers the first that has a value counts.

    Args:
        layers: the first comes first.
        complaints: takes the error about each setting that cannot be used, by setting; the default stands in for it.

    Raises:
        LettaConfigurationError: a value cannot be used, and there is nothing that takes the complaint.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def refuse(name: str, error: LettaConfigurationError) -> None:
        if complaints is None:
            raise error
        complaints[name] = error
        values[name], sources[name] = BY_NAME[name].default, REFUSED

    for variable in VARIABLES:
        name = variable.name
        layer = next((layer for layer in layers if name in layer.values), None)
        sources[name] = "default" if layer is None else layer.source
        values[name] = variable.default if layer is None else _parsed(variable, layer.values[name], layer.source)
        if isinstance(values[name], LettaConfigurationError):
            refuse(name, values[name])
    if sources["base_url"] == "default" and values["api_key"] and not values["password"]:
        values["base_url"] = CLOUD_BASE_URL
    if values["server"] is ServerKind.REST and values["base_url"].startswith(("ws://", "wss://")):
        refused = Refused("LETTA_BASE_URL is the address of a WebSocket, which only an App Server has")
        hint = "allowed with it: auto, app-server, app-server-http"
        refuse("server", _complaint(BY_NAME["server"], str(values["server"]), sources["server"], refused, hint))
    return values, sources


def _parsed(variable: Variable, value: object, source: str) -> object:
    """Return the setting, or the error about it: one that is raised later is not chained to one with the raw value."""
    if isinstance(value, _Environments):
        return LettaConfigurationError(
            f"{variable.env} {described(source)} takes a variable of the environment",
            hint="write the value out, or set OTEL_LETTA_TRUST_DOTENV=true in the environment if the file is yours",
        )
    try:
        return variable.parse(value)
    except Refused as refused:
        return _complaint(variable, value, source, refused)


def _complaint(
    variable: Variable, value: object, source: str, refused: Refused, hint: str = ""
) -> LettaConfigurationError:
    where = f"(keyword {variable.name})" if source == "keyword" else described(source)
    reason = f": {refused.reason}" if refused.reason else ""
    shown = _shown(value) if refused.show else "used (value not shown, it may hold a secret)"
    return LettaConfigurationError(
        f"{variable.env} {where} cannot be {shown}{reason}", hint=hint or f"allowed: {variable.allowed}"
    )


def described(source: str) -> str:
    """Return a source as it stands in a sentence."""
    return {"keyword": "given as keyword", "environment": "from the environment"}.get(source, f"from {escaped(source)}")


# -- keywords --------------------------------------------------------------------------------------------------------


def sealed(name: str, value: object) -> object:
    """Return the value of a keyword with what may be a secret sealed: a misspelt "pasword" may be one as well."""
    if value is None or isinstance(value, Secret) or (name in OPTIONS and name not in SECRETS):
        return value
    # What is not even text will be refused; its type is enough for that.
    return Secret(value) if isinstance(value, str) else type(value)


def unknown(name: str) -> LettaConfigurationError:
    """Return the complaint about a keyword that does not exist."""
    import difflib

    close = difflib.get_close_matches(name[:100].lower(), BY_NAME, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"settings are {', '.join(BY_NAME)}"
    return LettaConfigurationError(f"Unknown setting {_shown(name)}", hint=hint)


def keyword_layer(keywords: Mapping[str, object]) -> Layer:
    """Return the layer of keywords; None counts as not given."""
    return Layer("keyword", {name: value for name, value in keywords.items() if value is not None})


# -- the environment -------------------------------------------------------------------------------------------------


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Return the layer of variables; an empty or blank one counts as not set."""
    _warn_of_misspelt(environ, "in the environment")
    return Layer("environment", _ours(environ))


def _warn_of_misspelt(raw: Mapping[str, Any], where: str) -> None:
    """Warn once of each variable that means to be one of ours and is none. Its value is not read."""
    for name in raw:
        upper = name.upper() if isinstance(name, str) else ""
        if upper.startswith(_PREFIXES) and name not in KNOWN_VARIABLES:
            hint = _meant(upper, raw)
            if hint:
                log_once(_logger, logging.WARNING, f"{escaped(name[:100])} {where} is none that is read: {hint}")


def _meant(name: str, raw: Mapping[str, Any]) -> str:
    """Return what a variable may have been meant to be; empty if it may well be somebody else's."""
    import difflib

    # The Letta server and its tools have LETTA_ variables of their own (LETTA_SERVER_PASSWORD, LETTA_PG_URI).
    ours = name.startswith(OUR_PREFIX)
    known = sorted(KNOWN_VARIABLES if ours else set(_SHARED) - set(raw))
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.8 if ours else 0.87)
    alias = _ALIASES.get(name)
    if alias is not None and alias not in raw:
        close = [alias]
    if close:
        return f"did you mean {close[0]}?"
    return "'otel-letta check --all' lists those that are" if ours else ""


OUR_PREFIX = "OTEL_LETTA_"
_PREFIXES = (OUR_PREFIX, "LETTA_")
_SHARED = tuple(variable.env for variable in VARIABLES if not variable.env.startswith(OUR_PREFIX))
_ALIASES = {
    "LETTA_URL": "LETTA_BASE_URL",
    "LETTA_SERVER_URL": "LETTA_BASE_URL",
    "LETTA_AGENT": "LETTA_AGENT_ID",
    "LETTA_TOKEN": "LETTA_API_KEY",
    **{f"OTEL_{name}": name for name in _SHARED},
    **{f"OTEL_LETTA_{name.removeprefix('LETTA_')}": name for name in _SHARED},
}
KNOWN_VARIABLES = frozenset(variable.env for variable in VARIABLES) | OTHER_VARIABLES


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Return whether the SDK is switched off; the specification knows no other spelling than ``true``."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _ours(raw: Mapping[str, str | None] | Mapping[str, str]) -> dict[str, object]:
    """Return the variables of ours that are set, by setting."""
    found: dict[str, object] = {}
    for variable in VARIABLES:
        text = raw.get(variable.env)
        if text is not None and text.strip():
            found[variable.name] = Secret(text) if variable.secret else text
    return found


# -- .env ------------------------------------------------------------------------------------------------------------


class _UnreadableError(Exception):
    """Returned, not raised: Python's own error would carry the file's content along (`UnicodeDecodeError.object`)."""


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a `.env` file that was given by keyword."""
    try:
        return str(Path(os.fsdecode(path)).absolute())
    except (TypeError, OSError):
        raise LettaConfigurationError(
            f"dotenv_path cannot be {_shown(path)}", hint="allowed: the path of a .env file"
        ) from None


def working_directory() -> str | None:
    """Return the folder where the search for a `.env` starts; None if it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def dotenv_layer(path: str) -> Layer:
    """Read a file that has to be there."""
    content = _read_dotenv(path, trusted=True)
    if isinstance(content, _UnreadableError):
        raise LettaConfigurationError(f"dotenv_path {_shown(path)} cannot be read: {content}")
    return Layer(path, content)


def nearest_dotenv_layer(start: str | None, above: Iterable[Layer]) -> Layer:
    """Read the first `.env` upward from a folder; one that cannot be read is a warning.

    Args:
        start: the folder.
        above: the layers that come before.
    """
    # dotenv.find_dotenv() would do, but it always starts at the present working directory; see `Settings.refresh`.
    folders = () if start is None else (Path(start), *Path(start).parents)
    path = next((str(folder / ".env") for folder in folders if _is_readable_kind(folder / ".env")), None)
    if path is None:
        return Layer("", {}, searched=True)
    trusted = next((layer.values["trust_dotenv"] for layer in above if "trust_dotenv" in layer.values), False)
    content = _read_dotenv(path, trusted=str(trusted).strip().lower() == "true")
    if isinstance(content, _UnreadableError):
        log_once(_logger, logging.WARNING, f"{escaped(path)} is ignored, it cannot be read: {content}")
        return Layer(path, {}, searched=True)
    names_server = "base_url" in content and not any("base_url" in layer.values for layer in above)
    for name in ({"trust_dotenv"} if names_server else {"trust_dotenv", *_OF_CONNECTIONS}) & content.keys():
        del content[name]
        log_once(_logger, logging.WARNING, f"{BY_NAME[name].env} in {escaped(path)} is ignored: nobody named that file")
    return Layer(path, content, searched=True)


def _is_readable_kind(path: Path) -> bool:
    try:
        return path.is_file() or path.is_fifo()  # password managers serve a .env through a named pipe
    except OSError:
        return False


def _read_dotenv(path: str, *, trusted: bool) -> dict[str, object] | _UnreadableError:
    try:
        # utf-8-sig: Windows editors write a byte order mark, which older python-dotenv takes for part of a name.
        text = Path(path).read_text(encoding="utf-8-sig")
        if not text.strip():
            return {}
        from dotenv import dotenv_values  # only programs with a .env pay for it

        values = dotenv_values(stream=io.StringIO(text))
        _warn_of_misspelt(values, f"in {escaped(path)}")
        found = _ours(values)
        if not trusted and "$" in text:
            foreign = _with_environment(dotenv_values(stream=io.StringIO(text), interpolate=False))
            found.update({name: _Environments() for name in found if BY_NAME[name].env in foreign})
        return found
    except UnicodeDecodeError as error:
        return _UnreadableError(f"not UTF-8 at byte {error.start}")
    except OSError as error:
        return _UnreadableError(error.strerror or type(error).__name__)
    except ValueError:  # a NUL in the path
        return _UnreadableError("not a path")


def _with_environment(raw: Mapping[str, str | None]) -> set[str]:
    """Return the names in a file whose values take something of the environment along, if by a detour."""
    from dotenv.variables import Variable as Reference
    from dotenv.variables import parse_variables

    known: set[str] = set()
    foreign: set[str] = set()
    for name, value in raw.items():
        used = {atom.name for atom in parse_variables(value or "") if isinstance(atom, Reference)}
        if used & foreign or any(each in os.environ for each in used - known):
            foreign.add(name)
        known.add(name)
    return foreign


# -- showing and logging ---------------------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """Return ``repr`` on one line, at most 80 characters, for values of any kind."""
    try:
        text = repr(str.__str__(value)[:100]) if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - a hostile or broken __repr__ must not hide the real complaint
        text = f"<{type(value).__name__}>"
    text = escaped(text[:200])
    return text if len(text) <= 80 else text[:79] + "…"


def escaped(text: str) -> str:
    """Return a text with what cannot be printed as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


_logged: dict[tuple[str, int, str], object] = {}


def log_once(logger: logging.Logger, level: int, text: str) -> None:
    """Log a line the first time in this process."""
    # setdefault is atomic; a lock could be held by another thread at the moment of a fork, and then forever.
    mine = object()
    if _logged.setdefault((logger.name, level, text), mine) is mine:
        logger.log(level, "%s", text)
