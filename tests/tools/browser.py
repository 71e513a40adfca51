"""A headless Chromium on a Grafana-like server: Grafana itself, or images/grafana-viewer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTH, HEIGHT = 1600, 900  # pixels; a screenshot is as high as its page
PATIENCE = 60  # seconds until what should be on a page is not


@dataclass(frozen=True)
class Panel:
    """What became of a panel: `state` is loading, data, empty or error; `text` is what it shows."""

    number: str
    kind: str
    title: str
    state: str
    text: str


@contextmanager
def browser(*arguments: str, namespace: str = "") -> Iterator[Page]:
    """A page of a new Chromium with an empty profile; a script that fails or is refused fails the test at the end.

    :param arguments: more of them for Chromium.
    :param namespace: network namespace that it is started in, as `ip netns` names it.
    :raises FileNotFoundError: where Debian's package chromium is not installed.
    """
    program = shutil.which("chromium")
    if not program:
        raise FileNotFoundError("chromium is not there: install Debian's package chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile, sync_playwright() as playwright:
        if namespace:
            start = Path(profile, "start")
            start.write_text(f'#!/bin/sh\nexec ip netns exec {namespace} {program} "$@"\n')
            start.chmod(0o755)
            program = str(start)
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program, args=[*ARGUMENTS, *arguments], viewport={"width": WIDTH, "height": HEIGHT}
        )
        try:
            problems: list[str] = []
            page = context.pages[0]
            page.set_default_timeout(PATIENCE * 1000)
            page.on("pageerror", lambda error: problems.append(str(error)))
            policy = "Content Security Policy"
            page.on("console", lambda message: problems.append(message.text) if policy in message.text else None)
            yield page
            assert not problems, f"the page's scripts failed: {problems}"
        finally:
            context.close()


def sign_in(page: Page, url: str, user: str, password: str) -> None:
    """Log in as Grafana's own page does, without its form.

    :param url: the server's root, such as http://127.0.0.1:3000.
    :raises AssertionError: where the server refuses.
    """
    answer = page.request.post(f"{url}/login", data={"user": user, "password": password})
    assert answer.ok, f"login at {url} as {user}: status {answer.status}, {answer.text()[:200]}"


def open_dashboard(page: Page, url: str, uid: str, query: str = "") -> list[Panel]:
    """Open a dashboard of the viewer and wait until every visible panel has its first answer.

    :param query: of the address, such as from=now-6h&var-job=citadelbuy-api.
    :raises playwright.sync_api.TimeoutError: where that takes longer than PATIENCE.
    """
    page.goto(f"{url}/d/{uid}/-?{query}")
    page.wait_for_selector("body[data-loaded=true]")
    return panels(page)


def panels(page: Page) -> list[Panel]:
    """The visible panels of the dashboard that a page shows."""
    found = page.eval_on_selector_all(
        "[data-panel-id]",
        """all => all.filter(one => one.offsetParent).map(one => {
            const text = part => one.querySelector(part)?.innerText ?? "";
            return [one.dataset.panelId, one.dataset.type, text(".heading"), one.dataset.state, text(".body")];
        })""",
    )
    return [Panel(*fields) for fields in found]


def screenshot(url: str, user: str, password: str, uid: str, file: Path, query: str = "") -> list[Panel]:
    """Log in and write a picture of a dashboard: PNG, WIDTH pixels wide, as high as the dashboard.

    :param query: as of `open_dashboard`.
    :returns: the visible panels, for the caller to judge.
    """
    with browser() as page:
        sign_in(page, url, user, password)
        found = open_dashboard(page, url, uid, query)
        file.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=file, full_page=True)
        return found
