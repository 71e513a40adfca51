"""Elasticsearch's indices set aside for those of a dump, and back, while it runs.

An index is set aside as a clone, `before-TIME-NAME`: hidden, read-only, of the same files on the disk, so it takes no
time and no room. What is done is done in steps that one document in Elasticsearch tells, so that a pod that is killed
leaves nothing that the next one could not complete:

id, told        as volume.py has them
aside, moved    the TIME of what a restore sets aside, and whether all of it is
back, goes      the TIME of what an undoing brings back, and of what it sets aside; `stay` names what never went
kept            by TIME what is set aside: its indices, with what a clone does not keep, and its templates
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store_backup.elasticsearch_store import (
    DOCUMENT,
    LATE,
    START,
    STATE,
    Body,
    Server,
    check,
    compare,
    definition,
    early,
    indices,
    load,
    path,
    said,
    serves,
    templates,
)
from store_backup.repository import Problem, wait
from store_backup.volume import UNDONE, name_aside, untouched

LOST = ("index.hidden", "index.blocks.", "index.number_of_replicas", "index.auto_expand_replicas")
"""Settings that a clone has of its own."""


class Indices:
    """All indices that are data."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def replace(self, work: str, fetch: Callable[[], tuple[str, Path]]) -> None:
        """Set the indices aside and load a dump in their place; a work that was done is told again.

        :param work: the same for all tries of one restore.
        :param fetch: gives a dump's label, and the folder that its files are in.
        """
        state = self._load()
        if done(state, work):
            return
        if "back" in state and "told" not in state:
            raise Problem("an undoing is under way in Elasticsearch: complete it")
        begun = time.monotonic()
        label, folder = fetch()
        record = check(folder)  # what cannot be had leaves the indices as they are
        if not state or "told" in state:
            state = self._begin(state, work)
        if not state["moved"]:
            self._move_aside(state, state["aside"])
        self._clear()
        for name, index in record["indices"].items():
            load(self.server, name, index, early(index), folder / index["file"])
            compare(self.server, name, index)
            late = {key: value for key, value in index["settings"].items() if key.startswith(LATE)}
            self.server.ask("PUT", path(name, "/_settings"), {"index.refresh_interval": None} | late)
        self._make(record["templates"])
        told = {"label": label, "said": said(record), "aside": state["aside"]}
        self._finish(state | {"id": work}, told | {"seconds": round(time.monotonic() - begun, 1)})

    def undo(self, work: str, of: str = "") -> None:
        """Make what was set aside last the data again; what a complete restore has brought is kept, too.

        :param work: the same for all tries of one undoing.
        :param of: a restore that has not ended; one that has not come here leaves all as it is. Empty: the last one.
        """
        state = self._load()
        if done(state, work):
            return
        if untouched(state, of):
            self._finish({"id": work, "kept": state.get("kept", {})}, {"back": ""})
            return
        if "back" not in state or "told" in state:
            state = self._begin_undo(state)
        state["id"] = work
        self._save(state)
        if not state["moved"]:
            if state["goes"]:
                self._move_aside(state, state["goes"])
            else:
                self._clear()
                state["moved"] = True
                self._save(state)
        back, kept = state["back"], state["kept"][state["back"]]
        for name, index in kept["indices"].items():
            if name not in state["stay"] and self._is_there(clone(back, name)):
                self._bring_back(clone(back, name), name, index)
            elif not self._is_there(name):
                raise Problem(f"index {name} cannot come back: its copy {clone(back, name)} is gone")
            self.server.ask("PUT", path(name, "/_settings"), {"index.blocks.write": None} | index["settings"])
        self._make(kept["templates"])
        for name in kept["indices"]:
            self._delete(clone(back, name))
        del state["kept"][back]
        self._finish(state, {"back": back})

    def discard(self) -> None:
        """Delete what is set aside."""
        state = self._load()
        if state and "told" not in state:
            raise Problem("a restore of Elasticsearch is under way: complete it, or undo it")
        kept = state.get("kept", {})
        names = [clone(aside, name) for aside in sorted(kept) for name in kept[aside]["indices"]]
        for name in names:
            self._delete(name)
        if kept:
            self._save(state | {"kept": {}})
        print(json.dumps({"said": f"deleted: {' '.join(sorted(kept))}" if kept else "nothing was set aside"}))

    def _begin(self, state: Body, work: str) -> Body:
        now = self._now()
        state = {
            "id": work,
            "aside": name_aside().lower() if now["indices"] else "",
            "moved": False,
            "kept": state.get("kept", {}),
        }
        if state["aside"]:
            state["kept"][state["aside"]] = now
        self._save(state)
        return state

    def _begin_undo(self, state: Body) -> Body:
        kept = state.get("kept", {})
        if state and "told" not in state:  # a restore that did not end
            if not (back := state["aside"]):
                raise Problem("Elasticsearch had no indices before the restore")
            # Until all was moved, what is still in its place is the data's other part.
            stay = [] if state["moved"] else [name for name in kept[back]["indices"] if self._is_there(name)]
            return {"back": back, "goes": "", "moved": not state["moved"], "stay": stay, "kept": kept}
        names = sorted(name for name in kept if not name.endswith(UNDONE))
        if not names:
            raise Problem("nothing is set aside in Elasticsearch")
        back, now = names[-1], self._now()
        if gone := [clone(back, name) for name in kept[back]["indices"] if not self._is_there(clone(back, name))]:
            raise Problem(f"what was set aside cannot come back: {', '.join(gone)} is gone")
        goes = name_aside().lower() + UNDONE if now["indices"] else ""
        if goes:
            kept[goes] = now
        return {"back": back, "goes": goes, "moved": False, "stay": [], "kept": kept}

    def _now(self) -> Body:
        """What there is, as `kept` tells it."""
        found = {name: definition(self.server, name) for name in indices(self.server)}
        return {
            "indices": {
                name: {
                    "aliases": index["aliases"],
                    "settings": {key: value for key, value in index["settings"].items() if key.startswith(LOST)},
                }
                for name, index in found.items()
            },
            "templates": templates(self.server),
        }

    def _move_aside(self, state: Body, aside: str) -> None:
        """Each index of now becomes a clone. An index that is not there has become one already."""
        for name, index in state["kept"].get(aside, {"indices": {}})["indices"].items():
            if self._is_there(name):
                self.server.ask("PUT", path(name, "/_block/write"))
                own = {"index.hidden": "true", "index.blocks.write": "true"}
                self._clone(name, clone(aside, name), {"settings": index["settings"] | own})
                self._delete(name)
        state["moved"] = True
        self._save(state)

    def _bring_back(self, kept: str, name: str, index: Body) -> None:
        """A clone becomes an index again."""
        settings = {"index.hidden": None, "index.blocks.write": None} | index["settings"]
        self._clone(kept, name, {"settings": settings, "aliases": index["aliases"]})
        there, wanted = (self.server.ask("GET", path(item, "/_count"))["count"] for item in (name, kept))
        if there != wanted:
            raise Problem(
                f"index {name}: expected the {wanted} documents of {kept}, found {there}: somebody else has made it. "
                "Delete it, and do this again"
            )

    def _clone(self, name: str, new: str, body: Body) -> None:
        """Make a clone where it is not there, and wait until it is started."""
        if not self._is_there(new):
            self.server.ask("POST", path(name, f"/_clone/{path(new)[1:]}"), body)
        if not wait(lambda: serves(self.server, new), START):
            raise Problem(f"index {new}, a clone of {name}, is not started after {START} s: see Elasticsearch's log")

    def _clear(self) -> None:
        """Delete what a try that did not end has put there, and templates, which would have a say in new indices."""
        for name in indices(self.server):
            self._delete(name)
        for item in reversed(templates(self.server)):
            self.server.ask("DELETE", f"/_{item['kind']}{path(item['name'])}", missing=True)

    def _make(self, made: list[Body]) -> None:
        for item in made:
            self.server.ask("PUT", f"/_{item['kind']}{path(item['name'])}", item["body"])

    def _is_there(self, name: str) -> bool:
        return bool(self.server.ask("GET", path(name, "/_settings/index.uuid"), missing=True))

    def _delete(self, name: str) -> None:
        self.server.ask("DELETE", path(name), missing=True)

    def _load(self) -> dict[str, Any]:
        return self.server.ask("GET", DOCUMENT, missing=True).get("_source", {})

    def _save(self, state: Body) -> None:
        if not self._is_there(STATE):
            settings = {"index.hidden": "true", "index.number_of_shards": "1", "index.auto_expand_replicas": "0-1"}
            self.server.ask("PUT", f"/{STATE}", {"settings": settings, "mappings": {"enabled": False}})
        self.server.ask("PUT", DOCUMENT, state)

    def _finish(self, state: Body, told: Body) -> None:
        self._save(state | {"told": told})
        print(json.dumps(told))


def clone(aside: str, name: str) -> str:
    """What an index is called that is set aside."""
    return f"{aside}-{name}"


def done(state: Body, work: str) -> bool:
    """Whether a work was done; then it is told again."""
    if state.get("id") != work or "told" not in state:
        return False
    print(json.dumps(state["told"]))
    return True
