"""The programs of the image backup, with real repositories and a real Redis: what is stored is what was there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates
from conftest import CHECKOUT, free_port

IMAGE = CHECKOUT / "images/backup"
PYTHON = "/usr/bin/python3"  # Debian's, as in the image
KEYS = ("BACKUP_CIPHER_KEY", "BACKUP_S3_ACCESS_KEY", "BACKUP_S3_SECRET_KEY")
PASSWORD = 'p"ss\\w'
STEPS = 80  # more than any work on a volume has

sys.path.insert(0, str(IMAGE))

from store_backup import metrics, volume  # noqa: E402
from store_backup.repository import Backup, Problem, Repository  # noqa: E402


class Redis:
    """A server with a password, and its client's program."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        (folder / "password").write_text(PASSWORD)
        quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
        settings = f'port 0\ntls-port {self.port}\nbind 127.0.0.1 -::1\nrequirepass "{quoted}"\ndir {folder}\nsave ""\n'
        settings += f"tls-cert-file {folder}/tls.crt\ntls-key-file {folder}/tls.key\ntls-auth-clients no\n"
        settings += f"unixsocket {folder}/redis.sock\n"
        self.socket = folder / "redis.sock"
        self.certify(folder, "localhost")
        settings += "repl-diskless-sync-delay 0\n"
        self.process = subprocess.Popen(
            ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self.process.stdin
        self.process.stdin.write(settings)
        self.process.stdin.close()
        while self("PING") != "PONG":
            assert self.process.poll() is None
            time.sleep(0.05)

    @staticmethod
    def certify(folder: Path, name: str) -> None:
        """Make a certificate and its authority."""
        for file, text in certificates.certificate([name], certificates.authority("test")).items():
            (folder / file).write_text(text)

    def __call__(self, *words: object) -> str:
        command = ["redis-cli", "-s", str(self.socket), *map(str, words)]
        env = os.environ | {"REDISCLI_AUTH": PASSWORD}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """One with values of every type."""
    (tmp_path / "redis").mkdir()
    server = Redis(tmp_path / "redis")
    server(
        "EVAL",
        """for i = 1, 300 do
            redis.call('SET', 'text' .. i, 'value' .. i)
            redis.call('HSET', 'hash' .. i % 20, 'field' .. i, i)
            redis.call('SADD', 'set' .. i % 20, 'member' .. i)
            redis.call('ZADD', 'ranked' .. i % 20, i, 'member' .. i)
            redis.call('RPUSH', 'list' .. i % 20, i)
            redis.call('XADD', 'stream' .. i % 20, '*', 'field', i)
        end""",
        0,
    )
    yield server
    server.process.terminate()
    server.process.wait()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of backups."""
    (tmp_path / "secrets").mkdir()
    for key in KEYS:
        (tmp_path / "secrets" / key).write_text("secret")
    values = {
        "BACKUP_REPOSITORY": tmp_path / "repository",
        "BACKUP_SECRETS": tmp_path / "secrets",
        "BACKUP_KEEP": 2,
        "BACKUP_WORK": tmp_path / "work",
        "BACKUP_DATA": tmp_path / "data",
        "BACKUP_STORES": "redis",
        "BACKUP_VERIFY_DEADLINE": 60,
        "RESTIC_CACHE_DIR": tmp_path / "cache",
        "REDIS_HOST": "localhost",
        "REDIS_CA_FILE": tmp_path / "redis/ca.crt",
        "REDIS_PASSWORD_FILE": tmp_path / "redis/password",
        "PYTHONPATH": IMAGE,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def call(*words: str, redis: Redis | None = None) -> subprocess.CompletedProcess[str]:
    """The image's program."""
    env = os.environ | ({"REDIS_PORT": str(redis.port)} if redis else {})
    command = [PYTHON, "-m", "store_backup", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def good(*words: str, redis: Redis | None = None) -> str:
    """What it says, where it ends well."""
    done = call(*words, redis=redis)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def store(tmp_path: Path, label: str, **files: str) -> None:
    """A backup by hand."""
    folder = tmp_path / "by-hand"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    Repository("redis").add(folder, label)


def test_a_copy_under_writes_is_the_source_at_one_moment(redis: Redis) -> None:
    """`pair` and `other` are always raised together, by writers that never stop."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            redis("EVAL", "for i = 1, 500 do redis.call('INCR', 'pair') redis.call('INCR', 'other') end", 0)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        said = good("take", "redis", redis=redis)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert "402 keys" in said
    assert " verified: 402 keys" in good("verify", "redis")
    redis("FLUSHALL")
    data = Path(os.environ["BACKUP_DATA"])
    data.mkdir()
    good("replace", "redis", "one", "")
    with served(data) as ask:
        assert ask("DBSIZE") == "402"
        assert ask("GET", "pair") == ask("GET", "other") != ""
        assert ask("XLEN", "stream3") == "15"


class served:
    """A member on a folder, as the StatefulSet starts it: by its log of changes."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __enter__(self) -> Callable[..., str]:
        self.socket = Path(tempfile.mkdtemp(), "member.sock")  # a path of a socket is short
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.data)]
        self.process = subprocess.Popen([*command, "--appendonly", "yes", "--save", ""], stdout=subprocess.DEVNULL)
        while self.ask("PING") != "PONG":
            assert self.process.poll() is None
            time.sleep(0.05)
        return self.ask

    def ask(self, *words: str) -> str:
        command = ["redis-cli", "-s", str(self.socket), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def __exit__(self, *_error: Any) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.socket.parent)


def test_a_member_gets_a_backup_and_its_own_data_back(redis: Redis) -> None:
    good("take", "redis", redis=redis)
    data = Path(os.environ["BACKUP_DATA"])
    data.mkdir()
    with served(data) as ask:
        ask("SET", "mine", "1")
    told = json.loads(good("replace", "redis", "one", "").splitlines()[-1])
    assert told["aside"].startswith("before-")
    assert json.loads(good("replace", "redis", "one", "").splitlines()[-1]) == told
    with served(data) as ask:
        assert ask("DBSIZE") == "400"
        ask("SET", "since", "1")
    assert json.loads(good("undo", "redis", "two", "one").splitlines()[-1]) == {"back": told["aside"]}
    with served(data) as ask:
        assert ask("KEYS", "*") == "mine"
    [kept] = data.glob("before-*-undone")
    with served(kept) as ask:
        assert ask("DBSIZE") == "401"


def test_keys_that_have_expired_since_are_not_missed(redis: Redis) -> None:
    redis("EVAL", "for i = 1, 200 do redis.call('SET', 'short' .. i, i, 'PX', 6000) end", 0)
    assert "600 keys" in good("take", "redis", redis=redis)
    while redis("EXISTS", "short1") == "1":
        time.sleep(0.1)
    assert " verified: 600 keys" in good("verify", "redis")


def test_what_differs_is_not_verified(redis: Redis, tmp_path: Path) -> None:
    good("take", "redis", redis=redis)
    repository = Repository("redis")
    [backup] = repository.backups()
    other = json.dumps({"keys": {"db0": 400}, "values": {"dGV4dDE=": ["string", "x", -1]}})
    for number, (name, text, said) in enumerate(
        [
            ("record.json", '{"keys": {"db0": 401}, "values": {}}', "keys: expected {'db0': 401}, found {'db0': 400}"),
            ("record.json", other, "the value of key b'text1' is not what it was"),
            ("record.json", "{", "JSONDecodeError"),
            ("dump.rdb", "REDIS0010", "redis-check-rdb"),
        ]
    ):
        repository.fetch(backup, tmp_path / "fetched")
        (tmp_path / "fetched" / name).write_text(text)
        repository.add(tmp_path / "fetched", f"2099010{number + 1}T000000Z")
        done = call("verify", "redis")
        assert done.returncode == 1
        [line] = [line for line in done.stderr.splitlines() if "is not verified" in line]
        assert said in line
        last = repository.backups()[-1]
        assert last.number("failed")
        assert not last.verified
    assert 'verification_failed{store="redis"} 1' in metrics.exposition({"redis": repository.backups()}, time.time())


def test_a_damaged_repository_is_not_verified_nor_restored(redis: Redis, tmp_path: Path) -> None:
    good("take", "redis", redis=redis)
    for pack in (tmp_path / "repository/redis/data").glob("*/*"):
        content = bytearray(pack.read_bytes())
        content[len(content) // 3] ^= 255
        pack.chmod(0o600)
        pack.write_bytes(content)
    done = call("verify", "redis")
    assert done.returncode == 1
    assert "is not verified: restic restore" in done.stderr
    data = tmp_path / "data"
    data.mkdir()
    (data / "mine").write_text("1")
    assert call("replace", "redis", "one", "").returncode == 1
    assert (data / "mine").read_text() == "1"


def test_a_wrong_key_and_an_empty_place_are_told(redis: Redis, tmp_path: Path) -> None:
    assert "there is no backup of redis: make one" in call("verify", "redis").stderr
    good("take", "redis", redis=redis)
    (tmp_path / "secrets/BACKUP_CIPHER_KEY").write_text("another")
    for words in (("take", "redis"), ("verify", "redis"), ("plan", "redis", "")):
        done = call(*words, redis=redis)
        assert done.returncode == 1
        assert "is BACKUP_CIPHER_KEY the one that it was made with?" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_place_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Save(<lock/5effb110bd>) returned error, retrying after 7.6s: client.PutObject: No space left on device.",
        "No space left on device.",
        "main.lockRepository",
        "unable to create lock in backend",
    )
    (tmp_path / "restic").write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in said) + "exit 1\n")
    (tmp_path / "restic").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Problem) as told:
        Repository("redis").backups()
    why = "unable to create lock in backend: client.PutObject: No space left on device."
    assert str(told.value).endswith(f"/redis: {why}")


def test_a_password_that_redis_refuses_is_told(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "redis/password").write_text("another")
    done = call("take", "redis", redis=redis)
    assert done.returncode == 1
    assert done.stderr.startswith("store_backup: Redis at localhost: ")
    assert Repository("redis").backups() == []


@pytest.mark.parametrize(
    ("change", "why"), [("authority", "unable to get local issuer"), ("name", "not valid for '127")]
)
def test_who_is_not_redis_by_its_certificate_is_told_no_password(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, why: str
) -> None:
    if change == "name":
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    else:
        redis.certify(tmp_path / "redis", "localhost")  # the server goes on with what it has read
    done = call("take", "redis", redis=redis)
    assert done.returncode == 1
    assert why in done.stderr
    assert Repository("redis").backups() == []


def test_a_backup_is_chosen_by_its_label_or_by_a_time(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        store(tmp_path, f"2026010{day}T000000Z", a_txt=str(day))
    repository = Repository("redis")
    assert repository.choose("").label == "20260103T000000Z"
    assert repository.choose("20260101T000000Z").label == "20260101T000000Z"
    assert repository.choose("2026-01-02 23:59:59+00:00").label == "20260102T000000Z"
    for target, said in {
        "2025-01-01 00:00:00+00:00": "no backup of redis before",
        "2026-01-02 00:00:00": "has no zone",
        "nothing": "the newest are 20260101T000000Z, 20260102T000000Z, 20260103T000000Z",
    }.items():
        with pytest.raises(Problem, match=said):
            repository.choose(target)
    repository.fetch(repository.choose("20260102T000000Z"), tmp_path / "fetched")
    assert (tmp_path / "fetched/a.txt").read_text() == "2"


def test_only_what_is_not_the_last_that_restores_expires(tmp_path: Path) -> None:
    repository = Repository("redis")
    for day in (1, 2, 3, 4):
        store(tmp_path, f"2026010{day}T000000Z", a_txt=str(day))
    repository.note("20260101T000000Z", verified=5)
    assert "no backup expires: none of the newest 2" in repository.expire(2)
    repository.note("20260104T000000Z", verified=5)
    repository.note("20260104T000000Z", failed=6)
    assert "no backup expires: none of the newest 2" in repository.expire(2)
    assert len(repository.backups()) == 4
    repository.note("20260103T000000Z", verified=5)
    assert repository.expire(2) == "2 expired"
    assert [backup.label for backup in repository.backups()] == ["20260103T000000Z", "20260104T000000Z"]
    assert repository.expire(2) == ""


def test_a_verification_that_was_killed_is_told() -> None:
    def told(**notes: int) -> str:
        backups = [Backup("20260101T000000Z", "x", 1000.0, {name: str(value) for name, value in notes.items()})]
        found = metrics.exposition({"redis": backups}, now=2000.0).splitlines()
        return next(
            (line.split()[-1] for line in found if line.startswith("citadelbuy_backup_verification_failed{")), ""
        )

    assert told() == ""
    assert told(begun=1990) == "0"
    assert told(begun=1900) == "1"
    assert told(begun=1900, verified=1910, took=10) == "0"
    assert told(begun=1900, failed=1910) == "1"
    assert told(begun=1900, failed=1910, verified=1950, took=1) == "0"


class Ended(Exception):
    """The pod is gone."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends the program before one of its writes."""
    left = [STEPS]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **keywords: Any) -> Any:
            if left[0] == 0:
                raise Ended
            left[0] -= 1
            return function(*arguments, **keywords)

        return step

    for owner, name in ((Path, "rename"), (Path, "mkdir"), (Path, "unlink"), (Path, "write_text"), (Path, "rmdir")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    monkeypatch.setattr(volume.shutil, "rmtree", counted(volume.shutil.rmtree))

    def limit(number: int) -> None:
        left[0] = number

    return limit


class Data:
    """A volume with two entries, and backups that are one each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        (folder / "log").mkdir()
        (folder / "log/a").write_text("mine")
        (folder / "dump").write_text("mine")

    def replace(self, work: str) -> None:
        def fetch(folder: Path) -> dict[str, Any]:
            volume.shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "new").write_text("backup")
            return {"label": "x"}

        def put(folder: Path, data: Path) -> None:
            (data / "partial").write_text("")
            (folder / "new").rename(data / "dump")
            (data / "partial").unlink()

        volume.Volume(self.folder).replace(work, fetch, put)

    def undo(self, work: str) -> None:
        volume.Volume(self.folder).undo(work)

    def found(self) -> dict[str, str]:
        own = {path.relative_to(self.folder): path for path in self.folder.rglob("*") if path.is_file()}
        return {
            str(name): path.read_text()
            for name, path in own.items()
            if not str(name).startswith(("before-", "restore."))
        }

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("before-*"))


MINE, BACKUP = {"log/a": "mine", "dump": "mine"}, {"dump": "backup"}


def test_work_on_a_volume_that_is_ended_anywhere_is_completed_or_undone(tmp_path: Path, steps) -> None:
    ended = 0
    for number in range(STEPS):
        for way in ("again", "undo", "undo twice"):
            steps(STEPS)
            data = Data(tmp_path / f"{number}-{way}")
            steps(number)
            try:
                data.replace("one")
                done = True
            except Ended:
                done = False
                ended += 1
            steps(STEPS)
            began = (data.folder / volume.STATE).exists()
            if way == "again":
                data.replace("one")
                assert data.found() == BACKUP, number
                assert len(data.kept()) == 1
                data.undo("two")
                assert data.found() == MINE
            elif not began:
                assert data.found() == MINE, number
            elif way == "undo":
                data.undo("two")
                assert data.found() == MINE, number
                assert data.kept() == ([data.kept()[0]] if done else [])
            else:
                steps(number // 2)
                try:
                    data.undo("two")
                except Ended:
                    steps(STEPS)
                    if "back" in json.loads((data.folder / volume.STATE).read_text()):
                        with pytest.raises(Problem, match="an undoing is under way"):
                            data.replace("one" if not done else "three")
                steps(STEPS)
                data.undo("two")
                assert data.found() == MINE, number
        if done:
            break
    assert ended > 20
    assert number < STEPS - 1


def test_the_undoing_of_a_restore_that_never_came_here_leaves_what_an_earlier_one_brought(tmp_path: Path) -> None:
    data = Data(tmp_path / "data")
    data.replace("first")
    volume.Volume(data.folder).undo("undo second", "second")
    assert data.found() == BACKUP
    volume.Volume(data.folder).undo("undo first", "first")
    assert data.found() == BACKUP  # no longer the newest work here: it has ended
    data.undo("back")
    assert data.found() == MINE


def test_a_volume_without_data_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(Problem, match="nothing is set aside"):
        volume.Volume(tmp_path / "data").undo("one")
