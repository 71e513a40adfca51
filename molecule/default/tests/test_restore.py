"""A backup out of its turn, and a store back to it or to a moment: what was written after is gone, and comes back."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Kubectl, forwarded

Restore = Callable[..., str]


@pytest.fixture
def restore(play) -> Restore:
    """Do what a restore's arguments say; returns what was said of it."""

    def run(*arguments: str) -> str:
        done = play("restore", "-e", "restore_confirm=true", *arguments)
        assert done.rc == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_database_goes_back_to_a_moment_and_returns(play, restore: Restore, kubectl: Kubectl) -> None:
    def sql(text: str) -> str:
        words = ("psql", "-X", "-qAt", "-U", "postgres", "-d", "citadelbuy", "-c", text)
        where = ("--namespace", "citadelbuy", "exec", "postgres-0", "--container", "postgres", "--")
        return kubectl(*where, *words).strip()

    sql("DROP TABLE IF EXISTS restored; CREATE TABLE restored AS SELECT generate_series(1, 1000) AS number")
    done = play("backup", "-e", "backup_stores=postgres")
    assert done.rc == 0, done.stdout + done.stderr
    assert "postgres: " in done.stdout
    moment = sql("SELECT clock_timestamp()")
    sql("INSERT INTO restored SELECT generate_series(1001, 2000)")
    plan = play("restore", "-e", f"restore_to='{moment}'")
    assert f"Lost: whatever was written after {moment[:19]}" in plan.stdout
    assert "changed=0" in plan.stdout
    try:
        restore("-e", f"restore_to='{moment}'")
        assert sql("SELECT count(*) FROM restored") == "1000"
        done = play("site")
        assert done.rc == 0, done.stdout + done.stderr
        assert "changed=0" in done.stdout
    finally:
        restore("-e", "restore_undo=true")
    assert sql("SELECT count(*) FROM restored") == "2000"
    sql("DROP TABLE restored")
    assert "deleted: pgdata.before-" in restore("-e", "restore_discard=true")


def test_an_index_goes_back_to_a_backup_and_returns(play, restore: Restore, kubectl: Kubectl) -> None:
    secret = kubectl("get", "secret", "citadelbuy-secrets", "--namespace", "citadelbuy", "--output", "json")["data"]
    user, password = (base64.b64decode(secret[f"ELASTICSEARCH_{key}"]).decode() for key in ("USERNAME", "PASSWORD"))
    authority = kubectl("get", "secret", "elasticsearch-tls", "--namespace", "citadelbuy", "--output", "json")["data"]
    context = ssl.create_default_context(cadata=base64.b64decode(authority["ca.crt"]).decode())
    login = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    store = ("-e", "restore_stores=elasticsearch")

    def ask(method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": login, "Content-Type": "application/json"}
        with forwarded("elasticsearch", 9200, "citadelbuy") as url:
            sent = json.dumps(body).encode() if body else None
            place = url.replace("http://127.0.0.1", "https://localhost")
            request = urllib.request.Request(f"{place}/{path}", sent, headers, method=method)
            return json.load(urllib.request.urlopen(request, context=context))

    def found() -> dict[str, Any]:
        ask("POST", "restored/_refresh")
        hits = ask("GET", "restored/_search?version=true")["hits"]["hits"]
        return {hit["_id"]: [hit["_version"], hit["_source"]] for hit in hits}

    ask("PUT", "restored", {"aliases": {"shelf": {}}, "settings": {"number_of_shards": 1, "number_of_replicas": 0}})
    for number in (1, 2):
        ask("PUT", f"restored/_doc/{number}?version={number + 6}&version_type=external", {"text": f"Nº {number}"})
    before = found()
    for playbook in ("backup", "verify_backup"):
        done = play(playbook, "-e", "backup_stores=elasticsearch")
        assert done.rc == 0, done.stdout + done.stderr
    assert " verified: " in done.stdout, done.stdout
    ask("DELETE", "restored/_doc/1")
    ask("PUT", "restored/_doc/3", {"text": "later"})
    after = found()
    try:
        assert "what was there is kept as before-" in restore(*store, "-e", "restore_to=newest")
        assert found() == before == {"1": [7, {"text": "Nº 1"}], "2": [8, {"text": "Nº 2"}]}
        assert "shelf" in ask("GET", "restored")["restored"]["aliases"]
    finally:
        restore(*store, "-e", "restore_undo=true")
    assert found() == after != before
    assert "deleted: before-" in restore(*store, "-e", "restore_discard=true")
    assert found() == after
    ask("DELETE", "restored")
