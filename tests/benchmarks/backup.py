"""What a backup costs of the API's throughput, and what a restore takes beside pgBackRest's by hand.

On the cluster of `make up ARGS="-e platform_backups=true"`, which has that platform again in the end. Full backups are
made, and taken out of the repository again; meanwhile they count, so the oldest of others may expire. For a while the
platform is restored from one of them, and back: nobody else may write to it. CITADELBUY_BENCHMARK_MEGABYTES is how much
data there is (1000).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from contenders import LOCAL, playbook
from in_cluster import LIMIT, awaited, in_postgres, kubectl, sql
from load import CONNECTIONS, MIX, Load, products
from pairing import ENOUGH, BenchmarkError, Pair, Report, progress, seconds
from platform_objects import Cluster, embedded_cluster, restore_pod

MEGABYTES = int(os.environ.get("CITADELBUY_BENCHMARK_MEGABYTES", "1000"))
THROUGHPUT = 0.9  # of that without a backup, at least
RESTORE = 1.3  # times pgBackRest's, at most
BACKUPS = {"platform_backups": True}
# The load comes from one address, and its pods are as many as the autoscaler would make them.
UNLIMITED = BACKUPS | {
    "applications_api_min_replicas": 2,
    "applications_api_max_replicas": 2,
    "configuration_rate_limit_public_max": 10**6,
    "configuration_rate_limit_max_requests": 10**6,
    "configuration_rate_limit_search_max": 10**6,
    "configuration_rate_limit_payment_max": 10**6,
}
TABLE = "benchmark_backup"
POD = "postgres-benchmark"
WITH, WITHOUT = "with a backup", "without"
FULL = re.compile(r"^full backup (\S+): (\d+) s, ([\d.]+) MB$", re.MULTILINE)

EMPTY = 'pg_ctl stop --silent --mode=immediate 2>/dev/null; rm -rf "${PGDATA%/*}"/*; sync'
# All that was archived, as our program brings with no target. Neither archives: the repository is the platform's own.
BY_HAND = f"""
begun=$(date +%s%N)
pgbackrest restore --archive-mode=off
echo $((($(date +%s%N) - begun) / 1000000))
pg_ctl start --silent --wait --timeout={LIMIT} --log="${{PGDATA%/*}}/server.log" \\
    --options="-c listen_addresses= -c unix_socket_directories=/var/run/postgresql -c ssl=off -c logging_collector=off"
until psql -X -qAt -h /var/run/postgresql -U postgres -d postgres -c 'SELECT pg_is_in_recovery()' | grep -qx f
do sleep 0.1; done
"""


def measure(report: Report, rounds: int, folder: Path) -> None:
    """Load the API with and without backups, then restore from the last one in both ways."""
    cluster = embedded_cluster()
    if not kubectl("get", "cronjob", "postgres-backup", "--ignore-not-found", "--output=name"):
        raise BenchmarkError('the platform has no backups: `make up ARGS="-e platform_backups=true"` first.')
    if in_postgres("sh", "-c", 'ls -d "$PGDATA".before-* 2>/dev/null || true'):
        raise BenchmarkError(
            "an earlier restore has set data aside, which would be discarded: undo or discard it first."
        )
    with unlimited(), products() as identities, data(report):
        backups = Backups(Load(identities, folder))
        try:
            throughput(report, backups, rounds)
            with pod(cluster):
                restores(report, max(min(rounds, ENOUGH), rounds // 2))
            whole_restore(report)
        finally:
            backups.forget()


@contextmanager
def unlimited() -> Iterator[None]:
    """The API as it is under load, without its rate limits."""
    words = ("playbooks/site.yml", "-i", LOCAL, "--tags", "configuration,applications", "-e")
    try:
        progress("lifting the API's rate limits")
        playbook(*words, json.dumps(UNLIMITED))
        yield
    finally:
        progress("setting the API's rate limits again")
        playbook(*words, json.dumps(BACKUPS))
        progress("")


@contextmanager
def data(report: Report) -> Iterator[None]:
    """A table of so many megabytes, a row a kilobyte, of which compression takes a quarter; all of it is archived."""
    text = "string_agg(encode(sha512(convert_to(n || ' ' || part, 'UTF8')), 'base64'), '')"
    rows = f"SELECT n, (SELECT {text} FROM generate_series(1, 11) part) FROM generate_series(1, {MEGABYTES * 1000}) n"
    try:
        progress(f"writing {MEGABYTES} MB of data")
        sql(f"DROP TABLE IF EXISTS {TABLE}")
        sql(f"CREATE TABLE {TABLE} (number, text) AS {rows}")
        sql(f"VACUUM (FREEZE, ANALYZE) {TABLE}")
        sql("CHECKPOINT")
        segment = sql("SELECT pg_walfile_name(pg_switch_wal())")
        archived = f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"
        awaited(lambda: sql(archived) == "t", f"{segment} is archived")
        progress("")
        report.note("data", f"{int(sql('SELECT sum(pg_database_size(oid)) FROM pg_database')) / 1e6:.0f} MB")
        yield
    finally:
        sql(f"DROP TABLE IF EXISTS {TABLE}")


class Backups:
    """Load while a backup is made, and without one for as long; the newest backup is kept."""

    def __init__(self, load: Load) -> None:
        """Nothing is sent."""
        self.load = load
        self.label = ""
        self.lasted = 0.0
        self.times: dict[str, list[float]] = {WITH: [], WITHOUT: []}

    def with_one(self) -> float:
        """Requests a second while one is made."""
        before = self.label
        rate = self._rate(WITH, lambda: self._timed(self._take))
        if before:
            in_postgres("pgbackrest", "expire", f"--set={before}")
        return rate

    def without(self) -> float:
        """Requests a second, for as long as the last one took."""
        return self._rate(WITHOUT, lambda: time.sleep(self.lasted))

    def forget(self) -> None:
        """Take the newest one out of the repository, unless it is the only one."""
        [stanza] = json.loads(in_postgres("pgbackrest", "info", "--output=json"))
        if self.label and len([backup for backup in stanza["backup"] if backup["type"] == "full"]) > 1:
            in_postgres("pgbackrest", "expire", f"--set={self.label}")

    def _rate(self, side: str, action: Callable[[], None]) -> float:
        served = self.load.during(action)
        self.times[side] += served.times
        return served.rate

    def _timed(self, action: Callable[[], None]) -> None:
        self.lasted = seconds(action)

    def _take(self) -> None:
        """A full one, made as the Job of its CronJob has it made."""
        said = in_postgres("env", "POSTGRES_BACKUP_FULL_DAYS=0", "nice", "postgres-backup", "take")
        found = FULL.search(said)
        if not found:
            raise BenchmarkError(f"no full backup was made: {said.strip()}")
        self.label = found[1]


def throughput(report: Report, backups: Backups, rounds: int) -> None:
    """Pair load with a backup and without one; the first backup warms all up, and tells how long one takes."""
    mix = ", ".join(f"{share} % {kind}" for kind, share in MIX.items())
    report.note("load", f"{CONNECTIONS} connections, {mix}")
    progress("a first backup under load")
    backups.with_one()
    for times in backups.times.values():
        times.clear()
    title = "API while a full backup is made (nice postgres-backup take) against without one"
    pair = Pair(title, WITH, WITHOUT, "requests/s", least=THROUGHPUT)
    report.add(pair.alternate(backups.with_one, backups.without, rounds))
    for side, times in backups.times.items():
        cuts = quantiles(times, n=100)
        report.note(f"latency {side}", f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms")
    report.note("the last backup took", f"{backups.lasted:.1f} s")


@contextmanager
def pod(cluster: Cluster) -> Iterator[None]:
    """A pod to restore in, which waits for commands."""
    gone = ("delete", f"pod/{POD}", f"persistentvolumeclaim/{POD}", "--ignore-not-found", "--wait")
    items = restore_pod(cluster, POD, ["sleep", "infinity"])
    kubectl(*gone)
    try:
        kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        kubectl("wait", f"pod/{POD}", "--for=condition=Ready", f"--timeout={LIMIT}s")
        yield
    finally:
        kubectl(*gone)


def restores(report: Report, rounds: int) -> None:
    """Pair our program, until the data is recovered and shut down, with pgBackRest, until a server accepts writes."""
    words = ("exec", POD, "--container=postgres", "--")
    fetched: list[float] = []

    def ours() -> float:
        kubectl(*words, "sh", "-c", EMPTY)
        return seconds(lambda: kubectl(*words, "postgres-restore", "replace", "benchmark", "", ""))

    def by_hand() -> float:
        kubectl(*words, "sh", "-c", EMPTY)
        return seconds(lambda: fetched.append(int(kubectl(*words, "sh", "-ec", BY_HAND)) / 1000))

    progress("each restore once")
    ours()
    by_hand()
    title = (
        "Restore of all that was archived, on a volume of its own: postgres-restore replace against pgBackRest by hand"
    )
    pair = Pair(title, "postgres-restore replace", "pgbackrest restore, pg_ctl start", limit=RESTORE)
    report.add(pair.alternate(ours, by_hand, rounds))
    report.note("pgbackrest restore alone, median", f"{median(fetched[1:]):.2f} s")


def whole_restore(report: Report) -> None:
    """Time the playbook on the platform itself, and go back to what was there."""
    words = ("playbooks/restore.yml", "-i", LOCAL, "-e")
    progress("the platform is restored, and back")
    took = seconds(lambda: playbook(*words, json.dumps({"restore_to": "newest", "restore_confirm": True})))
    back = seconds(lambda: playbook(*words, json.dumps({"restore_undo": True, "restore_confirm": True})))
    playbook(*words, json.dumps({"restore_discard": True, "restore_confirm": True}))
    progress("")
    report.note("playbooks/restore.yml, the applications stopped and started", f"{took:.1f} s")
    report.note("its undoing", f"{back:.1f} s")
