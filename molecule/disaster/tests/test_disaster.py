"""The cluster was lost, and another one has all that it held."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import data

REPORT = data.STATE.with_name("disaster-drill.json")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """What was written before."""
    return json.loads(data.STATE.read_text())


def test_every_row_of_postgresql_is_there_those_after_the_backup_too() -> None:
    digits = "count(*), sum(number), bool_and(text = md5(number::text))"
    rows = 2 * data.ROWS
    assert data.sql(f"SELECT {digits} FROM disaster") == f"{rows}|{rows * (rows + 1) // 2}|t"


def test_every_key_of_redis_is_there() -> None:
    assert data.redis('EVAL \'return #redis.call("KEYS", "cart:*")\' 0') == str(data.ROWS)
    assert data.redis("GET cart:77") == "item77"


def test_every_document_of_elasticsearch_is_there() -> None:
    assert data.letters("ask('_count')")["count"] == data.LETTERS
    assert data.letters("ask('_doc/7')")["_source"] == {"text": "letter 7"}


def test_the_secrets_are_those_of_before(written) -> None:
    assert data.secrets() == written["secrets"]


def test_the_shop_goes_on(written) -> None:
    status, _answer = data.api("POST", "/api/auth/login", data.ACCOUNT)
    assert status == 200
    for product in written["products"]:
        status, found = data.api("GET", f"/api/products/{product}")
        assert status == 200, found


def test_the_drill_tells_how_long_it_took() -> None:
    report = json.loads(REPORT.read_text())
    print(json.dumps(report, indent=2))
    parts = report["secrets_seconds"] + report["platform_seconds"] + report["data_seconds"]
    assert 0 < parts < report["seconds"]
    assert report["restored"].keys() == {"postgres", "redis", "elasticsearch"}
