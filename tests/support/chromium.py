"""A real Chromium, and pages of it that must not complain."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Error, Page, Request, expect, sync_playwright

from tests.support.service import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
PATIENCE_MS = 1000 * PATIENCE_S
LOCALE = {"locale": "en-IE", "timezone_id": "Europe/Dublin"}


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Run it; whatever calls `asyncio.run` in this thread must have done so before, or does so after."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no Chromium: install one (`make browser`; on Debian `apt-get install chromium`)", pytrace=False)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


class Visit:
    """A page, and all that goes wrong in it: faults, complaints on the console, dialogs, requests to elsewhere."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self._host = urlsplit(origin).netloc
        page.on("pageerror", self._hear_fault)
        page.on("console", self._hear_message)
        page.on("dialog", self._hear_dialog)
        page.on("request", self._see_request)

    def forgive(self, *expected: str) -> None:
        """Forget the complaints that a test has provoked: those that hold one of these texts."""
        self.complaints = [one for one in self.complaints if not any(text in one for text in expected)]

    def _hear_fault(self, fault: Error) -> None:
        self.complaints.append(f"fault: {fault}")

    def _hear_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def _hear_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _see_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.netloc != self._host and url.scheme != "data":
            self.complaints.append(f"request: {request.url}")


@contextmanager
def visit(browser: Browser, origin: str, **options: object) -> Iterator[Visit]:
    """Open a page of its own; in the end it must not have complained."""
    context = browser.new_context(base_url=origin, **{**LOCALE, **options})  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    try:
        opened = Visit(context.new_page(), origin)
        yield opened
        assert opened.complaints == []
    finally:
        context.close()
