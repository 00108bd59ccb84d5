"""Chromium as a person has it, with everything that goes wrong in a page written down."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response, sync_playwright

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """One context of the browser: ``errors`` and ``foreign`` must stay empty, ``sent`` counts what came over the wire."""

    context: BrowserContext
    page: Page
    base: str
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()  # parts of messages that a test provokes

    def open(self, path: str) -> Page:
        self.page.goto(self.base + path, wait_until="load")
        return self.page

    def sign_in(self, token: str) -> Visit:
        self.open("/login")
        self.page.fill("#token", token)
        self.page.click("button.primary")
        self.page.wait_for_url(self.base + "/")
        return self

    def note(self, message: str) -> None:
        if not any(part in message for part in self.expected):
            self.errors.append(message)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def visit(browser: Browser, base: str, *, width: int = 1280, height: int = 900, **more: Any) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page = context.new_page()
    page.set_default_timeout(20_000)
    seen = Visit(context, page, base)

    def console(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            seen.note(f"{message.type}: {message.text}")

    def request(asked: Request) -> None:
        if urlsplit(asked.url).netloc != urlsplit(base).netloc and not asked.url.startswith(("blob:", "data:")):
            seen.foreign.append(asked.url)

    def response(answer: Response) -> None:
        if answer.status >= 400:
            seen.note(f"{answer.status}: {answer.url}")

    page.on("console", console)
    page.on("pageerror", lambda error: seen.note(f"thrown: {error}"))
    page.on("request", request)
    page.on("response", response)
    try:
        yield seen
    finally:
        context.close()


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """``app`` on a free port of the loopback, in a thread with a loop of its own."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        app.close()
        thread.join(10)
        listener.close()


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for a condition; its value once it holds."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {true}")
        time.sleep(0.02)
    return value
