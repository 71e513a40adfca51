"""Elasticsearch's indices set aside for those of a dump, and back, while it runs.

An index is set aside as a clone, `before-TIME-NAME`: hidden, read-only, of the same files on the disk, so it takes no
time and no room. The state is a document in Elasticsearch, and has beside what exchange.py tells:

kept    by `before-TIME` what is set aside: its indices, with what a clone does not keep, and its templates
stay    of the indices that an undoing brings back, those that never went
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
from store_backup.exchange import Exchange, Put, State, name_aside, under_way
from store_backup.repository import Problem, wait

LOST = ("index.hidden", "index.blocks.", "index.number_of_replicas", "index.auto_expand_replicas")
"""Settings that a clone has of its own."""


class Indices(Exchange):
    """All indices that are data."""

    PLACE = "in Elasticsearch"
    EMPTY = "Elasticsearch had no indices"

    def __init__(self, server: Server) -> None:
        self.server = server
        self._kept: Body = {}

    def replace(self, work: str, fetch: Callable[[], tuple[str, Path]]) -> None:
        """Set the indices aside and load a dump in their place; a work that was done is told again.

        :param work: the same for all tries of one restore.
        :param fetch: gives a dump's label, and the folder that its files are in.
        """

        def fetch_checked() -> tuple[Body, Put]:
            label, folder = fetch()
            record = check(folder)
            return {"label": label, "said": said(record)}, lambda: self._put(record, folder)

        self._replace(work, fetch_checked)

    def discard(self) -> None:
        """Delete what is set aside."""
        state = self._load()
        if under_way(state):
            raise Problem("a restore of Elasticsearch is under way: complete it, or undo it")
        kept, self._kept = self._kept, {}
        for name in [clone(aside, name) for aside in kept for name in kept[aside]["indices"]]:
            self._delete(name)
        if kept:
            self._save(state)
        print(json.dumps({"said": f"deleted: {' '.join(sorted(kept))}" if kept else "nothing was set aside"}))

    def _put(self, record: Body, folder: Path) -> None:
        for name, index in record["indices"].items():
            load(self.server, name, index, early(index), folder / index["file"])
            compare(self.server, name, index)
            late = {key: value for key, value in index["settings"].items() if key.startswith(LATE)}
            self.server.ask("PUT", path(name, "/_settings"), {"index.refresh_interval": None} | late)
        self._make(record["templates"])

    def _begin_undo(self, state: State) -> State:
        begun = super()._begin_undo(state)
        names = self._kept[begun["back"]]["indices"]
        copies = [clone(begun["back"], name) for name in names]
        if not under_way(state) and (gone := [copy for copy in copies if not self._is_there(copy)]):
            raise Problem(f"what was set aside cannot come back: {', '.join(gone)} is gone")
        # Nothing of a restore's is in place until all was moved, so what is there then never went.
        stay = [name for name in names if self._is_there(name)] if begun["moved"] else []
        return begun | {"stay": stay}

    def _names(self) -> Body:
        return self._kept

    def _name_now(self, end: str = "") -> str:
        found = {name: definition(self.server, name) for name in indices(self.server)}
        if not found:
            return ""
        name = name_aside().lower() + end
        self._kept[name] = {
            "indices": {
                name: {
                    "aliases": index["aliases"],
                    "settings": {key: value for key, value in index["settings"].items() if key.startswith(LOST)},
                }
                for name, index in found.items()
            },
            "templates": templates(self.server),
        }
        return name

    def _move_aside(self, aside: str) -> None:
        """Each index of now becomes a clone. An index that is not there has become one already."""
        for name, index in self._kept[aside]["indices"].items():
            if self._is_there(name):
                self.server.ask("PUT", path(name, "/_block/write"))
                own = {"index.hidden": "true", "index.blocks.write": "true"}
                self._clone(name, clone(aside, name), {"settings": index["settings"] | own})
                self._delete(name)

    def _bring_back(self, state: State) -> None:
        back, kept = state["back"], self._kept[state["back"]]
        for name, index in kept["indices"].items():
            if name not in state["stay"] and self._is_there(clone(back, name)):
                self._unclone(clone(back, name), name, index)
            elif not self._is_there(name):
                raise Problem(f"index {name} cannot come back: its copy {clone(back, name)} is gone")
            self.server.ask("PUT", path(name, "/_settings"), {"index.blocks.write": None} | index["settings"])
        self._make(kept["templates"])
        for name in kept["indices"]:
            self._delete(clone(back, name))
        del self._kept[back]

    def _unclone(self, kept: str, name: str, index: Body) -> None:
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

    def _load(self) -> State:
        state = self.server.ask("GET", DOCUMENT, missing=True).get("_source", {})
        self._kept = state.get("kept", {})
        return state

    def _save(self, state: State) -> None:
        if not self._is_there(STATE):
            settings = {"index.hidden": "true", "index.number_of_shards": "1", "index.auto_expand_replicas": "0-1"}
            self.server.ask("PUT", f"/{STATE}", {"settings": settings, "mappings": {"enabled": False}})
        self.server.ask("PUT", DOCUMENT, state | {"kept": self._kept})


def clone(aside: str, name: str) -> str:
    """What an index is called that is set aside."""
    return f"{aside}-{name}"
