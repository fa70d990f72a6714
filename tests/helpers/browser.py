"""Headless Chromium on MLflow's pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SIZE = 2200, 1200
"""Width and height of the window: MLflow renders the columns of a table that are in it."""
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
SCREENSHOTS = "PSVIT_SCREENSHOTS"
"""Environment variable with the folder for screenshots; without it none are taken."""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page in a profile of its own, as of somebody who was never there."""
    width, height = SIZE
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(address)
        yield page


def screenshot(page: Page, name: str) -> None:
    """Keeps what the page shows, where the environment names a folder for that."""
    if folder := os.environ.get(SCREENSHOTS):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(2_000)  # charts move into place
        page.screenshot(path=Path(folder, f"{name}.png"))
