"""Write to PostgreSQL without a rest, and note each row that was acknowledged; or tell the rows that are there.

`write`: a line a row in LOG (when it was acknowledged in seconds, its number, the timeline) until the file STOP is
there. `numbers`: a line a row that the database has. DRILL_HOST, DRILL_DATABASE, DRILL_OWNER say where and who;
DRILL_SECRETS is a folder with DATABASE_PASSWORD and, where another logs in, DATABASE_USER; DRILL_CA_FILE has the
authority that the server is known by; DRILL_RATE is the rows a second to come to, by DRILL_CONNECTIONS connections.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

import psycopg2

LOG, STOP = Path("/work/log"), Path("/work/stop")
START = 30  # seconds until the store must be reachable
PAUSE = 0.25  # between tries to connect: without a rest they would take the time that the store needs


def connect() -> psycopg2.extensions.connection:
    """With time-outs as a client needs them: without, one of a primary whose network is cut hangs for minutes."""
    secrets = Path(os.environ["DRILL_SECRETS"])
    login = secrets / "DATABASE_USER"
    connection = psycopg2.connect(
        host=os.environ["DRILL_HOST"],
        dbname=os.environ["DRILL_DATABASE"],
        user=login.read_text().strip() if login.exists() else os.environ["DRILL_OWNER"],
        password=(secrets / "DATABASE_PASSWORD").read_text().strip(),
        sslmode="verify-full",
        sslrootcert=os.environ["DRILL_CA_FILE"],
        application_name="drill",
        target_session_attrs="read-write",
        connect_timeout=2,
        tcp_user_timeout=2000,
        keepalives_idle=1,
        keepalives_interval=1,
        keepalives_count=2,
    )
    connection.autocommit = True
    return connection


def write() -> None:
    """Until told to stop."""
    forget()
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE drill_writes (number bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())"
        )
    writers = int(os.environ["DRILL_CONNECTIONS"])
    numbers, log = itertools.count(), LOG.open("w", buffering=1)
    threads = [
        threading.Thread(target=write_on_one, args=(numbers, writers / float(os.environ["DRILL_RATE"]), log))
        for _ in range(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_on_one(numbers: itertools.count[int], each: float, log: object) -> None:
    """By one connection at a time, a row every so many seconds; a row whose fate is unknown is left alone."""
    connection, due = None, time.monotonic()
    while not STOP.exists():
        try:
            if connection is None:
                connection = connect()
                cursor = connection.cursor()
                cursor.execute("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
                timeline = int(cursor.fetchone()[0], 16)
            number = next(numbers)
            cursor.execute("INSERT INTO drill_writes VALUES (%s)", (number,))
            print(f"{time.time():.4f} {number} {timeline}", file=log)
        except psycopg2.Error:
            connection = None
            time.sleep(PAUSE)
        due = max(due + each, time.monotonic() - each)
        time.sleep(max(due - time.monotonic(), 0))


def numbers() -> None:
    """All that are there."""
    with patiently() as connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY (SELECT number FROM drill_writes) TO STDOUT", sys.stdout)


def forget() -> None:
    """Drop what was written."""
    with patiently() as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS drill_writes")


def patiently() -> psycopg2.extensions.connection:
    """A connection, once there is one: a pod that is new waits for the network to let it through."""
    deadline = time.monotonic() + START
    while True:
        try:
            return connect()
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)


{"write": write, "numbers": numbers, "forget": forget}[sys.argv[1]]()
