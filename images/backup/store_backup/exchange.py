"""A member's data set aside for that of a backup, and back: the steps, wherever the data is.

They are told by a state beside the data, so that a pod that is killed leaves nothing that the next one could not
complete. What is set aside stays, until a second word.

id, told        whose work it is, and what was said at its end: without `told` it is under way
aside, moved    the name of what a restore sets aside, and whether all of it is
back, goes      the names of what an undoing brings back, and of what it sets aside, which is what `moved` is about
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from store_backup.repository import Problem

BEFORE = "before-"
UNDONE = "-undone"
State = dict[str, Any]
Put = Callable[[], None]


class Exchange:
    """The steps, which a volume and Elasticsearch have in common; each does what follows in its own way."""

    PLACE = EMPTY = ""  # for messages: where it is, and that there is nothing

    def _load(self) -> State: ...
    def _save(self, state: State) -> None: ...
    def _names(self) -> Iterable[str]: ...  # those of all that is set aside
    def _name_now(self, end: str = "") -> str: ...  # for setting aside what there is; empty where that is nothing
    def _move_aside(self, name: str) -> None: ...  # what is still in its place
    def _clear(self) -> None: ...  # what a try that did not end has put there
    def _bring_back(self, state: State) -> None: ...  # what is set aside as `back`

    def undo(self, work: str, of: str = "") -> None:
        """Make what was set aside last the data again; what a complete restore has brought is kept, too.

        :param work: the same for all tries of one undoing.
        :param of: a restore that has not ended; one that has not come here leaves all as it is. Empty: the last one.
        """
        state = self._load()
        if done(state, work):
            return
        if of and state.get("id") != of and not under_way(state):
            self._finish({"id": work}, {"back": ""})
            return
        if "back" not in state or "told" in state:
            state = self._begin_undo(state)
        state["id"] = work
        self._save(state)
        self._move(state, state["goes"])
        self._bring_back(state)
        self._finish(state, {"back": state["back"]})

    def _replace(self, work: str, fetch: Callable[[], tuple[State, Put]]) -> None:
        """Set the data aside for what is fetched: what there is to tell of it, and what puts it in the data's place."""
        state = self._load()
        if done(state, work):
            return
        if under_way(state) and "back" in state:
            raise Problem(f"an undoing is under way {self.PLACE}: complete it")
        begun = time.monotonic()
        told, put = fetch()  # what cannot be had leaves the data where it is
        if not under_way(state):
            state = {"id": work, "aside": self._name_now(), "moved": False}
            self._save(state)
        self._move(state, state["aside"])
        self._clear()
        put()
        told |= {"aside": state["aside"], "seconds": round(time.monotonic() - begun, 1)}
        self._finish(state | {"id": work}, told)

    def _begin_undo(self, state: State) -> State:
        if under_way(state):  # a restore that did not end
            if not state["aside"]:
                raise Problem(f"{self.EMPTY} before the restore")
            # Until all was moved, what is still in its place is the data's other part.
            return {"back": state["aside"], "goes": "", "moved": not state["moved"]}
        names = sorted(name for name in self._names() if not name.endswith(UNDONE))
        if not names:
            raise Problem(f"nothing is set aside {self.PLACE}")
        return {"back": names[-1], "goes": self._name_now(UNDONE), "moved": False}

    def _move(self, state: State, aside: str) -> None:
        """Leave nothing in the data's place, once."""
        if state["moved"]:
            return
        if aside:
            self._move_aside(aside)
        else:
            self._clear()
        state["moved"] = True
        self._save(state)

    def _finish(self, state: State, told: State) -> None:
        self._save(state | {"told": told})
        print(json.dumps(told))


def under_way(state: State) -> bool:
    """Whether a work has begun and not ended."""
    return bool(state) and "told" not in state


def done(state: State, work: str) -> bool:
    """Whether a work was done; then it is told again."""
    if state.get("id") != work or under_way(state):
        return False
    print(json.dumps(state["told"]))
    return True


def name_aside() -> str:
    """What the data of now is called, once it is set aside."""
    return f"{BEFORE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
