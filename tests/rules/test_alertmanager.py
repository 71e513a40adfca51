"""Real Alertmanagers with the role's configuration: what is sent, once, where to, and what is held back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alertmanagers import MailServer, Member, Webhook, members, wait_until

QUICK = {"alertmanager_group_wait": "1s", "alertmanager_group_interval": "1s"}
STORE = {"job": "redis", "namespace": "citadelbuy", "cluster": "prod", "team": "platform"}
ANNOTATIONS = {
    "summary": "Redis is down",
    "description": "redis-0 has not answered for 2m.",
    "runbook_url": "https://example.com/RedisDown.md",
}

Start = Callable[..., list[Member]]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A receiver on loopback."""
    with closing(Webhook()) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, webhook: Webhook) -> Iterator[Start]:
    """Start the members that the role deploys with some variables; they post to /alerts."""
    started: list[Member] = []

    def run(count: int, **variables: Any) -> list[Member]:
        receivers = [{"name": "operations", "webhook": {"url": f"{webhook.url}/alerts"}}]
        defaults = QUICK | {"alertmanager_replicas": count, "alertmanager_receivers": receivers}
        started.extend(members(tmp_path, **(defaults | variables)))
        for member in started:
            member.start()
        for member in started if count > 1 else []:
            wait_until(lambda member=member: member.metric("alertmanager_cluster_members") == count, "the members meet")
        return started

    yield run
    for member in started:
        member.stop()


def credential(folder: Path, name: str, value: str) -> None:
    """Write a file of the Secret."""
    (folder / "receivers").mkdir(exist_ok=True)
    (folder / "receivers" / name).write_text(value)


def test_what_every_member_is_told_is_sent_once(start: Start, webhook: Webhook) -> None:
    all_members = start(3)
    for member in all_members:
        member.fire(STORE | {"alertname": "RedisDown", "severity": "critical"})
    # Each has looked twice whether it was sent, so it had its turn.
    for member in all_members:
        wait_until(lambda member=member: member.metric("alertmanager_nflog_queries_total") >= 2, "each had its turn")
    assert len(webhook.at("/alerts")) == 1
    assert sum(member.metric("alertmanager_notifications_total") for member in all_members) == 1


def test_a_silence_holds_on_every_member_and_after_a_restart(start: Start, webhook: Webhook) -> None:
    first, second, third = start(3)
    silence = first.silence(alertname="RedisClientsHigh")
    for member in (second, third):
        wait_until(lambda member=member: member.silences().get(silence) == "active", "the silence is known to all")
    for member in (first, second, third):
        member.stop()
    # Alone, it has nobody to ask.
    third.start()
    assert third.silences() == {silence: "active"}
    silenced = STORE | {"alertname": "RedisClientsHigh", "severity": "warning"}
    third.fire(silenced, silenced | {"alertname": "RedisEvictionsHigh"})
    wait_until(lambda: webhook.at("/alerts"), "the other alert is sent")
    wait_until(lambda: third.status(alertname="RedisClientsHigh").get("silencedBy") == [silence], "it is silenced")
    assert [body["groupLabels"]["alertname"] for body in webhook.at("/alerts")] == ["RedisEvictionsHigh"]


# Alerts as the rules label them, that come together; of each what is told, and then what that explains.
SHOP = "citadelbuy"
TOGETHER: list[tuple[list[dict[str, str]], list[dict[str, str]]]] = [
    (
        [
            {"alertname": "RedisDown", "severity": "critical", "job": "redis", "namespace": SHOP},
            {"alertname": "RedisPersistenceFailing", "severity": "critical", "pod": "redis-0", "namespace": SHOP},
            {"alertname": "PodNotReady", "severity": "warning", "pod": "postgres-0", "namespace": SHOP},
            {"alertname": "PodNotReady", "severity": "warning", "pod": "redis-0", "namespace": "other"},
            {"alertname": "DependencyUnreachable", "severity": "warning", "dependency": "postgres", "namespace": SHOP},
        ],
        [
            {"alertname": "TargetDown", "severity": "warning", "job": "redis", "pod": "redis-0", "namespace": SHOP},
            {"alertname": "PodNotReady", "severity": "warning", "pod": "redis-0", "namespace": SHOP},
            {"alertname": "StatefulSetIncomplete", "severity": "warning", "statefulset": "redis", "namespace": SHOP},
            {"alertname": "DependencyUnreachable", "severity": "warning", "dependency": "redis", "namespace": SHOP},
        ],
    ),
    (
        [{"alertname": "ElasticsearchDown", "severity": "critical", "job": "elasticsearch", "namespace": SHOP}],
        [{"alertname": "SearchIndexBehind", "severity": "warning", "namespace": SHOP}],
    ),
    (
        [
            {"alertname": "ApplicationDown", "severity": "critical", "job": "citadelbuy-api", "namespace": SHOP},
            {"alertname": "DeploymentIncomplete", "severity": "warning", "deployment": "citadelbuy-web"},
        ],
        [
            {
                "alertname": "DeploymentIncomplete",
                "severity": "warning",
                "deployment": "citadelbuy-api",
                "namespace": SHOP,
            },
            {
                "alertname": "AutoscalerBlind",
                "severity": "warning",
                "horizontalpodautoscaler": "citadelbuy-api-hpa",
                "namespace": SHOP,
            },
            {"alertname": "ContainerWaiting", "severity": "warning", "pod": "citadelbuy-api-7d-x", "namespace": SHOP},
            {"alertname": "RequestLatencyHigh", "severity": "warning", "job": "citadelbuy-api", "namespace": SHOP},
        ],
    ),
    (
        [
            {"alertname": "PersistentVolumeFilling", "severity": "critical", "persistentvolumeclaim": "data-redis-0"},
            {"alertname": "PersistentVolumeFilling", "severity": "warning", "persistentvolumeclaim": "data-postgres-0"},
        ],
        [{"alertname": "PersistentVolumeFilling", "severity": "warning", "persistentvolumeclaim": "data-redis-0"}],
    ),
    (
        [
            {"alertname": "NodeNotReady", "severity": "critical", "node": "a"},
            {"alertname": "NodeCpuHigh", "severity": "warning", "node": "b"},
            {"alertname": "KubernetesApiErrors", "severity": "warning"},
        ],
        [{"alertname": "NodeCpuHigh", "severity": "warning", "node": "a"}],
    ),
]


def test_what_something_worse_explains_is_held_back(start: Start, webhook: Webhook) -> None:
    (member,) = start(1)
    told = [alert for alerts, _ in TOGETHER for alert in alerts]
    explained = [alert for _, alerts in TOGETHER for alert in alerts]
    member.fire(*told, *explained)

    def received() -> list[dict[str, str]]:
        return [alert["labels"] for body in webhook.at("/alerts") for alert in body["alerts"]]

    wait_until(lambda: all(alert in received() for alert in told), "what nothing explains is sent")
    for alert in explained:
        wait_until(lambda alert=alert: member.status(**alert).get("inhibitedBy"), f"{alert} is held back")
    assert [alert for alert in received() if alert in explained] == []


def test_messages_say_what_it_is_and_follow_their_credentials(start: Start, webhook: Webhook, tmp_path: Path) -> None:
    with closing(MailServer()) as mail:
        receivers = [
            {
                "name": "operations",
                "slack": {"channel": "#alerts", "url_file": "slack_url"},
                "email": {
                    "to": "ops@example.com",
                    "from": "alerts@example.com",
                    "smarthost": mail.address,
                    "username": "alerts",
                    "password_file": "smtp_password",
                    "require_tls": False,
                },
            },
            {"name": "watchdog", "slack": {"url_file": "watchdog_url"}},
        ]
        names = ["slack_url", "smtp_password", "watchdog_url"]
        for name, value in zip(names, (f"{webhook.url}/old", "qJf5mW8xT2kZ9vRb", f"{webhook.url}/ping"), strict=True):
            credential(tmp_path, name, value)
        (member,) = start(
            1,
            alertmanager_receivers=receivers,
            alertmanager_credentials=names,
            alertmanager_watchdog_receiver="watchdog",
        )
        down = STORE | {"alertname": "RedisDown", "severity": "critical"}
        member.fire({"alertname": "Watchdog"})
        member.fire(down, annotations=ANNOTATIONS)
        wait_until(lambda: webhook.at("/ping") and webhook.at("/old") and mail.messages, "all three are told")

        (message,) = webhook.at("/old")
        (attachment,) = message["attachments"]
        assert message["channel"] == "#alerts"
        assert attachment["title"] == "[FIRING:1] critical RedisDown (prod)"
        assert attachment["text"].strip().splitlines() == [
            "Redis is down",
            "redis-0 has not answered for 2m.",
            "What to do: https://example.com/RedisDown.md",
        ]
        (letter,) = mail.messages
        assert (letter["Subject"], letter["To"]) == (attachment["title"], "ops@example.com")
        (part,) = letter.get_payload()
        assert part.get_content_type() == "text/plain"
        assert part.get_payload(decode=True).decode().split() == attachment["text"].split()
        assert mail.logins == [("alerts", "qJf5mW8xT2kZ9vRb")]
        assert len(webhook.at("/ping")) == 1

        # New credentials count from the next message on, without a restart.
        credential(tmp_path, "slack_url", f"{webhook.url}/new")
        credential(tmp_path, "smtp_password", "kR4nV7cY1pL6dHsG")
        member.fire(down | {"alertname": "RedisPersistenceFailing"}, annotations=ANNOTATIONS)
        wait_until(lambda: webhook.at("/new") and len(mail.logins) == 2, "the new credentials are used")
        assert len(webhook.at("/old")) == 1
        assert mail.logins[1] == ("alerts", "kR4nV7cY1pL6dHsG")


def test_a_webhook_is_shown_its_token(start: Start, webhook: Webhook, tmp_path: Path) -> None:
    credential(tmp_path, "hook_token", "vR4mK8qT1xW6zB3n")
    hook = {"url": f"{webhook.url}/hook", "token_file": "hook_token"}
    (member,) = start(
        1,
        alertmanager_receivers=[{"name": "hook", "webhook": hook}],
        alertmanager_credentials=["hook_token"],
    )
    member.fire({"alertname": "RedisDown"})
    wait_until(lambda: webhook.received, "the webhook is told")
    assert webhook.received[0][1]["Authorization"] == "Bearer vR4mK8qT1xW6zB3n"
