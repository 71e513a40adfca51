"""A member's volume: its data set aside for that of a backup, and back, by steps that `restore.json` on it tells.

What is set aside stays in a folder beside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store_backup.exchange import BEFORE, Exchange, State, name_aside

STATE = "restore.json"
FETCHED = "restore.fetched"
OWN = (STATE, "restore.new", FETCHED, "lost+found")


class Volume(Exchange):
    """The folder that a member's data is in."""

    PLACE = "on this volume"
    EMPTY = "this volume had no data"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / STATE
        self._fetched = folder / FETCHED

    def replace(self, work: str, fetch: Callable[[Path], dict[str, Any]], put: Callable[[Path, Path], None]) -> None:
        """Set the data aside and put what is fetched in its place; a work that was done is told again.

        :param work: the same for all tries of one restore.
        :param fetch: brings files into an empty folder, and says what there is to tell.
        :param put: makes them the data of a folder.
        """

        def put_fetched() -> None:
            put(self._fetched, self.folder)
            shutil.rmtree(self._fetched, ignore_errors=True)

        self._replace(work, lambda: (fetch(self._fetched), put_fetched))

    def set_aside(self, work: str) -> None:
        """Leave the volume without data."""
        self.replace(work, lambda _folder: {}, lambda _folder, _data: None)

    def _load(self) -> State:
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def _save(self, state: State) -> None:
        new = self.folder / "restore.new"
        new.write_text(json.dumps(state))
        new.rename(self._file)

    def _name_now(self, end: str = "") -> str:
        return name_aside() + end if self._entries() else ""

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.glob(f"{BEFORE}*")]

    def _entries(self) -> list[Path]:
        """The data's files and folders."""
        return [path for path in self.folder.iterdir() if path.name not in OWN and not path.name.startswith(BEFORE)]

    def _move_aside(self, name: str) -> None:
        for entry in self._entries():
            (self.folder / name).mkdir(exist_ok=True)
            entry.rename(self.folder / name / entry.name)

    def _clear(self) -> None:
        for entry in self._entries():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _bring_back(self, state: State) -> None:
        back = self.folder / state["back"]
        if back.exists():
            for entry in back.iterdir():
                entry.rename(self.folder / entry.name)
            back.rmdir()
        shutil.rmtree(self._fetched, ignore_errors=True)
