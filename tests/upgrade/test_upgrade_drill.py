"""PostgreSQL with three members brought to another major and back: `make drill-upgrade`.

What the platform has acknowledged is there after each step but the way back, which says what it loses. The tests share
the platform and run in order.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "backup"))

import test_restore_drill as drill
from test_backup_drill import NAME, awaited, back_up, insert, kubectl, numbers, read, sql

NEW = "citadelbuy.local/postgres-17:17-1"
MEMBERS = 3

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-upgrade brings the cluster that this needs")


def play(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a playbook, and say how long it took."""
    begun = time.monotonic()
    done = drill.play(name, postgres_replicas=MEMBERS, **variables)
    print(f"{name} {variables}: {time.monotonic() - begun:.1f} s")
    return done


def upgrade(**variables: object) -> str:
    """What the playbook said, which has passed."""
    done = play("upgrade_postgres", **variables)
    assert done.returncode == 0, done.stdout
    for line in json.loads(done.stdout.split('"__upgrade_postgres_result.msg":')[1].split("\n}")[0]).splitlines():
        print(f"  {line}")
    return done.stdout


def major() -> str:
    """Of the server that leads, and of its replicas."""
    versions = {
        sql("SHOW server_version", f"postgres-{number}").split(".")[0]
        for number in range(MEMBERS)
        if awaited(lambda number=number: sql("SELECT true", f"postgres-{number}") == "t", f"postgres-{number}")
    }
    [version] = versions
    return version


def whole() -> None:
    """Both replicas stream."""
    awaited(lambda: sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2", "both stream")


@pytest.fixture(scope="module", autouse=True)
def table() -> None:
    """The drill's own table, by the first member, which is asked to lead."""
    print(kubectl("exec", "postgres-0", "--container", "postgres", "--", "postgres-lead"))
    sql("DROP TABLE IF EXISTS drill; CREATE TABLE drill (number int PRIMARY KEY)")
    insert(1, 1000)


def test_a_run_with_the_new_image_is_refused_before_anything_is_changed() -> None:
    pods = drill.uids()
    done = play("site", postgres_image=NEW)
    assert done.returncode == 2
    assert "another major version does not start on its data. To do: playbooks/upgrade_postgres.yml" in done.stdout
    assert "changed=0" in done.stdout
    done = play("upgrade_postgres", postgres_image=NEW, upgrade_postgres_confirm=True)
    assert done.returncode == 2
    assert "no rehearsal with image" in done.stdout
    assert pods == drill.uids()


def test_a_rehearsal_tells_what_cannot_be_upgraded() -> None:
    sql("CREATE TABLE wrong (function regproc)")
    print(back_up("drill-upgrade-wrong"))
    pods = drill.uids()
    done = play("upgrade_postgres", postgres_image=NEW)
    assert done.returncode == 2
    assert "pg_upgrade --check failed" in done.stdout
    assert "reg* data types" in done.stdout
    assert pods == drill.uids()
    sql("DROP TABLE wrong")


def test_a_rehearsal_passes_beside_the_platform() -> None:
    print(back_up("drill-upgrade"))
    pods = drill.uids()
    said = upgrade(postgres_image=NEW)
    assert "PostgreSQL 15 to 17" in said
    assert "Clusters are compatible" in said
    assert pods == drill.uids()


def test_the_upgrade_keeps_every_row() -> None:
    insert(1001, 2000)
    said = upgrade(postgres_image=NEW, upgrade_postgres_confirm=True)
    assert "PostgreSQL 15 to 17" in said
    assert numbers("postgres-0") == (2000, 2000)
    whole()
    assert major() == "17"
    assert sql("SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'drill'") == "t"
    pods = {name: read("pod", name)["metadata"]["uid"] for name in ("postgres-0", "postgres-1", "postgres-2")}
    done = play("site", postgres_image=NEW)
    assert done.returncode == 0, done.stdout
    assert pods == {name: read("pod", name)["metadata"]["uid"] for name in pods}  # they were what it wants already
    done = play("verify_backup", postgres_image=NEW, backup_stores="postgres")
    assert done.returncode == 0, done.stdout


def test_the_way_back_has_the_data_of_before() -> None:
    insert(2001, 2100)
    done = play("restore", restore_undo=True, restore_confirm=True, postgres_image=NEW)
    assert done.returncode == 2
    assert "before an upgrade: -e upgrade_postgres_back=true" in done.stdout
    said = upgrade(upgrade_postgres_back=True)
    assert "Lost by it: all that was written since the upgrade" in said
    assert numbers("postgres-0") == (2100, 2100)
    upgrade(upgrade_postgres_back=True, upgrade_postgres_confirm=True)
    assert numbers("postgres-0") == (2000, 2000)
    whole()
    assert major() == "15"
    assert play("site").returncode == 0
    insert(2001, 2100)
    print(back_up("drill-upgrade-back"))
    done = play("verify_backup", backup_stores="postgres")
    assert done.returncode == 0, done.stdout
    assert kubectl("get", "pods", "--field-selector=status.phase=Failed", "-oname").strip() == ""
