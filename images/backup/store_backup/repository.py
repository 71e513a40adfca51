"""A store's restic repository: what it holds, and what is written beside a backup.

BACKUP_REPOSITORY has one repository a store below it; BACKUP_SECRETS is a folder with the files BACKUP_S3_ACCESS_KEY,
BACKUP_S3_SECRET_KEY and BACKUP_CIPHER_KEY, which follow their Secret and so are read each time. BACKUP_CA is the file
that the endpoint's certificate is verified with, where it is not of a well-known authority. With BACKUP_READ_ONLY, not
even a lock is written.

A backup is a snapshot with the tag `label=TIME`. What is found out later, such as that it restores, is a small snapshot
of its own, with the tags `of=LABEL` and `NAME=VALUE`: a snapshot that is complete is never written again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

READ = 60
"""Seconds that the repository may take to say what it holds: where it is refused restic goes on for 15 minutes."""

LABEL = "%Y%m%dT%H%M%SZ"


class Problem(Exception):
    """What happened, to which object, and what to do."""


@dataclass
class Backup:
    """One backup: its time is when its data was as it is there."""

    label: str
    snapshot: str
    time: float
    notes: dict[str, str] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)  # the snapshots that these are in

    def number(self, name: str) -> int:
        """A note that is a time or an amount; 0 where it is not there."""
        return int(self.notes.get(name) or 0)

    @property
    def verified(self) -> bool:
        """Whether it was restored and found complete, and nothing else was found since."""
        return self.number("verified") > self.number("failed")


class Repository:
    """One store's repository."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.place = f"{os.environ['BACKUP_REPOSITORY'].rstrip('/')}/{store}"

    def backups(self) -> list[Backup]:
        """All of them, the oldest first; none where there is no repository yet.

        :raises Problem: it cannot be read.
        """
        try:
            found = json.loads(self._restic("snapshots", "--json", timeout=READ)) or []
        except _Missing:
            return []
        known: dict[str, Backup] = {}
        for snapshot in sorted(found, key=lambda item: item["time"]):
            tags = dict(tag.split("=", 1) for tag in snapshot.get("tags") or () if "=" in tag)
            if label := tags.get("label"):
                known[label] = Backup(label, snapshot["short_id"], moment(label))
            elif backup := known.get(tags.pop("of", "")):
                backup.notes.update(tags)
                backup.beside.append(snapshot["short_id"])
        return sorted(known.values(), key=lambda backup: backup.time)

    def choose(self, target: str) -> Backup:
        """The newest backup, that of a label, or the newest one before a time.

        :param target: empty, a label, or a time in ISO 8601 with its zone.
        :raises Problem: there is none.
        """
        known = self.backups()
        if not known:
            raise Problem(f"there is no backup of {self.store}: make one (playbooks/backup.yml)")
        labels = {backup.label: backup for backup in known}
        if not target or target in labels:
            return labels[target] if target else known[-1]
        newest = f"the newest are {', '.join([*labels][-4:])}"
        try:
            at = datetime.fromisoformat(target)
        except ValueError:
            raise Problem(f"there is no backup {target} of {self.store}; {newest}") from None
        if at.tzinfo is None:
            raise Problem(f"the time {target!r} has no zone: write it as {target}+00 where it is UTC")
        older = [backup for backup in known if backup.time <= at.timestamp()]
        if not older:
            raise Problem(f"there is no backup of {self.store} before {target}; the oldest is {known[0].label}")
        return older[-1]

    def add(self, folder: Path, label: str) -> int:
        """Store a folder as the backup of this label; returns its bytes."""
        try:
            self._restic("cat", "config", timeout=READ)  # one that does not answer is told soon
        except _Missing:
            self._restic("init", timeout=READ)
        command = ["backup", "--json", "--quiet", f"--host={self.store}", f"--tag=label={label}", "."]
        told = json.loads(self._restic(*command, folder=folder).splitlines()[-1])
        return int(told["total_bytes_processed"])

    def note(self, label: str, **values: object) -> None:
        """Write beside a backup."""
        tags = [f"--tag={name}={value}" for name, value in values.items()]
        command = ["backup", "--quiet", "--stdin", "--stdin-filename=note", f"--host={self.store}"]
        self._restic(*command, f"--tag=of={label}", *tags, given=label, timeout=READ)

    def fetch(self, backup: Backup, folder: Path) -> None:
        """Bring a backup's files into an empty folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._restic("restore", backup.snapshot, f"--target={folder}")

    def expire(self, keep: int) -> str:
        """Let all but the newest go, unless none of those is known to restore; returns what there is to say of it."""
        known = self.backups()
        remain, gone = known[-keep:], known[:-keep]
        if not gone:
            return ""
        if not any(backup.verified for backup in remain):
            return f"no backup expires: none of the newest {keep} was ever verified"
        self._restic("unlock", timeout=READ)
        expired = [snapshot for backup in gone for snapshot in (backup.snapshot, *backup.beside)]
        try:
            self._restic("forget", "--quiet", "--prune", *expired)
        except _Locked as error:
            return f"no backup expires this time: {error}"
        return f"{len(gone)} expired"

    def _restic(
        self, *arguments: str, folder: Path | None = None, given: str = "", timeout: float | None = None
    ) -> str:
        """What it prints.

        :raises Problem: it failed: the last line that it said.
        """
        secrets = Path(os.environ["BACKUP_SECRETS"])
        trusted = [f"--cacert={os.environ['BACKUP_CA']}"] if os.environ.get("BACKUP_CA") else []
        lock = ["--no-lock"] if os.environ.get("BACKUP_READ_ONLY") else []
        try:
            with _credentials(secrets) as credentials:
                done = subprocess.run(
                    ["restic", *trusted, *lock, *arguments],
                    cwd=folder,
                    env=os.environ
                    | {
                        "RESTIC_REPOSITORY": self.place,
                        "RESTIC_PASSWORD_FILE": str(secrets / "BACKUP_CIPHER_KEY"),
                        "AWS_SHARED_CREDENTIALS_FILE": f"/proc/self/fd/{credentials.fileno()}",
                    },
                    pass_fds=[credentials.fileno()],
                    input=given,
                    capture_output=True,
                    text=True,
                    timeout=timeout,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
            why = f": {said[-1]}" if said else ""
            raise Problem(f"the repository {self.place} gives no answer in {timeout:.0f} s{why}") from None
        if done.returncode == 0:
            return done.stdout
        # The kind of failure comes first, and advice after it.
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        fatal = next((line for line in said if line.startswith("Fatal:")), "").removeprefix("Fatal: ")
        if not fatal:
            # What it was doing comes last, and why it could not in what it said between its attempts.
            tried = [match[1] for line in said if (match := re.search("retrying after [^:]*: (.+)", line))]
            fatal = f"{said[-1]}: {tried[-1]}" if tried else said[-1]
        if "Is there a repository" in done.stderr and ("not exist" in fatal or "no such file" in fatal):
            raise _Missing(f"there is no repository at {self.place}")
        if "already locked" in done.stderr:
            raise _Locked(fatal)
        if "wrong password" in fatal:
            fatal += ": is BACKUP_CIPHER_KEY the one that it was made with?"
        raise Problem(f"restic {arguments[0]} at {self.place}: {fatal}")


def _credentials(secrets: Path) -> BinaryIO:
    """The keys of the endpoint as a file of AWS's form, in memory alone: an environment is read by too many."""
    access, secret = ((secrets / f"BACKUP_S3_{kind}_KEY").read_text().strip() for kind in ("ACCESS", "SECRET"))
    file = os.fdopen(os.memfd_create("credentials"), "w+b")
    # Between backticks, as a # or ; would begin a comment.
    file.write(f"[default]\naws_access_key_id = `{access}`\naws_secret_access_key = `{secret}`\n".encode())
    file.flush()
    return file


class _Missing(Problem):
    """There is no repository yet."""


class _Locked(Problem):
    """Somebody works with it."""


def new_label() -> str:
    """Of a backup that begins now."""
    return datetime.now(UTC).strftime(LABEL)


def moment(label: str) -> float:
    """When a backup of this label was made, in seconds."""
    return datetime.strptime(label, LABEL).replace(tzinfo=UTC).timestamp()


def warn(message: str) -> None:
    """Say something beside what there is to say."""
    print(f"store_backup: {message}", file=sys.stderr, flush=True)


def wait(condition: Any, seconds: float, pause: float = 0.1) -> bool:
    """Look until a condition holds; tells whether it did in so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
