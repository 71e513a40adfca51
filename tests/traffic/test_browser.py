"""The shop in a real Chromium, through the ingress. CITADELBUY_TRAFFIC_PICTURES=docs/images renews pictures."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

import browser
from cluster import ROOT, get
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Page, expect
from shop import HOST, PORT, Entry

PICTURES = ROOT / os.environ.get("CITADELBUY_TRAFFIC_PICTURES", ".cache/tests/traffic")
URL = f"https://{HOST}:{PORT}"


def key() -> str:
    """What Chromium knows the shop's certificate by, whose authority is no browser's. Any other one is refused."""
    text = base64.b64decode(get("secret", "ingress-tls")["data"]["tls.crt"])
    public = x509.load_pem_x509_certificate(text).public_key()
    digest = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return base64.b64encode(digest).decode()


def picture(page: Page, name: str) -> None:
    """Keep what is seen."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"shop-{name}.png")


def test_from_the_front_page_by_a_search_to_a_product(entry: Entry, products: dict[str, str]) -> None:
    name = "Café-Mühle für Espresso"
    where = [f"--host-resolver-rules=MAP {HOST} {entry.address}", f"--ignore-certificate-errors-spki-list={key()}"]
    with browser.browser(*where, namespace=entry.namespace) as page:
        told: list[str] = []
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        refused: list[str] = []
        page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)

        answer = page.goto(URL)
        assert answer
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        expect(page).to_have_title("Products - CitadelBuy")
        expect(page.get_by_role("heading", name="Products", exact=True)).to_be_visible()
        expect(page.locator("main li")).to_have_count(min(50, len(products)))
        picture(page, "home")

        page.get_by_label("Search products").fill("espresso")
        page.get_by_role("button", name="Search").click()
        expect(page).to_have_url(f"{URL}/search?q=espresso")
        expect(page.locator("main li").first).to_contain_text(name)
        picture(page, "search")

        page.get_by_role("link", name=name).click()
        expect(page).to_have_url(f"{URL}/products/{products[name]}")
        expect(page.get_by_role("heading", name=name)).to_be_visible()
        expect(page.locator("article .price")).to_have_text(re.compile(r"^\$\d+\.\d\d$"))
        expect(page.locator("article")).to_contain_text("In stock")
        picture(page, "product")
        assert told == []
        assert refused == []
    assert all(Path(PICTURES, f"shop-{part}.png").read_bytes()[1:4] == b"PNG" for part in ("home", "search", "product"))


def test_plain_http_leads_to_https(entry: Entry) -> None:
    where = [f"--host-resolver-rules=MAP {HOST} {entry.address}", f"--ignore-certificate-errors-spki-list={key()}"]
    with browser.browser(*where, namespace=entry.namespace) as page:
        page.goto(f"http://{HOST}:30080/search?q=lamp")
        assert page.url == f"{URL}/search?q=lamp"
