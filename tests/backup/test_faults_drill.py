"""Faults of which none is silent or harms the data in use, and after which the next run is good: `make drill-backup`.

The archive of the WAL damaged, backups killed at random moments, a wrong key, the place of backups away or full,
restores of Redis and Elasticsearch killed. The tests share the platform and run in order.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from test_backup_drill import (
    LIMIT,
    NAME,
    POD,
    Writer,
    archived,
    awaited,
    back_up,
    beside,
    ended,
    insert,
    kill_database,
    kubectl,
    kubectl_words,
    numbers,
    read,
    restored,
    sql,
    try_once,
)
from test_restore_drill import CHECKOUT, command, play, restore, serves, uids
from test_verify_drill import backups, verified

SEED = int(os.environ.get("CITADELBUY_SEED") or time.time())
KILLS = 20
STORES = ("postgres", "redis", "elasticsearch", "kubernetes")
SECRET = "citadelbuy-backups"
KEY = "/etc/citadelbuy/backup/repo1-cipher-pass"
ROOM = 40  # MiB that a place is left with which is to become full

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-backup brings the cluster that this needs")


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """The drill's own tables, and nothing set aside before or after."""
    kubectl("delete", "pod", POD, "--ignore-not-found", "--wait")
    restore(restore_discard=True)
    drop = "DROP TABLE IF EXISTS drill, drill_noise"
    sql(f"{drop}; CREATE TABLE drill (number int PRIMARY KEY); CREATE TABLE drill_noise (text text)")
    yield
    restore(restore_discard=True)
    sql(drop)


def insert_archived(first: int, last: int) -> str:
    """Write rows; returns the segment that they are in, which is in the repository."""
    sql("SELECT pg_switch_wal()")
    segment = sql(
        f"INSERT INTO drill SELECT generate_series({first}, {last}); SELECT pg_walfile_name(pg_current_wal_lsn())"
    )
    archived()
    return segment


@contextmanager
def segment_damaged(segment: str, how: str) -> Iterator[None]:
    """A segment's file in the repository is not what it was."""
    found = kubectl("exec", "object-store-0", "--", "find", "/data/backups", "-name", f"{segment}-*")
    [file] = [name for name in found.split() if "/archive/" in name]
    kubectl("exec", "object-store-0", "--", "sh", "-ec", f"cp -p {file} /data/kept; {how} {file}")
    try:
        yield
    finally:
        kubectl("exec", "object-store-0", "--", "sh", "-ec", f"cat /data/kept > {file}; rm /data/kept")


def refused_beside(*words: str) -> None:
    """The newest is not served, and the pod says why."""
    try:
        outcome = restored()
        assert outcome != "served"
        print(outcome.strip().splitlines()[-1])
        for word in words:
            assert word in outcome, outcome
    finally:
        kubectl("delete", "pod", POD, "--ignore-not-found", "--wait")


def equal_beside() -> None:
    """All that is there can be had from the repository."""
    archived()
    with beside():
        assert numbers() == numbers("postgres-0")


def test_a_truncated_segment_is_no_end_of_the_archive() -> None:
    insert(1, 1000)
    print(back_up("faults-wal"))
    segment = insert_archived(1001, 2000)
    insert_archived(2001, 3000)
    with segment_damaged(segment, "truncate -s 1000"):
        refused_beside("could not restore file", segment)
        done = play("restore", restore_to="newest", restore_confirm=True)
        assert done.returncode == 2, done.stdout
        assert f'could not restore file "{segment}"' in done.stdout, done.stdout
        assert "pgbackrest archive-get: ERROR" in done.stdout, done.stdout
        restore(restore_undo=True)
        assert numbers("postgres-0") == (3000, 3000)
        print(back_up("faults-wal-healed"))
        equal_beside()
    serves()


def test_a_missing_segment_is_told_before_anything_is_stopped() -> None:
    insert(3001, 4000)
    print(back_up("faults-gap"))
    segment = insert_archived(4001, 5000)
    insert_archived(5001, 6000)
    told = f"WAL segment {segment[8:]} is missing"
    with segment_damaged(segment, "rm"):
        before = uids()
        for confirmed in (False, True):
            done = play("restore", restore_to="newest", restore_confirm=confirmed)
            assert done.returncode == 2, done.stdout
            assert told in done.stdout, done.stdout
        assert uids() == before
        refused_beside(told)
        passed, said = verified("faults-gap")
        assert not passed
        assert told in said, said
        print(back_up("faults-gap-healed"))
        passed, said = verified("faults-gap")
        assert passed, said
        equal_beside()


def kill(pattern: str) -> None:
    """SIGKILL to the processes of the database's pod that are called so, if any."""
    script = f"cd /proc; for p in [0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q '{pattern}' && kill -9 $p; done; true"
    kubectl("exec", "postgres-0", "--container", "postgres", "--", "sh", "-c", script)


def logs(job: str) -> str:
    """What all pods of a Job have said that are still there."""
    return kubectl("logs", f"--selector=batch.kubernetes.io/job-name={job}", "--tail=-1").strip()


def test_backups_killed_at_random_moments_tell_the_truth_and_the_next_one_is_good() -> None:
    insert(6001, 7000)
    before = numbers("postgres-0")[0]
    victims: dict[str, Callable[[], object]] = {
        "postgres-backup": lambda: kill("[p]ostgres-backup take"),
        "pgbackrest": lambda: kill("[/]usr/bin/pgbackrest.* backup"),
        "the Job's pod": lambda: kubectl(
            "delete", "pod", "--selector=batch.kubernetes.io/job-name=faults-kill", "--grace-period=0", "--force"
        ),
        "the database's pod": kill_database,
    }
    begun = time.monotonic()
    back_up("faults-kill")
    whole = time.monotonic() - begun
    chance = random.Random(SEED)
    writer = Writer()
    writer.start()
    try:
        for number in range(KILLS):
            victim, moment = chance.choice(list(victims)), chance.uniform(0, whole)
            kubectl("delete", "job", "faults-kill", "--ignore-not-found", "--wait")
            asked = int(sql("SELECT extract(epoch FROM clock_timestamp())::bigint"))
            kubectl("create", "job", "--from=cronjob/postgres-backup", "faults-kill")
            time.sleep(moment)  # the moment of the fault
            victims[victim]()
            first = 7001 + 100 * number
            insert(first, first + 99)
            outcome, said = ended("faults-kill"), logs("faults-kill")
            told = f"{victim} after {moment:.1f} of {whole:.1f} s: {outcome}"
            print(told)
            newest = backups()[-1]
            if outcome == "Complete":
                assert newest["label"] in said or not said, said  # a pod that was deleted says nothing more
                assert newest["timestamp"]["stop"] >= asked, f"{told}: {said}"
                assert "record" in newest["annotation"], f"{told}: {said}"
            else:
                assert "postgres-backup: " in said, said
    finally:
        writer.ended.set()
        writer.join()
        print(f"CITADELBUY_SEED={SEED}")
    assert numbers("postgres-0") == (before + 100 * KILLS, 7000 + 100 * KILLS)
    print(back_up("faults-kill"))
    passed, said = verified("faults-kill")
    assert passed, said
    equal_beside()


def test_without_the_place_of_backups_every_store_says_so() -> None:
    kubectl("scale", "statefulset/object-store", "--replicas=0")
    kubectl("wait", "pod/object-store-0", "--for=delete", f"--timeout={LIMIT}s")
    try:
        all_fail(STORES)
    finally:
        kubectl("scale", "statefulset/object-store", "--replicas=1")
        kubectl("rollout", "status", "statefulset/object-store", f"--timeout={LIMIT}s")
    healed()


def all_fail(stores: Sequence[str]) -> None:
    """A backup of each of the stores, tried once, fails and says so."""
    for store in stores:
        try_once(store, f"faults-{store}")
    for store in stores:
        assert ended(f"faults-{store}") == "Failed"
        said = logs(f"faults-{store}").splitlines()[-1]
        print(said)
        assert any(word in said for word in ("repository", "pgbackrest", "restic")), said


def healed() -> None:
    """The next backups and their verification are good, and all that is there can be had."""
    for playbook in ("backup", "verify_backup"):
        done = play(playbook)
        assert done.returncode == 0, done.stdout
    equal_beside()


def give_key(value: str) -> None:
    """Give the stores a key, and wait until it has come to the database's pod."""
    encoded = base64.b64encode(value.encode()).decode()
    kubectl("patch", "secret", SECRET, "--patch", json.dumps({"data": {"BACKUP_CIPHER_KEY": encoded}}))
    words = ("exec", "postgres-0", "--container", "postgres", "--", "cat", KEY)
    awaited(lambda: kubectl(*words) == value, "the key has come to the pod")


def test_a_wrong_key_harms_nothing_and_is_told_by_every_store() -> None:
    key = base64.b64decode(read("secret", SECRET)["data"]["BACKUP_CIPHER_KEY"]).decode()
    known = [backup["label"] for backup in backups()]
    give_key("not the key that it was made with")
    try:
        failed = int(sql("SELECT failed_count FROM pg_stat_archiver"))
        first = numbers("postgres-0")[1] + 1
        insert(first, first + 999)
        sql("SELECT pg_switch_wal()")
        all_fail(STORES)
        awaited(lambda: int(sql("SELECT failed_count FROM pg_stat_archiver")) > failed, "the archiver has failed")
    finally:
        give_key(key)
    assert [backup["label"] for backup in backups()][: len(known)] == known
    healed()


@contextmanager
def place_becomes_full() -> Iterator[None]:
    """The place of backups is a copy of itself, in memory, with little room left."""
    used = int(kubectl("exec", "object-store-0", "--", "du", "-sm", "/data").split()[0])
    template = read("statefulset", "object-store")["spec"]["template"]["spec"]
    [server] = template["containers"]
    copy = {key: server[key] for key in ("image", "imagePullPolicy", "resources", "securityContext")}
    copy |= {
        "name": "copy",
        "command": ["find", "/whole", "-mindepth", "1", "-maxdepth", "1", "-exec", "cp", "-a", "{}", "/data/", ";"],
        "volumeMounts": [{"name": "data", "mountPath": "/whole"}, {"name": "small", "mountPath": "/data"}],
    }
    mounts = [item | {"name": "small"} if item["name"] == "data" else item for item in server["volumeMounts"]]
    limits = server["resources"]["limits"] | {"memory": f"{used + ROOM + 512}Mi"}
    resources = {"requests": server["resources"]["requests"], "limits": limits}
    small = {
        "initContainers": [copy | {"resources": resources}],
        "containers": [server | {"volumeMounts": mounts, "resources": resources}],
        "volumes": [
            *template["volumes"],
            {"name": "small", "emptyDir": {"medium": "Memory", "sizeLimit": f"{used + ROOM}Mi"}},
        ],
    }

    def become(spec: dict[str, object]) -> None:
        patch = [{"op": "replace", "path": f"/spec/template/spec/{key}", "value": value} for key, value in spec.items()]
        if "initContainers" not in spec:
            patch.append({"op": "remove", "path": "/spec/template/spec/initContainers"})
        else:
            patch[0]["op"] = "add"
        kubectl("patch", "statefulset", "object-store", "--type=json", "--patch", json.dumps(patch))
        kubectl("rollout", "status", "statefulset/object-store", f"--timeout={LIMIT}s")

    become(small)
    try:
        yield
    finally:
        become({key: template[key] for key in ("containers", "volumes")})


def test_a_full_place_is_told_and_the_data_in_use_goes_on() -> None:
    first = numbers("postgres-0")[1] + 1
    with place_becomes_full():
        failed = int(sql("SELECT failed_count FROM pg_stat_archiver"))
        # Hardly to be compressed, and more than there is room for.
        sql(
            "INSERT INTO drill_noise SELECT string_agg(md5(random()::text || n), '')"
            f" FROM generate_series(1, {ROOM * 131072}) n GROUP BY n % 1024; SELECT pg_switch_wal()"
        )
        awaited(lambda: int(sql("SELECT failed_count FROM pg_stat_archiver")) > failed, "the archiver has failed")
        insert(first, first + 999)
        all_fail(("postgres",))  # the others may have the room that a segment leaves
        assert numbers("postgres-0")[1] == first + 999
    # What only the copy has got is a gap of the place's own: the next backup does not need it.
    sql("TRUNCATE drill_noise")
    healed()
    serves()


def redis(text: str) -> str:
    """An answer of Redis."""
    login = f"REDISCLI_AUTH=$(cat /etc/citadelbuy/secrets/REDIS_PASSWORD) redis-cli -s /run/redis/redis.sock {text}"
    return kubectl("exec", "redis-0", "--container", "redis", "--", "sh", "-c", login).strip()


def elasticsearch(method: str, path: str, body: object = None) -> dict[str, object]:
    """An answer of Elasticsearch, asked from where the API is."""
    program = (
        "const { ELASTICSEARCH_USERNAME: user = 'elastic', ELASTICSEARCH_PASSWORD: password } = process.env;"
        "const authorization = `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;"
        "const headers = { authorization, 'content-type': 'application/json' };"
        f"const answer = await fetch(process.env.ELASTICSEARCH_URL + '{path}', {{ headers, method: '{method}'"
        f"{f', body: {json.dumps(json.dumps(body))}' if body is not None else ''} }});"
        "console.log(JSON.stringify(await answer.json()));"
    )
    node = ("exec", "deployment/citadelbuy-api", "--", "node", "--input-type=module", "-e", program)
    return json.loads(kubectl(*node))


def write(store: str, value: str) -> None:
    """Let a store hold a value."""
    if store == "redis":
        redis(f"SET drill {value}")
    else:
        elasticsearch("PUT", "/drill/_doc/1?refresh=true", {"value": value})


def held(store: str) -> object:
    """The value that a store holds."""
    if store == "redis":
        return redis("GET drill")
    return elasticsearch("GET", "/drill/_doc/1")["_source"]["value"]  # type: ignore[index]


@contextmanager
def first_pod(selector: str) -> Iterator[Callable[[], str]]:
    """Waits for the next pod that a selector finds, and not half a second longer: its work may take one."""
    words = kubectl_words("get", "pods", selector, "--watch-only", "--output=name", f"--request-timeout={LIMIT}s")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        yield watch.stdout.readline
        watch.kill()


@pytest.mark.parametrize(("store", "job"), [("redis", "redis-restore-0"), ("elasticsearch", "elasticsearch-restore")])
def test_a_restore_of_another_store_killed_in_the_middle_is_completed_by_the_same_call(store: str, job: str) -> None:
    workers = f"--selector=batch.kubernetes.io/job-name={job}"
    write(store, "before")
    done = play("backup", backup_stores=[store])
    assert done.returncode == 0, done.stdout
    write(store, "after")
    words = command("restore", restore_stores=[store], restore_to="newest", restore_confirm=True)
    for victim in ("pod", "playbook"):
        with first_pod(workers) as seen:
            process = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True)
            assert seen(), process.communicate()[0]
        if victim == "pod":
            kubectl("delete", "pod", workers, "--grace-period=0", "--force")
            said = process.communicate()[0]
            assert process.returncode == 2, said
            assert "The platform is stopped" in said, said
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    restore(restore_stores=[store], restore_to="newest")
    assert held(store) == "before"
    restore(restore_stores=[store], restore_undo=True)
    assert held(store) == "after"
    serves()
    done = play("restore", restore_stores=[store], restore_discard=True, restore_confirm=True)
    assert done.returncode == 0, done.stdout
