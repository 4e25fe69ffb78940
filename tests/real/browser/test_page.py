"""The page in a real Chromium: live, by keyboard, without its script, accessible, and safe from hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from otel_letta.report import TaskStatus
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.browser import PATIENCE, axe, browsing, fill, report
from tests.support.otlp_sender import serving

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"

COMES = """
() => {
  new EventSource("events").onmessage = (event) => { if (event.data.includes("A later one")) console.log("came"); };
}
"""
"""A second stream, which shows that the page was sent what it does not show."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


@pytest.fixture
def service(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent, tokens=("the-token",)) as found:
        fill(found)
        yield found


@pytest.fixture
def view(browser: Any, service: Service) -> Iterator[Any]:
    """The page, signed in; any error of its script fails the test."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    sign_in(page, service)
    yield page
    context.close()
    assert errors == []


def sign_in(page: Any, service: Service) -> None:
    page.goto(f"http://127.0.0.1:{service.options.port}/")
    page.get_by_label("Token of this receiver").fill("the-token")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Tasks").wait_for()


def wait_live(page: Any) -> None:
    page.locator("#connection >> text=Live").wait_for()


def names(page: Any, section: str) -> list[str]:
    found: list[str] = page.locator(f"#{section} h3").all_text_contents()
    return found


def test_tasks_move_from_list_to_list_while_the_page_is_open(view: Any, service: Service) -> None:
    wait_live(view)
    assert names(view, "waiting") == ["Deploy to production"]
    kept = view.locator("#working li").first.element_handle()
    service.intake.tasks.take(report("Nightly report", waiting=True, content="Which ledger?"))
    view.locator("#waiting >> text=Which ledger?").wait_for()
    service.intake.tasks.take(report("Nightly report", status=TaskStatus.COMPLETED, result="Two pages"))
    service.intake.tasks.take(report("New one", content="just begun"))
    view.locator("#ended >> text=Two pages").wait_for()
    view.locator("#working >> text=just begun").wait_for()
    assert names(view, "waiting") == ["Deploy to production"]
    assert names(view, "working") == ["Import of orders", "Translate the handbook", "New one"]
    assert names(view, "ended")[0] == "Nightly report"
    # What did not change is still the same element: a reader's place is not lost.
    assert kept.evaluate("element => element.isConnected")
    assert "Nightly report: Completed." in view.locator("#announcements").text_content()


def test_updates_can_be_paused_by_the_keyboard(view: Any, service: Service) -> None:
    wait_live(view)
    view.get_by_role("button", name="Pause updates").focus()
    view.keyboard.press("Space")
    assert view.locator("#pause").get_attribute("aria-pressed") == "true"
    with view.expect_event("console", predicate=lambda message: message.text == "came", timeout=PATIENCE):
        view.evaluate(COMES)
        service.intake.tasks.take(report("A later one", content="x"))
    assert "A later one" not in names(view, "working")
    view.keyboard.press("Space")
    view.locator("#working >> text=A later one").wait_for()


def test_hostile_texts_do_nothing(view: Any, service: Service) -> None:
    wait_live(view)
    service.intake.tasks.take(report(HOSTILE, content=HOSTILE, chat_id=HOSTILE, service=HOSTILE))
    view.locator("#working li").nth(3).wait_for()
    assert "<img src=x" in names(view, "working")[3]
    view.reload()
    wait_live(view)
    assert view.locator("main img, main script").count() == 0
    assert view.title() == "Tasks – otel_letta"


def test_it_says_that_the_receiver_is_gone(view: Any, service: Service) -> None:
    wait_live(view)
    service.stop()
    view.locator("#connection.lost").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_accessible_and_no_wider_than_the_screen(browser: Any, service: Service, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    service.intake.tasks.take(report("W" * 80, content="n" * 300, chat_id="c" * 100))
    page.goto(f"http://127.0.0.1:{service.options.port}/?token=wrong")
    assert violations(page) == []
    sign_in(page, service)
    wait_live(page)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def violations(page: Any) -> list[str]:
    page.evaluate(axe())
    found = json.loads(page.evaluate("axe.run().then(found => JSON.stringify(found.violations))"))
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def test_it_works_without_its_script(browser: Any, service: Service) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    sign_in(page, service)
    assert names(page, "waiting") == ["Deploy to production"]
    service.intake.tasks.take(report("Later"))
    page.locator("#working >> text=Later").first.wait_for()  # it loads itself again
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token of this receiver").wait_for()
    context.close()


def test_a_link_with_the_token_leads_to_the_page_and_keeps_no_token(browser: Any, service: Service) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://127.0.0.1:{service.options.port}/?token=the-token")
    wait_live(page)
    assert "token" not in page.url
    context.close()
