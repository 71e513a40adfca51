"""PostgreSQL goes from three members to one and back, by its sizing, while somebody reads."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_roll import FIRST, KUBECTL, Postgres, cluster, play, postgres, until  # noqa: F401 (fixtures)

# By either Service, as the first member, which stays: a line a read, with what was wrong of it.
READER = """
import json, os, time
import psycopg2
password = open("/etc/citadelbuy/secrets/DATABASE_SUPERUSER_PASSWORD").read().strip()
while not os.path.exists("/tmp/stop-reading"):
    try:
        with psycopg2.connect(
            host="postgres,postgres-replica", user="postgres", password=password, dbname="postgres", sslmode="require",
            connect_timeout=2,
        ) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sizing")
            print(json.dumps([time.time(), cursor.fetchone()[0], ""]), flush=True)
        connection.close()
    except psycopg2.Error as error:
        print(json.dumps([time.time(), 0, " ".join(str(error).split())]), flush=True)
    time.sleep(0.05)
"""


def kubectl(*words: str) -> str:
    """What it says."""
    return subprocess.run([*KUBECTL, *words], capture_output=True, text=True, check=True).stdout


def sql(pod: str, text: str) -> str:
    """What a member answers."""
    return kubectl(
        "exec", pod, "-c", "postgres", "--", "psql", "-h", "/var/run/postgresql", "-U", "postgres", "-Atc", text
    ).strip()


@pytest.fixture
def reader(postgres: Postgres, tmp_path: Path) -> Iterator[Path]:  # noqa: F811
    """Somebody reads; where the answers are."""
    assert play("--tags", "postgres").returncode == 0  # what a test before has changed
    until(lambda: not postgres.missing(), "full strength")
    leader = postgres.leader()
    sql(leader, "DROP TABLE IF EXISTS sizing; CREATE TABLE sizing AS SELECT generate_series(1, 1000)")
    found = tmp_path / "reads"
    inside = ["exec", FIRST, "-c", "postgres", "--"]
    kubectl(*inside, "rm", "-f", "/tmp/stop-reading")
    with found.open("w") as file:
        process = subprocess.Popen([*KUBECTL, *inside, "python3", "-c", READER], stdout=file)
        yield found
        kubectl(*inside, "touch", "/tmp/stop-reading")
        assert process.wait(30) == 0


def test_from_three_members_to_one_and_back(postgres: Postgres, reader: Path) -> None:  # noqa: F811
    if postgres.leader() == FIRST:
        postgres.hand_over(FIRST)
        until(lambda: postgres.leader() not in ("", FIRST) and not postgres.missing(), "other leader")
    first = kubectl("get", "pod", FIRST, "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[*].restartCount}")
    begun = time.time()
    for members in (1, 3):
        done = play("--tags", "postgres", "-e", f"postgres_replicas={members}")
        assert done.returncode == 0, done.stdout
        until(lambda members=members: postgres.members() == members and not postgres.missing(), f"{members} members")
        assert postgres.leader() == FIRST
        sql(FIRST, f"INSERT INTO sizing VALUES ({1000 + members})")
        print(f"{members} members after {time.time() - begun:.1f} s")
    assert first == kubectl(
        "get", "pod", FIRST, "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[*].restartCount}"
    )
    assert {sql(pod["metadata"]["name"], "SELECT count(*) FROM sizing") for pod in postgres.pods()} <= {"1001", "1002"}
    reads = [json.loads(line) for line in reader.read_text().splitlines()]
    assert len(reads) > 100
    wrong = [number for number, (_when, rows, _error) in enumerate(reads) if rows < 1000]
    print(f"{len(reads)} reads, {len(wrong)} of them cut off: {[reads[number] for number in wrong]}")
    # One that is under way ends with its server, and so may one that reaches it while it stops: libpq asks no other
    # host then. None lacks a server that would answer.
    assert all("closed" in reads[number][2] or "terminating" in reads[number][2] for number in wrong)
    assert not any({number + 1, number + 2} <= set(wrong) for number in wrong)
