"""What agents ask, where several processes receive behind one address: whichever is asked, it asks the others as well.

Each task, and what waits for it, is in the process that its program's spans come to. The others are asked on their
Unix sockets, see `Router`: so an answer is as new as the task, and not as a file of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from otel_letta.answer import Answer
from otel_letta.instruction import Instruction, instruction_from
from otel_letta.report import ProgressReport
from otel_letta.serve.answers import Refusal
from otel_letta.serve.asking import Asker, Asking, listed
from otel_letta.serve.routes import Router
from otel_letta.serve.siblings import merged, tasks_in

_SILENT = "A process that receives here did not answer, and its tasks are left out: ask again."
_EVERY = 0.5
"""Seconds between two looks of one program for instructions in the other processes."""


class AskingEverywhere:
    """The same as `Asking`, for the tasks of all processes.

    Args:
        own: has this process's.
        router: reaches the others.
    """

    may_wait = True

    def __init__(self, own: Asking, router: Router) -> None:
        self._own = own
        self._router = router
        router.answer = self.answer
        own.elsewhere = self._pass_on

    # -- what agents may ask -------------------------------------------------------------------------------------------

    def list_tasks(self, asker: Asker) -> dict[str, Any]:
        """See `Asking`. May wait for the others, as all of these."""
        found = self._ask_all({"do": "list", "agents": _agents(asker)})
        views = [self._own.shown(asker), *(tasks_in(each["tasks"]) for each in found.values() if each)]
        return listed(merged(views), _SILENT if None in found.values() else "")

    def get_task(self, asker: Asker, task_id: str) -> dict[str, Any]:
        """See `Asking`."""
        _, found = self._newest(asker, task_id)
        return found

    def instruct_task(self, asker: Asker, task_id: object, action: object, text: object = "") -> dict[str, Any]:
        """See `Asking`. It is kept in the process that has the task, which is asked for it, too, by the others."""
        place = None
        if isinstance(task_id, str):
            with contextlib.suppress(Refusal):  # the one here says what is wrong with it
                place, _ = self._newest(asker, task_id)
        if place is None:
            return self._own.instruct_task(asker, task_id, action, text)
        question = {"do": "instruct", "asker": [_agents(asker), *asker[1:]], "with": [task_id, action, text]}
        found = self._router.ask(place, question)
        if found is None:
            raise Refusal(503, "the process that has this task does not answer at the moment")
        return _result(found)

    def _newest(self, asker: Asker, task_id: str) -> tuple[int | None, dict[str, Any]]:
        """Return what is known of a task, and by whom: None for this process. Raises Refusal if it is nowhere."""
        answers = self._ask_all({"do": "get", "agents": _agents(asker), "task_id": task_id})
        known: dict[int | None, dict[str, Any]] = {
            place: each["task"] for place, each in answers.items() if each and each["task"]
        }
        try:
            known[None] = self._own.get_task(asker, task_id)
        except Refusal:
            if not known:
                raise
        place = max(known, key=lambda at: (known[at].get("changed", ""), at is None))
        return place, known[place]

    @contextlib.contextmanager
    def asked_for(self, asker: Asker, task_id: str) -> Iterator[Callable[[], list[dict[str, Any]] | None]]:
        """See `Asking`."""
        due, is_known = 0.0, False

        def take() -> list[dict[str, Any]] | None:
            nonlocal due, is_known
            taken = own()
            if not taken and time.monotonic() >= due:
                due = time.monotonic() + _EVERY
                answers = self._ask_all({"do": "take", "agents": _agents(asker), "task_id": task_id})
                found = [each["taken"] for each in answers.values() if each and each["taken"] is not None]
                is_known = bool(found)
                taken = [each for every in found for each in every] or taken
            return [] if taken is None and is_known else taken

        with self._own.asked_for(asker, task_id) as own:
            yield take

    def take_answer(self, report: ProgressReport, answer: Answer) -> None:
        """See `Asking`."""
        self._own.take_answer(report, answer)

    def _pass_on(self, instruction: Instruction, agent_id: str, called: bool) -> None:
        self._ask_all({"do": "answered", "agents": [agent_id], "called": called, "with": list(_parts(instruction))})

    def _ask_all(self, question: Mapping[str, Any]) -> dict[int, Any]:
        return {place: self._router.ask(place, question) for place in self._router.others}

    # -- what the others ask -------------------------------------------------------------------------------------------

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer another process, for this one alone."""
        do = question["do"]
        if do == "instruct":
            agents, *rest = question["asker"]
            asker = Asker(_set(agents), *rest)
            try:
                return {"found": self._own.instruct_task(asker, *question["with"])}
            except Refusal as refusal:
                return {"refused": [refusal.status, refusal.text]}
        asker = Asker(_set(question["agents"]), instructs=False, does_tasks=True)
        if do == "list":
            return {"tasks": self._own.shown(asker).to_dict()}
        if do == "get":
            try:
                return {"task": self._own.get_task(asker, question["task_id"])}
            except Refusal:
                return {"task": None}
        if do == "take":
            with self._own.asked_for(asker, question["task_id"]) as take:
                return {"taken": take()}
        task_id, action, text = question["with"]
        instruction = instruction_from({"task_id": task_id, "action": action, "text": text})
        if instruction is not None:
            self._own.take_instruction(instruction, question["agents"][0], called=question["called"])
        return {}


def _agents(asker: Asker) -> list[str] | None:
    return None if asker.agents is None else sorted(asker.agents)


def _set(agents: Collection[str] | None) -> frozenset[str] | None:
    return None if agents is None else frozenset(agents)


def _parts(instruction: Instruction) -> tuple[str, str, str]:
    return instruction.task_id, instruction.action, instruction.text


def _result(found: Mapping[str, Any]) -> dict[str, Any]:
    if "refused" in found:
        raise Refusal(*found["refused"])
    result: dict[str, Any] = found["found"]
    return result
