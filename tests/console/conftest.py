"""A real control process on a loopback port over a seeded database, and a real Chromium to look at it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from meta_agent.api.app import create_app
from meta_agent.settings import Settings
from policies.loader import DEFAULT_PATH, load_policy
from storage.database import Database
from storage.testing import create_clone, drop
from tests.control.seeding import PASSWORD, Seeded, seed

CHROMIUM = os.environ.get("META_AGENT_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")


@dataclass(frozen=True)
class Console:
    """Where it is served, what is in it, and the database's URL."""

    url: str
    seeded: Seeded
    database_url: str


class _Server(threading.Thread):
    """uvicorn with a loop of its own; the database's pool belongs to that loop."""

    def __init__(self, database_url: str, port: int) -> None:
        super().__init__()
        self._database_url, self._port = database_url, port
        self.ready = threading.Event()
        self.seeded: Seeded | None = None
        self.server: uvicorn.Server | None = None

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        database, policy = Database(self._database_url), load_policy(DEFAULT_PATH)
        try:
            self.seeded = await seed(database, policy)
            app = create_app(database, Settings(), policy)
            config = uvicorn.Config(
                app, port=self._port, log_level="error", ws="none", timeout_graceful_shutdown=1
            )
            self.server = uvicorn.Server(config)
            self.ready.set()
            await self.server.serve()
        finally:
            self.ready.set()
            await database.close()


@pytest.fixture(scope="module")
def console(server_url: str) -> Iterator[Console]:
    database_url = create_clone(server_url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    thread = _Server(database_url, port)
    thread.start()
    thread.ready.wait(30)
    assert thread.seeded is not None
    assert thread.server is not None
    url = f"http://127.0.0.1:{port}"
    transport = httpx.HTTPTransport(retries=20)
    with httpx.Client(transport=transport, trust_env=False) as client:
        assert client.get(f"{url}/healthz/ready").status_code == 200
    yield Console(url, thread.seeded, database_url)
    thread.server.should_exit = True
    thread.join(20)
    drop(server_url, database_url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; set META_AGENT_TEST_CHROMIUM to one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


class Visitor:
    """A logged-in operator in a browser, and everything that the browser complained about."""

    def __init__(self, context: BrowserContext, console: Console) -> None:
        self.page: Page = context.new_page()
        self.console = console
        self.complaints: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def _note(self, message: object) -> None:
        kind, text = getattr(message, "type", ""), getattr(message, "text", "")
        if kind in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {kind}: {text}")

    def log_in(self, name: str) -> None:
        self.open("/login")
        self.page.fill("[name=name]", name)
        self.page.fill("[name=password]", PASSWORD)
        self.page.click("button[type=submit]")
        self.page.wait_for_selector(".stream.live", state="attached")

    def open(self, path: str) -> None:
        self.page.goto(self.console.url + path)


@pytest.fixture
def visit(browser: Browser, console: Console) -> Iterator[object]:
    """Make a visitor: ``visit("anna", dark=True, width=390)``."""
    contexts: list[BrowserContext] = []

    def make(name: str | None = "anna", *, dark: bool = False, width: int = 1280) -> Visitor:
        context = browser.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": 844},
            reduced_motion="reduce",
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        visitor = Visitor(context, console)
        if name is not None:
            visitor.log_in(name)
        return visitor

    yield make
    for context in contexts:
        context.close()
