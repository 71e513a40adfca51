"""A member's volume: its data set aside for that of a backup, and back.

What is done is done in steps that `restore.json` on the volume tells, so that a pod that is killed leaves nothing that
the next one could not complete. What is set aside stays in a folder beside, until a second word.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store_backup.repository import Problem

STATE = "restore.json"
FETCHED = "restore.fetched"
BEFORE = "before-"
UNDONE = "-undone"
OWN = (STATE, "restore.new", FETCHED, "lost+found")


class Volume:
    """The folder that a member's data is in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / STATE

    def replace(self, work: str, fetch: Callable[[Path], dict[str, Any]], put: Callable[[Path, Path], None]) -> None:
        """Set the data aside and put what is fetched in its place; a work that was done is told again.

        :param work: the same for all tries of one restore.
        :param fetch: brings files into an empty folder, and says what there is to tell.
        :param put: makes them the data of a folder.
        """
        if self._done(work):
            return
        if "back" in self._load() and "told" not in self._load():
            raise Problem("an undoing is under way on this volume: complete it")
        begun = time.monotonic()
        fetched = self.folder / FETCHED
        told = fetch(fetched)  # what cannot be had leaves the data where it is
        state = self._load()
        if not state or "told" in state:
            state = {"id": work, "aside": name_aside() if self._entries() else "", "moved": False}
            self._save(state)
        if not state["moved"]:
            self._move_aside(state["aside"])
            state["moved"] = True
            self._save(state)
        self._clear()
        put(fetched, self.folder)
        shutil.rmtree(fetched, ignore_errors=True)
        told |= {"aside": state["aside"], "seconds": round(time.monotonic() - begun, 1)}
        self._finish(state | {"id": work}, told)

    def set_aside(self, work: str) -> None:
        """Leave the volume without data."""
        self.replace(work, lambda _folder: {}, lambda _folder, _data: None)

    def undo(self, work: str, of: str = "") -> None:
        """Make what was set aside last the data again; what a complete restore has brought is kept, too.

        :param work: the same for all tries of one undoing.
        :param of: a restore that has not ended; one that has not come here leaves all as it is. Empty: the last one.
        """
        if self._done(work):
            return
        state = self._load()
        if untouched(state, of):
            self._finish({"id": work}, {"back": ""})
            return
        if "back" not in state or "told" in state:
            state = self._begin_undo(state)
        state["id"] = work
        self._save(state)
        if not state["moved"]:
            if state["goes"]:
                self._move_aside(state["goes"])
            else:
                self._clear()
            state["moved"] = True
            self._save(state)
        back = self.folder / state["back"]
        if back.exists():
            for entry in back.iterdir():
                entry.rename(self.folder / entry.name)
            back.rmdir()
        shutil.rmtree(self.folder / FETCHED, ignore_errors=True)
        self._finish(state, {"back": state["back"]})

    def _begin_undo(self, state: dict[str, Any]) -> dict[str, Any]:
        if state and "told" not in state:  # a restore that did not end
            if not state["aside"]:
                raise Problem("this volume had no data before the restore")
            # Until all was moved, what is still in its place is the data's other part.
            return {"back": state["aside"], "goes": "", "moved": not state["moved"]}
        names = sorted(path.name for path in self.folder.glob(f"{BEFORE}*") if not path.name.endswith(UNDONE))
        if not names:
            raise Problem("nothing is set aside on this volume")
        return {"back": names[-1], "goes": name_aside() + UNDONE if self._entries() else "", "moved": False}

    def _entries(self) -> list[Path]:
        """The data's files and folders."""
        return [path for path in self.folder.iterdir() if path.name not in OWN and not path.name.startswith(BEFORE)]

    def _move_aside(self, name: str) -> None:
        for entry in self._entries():
            (self.folder / name).mkdir(exist_ok=True)
            entry.rename(self.folder / name / entry.name)

    def _clear(self) -> None:
        """Delete what a try that did not end has put there."""
        for entry in self._entries():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _load(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def _save(self, state: dict[str, Any]) -> None:
        new = self.folder / "restore.new"
        new.write_text(json.dumps(state))
        new.rename(self._file)

    def _done(self, work: str) -> bool:
        state = self._load()
        if state.get("id") != work or "told" not in state:
            return False
        print(json.dumps(state["told"]))
        return True

    def _finish(self, state: dict[str, Any], told: dict[str, Any]) -> None:
        self._save(state | {"told": told})
        print(json.dumps(told))


def untouched(state: dict[str, Any], of: str) -> bool:
    """Whether a restore that has not ended elsewhere has not begun here."""
    return bool(of) and state.get("id") != of and (not state or "told" in state)


def name_aside() -> str:
    """What the data of now is called, once it is set aside."""
    return f"{BEFORE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
