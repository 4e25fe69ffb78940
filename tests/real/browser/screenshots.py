"""Makes the pictures of docs/watch.md: ``python -m tests.real.browser.screenshots docs/images``."""

from __future__ import annotations

import sys
from pathlib import Path

from otel_letta.testing import InMemoryLetta
from tests.support.browser import PATIENCE, browsing, fill
from tests.support.otlp_sender import serving

SIZES = {"light": (1000, 900), "dark": (1000, 900), "phone": (390, 844)}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with InMemoryLetta() as letta, browsing() as browser:
        agent = letta.create_agent()
        with serving(letta.base_url, agent) as service:
            fill(service)
            for name, (width, height) in SIZES.items():
                context = browser.new_context(
                    color_scheme="dark" if name == "dark" else "light", viewport={"width": width, "height": height}
                )
                page = context.new_page()
                page.set_default_timeout(PATIENCE)
                page.goto(f"http://127.0.0.1:{service.options.port}/")
                page.locator("#connection >> text=Live").wait_for()
                page.screenshot(path=folder / f"watch-{name}.png")
                context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
