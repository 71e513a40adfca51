"""A running platform whose database is put back by playbooks/restore.yml: `make drill-backup`.

The applications are stopped around each restore, and what was there before is never lost: not where the restore fails,
nor where it or the playbook is killed. The tests share the platform and run in order.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_backup_drill import (
    NAME,
    archived,
    awaited,
    back_up,
    beside,
    damaged,
    insert,
    kubectl,
    kubectl_done,
    now,
    numbers,
    read,
    sql,
)

CHECKOUT = Path(__file__).parents[2]
WORKERS = "--selector=batch.kubernetes.io/job-name=postgres-restore-0"

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-backup brings the cluster that this needs")


def command(name: str, **variables: object) -> list[str]:
    """A playbook's call on the drill's cluster."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    given = {"local_cluster_name": NAME, "platform_backups": True} | variables
    return [program, f"playbooks/{name}.yml", "-i", "inventories/local", "-e", json.dumps(given)]


def play(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a playbook; its messages in one line each."""
    env = os.environ | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command(name, **variables), cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False
    )
    done.stdout += done.stderr
    return done


def restore(**variables: object) -> str:
    """Restore; what the playbook said, and how long it took."""
    begun = time.monotonic()
    done = play("restore", restore_confirm=True, **variables)
    assert done.returncode == 0, done.stdout
    print(f"{variables}: {time.monotonic() - begun:.1f} s")
    return done.stdout


def serves() -> None:
    """The platform is whole, and site.yml finds nothing to change."""
    done = play("site")
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout, done.stdout
    assert kubectl_done("get", "configmap", "restore").returncode != 0
    awaited(lambda: sql("SELECT pg_is_in_recovery()") == "f", "the primary leads")


def uids() -> set[str]:
    """The pods of the platform."""
    return {item["metadata"]["uid"] for item in json.loads(kubectl("get", "pods", "-ojson"))["items"]}


def folders() -> list[str]:
    """What is on the database's volume."""
    return kubectl("exec", "postgres-0", "--container", "postgres", "--", "ls", "/var/lib/postgresql/data").split()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """The drill's own table, and nothing set aside before or after."""
    if kubectl_done("get", "configmap", "restore").returncode == 0:  # of a run that was ended
        restore(restore_undo=True)
    kubectl("delete", "pod", "postgres-beside", "--ignore-not-found", "--wait")
    restore(restore_discard=True)
    sql("DROP TABLE IF EXISTS drill; CREATE TABLE drill (number int PRIMARY KEY)")
    yield
    restore(restore_discard=True)
    sql("DROP TABLE IF EXISTS drill")


def test_the_plan_tells_what_will_be_lost_and_changes_nothing() -> None:
    insert(1, 1000)
    print(back_up("drill-restore"))
    pods = uids()
    target = now()
    done = play("restore", restore_to=target)
    assert done.returncode == 0, done.stdout
    assert f"Lost: whatever was written after {target[:19]}" in done.stdout
    assert "restore_confirm=true" in done.stdout
    for wrong, said in (
        ("2001-01-01 00:00:00+00", "nothing before "),
        ("2001-01-01 00:00:00", "has no zone"),
        ("2100-01-01 00:00:00+00", "is not over yet"),
        ("20010101-000000F", "there is no backup 20010101-000000F"),
        ("yesterday", "neither a backup's label nor a time"),
    ):
        done = play("restore", restore_to=wrong, restore_confirm=True)
        assert done.returncode == 2, done.stdout
        assert said in done.stdout, done.stdout
    assert pods == uids()


def test_a_point_in_time_in_place_and_back_again() -> None:
    target = now()
    insert(1001, 2000)
    restore(restore_to=target)
    assert numbers("postgres-0") == (1000, 1000)
    serves()
    restore(restore_undo=True)
    assert numbers("postgres-0") == (2000, 2000)
    serves()
    # Both have begun timelines: what is written now is archived, and found again.
    insert(2001, 3000)
    archived()
    restore(restore_to="newest")
    assert numbers("postgres-0") == (3000, 3000)
    serves()


def test_a_backup_by_its_label_is_what_was_there_when_it_ended() -> None:
    label = re.search(r"backup (\S+): ", back_up("drill-restore-label"))
    assert label
    count = numbers("postgres-0")
    insert(count[1] + 1, count[1] + 1000)
    archived()
    with beside(label[1]):
        assert numbers() == count
    restore(restore_to=label[1])
    assert numbers("postgres-0") == count
    serves()


def test_beside_leaves_the_data_as_it_is() -> None:
    target = now()
    insert(3001, 4000)
    archived()
    try:
        restore(restore_to=target, restore_beside=True)
        assert numbers("postgres-beside") == (3000, 3000)
        assert numbers("postgres-0") == (4000, 4000)
    finally:
        kubectl("delete", "pod", "postgres-beside", "--ignore-not-found", "--wait")


def phases() -> list[str]:
    """The phases of the pods that work on the database's volume."""
    return [item["status"]["phase"] for item in json.loads(kubectl("get", "pods", WORKERS, "-ojson"))["items"]]


def test_killed_in_the_middle_it_is_completed_by_the_same_call() -> None:
    another = now()
    target = now()
    insert(4001, 5000)
    archived()
    before = [name for name in folders() if ".before-" in name]
    words = command("restore", restore_to=target, restore_confirm=True)
    for victim in ("pod", "playbook"):
        process = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if victim == "pod":
            awaited(lambda: phases() == ["Running"], "the Job works")
            kubectl("delete", "pod", WORKERS, "--grace-period=0", "--force")
            said = process.communicate()[0]
            assert process.returncode == 2, said
        else:
            # Of the run before there may be the failed one.
            awaited(lambda: set(phases()) & {"Pending", "Running", "Succeeded"}, "the Job is made")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        other = play("restore", restore_to=another, restore_confirm=True)
        assert other.returncode == 2, other.stdout
        assert "under way" in other.stdout, other.stdout
    restore(restore_to=target)
    assert numbers("postgres-0") == (4000, 4000)
    assert len([name for name in folders() if ".before-" in name]) == len(before) + 1
    serves()
    restore(restore_undo=True)
    assert numbers("postgres-0") == (5000, 5000)
    serves()


def test_a_damaged_backup_leaves_the_data_and_says_so() -> None:
    insert(5001, 6000)
    print(back_up("drill-restore-damaged"))
    with damaged():
        done = play("restore", restore_to="newest", restore_confirm=True)
        assert done.returncode == 2, done.stdout
        assert "The platform is stopped" in done.stdout, done.stdout
    restore(restore_undo=True)
    assert numbers("postgres-0") == (6000, 6000)
    serves()


def test_what_was_set_aside_goes_at_a_second_word() -> None:
    before = [name for name in folders() if ".before-" in name]
    assert before
    done = play("restore", restore_discard=True)
    assert done.returncode == 0, done.stdout
    assert [name for name in folders() if ".before-" in name] == before
    restore(restore_discard=True)
    assert sorted(folders()) == ["pgdata", "restore.json"]
    assert read("statefulset", "postgres")["status"]["readyReplicas"] == 1
