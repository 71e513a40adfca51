"""What customers send: requests of every route of images/api and images/web, with words that only look like attacks."""

from __future__ import annotations

import json
import random
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

NAMES = [
    "Levi's 501 Jeans",
    "Ben & Jerry's Cookie Dough",
    "T-Shirt \"Rock 'n' Roll\"",
    "Union Jack Flag 90x150 cm",
    "Drop-leaf Table, oak",
    "Select-Comfort Mattress",
    "Script Font Stencil Set",
    "Insert Tray for Drawers (3 pcs.)",
    "C# in Depth, 4th Edition",
    "Kabel USB-C -> HDMI, 2 m",
    "Café-Mühle für Espresso",
    "Ντομάτα Σαντορίνης 500 g",
    "日本の包丁 三徳 180mm",
    "قميص قطن أزرق",
    "Чай «Иван-чай», 100 г",
    "हल्दी पाउडर 200 ग्राम",
    "Crème brûlée-Set (4 Stück)",
    "L'Oréal Paris Shampoo 2-in-1",
    "Canon EOS R5 + RF 24-105mm f/4 L IS",
    'Monitor 27" 2560x1440 @ 144 Hz',
    "Order of the Phoenix, Harry Potter 5",
    "Cat 6 Ethernet Cable",
    "Group Exercise Mat - set of 10",
    "Eau de Parfum <Nº 5>",
    "Desk, having 2 drawers",
    "Nail File /w glass case",
    "Kids' Bicycle 16\"; red",
    "Windows 11 Home OEM",
    "Delete-Key Keycap (Cherry MX)",
    "Batman: Year One #1-4",
    "Java Coffee Beans; 1 kg",
    "Python Plush Snake 1.5m",
    "Bash Guitar Pick",
    "Echo Dot (5th gen)",
    "Table lamp $49.99 -> now $29.99",
    "Sleep Mask (silk)",
]
TEXTS = [
    "I'd select this over the other one any day. Where else do you find it from just $5?",
    "Don't buy: it's broken, and the seller's answer was \"not my problem\". 0/10!!!",
    "Union of comfort & style; select your size from the table below, and order by 3 p.m.",
    "Fits 9/10 of all desks (60 x 120 cm); drop shipping took 3-5 days.",
    "100% cotton -- machine wash at 40 °C; don't iron. Size: M/L/XL = 38/40/42.",
    "My daughter loves it <3 and so do I :-) Thanks!!! (would buy again)",
    "Works with Windows, macOS and Linux. See https://www.example.com/manual?id=12&lang=en for the manual.",
    "It's 5'10\" tall and weighs < 20 kg, or 44 lbs. I like it; my wife doesn't.",
    "Passt perfekt! Größe 42 fällt aus wie 41½, trotzdem 5 Sterne. Übrigens: «sehr schön», wie man's kennt.",
    "C'est l'été: j'ai reçu l'article aujourd'hui, qu'est-ce que c'est beau ! N'hésitez pas.",
    "L'acqua è buona e l'olio dell'azienda pure. Un po' caro, però.",
    "素晴らしい商品です。また買います！送料無料で届きました（3日）。",
    "Очень доволен: цена/качество = 10 из 10; доставка — быстрая.",
    "المنتج ممتاز، شكرا لكم!",
    "The update of the firmware failed at first; after I deleted the file and created a new account it works.",
    "1 = too small, 5 = too large: mine is a 3. If x > 50 cm then take the larger one; else the small.",
    'Cut & paste, copy, echo, ping, cat: all the games my kids\' toy robot knows. Type "help" first.',
    "Ingredients: sugar, salt (< 1 %), E330; may contain traces of nuts. Net wt. 12.5oz / 354 g",
    "Contains: \n- 1 lamp\n- 2 screws\n\nAssembly:\t10 minutes.\nWarranty: 24 months; see terms & conditions.",
    "Was in the window of the shop: $1,299.00 or best offer... alert: limited stock! Helped by the driver, onload too.",
    "Not null points from me: and or not, I'd say yes. Having kids? Group them by age before you order.",
    "Whoever wrote the manual (page 12/13 ../ sic) should be ashamed. Otherwise: A+++ 😀👍🏽",
    "Use promo code SAVE20' on checkout. Admin of the shop replied within 1 hour.",
    '"Sleep(ing) like a baby" - so the ad says. Benchmark of comfort (10/10).',
]
SEARCHES = [
    "levi's",
    "drop table lamp",
    "union jack",
    "select comfort",
    "t-shirt & jeans",
    "50% off",
    "men's shoes size 10.5",
    '"running shoes"',
    "usb-c -> hdmi",
    "c++ primer",
    "rock 'n' roll",
    "größe 42",
    "l'oréal",
    "crème brûlée",
    "包丁",
    "قميص",
    "чай",
    "हल्दी",
    "λάδι",
    "red or blue",
    "x < 100",
    "script font",
    "insert tray",
    "table where to put tv",
    "order by phone",
    '24" monitor',
    "kids' bike; red",
    "cat & dog food",
    "#1 best seller",
    "o'neill wetsuit",
    "d'addario strings",
    "file cabinet",
    "windows 11",
    "echo dot",
    "price=100",
    "🎁 gifts",
    "having fun game",
    "1/2 inch pipe",
    "sleep mask",
    "group of 4 chairs",
    "5 or 6",
    "a and b = c",
]
CUSTOMERS = [
    "anna.o'neill@example.com",
    "jürgen.groß@example.de",
    "marie-claire+shop@example.fr",
    "select.union@example.com",
    "admin@example.org",
    "li.wei@example.cn",
    "d'artagnan@example.fr",
    "root@example.net",
    "x_or_y=1@example.com",
]
PASSWORDS = [
    "correct horse battery staple",
    "' OR 1=1 -- my dog's name",
    "<script>alert('Pa55w0rd')</script>",
    "x'; DROP TABLE users; --9",
    "../../etc/passwd-2026",
    "$(rm -rf /)Aa1!",
    "Tr0ub4dor&3",
    "pässwörd-ß-2026",
    "{{7*7}}${jndi:ldap://no}",
    "; cat /etc/hosts | nc 1",
    "=cmd|' /C calc'!A0",
    '"><img src=x onerror=1>',
]
AGENTS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "CitadelBuy/3.2 (Android 14; okhttp/4.12.0)",
]
COOKIES = [
    "",
    "_ga=GA1.2.1409781456.1718102422; cart=eyJpdGVtcyI6WyJhIiwiYiJdfQ==; consent=analytics:1|ads:0; lang=de-DE",
    "session=s%3AQx8vB2.kU7dP%2Bz1%2F9w; theme=dark; last_viewed=%5B%22Levi%27s%22%5D",
]
# Of the API's shape (HS256); signed by nobody.
TOKENS = [
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI3YjBlNWQwMi1jOWE0LTRhNmYtOWQzMS0xZjJlM2Q0YzViNmEiLCJpYXQiOjE3MTgxMDI0MjIsImV4cCI6MTcxODEwNjAyMn0."
    "q3-VbT_8sXk1dR0nYw5UuE2LzjHc7GmAaPpOiIqKfFg",
]


@dataclass
class Request:
    """One request."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def legitimate(count: int) -> list[Request]:
    """So many requests, always the same ones: each route in turn, each list of words walked through."""
    chance = random.Random(1)
    routes = _routes(chance)
    return [_sent(chance, next(routes)) for _ in range(count)]


def _sent(chance: random.Random, request: Request) -> Request:
    cookie, api = chance.choice(COOKIES), request.path.startswith("/api")
    headers = {
        "Host": "shop.example.com",
        "User-Agent": chance.choice(AGENTS),
        "Accept": "application/json, text/plain, */*" if api else "text/html,application/xhtml+xml,*/*;q=0.8",
        "Accept-Language": "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7",
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "X-Forwarded-For": f"203.0.113.{chance.randrange(1, 255)}",
        "X-Forwarded-Proto": "https",
        "Referer": f"https://shop.example.com/search?q={urllib.parse.quote_plus(chance.choice(SEARCHES))}",
    }
    headers |= request.headers | ({"Cookie": cookie} if cookie else {})
    return Request(request.method, request.path, request.body, headers)


def _routes(chance: random.Random) -> Iterator[Request]:
    number = 0
    while True:
        name, text = NAMES[number % len(NAMES)], TEXTS[number % len(TEXTS)]
        word, email = SEARCHES[number % len(SEARCHES)], CUSTOMERS[number % len(CUSTOMERS)]
        password = PASSWORDS[number % len(PASSWORDS)]
        product = uuid.UUID(int=chance.getrandbits(128), version=4)
        price = round(chance.uniform(0, 2000), 2)
        token = {"Authorization": f"Bearer {TOKENS[0]}"}
        yield Request("GET", "/")
        yield Request("GET", f"/search?q={urllib.parse.quote_plus(word)}")
        yield Request("GET", f"/products/{product}")
        form = urllib.parse.urlencode({"name": name, "description": text, "price": price})
        yield _written("POST", "/products", "application/x-www-form-urlencoded", form)
        limit, offset = chance.randrange(1, 100), chance.randrange(1000)
        yield Request("GET", f"/api/products?limit={limit}&offset={offset}", None, token)
        yield _json("POST", "/api/products", {"name": name, "description": text, "price": price}, token)
        yield Request("GET", f"/api/products/{product}")
        yield Request("DELETE", f"/api/products/{product}", None, token)
        yield Request("GET", f"/api/search?q={_quoted(word)}&limit=20")
        yield _json("POST", "/api/auth/register", {"email": email, "password": password})
        yield _json("POST", "/api/auth/login", {"email": email, "password": password})
        yield _json("POST", "/api/payments", {"productId": str(product), "amount": price}, token)
        number += 1


def _json(method: str, path: str, body: dict[str, object], headers: dict[str, str] | None = None) -> Request:
    return _written(method, path, "application/json", json.dumps(body, ensure_ascii=False), headers)


def _written(method: str, path: str, kind: str, text: str, headers: dict[str, str] | None = None) -> Request:
    given = {"Content-Type": kind, "Origin": "https://shop.example.com"} | (headers or {})
    return Request(method, path, text.encode(), given)
