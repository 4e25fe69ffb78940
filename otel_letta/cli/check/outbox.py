"""The outbox in ``otel-letta check``: whether it can be used, and what waits in it."""

from __future__ import annotations

from otel_letta.cli.check.findings import Findings
from otel_letta.settings import Settings
from otel_letta.store.choose import open_store
from otel_letta.store.model import StoreError

_COUNTED = 10_000


def examine_outbox(findings: Findings, settings: Settings) -> None:
    """Open the outbox as a program would, which makes the file if it is missing, and count what waits."""
    if settings.outbox is None:
        return
    findings.section("Outbox")
    place = settings.outbox.shown
    store = open_store(settings.outbox.reveal(), place, fsync=settings.outbox_fsync)
    try:
        store.open()
        ends = store.all_entries(limit=_COUNTED)
        size = store.size()
    except StoreError as error:
        findings.facts["outbox"] = {"place": place, "usable": False}
        findings.problem(
            f"the outbox cannot be used: {error}",
            "Until it can, reports are kept in memory alone; name another place in OTEL_LETTA_OUTBOX if it never will.",
        )
        return
    finally:
        store.close()
    left = sum(not alive for _, alive in ends)
    findings.facts["outbox"] = {
        "place": place,
        "usable": True,
        "waiting": len(ends),
        "left_behind": left,
        "bytes": size,
    }
    findings.good(f"{place}: {len(ends)}{'+' if len(ends) == _COUNTED else ''} end(s) wait, {size / 1e6:.1f} MB")
    if left:
        findings.note(
            f"{left} of them are from processes that are gone: the next process for this server delivers them, or "
            "'otel-letta outbox retry'."
        )
