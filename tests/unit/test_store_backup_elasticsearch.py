"""Elasticsearch's indices dumped, set aside and brought back; the work ended at each of its requests loses nothing.

The server is a stand-in in memory, as this has to run where no image was built. With CITADELBUY_ELASTICSEARCH, the URL
of a server that may be emptied, the same runs against that one. The platform's own is in molecule/default/tests.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "images/backup"))

from store_backup import elasticsearch_restore, elasticsearch_store
from store_backup.elasticsearch_restore import Indices
from store_backup.elasticsearch_store import Server, path
from store_backup.repository import Problem

REAL = os.environ.get("CITADELBUY_ELASTICSEARCH", "")
WAYS = 120  # more requests than any work has
PRODUCTS = {
    "settings": {"index.number_of_shards": "1", "index.auto_expand_replicas": "0-1", "index.refresh_interval": "-1"},
    "mappings": {"properties": {"name": {"type": "text"}, "price": {"type": "double"}}},
    "aliases": {"shop": {"is_write_index": True}},
}
ORDERS = {"settings": {"index.number_of_replicas": "0"}, "mappings": {"properties": {"n": {"type": "long"}}}}
TEMPLATE = {"index_patterns": ["orders*"], "template": {"aliases": {"of-a-template": {}}}, "composed_of": []}


class Ended(Exception):
    """The pod is gone."""


class Memory(Server):
    """The requests that are used here, answered from a dictionary; an index keeps each document's version."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.indices: dict[str, Any] = {}
        self.templates: dict[str, dict[str, Any]] = {kind: {} for kind in elasticsearch_store.TEMPLATES}

    def ask(self, method: str, path: str, body: Any = None, missing: bool = False) -> Any:
        words = [unquote(word) for word in path.partition("?")[0].split("/")[1:]]
        body = json.loads(json.dumps(body)) if isinstance(body, dict) else body
        match method, *words:
            case "GET", "_resolve", "index", "*":
                visible = [name for name, index in self.indices.items() if not index["settings"].get("index.hidden")]
                found = [{"name": name, "attributes": self.indices[name].get("are", ["open"])} for name in visible]
                return {"indices": found, "data_streams": []}
            case "GET", kind if kind[1:] in self.templates:
                items = self.templates[kind[1:]].items()
                return {f"{kind[1:]}s": [{"name": name, kind[1:]: value} for name, value in items]}
            case "PUT", kind, name if kind[1:] in self.templates:
                self.templates[kind[1:]][name] = body
            case "DELETE", kind, name if kind[1:] in self.templates:
                self.templates[kind[1:]].pop(name, None)
            case "GET", "_cluster", "health", name:
                assert name in self.indices
            case "POST", "_search":
                return self.search(body)
            case "DELETE", "_pit":
                return {}
            case "PUT", name if name not in self.indices:
                aliases = dict(body.get("aliases", {}))
                for template in self.templates["index_template"].values():
                    if any(re.match(pattern.replace("*", ".*"), name) for pattern in template["index_patterns"]):
                        aliases |= template["template"].get("aliases", {})
                self.indices[name] = {"settings": {}, "mappings": {}, "docs": {}} | body | {"aliases": aliases}
            case "POST", name, "_bulk" if name not in self.indices:
                self.ask("PUT", f"/{name}", {})
                return self.ask(method, path, body)
            case _, name, *rest if name in self.indices:
                return self.of_index(self.indices[name], name, method, rest, body)
            case _:
                if not missing:
                    raise Problem(f"{method} {path}: 404")
                return {}
        return {"acknowledged": True}

    def of_index(self, index: Any, name: str, method: str, rest: list[str], body: Any) -> Any:
        """A request about one that is there."""
        blocked = index["settings"].get("index.blocks.write") == "true"
        match method, *rest:
            case "GET", "_doc", identity if identity in index["docs"]:
                return {"_source": index["docs"][identity]["_source"]}
            case "PUT", "_doc", identity:
                index["docs"][identity] = {"_id": identity, "_version": 1, "_source": body}
            case "GET", "_settings", _:
                return {name: {}}
            case "GET", "_count":
                return {"count": len(index["docs"])}
            case ("GET",):
                return {name: json.loads(json.dumps({key: index[key] for key in ("settings", "mappings", "aliases")}))}
            case "PUT", "_settings":
                index["settings"] = {key: v for key, v in (index["settings"] | body).items() if v is not None}
            case "PUT", "_block", "write":
                index["settings"]["index.blocks.write"] = "true"
            case "POST", "_clone", new:
                assert blocked
                assert new not in self.indices
                copy = json.loads(json.dumps(index)) | {"aliases": body.get("aliases", {})}
                own = ("index.number_of_replicas", "index.auto_expand_replicas")
                settings = {key: v for key, v in copy["settings"].items() if key not in own} | body["settings"]
                copy["settings"] = {key: v for key, v in settings.items() if v is not None}
                self.indices[new] = copy
            case "POST", "_bulk":
                assert not blocked
                lines = [json.loads(line) for line in body.decode().splitlines()]
                for action, source in zip(lines[::2], lines[1::2], strict=True):
                    given = action["index"]
                    document = {"_id": given["_id"], "_version": given["version"], "_source": source}
                    index["docs"][given["_id"]] = document | (
                        {"_routing": given["routing"]} if "routing" in given else {}
                    )
                return {"errors": False, "items": []}
            case "POST", "_pit":
                return {"id": name}
            case ("DELETE",):
                del self.indices[name]
        return {}

    def search(self, body: Any) -> Any:
        """One page."""
        documents = list(self.indices[body["pit"]["id"]]["docs"].values())
        begin = body.get("search_after", [0])[0]
        hits = [item | {"sort": [begin + n + 1]} for n, item in enumerate(documents[begin : begin + body["size"]])]
        return {"pit_id": body["pit"]["id"], "hits": {"total": {"value": len(documents)}, "hits": hits}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """An empty one, which ends the work after `left` requests."""
    found = Server(REAL) if REAL else Memory()
    monkeypatch.setattr(elasticsearch_store, "source", lambda: found)
    monkeypatch.setattr(elasticsearch_store, "PAGE", 100)
    monkeypatch.setattr(elasticsearch_store, "BULK", 9000)
    hours = iter(range(10000))
    monkeypatch.setattr(elasticsearch_restore, "name_aside", lambda: f"before-20260301T00{next(hours):04}Z")
    found.left = None
    ask = found.ask

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if found.left == 0:
            raise Ended
        if found.left:
            found.left -= 1
        return ask(*arguments, **keywords)

    found.ask = counted
    return found


@pytest.fixture
def dump(server: Server, tmp_path: Path) -> Path:
    """A backup, after which much was changed."""
    return dumped(server, tmp_path)


def dumped(server: Server, folder: Path) -> Path:
    """The same, again."""
    empty(server)
    server.ask("PUT", "/products", PRODUCTS)
    write(server, "products", {f"p{n}": {"name": "Ünïcode \n", "price": n * 1.1} for n in range(250)})
    server.ask("PUT", "/gone+later", ORDERS)
    write(server, "gone+later", {"1": {"n": 1}}, routing="r")
    folder = folder / "dump"
    folder.mkdir(exist_ok=True)
    assert elasticsearch_store.take(folder) == "2 indices, 251 documents"
    server.ask("DELETE", "/gone%2Blater")
    write(server, "products", {"p1": {"name": "changed"}, "new": {"name": "new"}}, since=20)
    server.ask("PUT", "/orders", ORDERS)
    write(server, "orders", {"1": {"n": 1}})
    server.ask("PUT", "/orders/_block/write")
    server.ask("PUT", "/_index_template/orders", TEMPLATE)
    return folder


def empty(server: Server) -> None:
    """Leave nothing of another test."""
    for kind in reversed(elasticsearch_store.TEMPLATES):
        for item in server.ask("GET", f"/_{kind}")[f"{kind}s"]:
            server.ask("DELETE", f"/_{kind}/{item['name']}")
    if isinstance(server, Memory):
        server.indices.clear()
        return
    for item in server.ask("GET", "/_resolve/index/*?expand_wildcards=all")["indices"]:
        server.ask("DELETE", path(item["name"]))


def write(server: Server, name: str, documents: dict[str, Any], since: int = 8, routing: str = "") -> None:
    """Index documents, each with a version of its own."""
    more = {"routing": routing} if routing else {}
    lines = []
    for number, (key, value) in enumerate(documents.items()):
        action = {"_id": key, "version": number % 7 + since, "version_type": "external"} | more
        lines += [json.dumps({"index": action}), json.dumps(value)]
    elasticsearch_store.write(server, name, lines)


def data(server: Server) -> dict[str, Any]:
    """All that a restore exchanges."""
    kept = elasticsearch_restore.LOST
    found: dict[str, Any] = {"templates": elasticsearch_store.templates(server)}
    for name in elasticsearch_store.indices(server):
        index = elasticsearch_store.definition(server, name)
        index["settings"] = {key: value for key, value in index["settings"].items() if key.startswith(kept)}
        with elasticsearch_store.moment(server, name) as at:
            found[name] = index | {"documents": sorted(elasticsearch_store.documents(server, name, at))}
    return found


def replace(server: Server, folder: Path, work: str = "restore") -> None:
    """Restore what is in a folder."""
    Indices(server).replace(work, lambda: ("L", folder))


def ends(server: Server, left: int, work: Any, *arguments: Any) -> bool:
    """Whether a work ends before it is done when only so many requests are left to it."""
    server.left = left
    try:
        work(*arguments)
    except Ended:
        return True
    finally:
        server.left = None
    return False


def undone(server: Server) -> str:
    """Undo; returns why it was not done."""
    try:
        Indices(server).undo("undo")
    except Problem as error:
        return str(error)
    return ""


def aside(server: Server) -> list[str]:
    """Names of all that is set aside."""
    if isinstance(server, Memory):
        return sorted(name for name in server.indices if name.startswith("before-"))
    found = server.ask("GET", "/_resolve/index/before-*?expand_wildcards=all")
    return sorted(item["name"] for item in found["indices"])


def test_what_was_dumped_comes_back_and_what_was_there_is_kept(server, dump, capsys):
    before = data(server)
    replace(server, dump)
    told = json.loads(capsys.readouterr().out)
    assert told["label"] == "L"
    assert told["said"] == "2 indices, 251 documents"
    now = data(server)
    assert sorted(now) == ["gone+later", "products", "templates"]
    assert now["products"]["aliases"] == {"shop": {"is_write_index": True}}
    line = '{"_id":"p1","_source":{"name":"\\u00dcn\\u00efcode \\n","price":1.1},"_version":9}'
    assert line in now["products"]["documents"]
    assert now["gone+later"]["documents"] == ['{"_id":"1","_routing":"r","_source":{"n":1},"_version":8}']
    assert now["templates"] == []
    assert aside(server) == [f"{told['aside']}-orders", f"{told['aside']}-products"]
    replace(server, dump)
    assert json.loads(capsys.readouterr().out) == told
    Indices(server).undo("undo")
    assert json.loads(capsys.readouterr().out) == {"back": told["aside"]}
    assert data(server) == before
    Indices(server).undo("undo")
    assert json.loads(capsys.readouterr().out) == {"back": told["aside"]}
    assert data(server) == before
    with pytest.raises(Problem, match="nothing is set aside"):
        Indices(server).undo("undo again")
    assert [name.partition("-undone-")[2] for name in aside(server)] == ["gone+later", "products"]


def test_a_restore_ended_anywhere_is_completed_by_the_same_call(server, tmp_path):
    for left in range(WAYS):
        folder = dumped(server, tmp_path)
        before = data(server)
        ended = ends(server, left, replace, server, folder)
        replace(server, folder)
        assert sorted(data(server)) == ["gone+later", "products", "templates"], left
        Indices(server).undo("undo")
        assert data(server) == before, left
        if not ended:
            return
    raise AssertionError("a restore has more requests")


def test_a_restore_ended_anywhere_is_undone(server, tmp_path):
    for left in range(WAYS):
        folder = dumped(server, tmp_path)
        before = data(server)
        ended = ends(server, left, replace, server, folder)
        assert undone(server) in ("", "nothing is set aside in Elasticsearch"), left
        assert data(server) == before, left
        if not ended:
            return
    raise AssertionError("a restore has more requests")


@pytest.mark.parametrize("complete", [True, False])
def test_an_undoing_ended_anywhere_is_completed_by_the_same_call(server, tmp_path, complete):
    """That of a complete restore, and of one that was ended between two indices."""
    for left in range(WAYS):
        folder = dumped(server, tmp_path)
        before = data(server)
        if complete:
            replace(server, folder)
        else:
            ends(server, 16, replace, server, folder)
            assert len(aside(server)) == 1
        ended = ends(server, left, Indices(server).undo, "undo")
        Indices(server).undo("undo")
        assert data(server) == before, left
        Indices(server).discard()
        assert aside(server) == [], left
        if not ended:
            return
    raise AssertionError("an undoing has more requests")


@pytest.mark.skipif(bool(REAL), reason="a clone that does not start is made up")
def test_an_undoing_does_not_need_a_copy_of_what_never_went(server, dump, monkeypatch):
    before = data(server)
    monkeypatch.setattr(elasticsearch_restore, "START", 0)
    started = elasticsearch_restore.serves
    monkeypatch.setattr(elasticsearch_restore, "serves", lambda _server, name: not name.startswith("before-"))
    with pytest.raises(Problem, match=r"index before-\S+-orders, a clone of orders, is not started after 0 s"):
        replace(server, dump)
    ask = server.ask

    def answers(method: str, path: str, *arguments: Any, **keywords: Any) -> Any:
        assert not re.fullmatch("/before-.*/_count", path), "it cannot be asked"
        return ask(method, path, *arguments, **keywords)

    monkeypatch.setattr(server, "ask", answers)
    Indices(server).undo("undo")
    monkeypatch.setattr(elasticsearch_restore, "serves", started)
    assert data(server) == before
    assert aside(server) == []


def test_an_index_that_somebody_has_made_meanwhile_does_not_cost_the_data(server, dump):
    before = data(server)
    replace(server, dump)
    left = 0
    while "products" in elasticsearch_store.indices(server):
        ends(server, left, Indices(server).undo, "undo")
        left += 1
    write(server, "products", {"1": {"name": "too early"}})
    server.ask("POST", "/products/_refresh")
    with pytest.raises(
        Problem, match=r"index products: expected the 251 documents of before-.*, found 1: somebody else"
    ):
        Indices(server).undo("undo")
    server.ask("DELETE", "/products")
    Indices(server).undo("undo")
    assert data(server) == before


def test_the_undoing_of_a_restore_that_never_came_here_leaves_all(server, dump):
    replace(server, dump, "first")
    before = aside(server)
    Indices(server).undo("undo second", "second")
    assert aside(server) == before
    Indices(server).undo("undo")
    assert aside(server) != before


def test_two_undoings_go_back_two_restores(server, dump):
    before = data(server)
    replace(server, dump, "first")
    replace(server, dump, "second")
    Indices(server).undo("undo second")
    Indices(server).undo("undo first")
    assert data(server) == before


def test_discard_deletes_what_is_set_aside(server, dump, capsys):
    replace(server, dump)
    now = data(server)
    name = json.loads(capsys.readouterr().out)["aside"]
    Indices(server).discard()
    assert json.loads(capsys.readouterr().out) == {"said": f"deleted: {name}"}
    assert aside(server) == []
    assert data(server) == now
    Indices(server).discard()
    assert json.loads(capsys.readouterr().out) == {"said": "nothing was set aside"}
    ends(server, 12, replace, server, dump, "another")
    with pytest.raises(Problem, match="is under way"):
        Indices(server).discard()
    with pytest.raises(Problem, match="is under way"):
        elasticsearch_store.take(dump)


def test_what_is_set_aside_is_not_backed_up(server, dump, tmp_path):
    replace(server, dump)
    server.ask("PUT", "/before-20260301t000000z-shown", {})
    record = json.loads((dump / "record.json").read_text())
    again = tmp_path / "again"
    again.mkdir()
    assert elasticsearch_store.take(again) == "2 indices, 251 documents"
    found = json.loads((again / "record.json").read_text())["indices"]
    assert {name: index["checksum"] for name, index in found.items()} == {
        name: index["checksum"] for name, index in record["indices"].items()
    }


def test_a_file_that_is_not_what_it_was_changes_nothing(server, dump):
    before = data(server)
    [file] = [dump / index["file"] for index in record_of(dump).values() if index["count"] > 1]
    with gzip.open(file, "rt") as lines:
        text = lines.read()
    for broken, why in (
        (text.replace('"price":1.1}', '"price":1.2}'), "checksum"),
        (text[: text.rindex('{"_id"')], "249"),
    ):
        with gzip.open(file, "wt") as lines:
            lines.write(broken)
        with pytest.raises(Problem, match=rf"index products: expected .*{why}"):
            replace(server, dump)
        assert data(server) == before
        assert aside(server) == []


def test_a_difference_after_loading_is_told_by_name(server, dump, monkeypatch):
    record = record_of(dump)
    empty(server)
    index = record["products"]
    elasticsearch_store.load(server, "products", index, index["settings"], dump / index["file"])
    elasticsearch_store.compare(server, "products", index)
    with pytest.raises(Problem, match=r"index products: expected mappings .*float.*, found .*double"):
        elasticsearch_store.compare(server, "products", changed(index, "double", "float"))
    write(server, "products", {"p3": {"price": 7}}, since=20)
    with pytest.raises(Problem, match=r"index products: expected documents of checksum \w+, found \w+"):
        elasticsearch_store.compare(server, "products", index)
    write(server, "products", {"more": {"price": 7}}, since=20)
    with pytest.raises(Problem, match="index products: expected 250 documents, found 251"):
        elasticsearch_store.compare(server, "products", index)


def test_a_restore_does_not_end_well_with_less_than_the_dump(server, dump, monkeypatch):
    before = data(server)
    load = elasticsearch_store.load

    def lossy(server: Server, name: str, *arguments: Any) -> None:
        load(server, name, *arguments)
        write(server, name, {"1": {"n": 2}}, since=30, routing="r")

    monkeypatch.setattr(elasticsearch_restore, "load", lossy)
    with pytest.raises(Problem, match=r"index gone\+later: expected documents of checksum"):
        replace(server, dump)
    Indices(server).undo("undo")
    assert data(server) == before


def test_verification_is_on_an_empty_server(server, dump, monkeypatch):
    monkeypatch.setattr(elasticsearch_store, "Server", lambda _url: server)
    monkeypatch.setattr(elasticsearch_store, "serves", lambda _server: True)
    with pytest.raises(Problem, match="is to be empty, and has orders, products"):
        elasticsearch_store.verify(dump)
    empty(server)
    assert elasticsearch_store.verify(dump) == "2 indices, 251 documents"


def test_documents_that_were_not_read_are_missed(server, dump, tmp_path, monkeypatch):
    monkeypatch.setattr(elasticsearch_store, "counted", lambda _server, _at: 1000)
    with pytest.raises(Problem, match="index orders: expected 1000 documents, found 1"):
        elasticsearch_store.take(tmp_path)


def test_an_index_without_sources_is_refused(server, tmp_path):
    empty(server)
    server.ask("PUT", "/lossy", {"mappings": {"_source": {"excludes": ["a"]}}})
    with pytest.raises(Problem, match="index lossy does not keep its documents' source"):
        elasticsearch_store.take(tmp_path)


def test_a_closed_index_is_refused(server, tmp_path):
    empty(server)
    server.ask("PUT", "/shut", {"settings": {"index.number_of_replicas": "0"}})
    if isinstance(server, Memory):
        server.indices["shut"]["are"] = ["closed"]
    else:
        server.ask("POST", "/shut/_close")
    with pytest.raises(Problem, match="indices shut are closed"):
        elasticsearch_store.take(tmp_path)


def test_a_checksum_does_not_depend_on_the_order():
    lines = [str(number) for number in range(100)]
    assert elasticsearch_store.total(iter(lines)) == elasticsearch_store.total(reversed(lines))
    assert elasticsearch_store.total(iter(lines)) != elasticsearch_store.total(iter(lines[:-1]))


def record_of(dump: Path) -> dict[str, Any]:
    """The indices of a dump, by name."""
    return json.loads((dump / "record.json").read_text())["indices"]


def changed(value: Any, old: str, new: str) -> Any:
    """A copy with another word in it."""
    return json.loads(json.dumps(value).replace(f'"{old}"', f'"{new}"'))
