"""What is lost with a volume, and how long each store is away for its restore, several times: `make drill-backup`.

The figures are printed, for docs/backups.md. The tests share the platform and run in order.
"""

from __future__ import annotations

import random
import re
import subprocess
import time

import pytest
from test_backup_drill import NAME, POD, back_up, beside, kubectl_words, now, sql
from test_faults_drill import held, write
from test_restore_drill import play, restore, serves

ROUNDS = 5
WAIT = (5, 65)  # seconds of writing before all volumes are taken to be lost: the archive is at most 60 behind

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-backup brings the cluster that this needs")


def clock() -> subprocess.Popen[str]:
    """Write a row each tenth of a second, for two minutes, in a transaction of its own."""
    text = (
        "DO $$ BEGIN FOR i IN 1..1200 LOOP"
        " INSERT INTO drill_clock DEFAULT VALUES; COMMIT; PERFORM pg_sleep(0.1); END LOOP; END $$"
    )
    psql = ("psql", "-X", "-q", "-U", "postgres", "-d", "citadelbuy", "-c", text)
    words = kubectl_words("exec", "postgres-0", "--container", "postgres", "--", *psql)
    return subprocess.Popen(words, text=True)


def test_what_is_lost_with_all_volumes_is_the_end_alone() -> None:
    print(back_up("recovery"))
    for _ in range(ROUNDS):
        sql("DROP TABLE IF EXISTS drill_clock")
        sql("CREATE TABLE drill_clock (number bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")
        writer = clock()
        try:
            time.sleep(random.uniform(*WAIT))  # the moment of the loss
            with beside():
                at = sql("SELECT clock_timestamp()")
                question = (
                    f"SELECT count(*), max(number), round(extract(epoch FROM '{at}' - max(at)), 1) FROM drill_clock"
                )
                there = sql("SELECT to_regclass('drill_clock') IS NOT NULL", POD) == "t"
                count, newest, lost = sql(question, POD).split("|") if there else ("0", "0", "all")
                assert count == (newest or "0"), "a row in the middle is missing"
                print(f"PostgreSQL: {count} rows came back, the last {lost} s were lost")
        finally:
            sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO $$ BEGIN FOR%'")
            writer.wait()
    sql("DROP TABLE drill_clock")


def prepare(store: str, number: int) -> str:
    """Let a store hold a number that can be restored, and then another; returns what to restore to."""
    if store == "postgres":
        sql(f"DROP TABLE IF EXISTS drill_store; CREATE TABLE drill_store AS SELECT {number} AS value")
        target = now()
        sql("UPDATE drill_store SET value = -1")
        return target
    write(store, str(number))
    done = play("backup", backup_stores=[store])
    assert done.returncode == 0, done.stdout
    write(store, "-1")
    return "newest"


@pytest.mark.parametrize("store", ["postgres", "redis", "elasticsearch"])
def test_how_long_a_store_is_away(store: str) -> None:
    for number in range(ROUNDS):
        target = prepare(store, number)
        begun = time.monotonic()
        said = restore(restore_stores=[store], restore_to=target)
        whole = time.monotonic() - begun
        data = re.search(r"was restored in (\d+) s", said)
        assert data, said
        print(f"{store}: its data in {data[1]} s, the playbook in {whole:.1f} s")
        found = sql("SELECT value FROM drill_store") if store == "postgres" else held(store)
        assert found == str(number)
    serves()
    restore(restore_stores=[store], restore_discard=True)
    if store == "postgres":
        sql("DROP TABLE drill_store")
