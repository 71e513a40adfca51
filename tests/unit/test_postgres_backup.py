"""What `postgres-backup` makes of what is written beside the backups; pgBackRest and PostgreSQL are stand-ins."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import load_program

NOW = 1_700_000_000
RECORD = json.dumps({"point": "verify-a", "timeline": 1, "schema": "one", "tables": {"public.a": "3:100:-17"}})


TAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import load_program
program = load_program("images/postgres/files/postgres-backup")
program.LOCK = Path(sys.argv[2])
program.take()
"""


class DatabaseError(Exception):
    """Of psycopg2."""


class Repository:
    """Backups and what is written beside them."""

    def __init__(self) -> None:
        self.backups = []
        self.calls = []

    def add(self, label: str, stop: int = NOW, kind: str = "full", **notes: object) -> None:
        """A good backup, newer than those before."""
        times = {"start": stop - 60, "stop": stop}
        annotation = {name: str(value) for name, value in notes.items()}
        info = {"repository": {"size": 1, "delta": 1}}
        self.backups.append(
            {"label": label, "type": kind, "timestamp": times, "annotation": annotation, "info": info, "error": False}
        )

    def notes(self, label: str) -> dict[str, str]:
        """What is written beside a backup."""
        return next(backup["annotation"] for backup in self.backups if backup["label"] == label)

    def pgbackrest(self, command: str, *options: str, timeout: float | None = None) -> str:
        """As the program calls it."""
        self.calls.append((command, *options))
        if command == "info":
            return json.dumps([{"backup": self.backups}])
        if command == "annotate":
            label, *values = (option.partition("=")[2] for option in options)
            for name, _, value in (text.partition("=") for text in values):
                self.notes(label)[name] = value
                if not value:
                    del self.notes(label)[name]
        return ""


@pytest.fixture
def repository():
    return Repository()


@pytest.fixture
def program(repository, monkeypatch):
    """The program, at a time of its own."""
    monkeypatch.setitem(sys.modules, "psycopg2", SimpleNamespace(Error=DatabaseError))
    module = load_program("images/postgres/files/postgres-backup")
    monkeypatch.setattr(module, "pgbackrest", repository.pgbackrest)
    monkeypatch.setattr(module, "paced", repository.pgbackrest)
    monkeypatch.setattr(module, "check_archive", lambda: None)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: NOW, monotonic=lambda: 0.0))
    return module


def ended_by(error):
    """A restore that ends so."""

    def restored(*_):
        raise error

    return restored


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"point": "verify', "JSONDecodeError: Unterminated string"),
        (json.dumps({"timeline": 1, "schema": "one", "tables": {}}), "KeyError: 'point'"),
        (RECORD.replace("3:100:-17", "3:-17"), "ValueError: not enough values"),
        (RECORD.replace("3:100", "3:all"), "ValueError: could not convert"),
        ("[]", "TypeError: "),
    ],
)
def test_a_broken_record_is_a_failure_that_is_told_and_written(program, repository, record, said):
    repository.add("a", record=record)
    with pytest.raises(SystemExit) as ended:
        program.verify()
    [line] = str(ended.value).splitlines()
    assert line.startswith(f"postgres-backup: backup a is not verified: its record is broken ({said}")
    assert line.endswith("To do: make another one (CronJob postgres-backup)")
    assert repository.notes("a")["failed"] == str(NOW)
    assert "restore" not in [command for command, *_ in repository.calls]


@pytest.mark.parametrize("error", [OSError(28, "No space left\non device"), DatabaseError("no\nanswer")])
def test_whatever_ends_it_is_a_failure_that_is_told_and_written(program, repository, monkeypatch, error):
    repository.add("a", record=RECORD, started=NOW - 5)
    monkeypatch.setattr(program, "serve", ended_by(error))
    kind = type(error).__name__
    with pytest.raises(SystemExit, match=rf"^postgres-backup: backup a is not verified: {kind}: .*no.*n") as ended:
        program.verify()
    assert "\n" not in str(ended.value)
    assert repository.notes("a") == {"record": RECORD, "failed": str(NOW)}


def test_a_success_clears_the_failure_before(program, repository, monkeypatch, capsys):
    repository.add("a", record=RECORD, failed=NOW - 5)
    monkeypatch.setattr(program, "compare", lambda *_: "all is there")
    program.verify()
    assert repository.calls[1] == ("annotate", "--set=a", f"--annotation=started={NOW}")
    assert repository.notes("a") == {"record": RECORD, "verified": str(NOW), "seconds": "0"}
    assert capsys.readouterr().out == "postgres backup a verified: all is there\n"


@pytest.mark.parametrize(
    ("notes", "expires"),
    [
        ({}, False),
        ({"verified": NOW}, True),
        ({"failed": NOW}, False),
        ({"verified": NOW - 5, "failed": NOW}, False),
        ({"verified": NOW, "failed": NOW - 5}, True),
        ({"verified": 999_999_999, "failed": NOW}, False),
    ],
)
def test_what_has_failed_since_it_was_verified_lets_nothing_expire(
    program, repository, monkeypatch, tmp_path, capsys, notes, expires
):
    settings = tmp_path / "pgbackrest.conf"
    settings.write_text("[global]\nrepo1-retention-full=2\n")
    monkeypatch.setattr(program, "SETTINGS", str(settings))
    repository.add("1F", verified=NOW)
    repository.add("2F")
    repository.add("3F")
    repository.add("3F_1I", kind="incr", **notes)
    program.expire(repository.backups)
    assert (("expire",) in repository.calls) == expires
    assert ("no backup expires" in capsys.readouterr().err) != expires


class Killed(BaseException):
    """The pod is gone."""


def test_a_killed_verification_is_told_once_it_could_not_run_any_more(program, repository, monkeypatch):
    def failed():
        [line] = [line for line in program.exposition(repository.backups).splitlines() if "n_failed{" in line]
        return int(line.split()[-1])

    monkeypatch.setenv("POSTGRES_VERIFY_DEADLINE", "100")
    repository.add("old", record=RECORD, verified=NOW - 5, seconds=1)
    repository.add("new", record=RECORD)
    monkeypatch.setattr(program, "serve", ended_by(Killed()))
    with pytest.raises(Killed):
        program.verify()
    assert repository.notes("new") == {"record": RECORD, "started": str(NOW)}
    for later, expected in ((100, 0), (101, 1)):
        monkeypatch.setattr(program.time, "time", lambda later=later: NOW + later)
        assert failed() == expected
    # A later success is the newest news, also where it is another backup's.
    repository.notes("old")["verified"] = str(NOW + 101)
    assert failed() == 0
    assert program.is_verified(repository.backups[0])
    assert not program.is_verified(repository.backups[1])


def test_what_is_verified_stays_so_while_it_is_verified_again(program, repository):
    repository.add("a", verified=NOW - 5, started=NOW)
    assert program.is_verified(repository.backups[0])


HOUR = 3600


@pytest.mark.parametrize(
    ("backups", "chosen"),
    [
        # Each: hours since it ended, and whether it has a record.
        ([(24, True), (2, True)], 2),
        ([(48, True), (24, True), (2, False)], 24),  # its Job is at it
        ([(48, True), (24, True), (7, False)], 7),
        ([(48, True), (24, False), (2, False)], 24),  # each night anew: the first one is told
        ([(48, False), (24, True)], 24),
        ([(48, False), (24, True), (2, False)], 24),
        ([(2, False)], 2),
        ([(3, False), (2, False)], 2),
        ([(48, False), (24, False), (2, False)], 24),
    ],
)
def test_the_newest_with_a_record_is_verified_while_another_may_still_get_one(program, repository, backups, chosen):
    for hours, has_record in backups:
        repository.add(str(hours), NOW - hours * HOUR, **({"record": RECORD} if has_record else {}))
    assert program.newest_to_verify(repository.backups)["label"] == str(chosen)


def test_the_role_says_how_long_a_backup_may_be_without_a_record(program, repository, monkeypatch, capsys):
    repository.add("old", NOW - 24 * HOUR, record=RECORD)
    repository.add("new", NOW - 60)
    monkeypatch.setattr(program, "compare", lambda _label, record: program.recorded(record)["schema"])
    monkeypatch.setenv("POSTGRES_BACKUP_DEADLINE", "61")
    program.verify()
    assert "postgres backup old verified: one" in capsys.readouterr().out
    assert repository.notes("new") == {}
    monkeypatch.setenv("POSTGRES_BACKUP_DEADLINE", "59")
    with pytest.raises(SystemExit, match=r"backup new is not verified: it was ended before .* make another one"):
        program.verify()
    assert repository.notes("new") == {"failed": str(NOW)}


def test_an_archive_with_a_gap_is_a_failure_by_its_segment(monkeypatch, tmp_path):
    program = load_program("images/postgres/files/postgres-backup")
    plan = tmp_path / "postgres-restore"
    plan.write_text(
        "#!/bin/sh\n[ \"$*\" = 'plan  ' ] && echo 'postgres-restore: WAL segment 7 is missing' >&2; exit 1\n"
    )
    plan.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SystemExit, match="WAL segment 7 is missing"):
        program.compare("a", RECORD)


def state_of(process: int) -> str:
    """Of a process: S, or T where it is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_another_backup_waits_for_the_one_whose_program_was_killed_at_rest(tmp_path):
    lock, held = tmp_path / "lock", tmp_path / "held-by-pgbackrest"
    os.mkfifo(held)
    pgbackrest = tmp_path / "pgbackrest"
    said = "#!/bin/sh\n[ $1 != info ] || echo '[{\"backup\": []}]'\n[ $1 = backup ] || exit 0\n"
    pgbackrest.write_text(f"{said}echo $$ > {tmp_path}/backup; (cat {held}; kill $$) & while :; do :; done\n")
    pgbackrest.chmod(0o755)
    words = [sys.executable, "-c", TAKE, str(Path(__file__).parent), str(lock)]
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POSTGRES_BACKUP_SHARE": "0.01"}
    process = subprocess.Popen(words, env=env)
    with held.open("w"):  # the backup is at it
        backup = int((tmp_path / "backup").read_text())
        while state_of(backup) != "T":
            assert process.poll() is None
        process.kill()
        process.wait()
        assert state_of(backup) == "T"
        with lock.open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    pgbackrest.write_text(f"{said}exit 55\n")
    assert subprocess.run(words, env=env, check=False, timeout=60, capture_output=True).returncode == 1


def test_a_backup_rests_for_what_it_has_used_and_not_by_the_clock(monkeypatch, tmp_path):
    """By the clock, one that a busy node gave no time in its turns never ended."""
    program = load_program("images/postgres/files/postgres-backup")
    pgbackrest = tmp_path / "pgbackrest"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("POSTGRES_BACKUP_SHARE", "0.25")
    os.mkfifo(tmp_path / "end")
    pgbackrest.write_text(f"#!/bin/sh\ncat {tmp_path}/end\n")
    pgbackrest.chmod(0o755)
    used, rests = [0.0, 0.0, 0.02, 0.02, 0.05], []

    def processor_time(_session):
        if len(used) > 1:
            return used.pop(0)
        if not rests[1:]:
            (tmp_path / "end").write_text("done")
        return used[0]

    monkeypatch.setattr(program, "processor_time", processor_time)
    monkeypatch.setattr(program, "time", SimpleNamespace(sleep=rests.append))  # the module is that of all threads
    assert program.paced("backup") == "done"
    assert rests == [pytest.approx(0.06), pytest.approx(0.09)]


def test_the_time_of_a_session_is_that_of_all_its_processes():
    program = load_program("images/postgres/files/postgres-backup")
    command = ["sh", "-c", "(while :; do :; done) & sleep 60"]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            while not program.processor_time(process.pid):
                assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("share", ["0.2", "1"])
def test_a_backup_that_rests_says_what_one_says_that_does_not(monkeypatch, tmp_path, share):
    program = load_program("images/postgres/files/postgres-backup")
    pgbackrest = tmp_path / "pgbackrest"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("POSTGRES_BACKUP_SHARE", share)
    monkeypatch.setattr(program, "PERIOD", 0.01)
    for code, end in ((0, ""), (55, "echo 'P00  ERROR: [055]: no room' >&2")):
        # More than a pipe holds, by a process of its own.
        pgbackrest.write_text(f"#!/bin/sh\nsh -c 'seq 40000'\n{end}\nexit {code}\n")
        pgbackrest.chmod(0o755)
        if not code:
            assert program.paced("backup").endswith("\n40000\n")
    with pytest.raises(SystemExit, match=r"pgbackrest backup failed \(55\): ERROR: \[055\]: no room"):
        program.paced("backup")


def test_a_server_on_what_was_restored_waits_for_no_member(program, monkeypatch, tmp_path):
    # Its own settings are those of a primary of several members, whose commits wait for one.
    commands = []
    run = SimpleNamespace(returncode=0)
    monkeypatch.setattr(program.subprocess, "run", lambda command, **_: commands.append(command) or run)
    monkeypatch.setenv("PGDATA", str(tmp_path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    (tmp_path / "PG_VERSION").write_text("15\n")
    program.serve()
    assert any("-c synchronous_standby_names=''" in word for word in commands[0])
    assert load_program("images/postgres/files/postgres-restore").ALONE["synchronous_standby_names"] == ""


def test_what_it_waited_for_gets_the_record_that_nobody_wrote(program, repository, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(program, "record", lambda label: program.note(label, record=RECORD))
    monkeypatch.setattr(program, "expire", lambda _known: None)
    repository.add("a", NOW + 1)
    for _ in range(2):
        program.take()
        assert repository.notes("a") == {"record": RECORD}
        assert capsys.readouterr().out.startswith("full backup a: ")
    assert [call[0] for call in repository.calls].count("annotate") == 1
