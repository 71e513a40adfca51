"""Rotation on a real API server, with stores that only remember what they were told."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import rotation, rotation_stores
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from conftest import actions

OLD = {
    "DATABASE_PASSWORD": "the-old-database",
    "REDIS_PASSWORD": "the-old-redis-pw",
    "JWT_SECRET": "the-old-signing-key",
}
PLATFORM = """
apiVersion: v1
kind: Secret
metadata:
  name: citadelbuy-secrets
  namespace: "{{ ns }}"
  annotations:
    citadelbuy.io/generate: "{{ generate | default('DATABASE_PASSWORD,REDIS_PASSWORD,JWT_SECRET') }}"
    citadelbuy.io/keep: DATABASE_USER
    citadelbuy.io/rotate: DATABASE_PASSWORD,REDIS_PASSWORD,JWT_SECRET
data:
  DATABASE_USER: "{{ 'shopkeeper' | b64encode }}"
  STRIPE_SECRET_KEY: "{{ third | default('the-first-key-of-stripe') | b64encode }}"
{% for key in given | default({}) %}
  {{ key }}: "{{ given[key] | b64encode }}"
{% endfor %}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: "{{ ns }}"}
spec:
  replicas: 0
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec:
      containers:
        - name: api
          image: api:1
          envFrom: [{secretRef: {name: citadelbuy-secrets}}]
          env: [{name: PORT, value: "1"}, {name: AFTER_IT, value: "2"}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store, namespace: "{{ ns }}"}
spec:
  replicas: 0
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}, annotations: {citadelbuy.io/not-rolled-by: Secret/citadelbuy-secrets}}
    spec:
      containers: [{name: store, image: "store:1", envFrom: [{secretRef: {name: citadelbuy-secrets}}]}]
"""


class Remembering(rotation_stores.Store):
    """A store in memory: which pairs of user and value it takes."""

    pairs: set[tuple[str, str]]
    two_users = False

    def check_deployed(self) -> None:
        pass

    def users(self, current: str) -> tuple[str, str]:
        current = current or "shopkeeper"
        return (
            (current, "shopkeeper_alternate" if current == "shopkeeper" else "shopkeeper")
            if self.two_users
            else ("", "")
        )

    def accept(self, turn: rotation_stores.Turn) -> None:
        state = self.cluster.get(rotation.SECRET, self.namespace, rotation.STATE)
        assert turn.name in state["data"], "the store was touched before the state was written"
        if turn.name == "REDIS_PASSWORD":  # else its members wait for a file that never comes
            assert turn.name + rotation.ACCEPTED in state["data"]
        self.pairs.add((turn.next_user, turn.next))

    def retire(self, turn: rotation_stores.Turn) -> None:
        self.pairs.discard((turn.previous_user, turn.previous))

    def takes(self, user: str, value: str) -> bool:
        return (user, value) in self.pairs


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type[Remembering]]]:
    """The stores of this test by the name of their secret."""
    database = type("Database", (Remembering,), {"pairs": set(), "two_users": True})
    found = {"DATABASE_PASSWORD": database, "REDIS_PASSWORD": type("Cache", (Remembering,), {"pairs": set()})}
    monkeypatch.setattr(rotation, "STORES", found)
    return found


@pytest.fixture
def platform(cluster, namespace, deploy, stores):
    """A deployed platform; tells the values of its Secret, and rotates."""

    class Platform:
        def __init__(self) -> None:
            assert actions(deploy(PLATFORM)) == ["created"] * 3
            values = self.values()
            stores["DATABASE_PASSWORD"].pairs.add(("shopkeeper", values["DATABASE_PASSWORD"]))
            stores["REDIS_PASSWORD"].pairs.add(("", values["REDIS_PASSWORD"]))

        def values(self, name: str = "citadelbuy-secrets") -> dict[str, str]:
            data = (cluster.get(rotation.SECRET, namespace, name) or {}).get("data") or {}
            return {key: base64.b64decode(value).decode() for key, value in data.items()}

        def rotate(self, *names: str, check=False, given=None, lifetime=0.0, say=lambda _line: None) -> dict[str, str]:
            return rotation.Rotation(cluster, namespace, given or {}, 30, lifetime, say).run(list(names), check)

        def in_use(self) -> None:
            """The stores take what the Secret says, and nothing else."""
            values = self.values()
            assert stores["DATABASE_PASSWORD"].pairs == {(values["DATABASE_USER"], values["DATABASE_PASSWORD"])}
            assert stores["REDIS_PASSWORD"].pairs == {("", values["REDIS_PASSWORD"])}
            assert self.values(rotation.STATE) == {}
            assert not [key for key in values if key.endswith(rotation.ALSO_ACCEPTED)]

    return Platform()


def test_a_rotation_ends_with_new_values_everywhere_and_leaves_nothing_to_do(platform, deploy, live):
    before, store = platform.values(), live("apis/apps/v1:statefulsets/store")
    told = platform.rotate("DATABASE_PASSWORD", "REDIS_PASSWORD", "JWT_SECRET")
    after = platform.values()
    assert sorted(told) == ["DATABASE_PASSWORD", "JWT_SECRET", "REDIS_PASSWORD"]
    assert "the store refuses the old one; user shopkeeper_alternate after shopkeeper" in told["DATABASE_PASSWORD"]
    assert {key for key in before if before[key] != after[key]} == {*told, "DATABASE_USER"}
    platform.in_use()
    assert actions(deploy(PLATFORM)) == ["unchanged"] * 3
    assert live("apis/apps/v1:statefulsets/store")["metadata"]["generation"] == store["metadata"]["generation"]
    platform.rotate("DATABASE_PASSWORD")
    assert platform.values()["DATABASE_USER"] == "shopkeeper"  # and back
    platform.in_use()


def test_the_pods_of_every_step_have_what_they_need(platform, live):
    """Each rollout's pods take the environment as it is then: the new key is accepted before anything signs with it."""
    old, seen = platform.values()["JWT_SECRET"], {}

    def look(line: str) -> None:
        seen[line.partition(": ")[2] or line] = platform.values()

    platform.rotate("JWT_SECRET", say=look)
    new = platform.values()["JWT_SECRET"]
    switch = seen["Secrets get the new values"]
    assert (switch["JWT_SECRET"], switch["JWT_SECRET_ALSO_ACCEPTED"].split("\n")) == (old, [new, old])
    overlap = seen["no pod accepts the old key any more"]
    assert (overlap["JWT_SECRET"], overlap["JWT_SECRET_ALSO_ACCEPTED"].split("\n")) == (new, [new, old])


def test_an_old_signing_key_is_accepted_as_long_as_its_tokens_live(platform):
    told = platform.rotate("JWT_SECRET", lifetime=3600)
    new = platform.values()["JWT_SECRET"]
    assert "then the old key is refused" in told["JWT_SECRET"]
    assert "JWT_SECRET_ALSO_ACCEPTED" in platform.values()
    platform.rotate("JWT_SECRET", lifetime=3600)  # too early
    assert "JWT_SECRET_ALSO_ACCEPTED" in platform.values()
    platform.rotate("JWT_SECRET", lifetime=0)
    assert platform.values()["JWT_SECRET"] == new, "a second rotation was begun instead of the first one ended"
    platform.in_use()


class Killed(BaseException):
    """What stands for kill -9."""


def test_killed_at_any_step_it_is_completed_by_the_next_run(platform):
    names = ("DATABASE_PASSWORD", "REDIS_PASSWORD", "JWT_SECRET")
    lines: list[str] = []
    platform.rotate(*names, say=lines.append)
    assert len(lines) >= 9
    for number in range(len(lines)):
        before, told = platform.values(), []

        def kill(line: str, number: int = number, told: list[str] = told) -> None:
            told.append(line)
            if len(told) > number:
                raise Killed

        with pytest.raises(Killed):
            platform.rotate(*names, say=kill)
        promised = {name: json.loads(text)["next"] for name, text in platform.values(rotation.STATE).items()
                    if not name.endswith(rotation.ACCEPTED)}  # fmt: skip
        platform.rotate(*names)
        after = platform.values()
        assert {name: after[name] for name in promised} == promised, f"killed at {lines[number]!r}: begun anew"
        assert all(before[name] != after[name] for name in names)
        platform.in_use()


def test_check_mode_tells_and_changes_nothing(platform, cluster, namespace):
    before = platform.values()
    told = platform.rotate("all", check=True)
    assert told["DATABASE_PASSWORD"] == "would get a new value, generated; user shopkeeper_alternate after shopkeeper"
    assert told["STRIPE_SECRET_KEY"].startswith("left: ")
    assert platform.values() == before
    assert cluster.get(rotation.SECRET, namespace, rotation.STATE) is None


def test_a_store_that_still_takes_the_old_value_fails_the_run(platform, stores, monkeypatch):
    monkeypatch.setattr(stores["REDIS_PASSWORD"], "retire", lambda _self, _turn: None)
    with pytest.raises(EngineError, match="REDIS_PASSWORD: the store still takes the old value"):
        platform.rotate("REDIS_PASSWORD")
    assert platform.values(rotation.STATE), "nothing is left to go on from"


def test_a_store_that_refuses_the_new_value_stops_the_run_before_the_secret(platform, stores, monkeypatch):
    before = platform.values()
    monkeypatch.setattr(stores["REDIS_PASSWORD"], "accept", lambda _self, _turn: None)
    with pytest.raises(EngineError, match="refuses the new value; the old one is still valid"):
        platform.rotate("REDIS_PASSWORD")
    assert platform.values() == before


def test_given_values_are_rotated_by_the_playbook_and_refused_by_site(cluster, namespace, deploy, stores):
    def outcome(given):
        return deploy(PLATFORM, generate="", given=given)

    new = OLD | {"REDIS_PASSWORD": "the-new-redis-pw"}
    assert actions(outcome(OLD)) == ["created"] * 3
    stores["REDIS_PASSWORD"].pairs.add(("", OLD["REDIS_PASSWORD"]))
    (error,) = outcome(new).errors
    assert "rotate_secrets.yml -e rotate_secrets_names=REDIS_PASSWORD`" in error
    assert "the-new-redis-pw" not in error
    broken = PLATFORM.replace("metadata: {name: api,", "metadata: {name: shopkeeper,").replace(
        "replicas: 0", "replicas: x"
    )
    assert "/shopkeeper (template" in deploy(broken, generate="", given=OLD).errors[0], "a user's name is no secret"
    run = rotation.Rotation(cluster, namespace, OLD, 30)
    with pytest.raises(EngineError, match="change it there first"):
        run.run(["REDIS_PASSWORD"])
    rotation.Rotation(cluster, namespace, new, 30).run(["REDIS_PASSWORD"])
    assert stores["REDIS_PASSWORD"].pairs == {("", "the-new-redis-pw")}
    assert actions(outcome(new)) == ["unchanged"] * 3


def test_third_party_keys_come_from_the_inventory(platform, deploy):
    platform.rotate("STRIPE_SECRET_KEY", given={"STRIPE_SECRET_KEY": "the-second-key-of-stripe"})
    assert platform.values()["STRIPE_SECRET_KEY"] == "the-second-key-of-stripe"
    assert actions(deploy(PLATFORM, third="the-second-key-of-stripe")) == ["unchanged"] * 3


def test_unknown_names_are_refused_with_those_that_exist(platform):
    with pytest.raises(EngineError, match=r"REDIS_PASWORD: no such secret\. There are: DATABASE_PASSWORD, JWT_SECRET"):
        platform.rotate("REDIS_PASWORD")


def test_each_value_has_the_time_of_its_last_change(platform, deploy, live, monkeypatch):
    def ages() -> dict[str, str]:
        annotations = live("secrets/citadelbuy-secrets")["metadata"]["annotations"]
        return {key.partition("/")[2]: text for key, text in annotations.items() if key.startswith("rotated.")}

    made = ages()
    assert sorted(made) == ["DATABASE_PASSWORD", "JWT_SECRET", "REDIS_PASSWORD", "STRIPE_SECRET_KEY"]
    monkeypatch.setattr(rotation.time, "strftime", lambda *_args: "2030-01-01T00:00:00Z")
    platform.rotate("REDIS_PASSWORD")
    assert ages() == made | {"REDIS_PASSWORD": "2030-01-01T00:00:00Z"}
    assert actions(deploy(PLATFORM)) == ["unchanged"] * 3
    deploy(PLATFORM, third="the-second-key-of-stripe")
    assert ages()["STRIPE_SECRET_KEY"] == "2030-01-01T00:00:00Z"
    assert ages()["JWT_SECRET"] == made["JWT_SECRET"]


@pytest.mark.parametrize("value", ["it's", 'a "quoted" one', "back\\slash", "with space", "ünïcode"])
def test_values_are_quoted_for_each_store(value):
    assert rotation_stores._literal(value)[1:-1].replace("''", "'") == value
    text = rotation_stores._quoted(value)
    assert text[1:-1].replace('\\"', '"').replace("\\\\", "\\") == value


def test_what_a_controller_keeps_is_not_rotated() -> None:
    words = ["-i", "inventories/local", "-e", "secrets_source=external_secrets", "-e", "rotate_secrets_names=all"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/rotate_secrets.yml", *words],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "secrets_source is external_secrets: its controller would undo a rotation" in done.stdout + done.stderr
