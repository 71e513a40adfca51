"""The viewer in a real Chromium, on what a real Prometheus has scraped."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import browser
import pytest
from conftest import VIEWER, Server
from playwright.sync_api import Page, expect

TYPES = {"timeseries", "stat", "gauge", "bargauge", "table", "text", "state-timeline"}
PICTURES = Path(__file__).resolve().parents[2] / ".cache/tests"


def fill_in(page: Page, server: Server, password: str) -> None:
    """Send the form of the login page."""
    page.get_by_label("User").fill(server.user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_the_units_of_the_viewer() -> None:
    done = subprocess.run(["npm", "test"], cwd=VIEWER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "# tests 0" not in done.stdout


def test_a_wrong_password_stays_out(viewer: Server) -> None:
    with browser.browser() as page:
        page.goto(f"{viewer.url}/d/panels/x")
        fill_in(page, viewer, f"{viewer.password}x")
        expect(page.get_by_role("alert")).to_have_text("Invalid username or password")
        page.goto(f"{viewer.url}/d/panels/x")
        assert "/login?redirect=" in page.url
        assert page.request.get(f"{viewer.url}/api/search").status == 401
        with pytest.raises(AssertionError, match="status 401"):
            browser.sign_in(page, viewer.url, viewer.user, "wrong")


def test_from_the_form_to_every_panel(viewer: Server) -> None:
    with browser.browser() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{viewer.url}/d/panels/every-type?from=now-1m")
        fill_in(page, viewer, viewer.password)
        page.wait_for_selector("body[data-loaded=true]")
        assert "/d/panels/every-type?from=now-1m" in page.url
        panels = browser.panels(page)
        assert {panel.kind for panel in panels} == TYPES
        assert [panel for panel in panels if panel.state != "data"] == []
        texts = {panel.title: panel.text for panel in panels}
        assert texts["Targets up"] == "1"
        assert texts["State by job"].split("\n") == ["away", "down", "prometheus", "up"]
        assert texts["Scrapes that fail"] == "50%"
        assert "MiB" in texts["Memory by use"]
        assert "/metrics" in texts["Requests"]
        assert "req/s" in texts["Requests"]
        assert texts["Jobs"].startswith("Job\tInstance\tState\tSamples\tDuration\naway\t127.0.0.1:1\tdown\t0\t")
        assert [url for url in asked if not url.startswith(f"{viewer.url}/")] == []
        expect(page.locator("footer")).to_contain_text("not Grafana")
        # What is drawn: lines, and dashes for the thresholds.
        assert page.locator(".u-wrap canvas").count() == 3
        plot = page.locator("[data-panel-id='9'] .u-over")
        box = plot.bounding_box()
        assert box
        plot.hover(position={"x": box["width"] * 0.95, "y": 50})
        expect(page.locator("#tooltip")).to_contain_text("/metrics")


def test_a_folded_row_asks_when_it_is_opened(viewer: Server) -> None:
    with browser.browser() as page:
        browser.sign_in(page, viewer.url, viewer.user, viewer.password)
        assert "Version" not in {panel.title for panel in browser.open_dashboard(page, viewer.url, "panels")}
        page.get_by_role("button", name="Folded").click()
        expect(page.locator(".panel", has_text="Version")).to_have_attribute("data-state", "data")
        expect(page.locator(".panel", has_text="Version").locator(".body")).to_contain_text("2.")


def test_variables_change_what_is_asked(viewer: Server) -> None:
    with browser.browser() as page:
        browser.sign_in(page, viewer.url, viewer.user, viewer.password)
        browser.open_dashboard(page, viewer.url, "panels", "var-job=prometheus")
        state = page.locator(".panel", has_text="State by job").locator(".body")
        expect(state).to_contain_text("prometheus")
        expect(state).not_to_contain_text("away")
        page.locator("details.multi").click()
        page.get_by_role("checkbox", name="All").check()
        page.locator("header").click()
        expect(state).to_contain_text("away")
        assert "var-job=%24__all" in page.url
        browser.open_dashboard(page, viewer.url, "troubles", "var-job=prometheus")
        half = page.locator(".panel", has_text="Half of it works").locator(".body")
        expect(half).to_have_text("1")
        page.locator("select[name=var-factor]").select_option("20")
        expect(half).to_have_text("20")


def test_a_range_is_chosen_and_zoomed(viewer: Server) -> None:
    with browser.browser() as page:
        browser.sign_in(page, viewer.url, viewer.user, viewer.password)
        browser.open_dashboard(page, viewer.url, "panels")
        page.get_by_label("Time range").select_option("15m")
        page.wait_for_url("**from=now-15m**")
        plot = page.locator("[data-panel-id='9'] .u-over")
        page.wait_for_selector("body[data-loaded=true]")
        box = plot.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] + 20, box["y"] + 20, steps=5)
        page.mouse.up()
        page.wait_for_url(re.compile(r"from=\d{13}&to=\d{13}"))
        page.wait_for_selector("body[data-loaded=true]")
        assert [panel.title for panel in browser.panels(page) if panel.state != "data"] == []


def test_what_goes_wrong_is_said_and_the_rest_works(viewer: Server) -> None:
    with browser.browser() as page:
        browser.sign_in(page, viewer.url, viewer.user, viewer.password)
        found = {panel.title: panel for panel in browser.open_dashboard(page, viewer.url, "troubles")}
        assert {title: panel.state for title, panel in found.items()} == {
            "A query that fails": "error",
            "No data": "empty",
            "A type that is not supported": "error",
            "Half of it works": "data",
            "Nothing at this instant": "empty",
            "Empty table": "empty",
        }
        assert "parse error" in found["A query that fails"].text
        assert found["Empty table"].text == "No data"
        page.goto(viewer.url)
        expect(page.get_by_role("alert")).to_contain_text("torn.json")
        expect(page.get_by_role("link", name="Every type of panel")).to_be_visible()


REQUEST, TRACE = "req-7f3a.1", "4bf92f3577b34da6a3ce929d0e0e4736"


def test_from_a_request_to_its_lines_to_its_trace_and_back(viewer: Server, stand_in: tuple[str, list[str]]) -> None:
    asked = stand_in[1]
    with browser.browser() as page:
        browser.sign_in(page, viewer.url, viewer.user, viewer.password)
        panels = browser.open_dashboard(page, viewer.url, "logs")
        assert {panel.title: panel.state for panel in panels} == {
            "Lines of errors by container": "data",
            "Lines by level": "data",
            "Lines with the text above": "data",
        }
        assert '*:i(""*)' in asked
        assert "n/api" in panels[0].text
        assert re.search(r"\b7\b", panels[0].text), "the legend has the sum of 3 and 4"
        asked.clear()
        page.get_by_label("Request id, trace id or text").fill(REQUEST)
        page.get_by_label("Request id, trace id or text").press("Enter")
        page.wait_for_url("**var-search=req-7f3a.1**")
        page.wait_for_selector("body[data-loaded=true]")
        assert f'*:i("{REQUEST}"*)' in asked
        lines = page.locator(".line")
        assert [lines.nth(index).get_attribute("data-level") for index in range(3)] == ["info", "info", "error"]
        # What is written in a log is text, whatever it looks like.
        expect(lines.nth(2)).to_contain_text('error=invalid byte sequence <b>"x"</b>')
        lines.nth(2).locator("summary").click()
        expect(lines.nth(2).locator("tr", has_text="requestId")).to_contain_text(REQUEST)
        lines.nth(2).get_by_role("link", name="Trace").click()
        page.wait_for_url(f"**/trace/jaeger/{TRACE}")
        page.wait_for_selector("body[data-loaded=true]")
        expect(page.locator(".span")).to_have_count(5)
        expect(page.locator(".span.failed")).to_have_count(2)
        expect(page.locator(".span").nth(3)).to_contain_text("citadelbuy-api INSERT")
        boxes = [page.locator(".span .fill").nth(index).bounding_box() for index in (0, 4)]
        assert boxes[0]
        assert boxes[1]
        assert boxes[1]["width"] < boxes[0]["width"] / 10, "2 ms of 41"
        assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] / 2, "after 30 ms of 41"
        page.locator(".span.failed summary").first.click()
        expect(page.locator(".span.failed").first).to_contain_text("internal error")
        page.screenshot(path=PICTURES / "viewer-trace.png", full_page=True)
        asked.clear()
        page.get_by_role("link", name="Lines of its logs").click()
        page.wait_for_selector(".line")
        assert f'*:i("{TRACE}"*)' in asked


def test_what_goes_wrong_with_logs_and_traces_is_said(viewer: Server) -> None:
    with browser.browser() as page:
        browser.sign_in(page, viewer.url, viewer.user, viewer.password)
        for text, state, said in (("broken", "error", "cannot parse `query`"), ("nothing", "empty", "No data")):
            panels = browser.open_dashboard(page, viewer.url, "logs", f"var-search={text}")
            assert [(panel.state, panel.text) for panel in panels if panel.kind == "logs"] == [(state, said)]
        page.goto(f"{viewer.url}/trace/jaeger/{'0' * 32}")
        expect(page.get_by_role("alert")).to_contain_text("There is no such trace")
        assert page.goto(f"{viewer.url}/trace/prometheus/{TRACE}").status == 403


@pytest.mark.parametrize("uid", ["panels", "troubles", "logs"])
def test_a_picture_is_taken(viewer: Server, uid: str) -> None:
    file = PICTURES / f"viewer-{uid}.png"
    file.unlink(missing_ok=True)
    assert browser.screenshot(viewer.url, viewer.user, viewer.password, uid, file)
    header = file.read_bytes()[:24]
    assert header[1:4] == b"PNG"
    width, height = (int.from_bytes(header[place : place + 4], "big") for place in (16, 20))
    assert width == browser.WIDTH
    assert height >= browser.HEIGHT
