"""Backups of a running platform that are restored: `make drill-backup`.

The platform is the one that CITADELBUY_BACKUP_CLUSTER names, an embedded cluster that make brings up with backups. Each
restore is a pod beside the database, made of the database's own pod; what it serves must be exactly what was there.
The tests share the platform and run in order.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAME = os.environ.get("CITADELBUY_BACKUP_CLUSTER", "")
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
STATE = Path("/var/lib/citadelbuy", NAME)
POD = "postgres-restore"
LIMIT = 300  # seconds for whatever is waited for

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-backup brings the cluster that this needs")


def kubectl_words(*arguments: str) -> list[str]:
    """A call of kubectl in the platform's namespace."""
    program = max(CACHE.glob("binaries/*/kubectl"), key=lambda path: path.stat().st_mtime)
    return [str(program), "--kubeconfig", str(STATE / "admin.conf"), "--namespace", "citadelbuy", *arguments]


def kubectl_done(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl, however it ends."""
    return subprocess.run(kubectl_words(*arguments), input=stdin, capture_output=True, text=True, check=False)


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl and return what it printed."""
    done = kubectl_done(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(kind: str, name: str) -> Any:
    """An object of the platform."""
    return json.loads(kubectl("get", kind, name, "--output", "json"))


def awaited(look: Callable[[], Any], what: str, seconds: float = LIMIT) -> Any:
    """What a look finds, once it is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not after {seconds:.0f} s"
        time.sleep(0.5)
    return found


def sql(text: str, pod: str = "postgres-0") -> str:
    """What the database says, or the one of another pod."""
    words = ("psql", "-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "citadelbuy", "-c", text)
    return kubectl("exec", pod, "--container", "postgres", "--", *words).strip()


def now() -> str:
    """The database's time, after whatever it has acknowledged."""
    return sql("SELECT clock_timestamp()")


def archived() -> None:
    """Wait until all that was acknowledged is in the repository."""
    segment = sql("SELECT pg_walfile_name(pg_switch_wal())")
    awaited(lambda: sql(f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver") == "t", f"{segment} archived")


def ended(job: str) -> str:
    """Wait for a Job; Complete or Failed."""

    def condition() -> str:
        found = read("job", job)["status"].get("conditions") or []
        return next((item["type"] for item in found if item["type"] in ("Complete", "Failed")), "")

    return awaited(condition, f"Job {job} ends")


def back_up(name: str) -> str:
    """A backup out of its turn; what its Job says."""
    kubectl("delete", "job", name, "--ignore-not-found", "--wait")
    kubectl("create", "job", "--from=cronjob/postgres-backup", name)
    assert ended(name) == "Complete", kubectl("logs", f"job/{name}")
    return kubectl("logs", f"job/{name}")


def try_once(store: str, name: str) -> None:
    """A backup of a store out of its turn, which is not tried again."""
    kubectl("delete", "job", name, "--ignore-not-found", "--wait")
    job = json.loads(kubectl("create", "job", f"--from=cronjob/{store}-backup", name, "--dry-run=client", "-ojson"))
    job["spec"]["backoffLimit"] = 0
    kubectl("create", "-f", "-", stdin=json.dumps(job))


def kill_database() -> None:
    """Its pod, which is there again afterwards, and leads."""
    kubectl("delete", "pod", "postgres-0", "--grace-period=1", "--wait")
    kubectl("wait", "pod/postgres-0", "--for=create", f"--timeout={LIMIT}s")
    kubectl("wait", "pod/postgres-0", "--for=condition=Ready", f"--timeout={LIMIT}s")
    awaited(lambda: kubectl_done("exec", "postgres-0", "--", "pg_isready", "-q").returncode == 0, "it answers")
    awaited(lambda: sql("SELECT pg_is_in_recovery()") == "f", "the primary leads again")


def restore_pod(target: str) -> dict[str, Any]:
    """A pod with the data as of a time, or the newest where it is empty: the database's, without Patroni."""
    spec = read("statefulset", "postgres")["spec"]["template"]["spec"]
    [server] = [item for item in spec["containers"] if item["name"] == "postgres"]
    mine = ("tmp", "run", "shared-memory")
    container = {key: server[key] for key in ("name", "image", "imagePullPolicy", "resources", "securityContext")}
    container["args"] = ["postgres-restore", "beside", target, ""]
    container["env"] = [
        item for item in server["env"] if item["name"] in ("PGDATA", "PGBACKREST_STANZA", "POSTGRES_BACKUP_SECRETS")
    ]
    container["volumeMounts"] = [
        mount
        for mount in server["volumeMounts"]
        if mount["name"] in ("data", *mine) or mount["name"].startswith("backup-")
    ]
    query = "psql -X -qAt -U postgres -d postgres -c 'SELECT pg_is_in_recovery()' | grep -qx f"
    container["readinessProbe"] = {"exec": {"command": ["sh", "-c", query]}, "periodSeconds": 1, "timeoutSeconds": 5}
    volumes = [item for item in spec["volumes"] if item["name"] in mine or item["name"].startswith("backup-")]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "labels": {"app.kubernetes.io/name": "postgres-backup-exporter"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": spec["securityContext"],
            "containers": [container],
            "volumes": [*volumes, {"name": "data", "emptyDir": {}}],
        },
    }


def restored(target: str = "") -> str:
    """Start a restore and wait for its end: `served`, or what the pod said instead."""
    kubectl("create", "-f", "-", stdin=json.dumps(restore_pod(target)))

    def outcome() -> str:
        status = read("pod", POD)["status"]
        if status["phase"] == "Failed":
            return kubectl("logs", POD)
        ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", ()))
        return "served" if ready else ""

    return awaited(outcome, "a restore ends")


@contextmanager
def beside(target: str = "") -> Iterator[None]:
    """Restored data, in a pod that is gone afterwards."""
    try:
        begun = time.monotonic()
        outcome = restored(target)
        assert outcome == "served", outcome
        print(f"restored to {target or 'the newest'} in {time.monotonic() - begun:.1f} s")
        yield
    finally:
        kubectl("delete", "pod", POD, "--ignore-not-found", "--wait")


@contextmanager
def damaged(label: str = "*") -> Iterator[None]:
    """The largest bundle of files, of one backup or of all, has a few wrong bytes: every restore reads it.

    There is no second copy but the one that is put back.
    """
    script = (
        f"find /data/backups -path '*/{label}/bundle/*' -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2"
    )
    file = kubectl("exec", "object-store-0", "--", "sh", "-c", script).strip()
    damage = f"cp -p {file} /data/kept; printf damaged | dd of={file} bs=1 seek=4096 conv=notrunc 2>/dev/null"
    kubectl("exec", "object-store-0", "--", "sh", "-c", damage)
    try:
        yield
    finally:
        kubectl("exec", "object-store-0", "--", "sh", "-c", f"cat /data/kept > {file}; rm /data/kept")


def metric(query: str) -> list[Any]:
    """An answer of Prometheus."""
    proxy = "/api/v1/namespaces/citadelbuy-monitoring/pods/prometheus-0:9090/proxy/api/v1/query?query="
    return json.loads(kubectl("get", "--raw", proxy + query))["data"]["result"]


class Writer(threading.Thread):
    """Writes rows beside, one transaction each, until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.errors: list[str] = []

    def run(self) -> None:
        """In batches of a hundred transactions."""
        text = "INSERT INTO drill_noise SELECT md5(random()::text);" * 100
        while not self.ended.is_set():
            words = ("exec", "-i", "postgres-0", "--container", "postgres", "--", "psql", "-X", "-q", "-U", "postgres")
            done = kubectl_done(*words, "-d", "citadelbuy", "-v", "ON_ERROR_STOP=1", stdin=text)
            if done.returncode:
                self.errors.append(done.stderr)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Two tables of the drill's own."""
    # Of a run that was ended.
    kubectl("delete", "pod", POD, "--ignore-not-found", "--wait")
    sql("DROP TABLE IF EXISTS drill, drill_noise")
    sql("CREATE TABLE drill (number int PRIMARY KEY); CREATE TABLE drill_noise (text text)")
    yield
    sql("DROP TABLE drill, drill_noise")


def insert(first: int, last: int) -> None:
    """Write rows."""
    sql(f"INSERT INTO drill SELECT generate_series({first}, {last})")


def numbers(pod: str = POD) -> tuple[int, int]:
    """How many rows there are, and the largest."""
    count, largest = sql("SELECT count(*), coalesce(max(number), 0) FROM drill", pod).split("|")
    return int(count), int(largest)


def test_a_point_in_time_is_exact() -> None:
    insert(1, 1000)
    print(back_up("drill-full"))
    target = now()
    insert(1001, 2000)
    archived()
    with beside(target):
        assert numbers() == (1000, 1000)
    assert numbers("postgres-0") == (2000, 2000)


def test_a_backup_is_incremental_after_a_full_one_and_known_to_prometheus() -> None:
    before = time.time()
    assert back_up("drill-incremental").startswith("incr backup ")

    def known() -> list[Any]:
        found = metric('citadelbuy_backup_last_success_timestamp_seconds{store="postgres"}')
        return [item for item in found if float(item["value"][1]) >= before - 60]

    awaited(known, "Prometheus knows the backup")
    assert metric('citadelbuy_backup_size_bytes{store="postgres"}>0')
    assert metric('citadelbuy_backup_duration_seconds{store="postgres"}')


def test_exact_under_writes_across_a_new_timeline() -> None:
    writer = Writer()
    writer.start()
    insert(2001, 3000)
    before_switch = now()
    insert(3001, 4000)
    timeline = sql("SELECT timeline_id FROM pg_control_checkpoint()")
    # No replica takes over here: the same member ends, and begins a timeline when it leads again.
    kill_database()
    assert int(sql("CHECKPOINT; SELECT timeline_id FROM pg_control_checkpoint()")) > int(timeline)
    insert(4001, 5000)
    after_switch = now()
    insert(5001, 6000)
    writer.ended.set()
    writer.join()
    archived()
    for target, expected in ((before_switch, 3000), (after_switch, 5000)):
        with beside(target):
            assert numbers() == (expected, expected), target


def test_without_the_place_of_backups_nothing_is_lost_and_nothing_is_silent() -> None:
    kubectl("scale", "statefulset/object-store", "--replicas=0")
    kubectl("wait", "pod/object-store-0", "--for=delete", f"--timeout={LIMIT}s")
    insert(6001, 7000)
    failed = int(sql("SELECT failed_count FROM pg_stat_archiver"))
    sql("SELECT pg_switch_wal()")
    try_once("postgres", "drill-away")
    assert ended("drill-away") == "Failed"
    said = kubectl("logs", "job/drill-away")
    assert "the repository cannot be read" in said, said
    awaited(lambda: int(sql("SELECT failed_count FROM pg_stat_archiver")) > failed, "the archiver has failed")
    insert(7001, 8000)
    kubectl("scale", "statefulset/object-store", "--replicas=1")
    kubectl("rollout", "status", "statefulset/object-store", f"--timeout={LIMIT}s")
    archived()
    with beside():
        assert numbers() == numbers("postgres-0")


def test_a_time_that_was_never_reached_is_refused() -> None:
    try:
        # Nothing is written after it.
        outcome = restored(now())
        assert "recovery ended before configured recovery target was reached" in outcome
    finally:
        kubectl("delete", "pod", POD, "--ignore-not-found", "--wait")


def test_a_damaged_backup_is_not_restored() -> None:
    insert(8001, 9000)
    print(back_up("drill-damaged"))
    with damaged():
        try:
            outcome = restored()
            assert outcome != "served"
            assert "ERROR" in outcome, outcome
            print(outcome)
        finally:
            kubectl("delete", "pod", POD, "--ignore-not-found", "--wait")
    with beside():
        assert numbers() == numbers("postgres-0")
