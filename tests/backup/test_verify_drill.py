"""Backups of a running platform that are verified: `make drill-backup`.

A verification passes where what comes back is exactly what was there at the recorded moment, whatever was written
around it, and fails by name where it is not. The tests share the platform and run in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_backup_drill import NAME, Writer, awaited, back_up, damaged, insert, kubectl, metric, sql

RESTORE = ("--namespace", "citadelbuy-restore")
PGBACKREST = ("exec", "postgres-0", "--container", "postgres", "--", "pgbackrest")

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-backup brings the cluster that this needs")


def verified(name: str, **variables: str) -> tuple[bool, str]:
    """Verify the newest backup out of its turn: whether it passed, and what was said last."""
    kubectl(*RESTORE, "delete", "job", name, "--ignore-not-found", "--wait")
    words = ("create", "job", "--from=cronjob/postgres-verify", name, "--dry-run=client", "--output=json")
    job = json.loads(kubectl(*RESTORE, *words))
    [container] = job["spec"]["template"]["spec"]["containers"]
    container["env"] = [item for item in container["env"] if item["name"] not in variables]
    container["env"] += [{"name": name, "value": value} for name, value in variables.items()]
    kubectl(*RESTORE, "create", "-f", "-", stdin=json.dumps(job))

    def condition() -> str:
        job = json.loads(kubectl(*RESTORE, "get", "job", name, "--output", "json"))
        found = [item["type"] for item in job["status"].get("conditions") or []]
        return next((item for item in found if item in ("Complete", "Failed")), "")

    passed = awaited(condition, f"Job {name} ends") == "Complete"
    said = kubectl(*RESTORE, "logs", f"job/{name}").strip().splitlines()[-1]
    print(said)
    return passed, said


def backups() -> list[dict[str, Any]]:
    """What the repository holds, the oldest first."""
    return json.loads(kubectl(*PGBACKREST, "info", "--output=json"))[0]["backup"]


def told(name: str, value: float) -> None:
    """Wait until Prometheus knows a value."""
    query = f'{name}{{store="postgres"}}=={value}'
    awaited(lambda: metric(query.replace("{", "%7B").replace("}", "%7D").replace('"', "%22")), query)


def take_full() -> str:
    """A full backup out of its turn; what was said, warnings too."""
    words = ("env", "POSTGRES_BACKUP_FULL_DAYS=0", "sh", "-c", "postgres-backup take 2>&1")
    return kubectl("exec", "postgres-0", "--container", "postgres", "--", *words)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Tables of the drill's own, one of which is larger than what is compared row by row."""
    sql("DROP TABLE IF EXISTS drill, drill_noise, drill_large")
    sql("CREATE TABLE drill (number int PRIMARY KEY); CREATE TABLE drill_noise (text text)")
    sql("CREATE TABLE drill_large AS SELECT n, md5(n::text) FROM generate_series(1, 1200000) n")
    yield
    sql("DROP TABLE drill, drill_noise, drill_large")


def test_under_writes_it_is_equal_to_the_digit() -> None:
    insert(1, 1000)
    writer = Writer()
    writer.start()
    try:
        for number in range(3):
            print(back_up(f"drill-verify-{number}"))
            passed, said = verified(f"drill-{number}")
            assert passed, said
            assert said.startswith(f"postgres backup {backups()[-1]['label']} verified: "), said
    finally:
        writer.ended.set()
        writer.join()
    assert writer.errors == []
    record = json.loads(backups()[-1]["annotation"]["record"])["tables"]
    assert record["public.drill"].startswith("1000:100:")
    assert not record["public.drill_large"].startswith("1200000:100:")
    told("citadelbuy_backup_verification_failed", 0)
    told("citadelbuy_backup_last_verified_timestamp_seconds", int(backups()[-1]["annotation"]["verified"]))
    told("citadelbuy_backup_last_verification_duration_seconds", int(backups()[-1]["annotation"]["seconds"]))


def test_a_row_that_is_missing_fails_by_its_table_and_is_told() -> None:
    newest = backups()[-1]
    good = newest["annotation"]["record"]
    note = (*PGBACKREST, "annotate", f"--set={newest['label']}")
    kubectl(*note, f"--annotation=record={good.replace('1000:100:', '1001:100:')}")
    try:
        passed, said = verified("drill-missing")
        assert not passed
        assert "table public.drill: expected 1001:100:" in said, said
        assert "found 1000:100:" in said, said
        told("citadelbuy_backup_verification_failed", 1)
    finally:
        kubectl(*note, f"--annotation=record={good}")
    assert verified("drill-repaired")[0]
    told("citadelbuy_backup_verification_failed", 0)


def test_what_was_never_recorded_is_not_taken_for_good() -> None:
    before, newest = backups()[-2:]
    note = (*PGBACKREST, "annotate", f"--set={newest['label']}")
    kubectl(*note, "--annotation=record=")
    try:
        # Its Job may still be at it.
        passed, said = verified("drill-not-yet-recorded")
        assert passed, said
        assert said.startswith(f"postgres backup {before['label']} verified: "), said
        passed, said = verified("drill-unrecorded", POSTGRES_BACKUP_DEADLINE="0")
        assert not passed
        assert "make another one" in said, said
    finally:
        kubectl(*note, f"--annotation=record={newest['annotation']['record']}")


def test_a_damaged_file_fails() -> None:
    take_full()
    with damaged(backups()[-1]["label"]):
        passed, said = verified("drill-damaged")
    assert not passed
    assert "pgbackrest restore failed" in said, said
    told("citadelbuy_backup_verification_failed", 1)


def test_what_is_not_verified_pushes_out_nothing_that_is() -> None:
    good = next(backup["label"] for backup in reversed(backups()) if "verified" in backup["annotation"])
    for _ in range(4):
        said = take_full()
    assert "no backup expires" in said, said
    assert good in [backup["label"] for backup in backups()]
    assert verified("drill-newest")[0]
    assert "no backup expires" not in take_full()
    assert len([backup for backup in backups() if backup["type"] == "full"]) == 3
    assert good not in [backup["label"] for backup in backups()]
