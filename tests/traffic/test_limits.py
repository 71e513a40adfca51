"""Rate limits through ingress and firewall, held by three pods together: not one request too many or too few."""

from __future__ import annotations

import base64
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import API, deploy, get, kubectl, pods
from conftest import Ask
from shop import Entry

# Of the reference document, in a minute.
LIMITS = {"api": 100, "public": 300, "search": 200, "auth": 10, "payment": 20}
NOBODY = uuid.UUID(int=1, version=4)  # no product
JSON = {"Content-Type": "application/json"}
LOGIN = json.dumps({"email": "nobody@example.com", "password": "no such password"})
# A request of each tier that changes nothing.
REQUESTS: dict[str, dict[str, Any]] = {
    "api": {"method": "DELETE", "path": f"/api/products/{NOBODY}"},
    "public": {"method": "GET", "path": "/api/products?limit=1"},
    "search": {"method": "GET", "path": "/api/search?q=lamp"},
    "auth": {"method": "POST", "path": "/api/auth/login", "headers": JSON, "body": LOGIN},
    "payment": {
        "method": "POST",
        "path": "/api/payments",
        "headers": JSON,
        "body": json.dumps({"productId": str(NOBODY), "amount": 1}),
    },
}


@pytest.fixture(scope="module", autouse=True)
def limited(products: dict[str, str]) -> Iterator[None]:
    """The limits of the document, and three pods that hold them."""
    names = {"api": "max_requests"} | {tier: f"{tier}_max" for tier in LIMITS if tier != "api"}
    deploy(**{f"configuration_rate_limit_{names[tier]}": limit for tier, limit in LIMITS.items()})
    assert len(pods(API)) == 3
    yield
    deploy()


@pytest.fixture(autouse=True)
def uncounted() -> None:
    """Nobody has asked for anything in this minute."""
    forget()


def forget() -> None:
    """Delete all counts."""
    script = "for _, key in ipairs(redis.call('KEYS', 'ratelimit:*')) do redis.call('DEL', key) end return 'gone'"
    assert redis(f'EVAL "{script}" 0').endswith("gone")


def redis(command: str) -> str:
    """What Redis answers."""
    password = base64.b64decode(get("secret", "citadelbuy-secrets")["data"]["REDIS_PASSWORD"]).decode()
    words = ("exec", "-i", "redis-0", "-c", "redis", "--", "redis-cli", "-s", "/run/redis/redis.sock")
    return kubectl(*words, stdin=f'AUTH "{password}"\n{command}\n').strip()


def counted(answers: list[dict[str, Any]], limit: int) -> None:
    """Check that so many were let through, whichever they were, and each of the others was told when to come again."""
    refused = [answer for answer in answers if answer["status"] == 429]
    passed = [answer for answer in answers if answer["status"] != 429]
    assert len(passed) == limit, Counter(answer["status"] for answer in answers)
    assert {answer["status"] for answer in passed} <= {200, 204, 401, 404}, passed[:3]
    assert all(1 <= int(answer["headers"]["retry-after"]) <= 60 for answer in refused), refused[:3]
    assert {answer["headers"]["x-ratelimit-limit"] for answer in answers} == {str(limit)}
    # None was counted twice, and none in another minute.
    left = sorted((int(answer["headers"]["x-ratelimit-remaining"]) for answer in passed), reverse=True)
    assert left == list(range(limit - 1, -1, -1))


@pytest.mark.parametrize("tier", LIMITS)
def test_the_first_too_many_is_refused_and_none_before(ask: Ask, tier: str) -> None:
    limit = LIMITS[tier]
    answers = ask([REQUESTS[tier]] * (limit + 1))
    counted(answers, limit)
    assert [number for number, answer in enumerate(answers, 1) if answer["status"] == 429] == [limit + 1]
    print(f"\n{tier}: request {limit} passed, {limit + 1} got 429, Retry-After {answers[-1]['headers']['retry-after']}")


@pytest.mark.parametrize("tier", LIMITS)
def test_twenty_at_once_are_counted_as_exactly(ask: Ask, tier: str) -> None:
    counted(ask([REQUESTS[tier]] * (LIMITS[tier] + 40), connections=20), LIMITS[tier])


def test_all_pods_have_counted_for_the_customers_own_address(ask: Ask, entry: Entry) -> None:
    mark = f"limits-{uuid.uuid4()}"
    requests = [REQUESTS["api"] | {"headers": {"X-Request-Id": f"{mark}-{number}"}} for number in range(130)]
    counted(ask(requests, connections=20), 100)
    lines = {pod["metadata"]["name"]: kubectl("logs", pod["metadata"]["name"], "--since=5m") for pod in pods(API)}
    logged = {
        name: [json.loads(line) for line in text.splitlines() if mark in line and '"msg":"request"' in line]
        for name, text in lines.items()
    }
    print(f"\nby pod: {[len(found) for found in logged.values()]}")
    assert len(logged) == 3
    assert all(logged.values()), {name: len(found) for name, found in logged.items()}
    assert sum(map(len, logged.values())) == len(requests)
    assert {line["client"] for found in logged.values() for line in found} == {entry.client}


def test_who_has_signed_in_gets_half_as_many_again(ask: Ask) -> None:
    account = {"email": f"{uuid.uuid4()}@example.com", "password": "correct horse battery staple"}
    (made,) = ask([REQUESTS["auth"] | {"path": "/api/auth/register", "body": json.dumps(account)}])
    assert made["status"] == 201, made
    token = {"Authorization": f"Bearer {json.loads(made['text'])['token']}"}
    answers = ask([REQUESTS["api"] | {"headers": token}] * 151)
    counted(answers, 150)
    assert answers[-1]["status"] == 429
    # It is counted by user: without the token, from the same address, all hundred are left.
    counted(ask([REQUESTS["api"]] * 101), 100)


def test_sign_in_is_counted_by_address_so_another_account_is_no_more_guesses(ask: Ask) -> None:
    account = {"email": f"{uuid.uuid4()}@example.com", "password": "correct horse battery staple"}
    (made,) = ask([REQUESTS["auth"] | {"path": "/api/auth/register", "body": json.dumps(account)}])
    token = {"Authorization": f"Bearer {json.loads(made['text'])['token']}"}
    signed_in = REQUESTS["auth"] | {"headers": JSON | token}
    # The account itself was the first of fifteen.
    assert [answer["status"] for answer in ask([signed_in] * 15)] == [401] * 14 + [429]
    (stranger,) = ask([REQUESTS["auth"]])
    assert stranger["status"] == 429


def test_a_client_cannot_be_another_by_what_it_says(ask: Ask) -> None:
    def says(number: int) -> dict[str, str]:
        address = f"198.51.100.{number % 250}"
        return {
            "X-Forwarded-For": address,
            "X-Real-Ip": address,
            "Forwarded": f"for={address}",
            "X-Client-Ip": address,
            "True-Client-Ip": address,
        }

    answers = ask([REQUESTS["api"] | {"headers": says(number)} for number in range(101)])
    counted(answers, 100)
    assert answers[-1]["status"] == 429


def test_pages_and_api_are_counted_together(ask: Ask) -> None:
    counted(ask([REQUESTS["public"]] * 300, connections=20), 300)
    (page,) = ask([{"method": "GET", "path": "/"}])
    assert page["status"] == 429
    assert 1 <= int(page["headers"]["retry-after"]) <= 60
    assert "too many requests" in page["text"]
