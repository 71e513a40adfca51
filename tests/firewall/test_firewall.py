"""The firewall by its real programs: what it refuses, what it lets through, what it says, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cases
import pytest
import yaml
from conftest import Firewall, Start
from programs import Programs
from traffic import PASSWORDS, TOKENS, legitimate

CHECKOUT = Path(__file__).resolve().parents[2]
LEVEL = yaml.safe_load((CHECKOUT / "roles/firewall/defaults/main.yml").read_text())["firewall_paranoia_level"]
EXCLUSIONS = yaml.safe_load((CHECKOUT / "roles/firewall/vars/main.yml").read_text())["__firewall_exclusions"]
ATTACK = "/search?q=1'%20OR%20'1'='1"
# Cases that no rule comes to see: nginx refuses them itself.
REFUSED_BY_NGINX = {"942500-1": "its path does not begin with a slash (400)"}


@pytest.fixture(scope="session")
def attacks(installed: Programs) -> list[cases.Case]:
    return cases.load(installed.cases, installed.root / "usr/share/modsecurity-crs/rules")


def send_all(firewall: Firewall, wanted: Iterable[cases.Case]) -> tuple[list[int], list[set[int]]]:
    """Status and findings of each case."""
    statuses = [firewall.send(cases.with_id(case.raw, f"case-{n}"))[0] for n, case in enumerate(wanted)]
    assert firewall.end() == 0
    found = firewall.findings()
    return statuses, [found.get(f"case-{number}", set()) for number in range(len(statuses))]


def serve_customers(firewall: Firewall, wanted: str = ".*") -> tuple[list[str], dict[str, set[int]]]:
    """The 1,000 requests, or those of a path: what was not answered by an application, and all findings."""
    refused = []
    requests = [one for one in legitimate(1000) if re.fullmatch(wanted, one.path.partition("?")[0])]
    for number, request in enumerate(requests):
        headers = request.headers | {"X-Request-Id": f"customer-{number}"}
        status, _, _ = firewall.ask(request.method, request.path, request.body, **headers)
        if status != 200:
            refused.append(f"{status} {request.method} {request.path} {(request.body or b'').decode()}")
    assert firewall.end() == 0
    return refused, firewall.findings()


def test_the_rule_sets_own_attacks_are_refused(start: Start, attacks: list[cases.Case]) -> None:
    with start() as firewall:
        statuses, found = send_all(firewall, attacks)
    apply = [
        (case, status, rules)
        for case, status, rules in zip(attacks, statuses, found, strict=True)
        if case.level <= LEVEL
    ]
    wrong = [
        f"{case.title}: {status}, rules {sorted(rules)}"
        for case, status, rules in apply
        if (case.attack and case.title not in REFUSED_BY_NGINX and (status != 403 or case.rule not in rules))
        or (case.attack and case.title in REFUSED_BY_NGINX and status != 400)
        or (not case.attack and case.rule in rules)
    ]
    counts = Counter((f"{case.rule // 1000}", status) for case, status, _ in apply if case.attack)
    above = Counter(case.level for case in attacks if case.level > LEVEL)
    print(f"\nattacks of level {LEVEL}: {dict(counts)}; no attacks: {sum(not case.attack for case, *_ in apply)}")
    print(f"of a higher level: {dict(above)}")
    assert wrong == []
    assert len(apply) == 242, "the cases are not those that were counted"


def test_detection_lets_everything_through_and_tells(start: Start, attacks: list[cases.Case]) -> None:
    wanted = [case for case in attacks if case.level <= LEVEL and case.attack and case.title not in REFUSED_BY_NGINX]
    with start(firewall_mode="detection") as firewall:
        statuses, found = send_all(firewall, wanted)
        assert len(firewall.web.seen) == len(wanted)
    assert set(statuses) == {200}
    assert [case.title for case, rules in zip(wanted, found, strict=True) if case.rule not in rules] == []


def test_a_thousand_requests_of_customers_pass(start: Start) -> None:
    with start() as firewall:
        refused, found = serve_customers(firewall)
        assert len(firewall.api.seen) + len(firewall.web.seen) == 1000
    print(f"\nfindings below the threshold: {Counter(rule for rules in found.values() for rule in rules)}")
    assert refused == []


@pytest.mark.parametrize("without", range(len(EXCLUSIONS)), ids=[item["target"] for item in EXCLUSIONS])
def test_each_exclusion_is_needed(start: Start, without: int) -> None:
    with start(without=without) as firewall:
        refused, found = serve_customers(firewall, EXCLUSIONS[without]["path"])
    assert refused
    # And each of its rules.
    assert set(EXCLUSIONS[without].get("rules", [])) <= {rule for rules in found.values() for rule in rules}


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/x-www-form-urlencoded", "text/plain", "application/xml", "a/b", ""],
)
def test_no_type_hides_a_body_from_it(start: Start, content_type: str) -> None:
    body = b'{"name": "x\' UNION SELECT password_hash FROM users --", "price": 1}'
    with start() as firewall:
        headers = {"Content-Type": content_type} if content_type else {}
        assert firewall.ask("POST", "/api/products", body, **headers)[0] == 403
        chunked = b"POST /api/products HTTP/1.1\r\nHost: x.example.com\r\nConnection: close\r\n"
        chunked += b"Transfer-Encoding: chunked\r\n"
        chunked += f"Content-Type: {content_type}\r\n".encode() if content_type else b""
        assert firewall.send(chunked + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))[0] == 403
        assert firewall.api.seen == []


def test_a_body_that_is_no_json_and_one_that_is_too_large(start: Start) -> None:
    with start(firewall_request_body_limit=1000) as firewall:
        json = {"Content-Type": "application/json"}
        assert firewall.ask("POST", "/api/products", b'{"name": "x', **json)[0] == 400
        assert firewall.ask("POST", "/api/products", b'{"name": "%b"}' % (b"x" * 989), **json)[0] == 413
        assert firewall.ask("POST", "/api/products", b'{"name": "%b"}' % (b"x" * 988), **json)[0] == 200


def test_the_log_says_what_was_found_and_no_secret(start: Start) -> None:
    secret = {"Authorization": f"Bearer {TOKENS[0]}", "Cookie": "session=s3cret-of-a-session", "X-Request-Id": "one"}
    with start() as firewall:
        status, headers, _ = firewall.ask("GET", ATTACK, **secret)
        assert (status, headers["x-request-id"]) == (403, "one")
        for password in PASSWORDS:
            body = yaml.dump({"email": "' OR 1=1 --", "password": password}, default_flow_style=True, width=9999)
            firewall.ask("POST", "/api/auth/login", body.encode(), **secret | {"Content-Type": "application/json"})
        bearer = {"Authorization": "Bearer ' OR 1=1 -- ../../etc/passwd <script>alert(1)</script>"}
        assert firewall.ask("GET", "/api/products", **bearer)[0] == 200
        firewall.end()
        (refused,) = [line for line in firewall.refused() if line["method"] == "GET"]
        assert (refused["requestId"], refused["status"], refused["path"]) == ("one", "403", "/search")
        assert 942100 in firewall.findings()["one"]
        everything = "".join(firewall.lines + firewall.errors)
    for word in (TOKENS[0], "s3cret-of-a-session", "battery staple", "Pa55w0rd", "DROP TABLE", "calc", "alert(1)"):
        assert word not in everything


def test_lines_of_several_workers_are_whole(start: Start) -> None:
    # Each of its findings is a longer line than a pipe takes at once.
    body = b"".join(b"&a%d=1'+UNION+SELECT+password+FROM+users+WHERE+'1'='1" % number for number in range(20))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    with start(firewall_worker_processes=4) as firewall:
        with ThreadPoolExecutor(8) as clients:
            ask = partial(firewall.ask, "POST", "/", body, **headers)
            answers = list(clients.map(lambda number: ask(**{"X-Request-Id": f"many-{number}"}), range(200)))
        assert {answer[0] for answer in answers} == {403}
        firewall.end()
        assert min(map(len, firewall.lines)) > 4096
        assert set(firewall.findings()) == {f"many-{number}" for number in range(200)}


def test_clients_are_whom_the_ingress_names(start: Start) -> None:
    given = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9", "X-Forwarded-Proto": "https", "traceparent": "00-1-2-01"}
    with start() as firewall:
        firewall.ask("GET", "/", **given)
        trusted = firewall.web.seen[0]["headers"]
    with start(firewall_trusted_proxies=[]) as firewall:
        firewall.ask("GET", "/", **given)
        stranger = firewall.web.seen[0]["headers"]
    # The last address is what the ingress saw; the one before it is what the client says of itself.
    assert (trusted["x-forwarded-for"], trusted["x-forwarded-proto"]) == ("203.0.113.9", "https")
    assert (stranger["x-forwarded-for"], stranger["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert trusted["host"] == "shop.example.com"
    assert "traceparent" not in trusted


def test_paths_lead_to_their_applications(start: Start) -> None:
    with start() as firewall:
        for path in ("/api", "/api/products", "/apis", "/", "/products/%31"):
            assert firewall.ask("GET", path)[0] == 200
        for path in ("/metrics", "//metrics", "/%6detrics", "/api/../metrics"):
            assert firewall.ask("GET", path)[0] in (403, 404)
        assert firewall.ask("TRACE", "/")[0] in (403, 405)
        assert [seen["path"] for seen in firewall.api.seen] == ["/api", "/api/products"]
        assert [seen["path"] for seen in firewall.web.seen] == ["/apis", "/", "/products/%31"]
        with urllib.request.urlopen(f"http://127.0.0.1:{firewall.health_port}/metrics", timeout=20) as answer:
            assert 'nginx_connections{state="writing"} 1\n' in answer.read().decode()


@pytest.mark.parametrize(("method", "sent", "status"), [("GET", 2, 200), ("POST", 1, 502), ("PATCH", 1, 502)])
def test_what_may_not_be_repeated_is_sent_once(start: Start, method: str, sent: int, status: int) -> None:
    with start(firewall_worker_processes=1) as firewall:
        firewall.ask("GET", "/api/products")
        firewall.ask("GET", "/api/products")
        (kept,) = {seen["peer"] for seen in firewall.api.seen}
        firewall.api.seen.clear()
        firewall.api.dropped = 1
        body = None if method == "GET" else b"{}"
        assert firewall.ask(method, "/api/products", body, **{"Content-Type": "application/json"})[0] == status
        assert len(firewall.api.seen) == sent
        # A kept one may just be closing.
        assert (firewall.api.seen[0]["peer"] == kept) == (method == "GET")


def test_open_requests_end_before_it_does(start: Start) -> None:
    with start() as firewall:
        firewall.api.held = threading.Event()
        answers: list[Any] = []
        client = threading.Thread(target=lambda: answers.append(firewall.ask("GET", "/api/products")))
        client.start()
        assert firewall.api.asked.acquire(timeout=20)
        firewall.process.send_signal(signal.SIGQUIT)
        until("it takes no more connections", lambda: not listens(firewall))
        assert firewall.process.poll() is None
        firewall.api.held.set()
        client.join(20)
        assert answers[0][0] == 200
        assert firewall.process.wait(20) == 0


def test_a_service_with_another_address_is_found(start: Start) -> None:
    with start() as firewall:
        assert firewall.ask("GET", "/api/products")[2] == b'{"from": "api"}'
        # A name on the loopback would always lead to the same address: the file is another one, and getent says so.
        file = firewall.folder / "nginx.conf"
        file.write_text(file.read_text().replace(firewall.api.address, firewall.web.address))
        (firewall.folder / "bin").mkdir()
        getent = firewall.folder / "bin/getent"
        getent.write_text("#!/bin/sh\necho 192.0.2.1\n")
        getent.chmod(0o755)
        until("it has read it", lambda: firewall.ask("GET", "/api/products")[2] == b'{"from": "web"}')


NO_CANARY = {"firewall_canary_api_address": "", "firewall_canary_web_address": ""}
SHARE = re.compile(r"citadelbuy_share=([0-9a-f]{4}); Path=/; Secure; HttpOnly; SameSite=Lax")


def track(firewall: Firewall, share: str, path: str = "/", method: str = "GET") -> str:
    """Who answers a customer with this number."""
    status, headers, text = firewall.ask(method, path, Cookie=f"a=b; citadelbuy_share={share}")
    assert (status, headers.get("set-cookie")) == (200, None)
    return json.loads(text)["from"]


def test_a_canary_has_its_share_of_the_customers(start: Start) -> None:
    """Of new ones by chance, within four standard deviations."""
    with start(firewall_canary_weight=20) as firewall:
        answers = [firewall.ask("GET", "/") for _ in range(500)]
        found = [json.loads(text)["from"] for _, _, text in answers]
        given = {SHARE.fullmatch(headers["set-cookie"])[1] for _, headers, _ in answers}
        assert 65 <= found.count("web-canary") <= 135
        assert found.count("web") + found.count("web-canary") == 500
        assert len(given) > 450, "each is given a number by chance"


def test_a_customer_stays_at_one_version_of_all(start: Start) -> None:
    with start(firewall_canary_weight=30) as firewall:
        for _ in range(10):
            _, headers, text = firewall.ask("GET", "/api/products")
            kind = json.loads(text)["from"].removeprefix("api")
            (share,) = SHARE.fullmatch(headers["set-cookie"]).groups()
            for path, method in (("/", "GET"), ("/api/products", "GET"), ("/api", "GET"), ("/", "POST")):
                name = "api" if path.startswith("/api") else "web"
                assert track(firewall, share, path, method) == name + kind


def test_a_larger_share_sends_nobody_back(start: Start) -> None:
    shares = [f"{number:04x}" for number in range(0, 65536, 331)]
    before: set[str] = set()
    for weight in (1, 20, 50, 100):
        with start(firewall_canary_weight=weight) as firewall:
            now = {share for share in shares if track(firewall, share) == "web-canary"}
        assert before <= now
        assert abs(len(now) - len(shares) * weight / 100) < 16
        before = now
    assert now == set(shares)


def test_without_a_share_there_is_no_cookie_and_no_canary(start: Start) -> None:
    for given in ({"firewall_canary_weight": 0}, {"firewall_canary_weight": 100, **NO_CANARY}):
        with start(**given) as firewall:
            _, headers, text = firewall.ask("GET", "/", Cookie="citadelbuy_share=0000")
            assert json.loads(text) == {"from": "web"}
            assert "set-cookie" not in headers
            assert (
                "canary"
                not in (firewall.folder / "start.sh").read_text() + (firewall.folder / "nginx.conf").read_text()
            )


@pytest.mark.parametrize("without", ["api", "web"])
def test_a_canary_of_one_leaves_the_other_as_it_is(start: Start, without: str) -> None:
    other = "web" if without == "api" else "api"
    with start(firewall_canary_weight=100, **{f"firewall_canary_{without}_address": ""}) as firewall:
        paths = {"api": "/api/products", "web": "/"}
        assert track(firewall, "0000", paths[without]) == without
        assert track(firewall, "0000", paths[other]) == f"{other}-canary"


@pytest.mark.parametrize("cookie", ["", "x", "00000", "ABCD", "12 34", '0000"; Path=/x', "a/b", "zz:00"])
def test_what_is_no_number_is_given_one(start: Start, cookie: str) -> None:
    with start(firewall_canary_weight=100) as firewall:
        _, headers, text = firewall.ask("GET", "/", Cookie=f"citadelbuy_share={cookie}")
        assert json.loads(text) == {"from": "web-canary"}
        assert SHARE.fullmatch(headers["set-cookie"])


def test_no_number_looks_like_an_attack(start: Start) -> None:
    with start() as firewall:
        for first in range(0, 65536, 256):
            cookies = "; ".join(f"{number:x}={number:04x}" for number in range(first, first + 256))
            assert firewall.ask("GET", "/", Cookie=cookies)[0] == 200, first
        firewall.end()
        assert firewall.findings() == {}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_canary_that_takes_no_connections_loses_nobody(start: Start, method: str) -> None:
    with start(firewall_canary_weight=100) as firewall:
        firewall.api_canary.shutdown()
        firewall.api_canary.server_close()
        body = None if method == "GET" else b"{}"
        status, _, text = firewall.ask(method, "/api/products", body, **{"Content-Type": "application/json"})
        assert (status, json.loads(text)) == (200, {"from": "api"})
        assert len(firewall.api.seen) == 1


def listens(firewall: Firewall) -> bool:
    """Whether it takes connections."""
    try:
        firewall.send(b"GET / HTTP/1.0\r\n\r\n")
    except ConnectionRefusedError:
        return False
    return True


def until(what: str, condition: Any, seconds: int = 30) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
