"""The filter that refuses weak secrets: by name, never by value."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.citadelbuy.platform.plugins.filter.secret_problems import FilterModule, secret_problems

GOOD = "fK4x9QpLm2vR8sTz"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("secrets_database_password", "", "empty"),
        ("secrets_database_password", None, "empty"),
        ("secrets_database_password", "   ", "empty"),
        ("secrets_database_password", "CHANGE_ME", "placeholder"),
        ("secrets_database_password", "please-change-me-please", "placeholder"),
        ("secrets_database_password", "<the database password>", "placeholder"),
        ("secrets_database_password", "Password1234567890", "placeholder"),
        ("secrets_database_password", "x" * 40, "placeholder"),
        ("secrets_database_password", "fK4x9QpLm2vR8sT", "shorter than 16"),
        ("secrets_jwt_secret", GOOD, "shorter than 32"),
        ("secrets_session_secret", GOOD, "shorter than 32"),
        ("secrets_database_password", f"{GOOD}\n", "white space"),
        ("secrets_database_password", f"{GOOD}\nmore", "line break"),
        ("secrets_database_password", 12345678, "shorter than 16"),
    ],
)
def test_refused_by_name_and_never_by_value(name: str, value: object, reason: str) -> None:
    (problem,) = secret_problems({name: value})
    assert problem.startswith(f"{name} ")
    assert reason in problem
    assert not str(value or "").strip() or str(value).strip() not in problem


def test_good_values_pass() -> None:
    assert secret_problems({"secrets_database_password": GOOD, "secrets_jwt_secret": GOOD * 2}) == []


def test_all_problems_at_once() -> None:
    found = secret_problems(
        {"secrets_a_password": "", "secrets_b_password": "CHANGE_ME"}, {"STRIPE_SECRET_KEY": "short"}
    )
    assert [line.split()[0] for line in found] == [
        "secrets_a_password",
        "secrets_b_password",
        "secrets_third_party.STRIPE_SECRET_KEY",
    ]


def test_empty_is_in_order_where_it_will_be_generated() -> None:
    assert secret_problems({"secrets_jwt_secret": ""}, generate=True) == []
    assert len(secret_problems({"secrets_jwt_secret": "CHANGE_ME"}, generate=True)) == 1


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"STRIPE_SECRET_KEY": "CHANGE_ME"}, "placeholder"),
        ({"STRIPE_SECRET_KEY": ""}, "empty"),
        ({"STRIPE-KEY": GOOD}, "not a name"),
        ({"JWT_SECRET": GOOD * 2}, "use secrets_jwt_secret"),
    ],
)
def test_third_party_keys(keys: dict[str, str], reason: str) -> None:
    (problem,) = secret_problems({}, keys)
    assert reason in problem


def test_a_list_is_no_dictionary() -> None:
    with pytest.raises(AnsibleFilterError, match="dictionaries"):
        secret_problems(["x"])


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"secret_problems": secret_problems}
