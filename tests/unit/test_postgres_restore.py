"""What `postgres-restore` does to a volume, ended at each of its steps: the data that was there is never lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import load_program

WAYS = 40  # more steps than any work has
BEGUN, ENDED = 2, 7  # steps after which a restore is known on its volume, and after which it is done


class Ended(Exception):
    """The pod is gone."""


class Volume:
    """A folder, and the program on it; PostgreSQL and pgBackRest are marks in files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGDATA", str(folder / "pgdata"))
        self.program = load_program("images/postgres/files/postgres-restore")
        self.folder, self.data = folder, folder / "pgdata"
        self.left = WAYS
        self.hour = 0
        self.repository: list[tuple[str, ...]] = []
        for owner, name in ((Path, "rename"), (Path, "touch"), (Path, "write_text"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self.step(getattr(owner, name)))
        monkeypatch.setattr(self.program, "MAJOR", "17")
        for name in ("fetch", "recover", "convert", "pgbackrest"):
            monkeypatch.setattr(self.program, name, self.step(getattr(self, name)))
        monkeypatch.setattr(self.program, "Repository", lambda: self)
        monkeypatch.setattr(self.program, "control", lambda _name: "7")
        self.system, self.timeline = "7", 7
        monkeypatch.setattr(self.program, "name_aside", self.name_aside)

    def step(self, function):
        """The same, counted, and ended before it when its turn has come."""

        def counted(*arguments, **keywords):
            if self.left == 0:
                raise Ended
            self.left -= 1
            return function(*arguments, **keywords)

        return counted

    def newest_timeline(self):
        """Of the archive."""
        return 9

    def choose(self, _target, timeline):
        """The repository's answer; it is asked for the timeline of the data that was there."""
        assert timeline == self.timeline
        return {"label": "backup", "info": {"size": 1}}, None

    def check_archive(self, _backup, _target, _timeline):
        """Nothing is missing."""

    def name_aside(self):
        """Such names as the clock gives."""
        self.hour += 1
        return f"pgdata.before-{self.hour:03d}"

    def fetch(self, _label, target, _timeline):
        """Half a restore, or a whole one."""
        self.data.mkdir()
        Path.open(self.data / "mark", "w").write("half")
        if self.left == 0:
            raise Ended
        Path.open(self.data / "mark", "w").write(f"restored {target}")

    def convert(self, old):
        """Half an upgrade, or a whole one."""
        self.fetch("", Path.read_text(old / "mark"), 0)
        with (self.data / "PG_VERSION").open("w") as file:
            file.write("17\n")
        return {"former": "15", "now": "17"}

    def pgbackrest(self, *arguments):
        """What the repository is told."""
        self.repository.append(arguments)

    def recover(self, *_options):
        """What the server tells."""
        return "", "8"

    def begin_with(self, mark: str, major: str = "") -> None:
        """A volume with data."""
        self.data.mkdir()
        if major:
            with (self.data / "PG_VERSION").open("w") as file:
                file.write(f"{major}\n")
        with (self.data / "mark").open("w") as file:
            file.write(mark)

    def marks(self) -> dict[str, str]:
        """What is in each folder of data."""
        return {path.parent.name: path.read_text() for path in self.folder.glob("pgdata*/mark")}


@pytest.fixture
def volume(tmp_path, monkeypatch):
    return Volume(tmp_path, monkeypatch)


def ended_after(volume, steps, work):
    """Whether the work was ended by then."""
    volume.left = steps
    try:
        work()
    except Ended:
        return True
    finally:
        volume.left = WAYS
    return False


@pytest.mark.parametrize("steps", range(12))
def test_a_restore_ended_anywhere_keeps_the_data_and_is_completed(volume, steps, capsys):
    volume.begin_with("mine")
    ended_after(volume, steps, lambda: volume.program.replace("first", "noon", ""))
    assert "mine" in volume.marks().values()
    volume.program.replace("first", "noon", "")
    assert volume.marks()["pgdata"] == "restored noon"
    assert sorted(volume.marks().values()) == ["mine", "restored noon"]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["system"] == "7"
    # The same once more, as where nobody has seen its end.
    volume.program.replace("first", "noon", "")
    assert sorted(volume.marks().values()) == ["mine", "restored noon"]
    # Another one sets that aside in turn.
    volume.program.replace("second", "morning", "")
    assert sorted(volume.marks().values()) == ["mine", "restored morning", "restored noon"]


@pytest.mark.parametrize("steps", range(12))
def test_an_undoing_ended_anywhere_keeps_both_and_is_completed(volume, steps):
    volume.begin_with("mine")
    volume.program.replace("first", "noon", "")
    ended_after(volume, steps, lambda: volume.program.undo("back"))
    assert sorted(volume.marks().values()) == ["mine", "restored noon"]
    volume.program.undo("back")
    assert volume.marks()["pgdata"] == "mine"
    assert sorted(volume.marks().values()) == ["mine", "restored noon"]
    volume.program.undo("back")
    assert volume.marks()["pgdata"] == "mine"


@pytest.mark.parametrize("steps", range(BEGUN, ENDED))
@pytest.mark.parametrize("again", range(9))
def test_a_restore_that_did_not_end_is_undone(volume, steps, again):
    volume.begin_with("mine")
    assert ended_after(volume, steps, lambda: volume.program.replace("first", "noon", ""))
    ended_after(volume, again, lambda: volume.program.undo("back"))
    assert "mine" in volume.marks().values()
    volume.program.undo("back")
    assert volume.marks() == {"pgdata": "mine"}


@pytest.mark.parametrize("steps", range(12))
def test_an_upgrade_ended_anywhere_keeps_the_data_and_is_completed(volume, steps):
    volume.begin_with("mine", "15")
    ended_after(volume, steps, lambda: volume.program.upgrade("first"))
    assert "mine" in volume.marks().values()
    for _once_more in range(2):
        volume.program.upgrade("first")
        assert sorted(volume.marks().values()) == ["mine", "restored mine"]
        assert volume.marks()["pgdata"] == "restored mine"
    assert ("stanza-upgrade", "--no-online") in volume.repository


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("again", range(0, 9, 2))
def test_the_way_back_from_an_upgrade_ended_anywhere(volume, steps, again):
    volume.begin_with("mine", "15")
    begun = ended_after(volume, steps, lambda: volume.program.upgrade("first"))
    work = ("back", "first" if begun else "")
    ended_after(volume, again, lambda: volume.program.undo(*work, other=True))
    assert "mine" in volume.marks().values()
    volume.program.undo(*work, other=True)
    assert volume.marks()["pgdata"] == "mine"
    assert volume.program.major_of(volume.data) == "15"


def test_the_way_back_from_an_upgrade_passes_over_what_a_later_restore_has_set_aside(volume):
    volume.begin_with("mine", "15")
    volume.program.upgrade("first")
    volume.program.replace("second", "noon", "")
    volume.program.undo("back", "", other=True)
    assert volume.marks()["pgdata"] == "mine"


def test_what_an_upgrade_has_set_aside_is_no_restore_to_undo(volume):
    volume.begin_with("mine", "15")
    volume.program.upgrade("first")
    with pytest.raises(SystemExit, match=r"PostgreSQL 15's, before an upgrade: -e upgrade_postgres_back=true"):
        volume.program.undo("back")
    assert volume.marks() == {"pgdata": "restored mine", "pgdata.before-001": "mine"}


@pytest.mark.parametrize(("major", "said"), [("17", "the data is PostgreSQL 17"), ("", "the data is PostgreSQL of no")])
def test_data_that_is_not_another_majors_is_not_upgraded(volume, major, said):
    volume.begin_with("mine", major)
    with pytest.raises(SystemExit, match=said):
        volume.program.upgrade("first")
    assert volume.marks() == {"pgdata": "mine"}


def test_data_of_a_server_that_followed_is_not_upgraded_and_leads_once_it_is_put_back(volume):
    volume.begin_with("mine", "15")
    (volume.data / "standby.signal").touch()
    with pytest.raises(SystemExit, match="did not lead"):
        volume.program.upgrade("first")
    assert volume.marks() == {"pgdata": "mine"}
    volume.program.replace("second", "noon", "")
    volume.program.MAJOR = "15"
    volume.program.undo("back")
    assert [path.name for path in volume.data.glob("*.signal")] == ["recovery.signal"]


def test_a_volume_without_room_is_not_upgraded(volume, monkeypatch):
    volume.begin_with("mine", "15")
    monkeypatch.setattr(volume.program, "size_of", lambda _: 10**18)
    with pytest.raises(SystemExit, match=r"the upgraded copy needs .* raise postgres_storage_size"):
        volume.program.upgrade("first")
    assert volume.marks() == {"pgdata": "mine"}


@pytest.mark.parametrize("steps", range(BEGUN))
def test_a_restore_that_has_not_begun_has_nothing_to_undo(volume, steps):
    volume.begin_with("mine")
    assert ended_after(volume, steps, lambda: volume.program.replace("first", "noon", ""))
    with pytest.raises(SystemExit, match="nothing is set aside"):
        volume.program.undo("back")
    assert volume.marks() == {"pgdata": "mine"}


def test_the_undoing_of_a_restore_that_never_came_here_leaves_what_an_earlier_one_brought(volume, capsys):
    volume.begin_with("mine")
    volume.program.replace("first", "noon", "")
    volume.program.undo("undo second", "second")
    assert volume.marks()["pgdata"] == "restored noon"
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"back": "", "system": "7"}
    volume.program.replace("third", "morning", "")
    volume.program.undo("undo third", "third")
    assert volume.marks()["pgdata"] == "restored noon"


def test_a_volume_without_data_has_nothing_to_go_back_to(volume, capsys):
    volume.program.replace("first", "", "")
    assert volume.marks() == {"pgdata": "restored "}
    assert json.loads(capsys.readouterr().out)["aside"] == ""
    with pytest.raises(SystemExit, match="nothing is set aside"):
        volume.program.undo("back")


def test_the_data_of_a_new_platform_has_no_timeline_of_the_archive(volume):
    volume.begin_with("empty")
    volume.system, volume.timeline = "another", 9
    volume.program.replace("first", "", "")
    assert volume.marks() == {"pgdata": "restored ", "pgdata.before-001": "empty"}


def test_discarding_waits_for_the_end(volume, capsys):
    volume.begin_with("mine")
    assert ended_after(volume, 3, lambda: volume.program.replace("first", "noon", ""))
    with pytest.raises(SystemExit, match="under way"):
        volume.program.discard()
    volume.program.replace("first", "noon", "")
    volume.program.discard()
    assert volume.marks() == {"pgdata": "restored noon"}
    assert "deleted: pgdata.before-001" in capsys.readouterr().out


def test_a_full_volume_is_told_before_anything_is_moved(volume, monkeypatch):
    volume.begin_with("mine")
    monkeypatch.setattr(volume, "choose", lambda *_: ({"label": "backup", "info": {"size": 10**18}}, None))
    with pytest.raises(SystemExit, match="raise postgres_storage_size"):
        volume.program.replace("first", "noon", "")
    assert volume.marks() == {"pgdata": "mine"}
    assert not (volume.folder / "restore.json").exists()


@pytest.fixture
def recover(tmp_path, monkeypatch):
    """`recover`, with a server that has recovered, and a pg_ctl that ends so."""
    monkeypatch.setenv("PGDATA", str(tmp_path / "pgdata"))
    monkeypatch.setenv("PG_MAJOR", "none")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def run(pg_ctl):
        for name, text in (
            ("postgres", "exit 0"),
            ("psql", "echo f"),
            ("pg_ctl", f'echo "$@" > {tmp_path}/asked; {pg_ctl}'),
        ):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        return load_program("images/postgres/files/postgres-restore").recover()

    return run


def test_a_server_with_much_to_archive_has_the_time_to_end(recover, tmp_path):
    assert recover("exit 0") == ("f", "f")
    assert "--timeout=14400 " in (tmp_path / "asked").read_text()


def test_a_server_that_does_not_end_is_told_with_what_to_do(recover, tmp_path):
    with pytest.raises(SystemExit) as ended:
        recover(
            f"echo 'WARNING: no answer' >> {tmp_path}/restore.log; echo 'pg_ctl: it does not shut down' >&2; exit 1"
        )
    [line] = str(ended.value).splitlines()
    assert "does not end (pg_ctl: it does not shut down)" in line
    assert "Its log ends with: WARNING: no answer. To do: see that the repository is reached" in line


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A repository whose archive has segments, each a minute after the one before: 1 to 5, and 5 to 8 of timeline 2."""
    monkeypatch.setenv("PGDATA", str(tmp_path / "pgdata"))
    monkeypatch.setenv("PGBACKREST_STANZA", "postgres")
    program = load_program("images/postgres/files/postgres-restore")
    names = [f"{1:08X}{0:08X}{n:08X}" for n in range(1, 6)] + [f"{2:08X}{0:08X}{n:08X}" for n in range(5, 9)]
    times = {name: 60 * int(name[-8:], 16) for name in names}
    backup = {
        "label": "20260301-120000F",
        "timestamp": {"start": 50, "stop": 110},
        "lsn": {"stop": "0/2000100"},
        "archive": {"start": names[1], "stop": names[2]},
        "database": {"id": 2},
        "error": False,
    }
    # Of the major before an upgrade.
    older = backup | {"label": "20260201-120000F", "database": {"id": 1}}

    def pgbackrest(command, *options):
        if command == "info":
            return json.dumps(
                [
                    {
                        "backup": [older, backup],
                        "archive": [{"id": "15-1"}, {"id": "17-2"}],
                        "db": [{"id": 1, "system-id": 6}, {"id": 2, "system-id": 7}],
                        "status": {"message": ""},
                    }
                ]
            )
        if command == "repo-get":
            return "1\t0/5000100\tno recovery target specified\n"
        files = {f"{name[:16]}/{name}-{'a' * 40}.zst": {"time": at} for name, at in times.items()}
        return json.dumps(files | {"00000002.history": {"time": 1}, ".": {}})

    monkeypatch.setattr(program, "pgbackrest", pgbackrest)
    return SimpleNamespace(
        program=program,
        times=times,
        names=names,
        check=lambda *asked: program.Repository().check_archive(backup, *asked),
    )


def test_an_archive_without_a_gap_is_good_whatever_is_asked_for(archive):
    for target in ("", "1970-01-01 00:07:00+00", "20260301-120000F"):
        archive.check(target, 2)
    del archive.times[archive.names[0]]  # from before the backup
    archive.check("", 2)
    del archive.times[archive.names[5]]  # timeline 1 has it, too
    archive.check("", 2)


def test_a_backup_of_the_major_before_is_none(archive):
    with pytest.raises(SystemExit, match="there is no backup 20260201-120000F; the newest are 20260301-120000F"):
        archive.program.Repository().choose("20260201-120000F", 2)


@pytest.mark.parametrize("gone", [3, 6])
def test_what_lies_after_a_missing_segment_is_refused(archive, gone):
    del archive.times[archive.names[gone]]
    last = archive.times[archive.names[gone - 1]]
    before = archive.program.text_of(last)
    archive.check(before, 2)
    archive.check("20260301-120000F", 2)
    for target in ("", archive.program.text_of(last + 1)):
        with pytest.raises(SystemExit, match=f"{archive.names[gone][8:]} is missing .* after {re.escape(before)} can"):
            archive.check(target, 2)


def test_a_backup_without_its_own_wal_is_of_no_use(archive):
    for gone in (2, 1):
        del archive.times[archive.names[gone]]
        with pytest.raises(SystemExit, match=f"{archive.names[gone][8:]} is missing"):
            archive.check("20260301-120000F", 2)
    with pytest.raises(SystemExit, match="nothing can be restored from backup 20260301-120000F"):
        archive.check("1970-01-01 00:01:00+00", 2)


@pytest.mark.parametrize(("code", "local", "told"), [(0, 0, 0), (1, 0, 1), (1, 1, 1), (39, 1, 1), (39, 0, 255)])
def test_only_what_was_never_archived_ends_a_recovery(volume, tmp_path, code, local, told):
    (tmp_path / "pg_wal").mkdir()
    if local:
        (tmp_path / "pg_wal/000000010000000000000001").write_text("")
    command = volume.program.GET.replace("%f", "000000010000000000000001").replace("%p", "pg_wal/RECOVERYXLOG")
    words = ["sh", "-c", f"pgbackrest() {{ return {code}; }}; {command}"]
    assert subprocess.run(words, cwd=tmp_path, check=False).returncode == told


def test_the_reason_is_one_line(volume):
    said = "P00   WARN: slow\nP01  ERROR: [042]: raised from a: unable to open\n'b'\n       HINT: look\n"
    assert volume.program.reason(said) == "ERROR: [042]: raised from a: unable to open 'b'"
    assert volume.program.reason("a\nb\n") == "a b"
    assert volume.program.reason("") == "it said nothing"
