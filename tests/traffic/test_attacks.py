"""Through ingress and firewall: attacks are refused, 1,000 requests of customers are not."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from attacks import ATTACKS
from conftest import Ask
from traffic import legitimate


def test_attacks_are_refused(ask: Ask) -> None:
    answers = dict(zip(ATTACKS, ask(list(ATTACKS.values())), strict=True))
    print(f"\n{len(answers)} attacks: {dict(Counter(answer['status'] for answer in answers.values()))}")
    assert {name: answer["status"] for name, answer in answers.items() if answer["status"] != 403} == {}
    # By its id the firewall's log is searched.
    assert [name for name, answer in answers.items() if "x-request-id" not in answer["headers"]] == []


def test_a_thousand_requests_of_customers_pass(ask: Ask, products: dict[str, str]) -> None:
    requests = [
        {"method": one.method, "path": one.path, "headers": one.headers, "body": one.body and one.body.decode()}
        for one in legitimate(1000)
    ]
    answers = ask(requests, connections=10)
    try:
        print(f"\n1,000 requests: {dict(sorted(Counter(answer['status'] for answer in answers).items()))}")
        # Products that are not there and wrong passwords are answered as such, and by the applications.
        bad = [
            f"{answer['status']} {request['method']} {request['path']} {request['body']} {answer['text'][:100]}"
            for request, answer in zip(requests, answers, strict=True)
            if answer["status"] not in (200, 201, 204, 303, 401, 404, 409)
        ]
        assert bad == []
    finally:
        remove(ask, set(products.values()), answers)


def remove(ask: Ask, kept: set[str], answers: list[dict[str, Any]]) -> None:
    """Delete the products that these requests have made."""
    made = {answer["headers"].get("location", "").rpartition("/")[2] for answer in answers} - {""} - kept
    deleted = ask([{"method": "DELETE", "path": f"/api/products/{one}"} for one in sorted(made)], connections=10)
    assert made, "the API has taken no product"
    assert {answer["status"] for answer in deleted} == {204}, json.dumps(deleted[:3])
