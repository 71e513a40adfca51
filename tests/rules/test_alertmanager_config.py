"""Alertmanager's configuration of every inventory: valid, and who gets which alert."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import alertmanagers
import pytest
import rendering

# Everything that the role can write.
RICH = {
    "alertmanager_receivers": [
        {
            "name": "operations",
            "slack": {"channel": "#alerts", "url_file": "slack_url"},
            "email": {
                "to": "ops@example.com",
                "from": "alerts@example.com",
                "smarthost": "smtp.example.com:587",
                "username": "alerts",
                "password_file": "smtp_password",
            },
        },
        {
            "name": "on-call",
            "email": {"to": "a@example.com", "from": "b@example.com", "smarthost": "smtp.example.com:465"},
        },
        {"name": "shop", "webhook": {"url": "https://hooks.example.com/alerts", "token_file": "shop_token"}},
        {"name": "watchdog", "slack": {"url_file": "watchdog_url"}},
    ],
    "alertmanager_credentials": ["slack_url", "smtp_password", "shop_token", "watchdog_url"],
    "alertmanager_routes": [
        {"receiver": "on-call", "severity": "critical", "team": "platform"},
        {"receiver": "shop", "team": "shop"},
    ],
    "alertmanager_watchdog_receiver": "watchdog",
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in rendering.INVENTORIES}
CASES["rich"] = ("local", RICH)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """An inventory and further variables."""
    return CASES[request.param]


def amtool(*arguments: str) -> str:
    """What amtool says.

    :raises AssertionError: with that, where it fails.
    """
    done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_is_valid(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    files, _ = alertmanagers.rendered(case[0], **case[1])
    said = amtool("check-config", str(alertmanagers.written(files, tmp_path)))
    assert "1 templates" in said
    assert "SUCCESS" in said


@pytest.mark.parametrize(
    ("name", "labels", "receiver"),
    [
        ("local", "alertname=PostgresDown severity=critical team=platform", "null"),
        ("local", "alertname=Watchdog severity=info team=platform", "null"),
        ("prod", "alertname=PostgresDown severity=critical team=platform", "operations"),
        ("prod", "alertname=ApiSlow severity=warning team=shop", "operations"),
        ("prod", "alertname=ApiSlow severity=info team=shop", "operations"),
        ("prod", "alertname=Watchdog severity=info team=platform", "null"),
        ("rich", "alertname=PostgresDown severity=critical team=platform", "on-call"),
        ("rich", "alertname=PostgresSlow severity=warning team=platform", "operations"),
        ("rich", "alertname=ApiDown severity=critical team=shop", "shop"),
        ("rich", "alertname=ApiSlow severity=warning team=shop", "shop"),
        ("rich", "alertname=Other", "operations"),
        ("rich", "alertname=Watchdog severity=critical team=platform", "watchdog"),
    ],
)
def test_who_is_told(name: str, labels: str, receiver: str, tmp_path: Path) -> None:
    inventory, variables = CASES[name]
    file = alertmanagers.written(alertmanagers.rendered(inventory, **variables)[0], tmp_path)
    assert amtool("config", "routes", "test", f"--config.file={file}", *labels.split()).split() == [receiver]


def test_critical_alerts_are_repeated_sooner_on_every_way() -> None:
    route = alertmanagers.configuration(alertmanagers.rendered("local", **RICH)[0])["route"]
    watchdog, on_call, shop, others = route["routes"]
    assert (route["repeat_interval"], watchdog["repeat_interval"]) == ("4h", "5m")
    assert on_call["repeat_interval"] == "1h"
    for way in (others, *shop["routes"]):
        assert way == {"matchers": ['severity="critical"'], "repeat_interval": "1h"}
    assert "repeat_interval" not in shop


def test_no_credential_is_in_the_configuration() -> None:
    receivers = alertmanagers.configuration(alertmanagers.rendered("prod")[0])["receivers"]
    (slack,), (mail,) = receivers[1]["slack_configs"], receivers[1]["email_configs"]
    assert (slack["channel"], slack["api_url_file"]) == ("#alerts", "/etc/alertmanager/receivers/slack_url")
    assert (mail["to"], mail["from"]) == ("ops@citadelbuy.com", "alerts@citadelbuy.com")
    assert mail["auth_password_file"] == "/etc/alertmanager/receivers/smtp_password"
    assert not {"api_url", "auth_password"} & {*slack, *mail}


def test_mail_is_encrypted_by_starttls_but_where_the_port_is_encrypted() -> None:
    receivers = alertmanagers.configuration(alertmanagers.rendered("local", **RICH)[0])["receivers"]
    told = {item["name"]: item["email_configs"][0]["require_tls"] for item in receivers if "email_configs" in item}
    assert told == {"operations": True, "on-call": False}


@pytest.mark.parametrize(("replicas", "peers"), [(1, 0), (3, 3)])
def test_members_find_each_other(replicas: int, peers: int) -> None:
    _, arguments = alertmanagers.rendered("local", alertmanager_replicas=replicas)
    assert sum(argument.startswith("--cluster.peer=") for argument in arguments) == peers
    assert ("--cluster.listen-address=" in arguments) is (replicas == 1)


def test_what_holds_others_back_is_an_alert_of_the_rules() -> None:
    (rules,) = rendering.render_inventory("local", roles=["alerts"])
    texts = [text for manifest in rules.manifests for text in manifest.body["data"].values()]
    alerts = {name for text in texts for name in re.findall(r"^\s*- alert: (\w+)$", text, re.MULTILINE)}
    inhibitions = alertmanagers.configuration(alertmanagers.rendered("local")[0])["inhibit_rules"]
    matchers = [text for rule in inhibitions for side in ("source", "target") for text in rule[f"{side}_matchers"]]
    named = {name for text in matchers for name in re.findall(r'^alertname!?="(\w+)"$', text)}
    assert {"RedisDown", "NodeNotReady"} <= named <= alerts
