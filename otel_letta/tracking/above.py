"""What is above a live span: the chain of spans that its watcher knows, and which of them matter."""

from __future__ import annotations

from collections.abc import Sequence

from otel_letta.runtime.imports import Protocol
from otel_letta.tracking.reading import Reading, SpanKey
from otel_letta.tracking.tasks import Task
from otel_letta.tracking.tree import Tree


class Ancestor(Protocol):
    """A span above another one, as its watcher knows it."""

    @property
    def key(self) -> SpanKey: ...

    @property
    def scope(self) -> str | None:
        """Its instrumentation scope; None if it is ignored, or cannot be read any more."""

    def read(self) -> Reading | None:
        """Read it as it is now; None if it cannot be read any more."""

    def await_end(self) -> bool:
        """Have its end brought to `Tracker.ended_plain` even if it stays plain; False if it has ended already."""


def nearest(tree: Tree, above: Sequence[Ancestor], start: int) -> tuple[Task | None, SpanKey | None]:
    """Return the declared task of the nearest span above that has one or a role, or else that span.

    Args:
        start: the time when the span below started; tasks that had ended by then are passed over.
    """
    for ancestor in above:
        task, has_role = tree.standing(ancestor.key)
        if task is not None and task.had_ended(start):
            continue
        if task is not None or has_role:
            return task, ancestor.key if task is None else None
    return None, None


def task_around(tree: Tree, above: Sequence[Ancestor]) -> Task | None:
    """Return the nearest declared task above."""
    tasks = (tree.standing(ancestor.key)[0] for ancestor in above)
    return next((task for task in tasks if task is not None), None)


def next_above(
    tree: Tree, above: Sequence[Ancestor], outside: SpanKey | None, scope: str | None
) -> tuple[SpanKey | None, Reading | None]:
    """Return the next span above a live one that has a role, or may get one yet.

    Args:
        scope: open spans of this instrumentation scope may; None for none.

    Returns:
        Its key, and the topmost span that may get a role, if the key is of such a one.
    """
    candidates = []
    for ancestor in above:
        task, has_role = tree.standing(ancestor.key)
        if has_role:
            return ancestor.key, None
        if task is not None:
            outside = None
            break
        if scope is not None and ancestor.scope == scope:
            candidates.append(ancestor)
    candidates = [ancestor for ancestor in candidates if ancestor.await_end()]
    for ancestor in candidates:
        tree.awaited[ancestor.key] = scope or ""
    return (candidates[0].key, candidates[-1].read()) if candidates else (outside, None)


def await_ends(tree: Tree, above: Sequence[Ancestor], *, anew: bool) -> bool:
    """Have the ends of all spans above brought, if none has a role: one may bound a run.

    Args:
        anew: even if they are not awaited for that yet.

    Returns:
        False if one has a role, or one has ended unnoticed.
    """
    if above and not anew and tree.awaited.get(above[0].key) != "" and above[0].key not in tree.plain:
        return False
    if not above or any(tree.standing(ancestor.key)[1] for ancestor in above):
        return False
    known = (tree.awaited, tree.plain)  # their ends are on their way, or were here
    if not all(any(ancestor.key in keys for keys in known) or ancestor.await_end() for ancestor in above):
        return False
    for ancestor in above:
        tree.awaited.setdefault(ancestor.key, "")
    return True
