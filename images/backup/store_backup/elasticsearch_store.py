"""Elasticsearch: all documents of its indices and what the indices are made with, by its HTTP API; and back.

A dump is logical, so it loads into a server of any size, of the same version or a newer one. It is compared with what
the server itself counted when it was taken, and again each time it is loaded: the number of documents, a checksum over
all of them, and the mappings. Each index is taken as it is at one moment, one after the other.

What is not there: data streams, closed indices, and indices that do not keep their documents' source are refused;
hidden ones and those of Elasticsearch itself are left out. Numbers are doubles: what a source has beyond their 17
digits is lost.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from store_backup.repository import Problem, wait

Body = dict[str, Any]
RECORD = "record.json"
PAGE = 1000
"""Documents that are asked for at once."""

BULK = 2 << 20
"""Bytes that are loaded at once, about."""

KEEP = "10m"
"""For how long a moment is kept after the last question about it."""

ANSWER = 300
"""Seconds for one answer."""

START = 300
"""Seconds until a server of this pod serves, or shards are started."""

STATE = "citadelbuy-restore"
"""A hidden index. Its only document tells the steps of a restore."""

DOCUMENT = f"/{STATE}/_doc/state"
ASIDE = re.compile(r"before-\d{8}t\d{6}z-")
"""How names begin of what a restore has set aside."""

NOT_GIVEN = (
    "index.uuid",
    "index.creation_date",
    "index.provided_name",
    "index.version.",
    "index.history.",
    "index.resize.",
    "index.routing.allocation.initial_recovery.",
    "index.blocks.read_only_allow_delete",
)
"""Settings that an index gets from its server."""

LATE = ("index.blocks.", "index.refresh_interval", "index.default_pipeline", "index.final_pipeline")
"""Settings that an index gets when its documents are there."""

TEMPLATES = ("component_template", "index_template")
"""In the order in which they are made: an index template is made of others."""


class Server:
    """An Elasticsearch, by one connection that is kept."""

    def __init__(self, url: str, user_file: str = "", password_file: str = "", ca_file: str = "") -> None:
        """Nothing is sent.

        :param url: as `https://HOST:PORT`.
        :param user_file: may not be there: then it is elastic.
        :param password_file: empty: nobody asks for one. Both are read for each request, as they follow their Secret.
        :param ca_file: the authority that has signed its certificate; empty: a well-known one.
        """
        self.url, self._user, self._password = url, user_file, password_file
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(place.netloc, timeout=ANSWER)
        if place.scheme == "https":
            context = ssl.create_default_context(cafile=ca_file or None)
            self._connection = http.client.HTTPSConnection(place.netloc, timeout=ANSWER, context=context)

    def ask(self, method: str, path: str, body: Body | bytes | None = None, missing: bool = False) -> Any:
        """What it answers; nothing where what is asked for is not there, and may be missing.

        :param body: bytes are lines of JSON.
        :raises Problem: it does not answer, or refuses.
        """
        headers = {"Content-Type": "application/x-ndjson" if isinstance(body, bytes) else "application/json"}
        if self._password:
            user = Path(self._user).read_text().strip() if self._user and Path(self._user).exists() else ""
            login = f"{user or 'elastic'}:{Path(self._password).read_text().strip()}"
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        where = f"Elasticsearch at {self.url}: {method} {path.partition('?')[0]}"
        try:
            self._connection.request(method, path, sent, headers)
            answer = self._connection.getresponse()
            text = answer.read()
            found = json.loads(text or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise Problem(f"{where}: {error or type(error).__name__}") from None
        if answer.status == 404 and missing:
            return {}
        if answer.status >= 300:
            error = found.get("error", found)
            raise Problem(f"{where}: {answer.status} {error.get('reason') if isinstance(error, dict) else error}")
        return found


def source() -> Server:
    """The one whose backups are made."""
    get = os.environ.get
    files = (get(f"ELASTICSEARCH_{name}_FILE", "") for name in ("USER", "PASSWORD", "CA"))
    return Server(os.environ["ELASTICSEARCH_URL"], *files)


def take(folder: Path) -> str:
    """Write all documents and their record into a folder; returns what there is to say of it."""
    server = source()
    at_rest(server)
    record: Body = {"templates": templates(server), "indices": {}}
    for number, name in enumerate(indices(server)):
        record["indices"][name] = dump(server, name, folder / f"{number}.ndjson.gz")
    at_rest(server)
    (folder / RECORD).write_text(json.dumps(record))
    return said(record)


def verify(folder: Path) -> str:
    """Load a dump that was fetched into the empty server of this pod, and compare it; returns what there is to say."""
    record = check(folder)
    server = Server(os.environ.get("ELASTICSEARCH_SCRATCH_URL", "http://127.0.0.1:9200"))
    if not wait(lambda: serves(server), START):
        raise Problem(f"Elasticsearch at {server.url}, which is to verify, does not serve after {START} s")
    if names := indices(server):
        raise Problem(f"Elasticsearch at {server.url} is to be empty, and has {', '.join(names)}")
    for name, index in record["indices"].items():
        # One node, which has no name that a setting could ask for.
        given = {key: value for key, value in early(index).items() if not key.startswith("index.routing.allocation.")}
        given["index.auto_expand_replicas"], given["index.number_of_replicas"] = "false", "0"
        load(server, name, index, given, folder / index["file"])
        compare(server, name, index)
    return said(record)


def check(folder: Path) -> Body:
    """Compare the files of a dump with its record, which is returned."""
    record = json.loads((folder / RECORD).read_text())
    for name, index in record["indices"].items():
        with gzip.open(folder / index["file"], "rt") as lines:
            equal(name, index, *total(line.rstrip("\n") for line in lines))
    return record


def said(record: Body) -> str:
    """In words."""
    number = sum(index["count"] for index in record["indices"].values())
    return f"{len(record['indices'])} indices, {number} documents"


def at_rest(server: Server) -> None:
    """Find no restore under way, in which indices are not whole.

    :raises Problem: there is one.
    """
    state = server.ask("GET", DOCUMENT, missing=True).get("_source")
    if state and "told" not in state:
        raise Problem("a restore of Elasticsearch is under way: complete it or undo it, then make a backup")


def serves(server: Server, name: str = "") -> bool:
    """Whether it answers, and an index of it, or all, can be read and written."""
    try:
        server.ask("GET", f"/_cluster/health{path(name) if name else ''}?wait_for_status=yellow&timeout=1s")
    except Problem:
        return False
    return True


def indices(server: Server) -> list[str]:
    """Names of those that are data.

    :raises Problem: some cannot be dumped.
    """
    found = server.ask("GET", "/_resolve/index/*?expand_wildcards=open,closed")
    if streams := [item["name"] for item in found["data_streams"]]:
        raise Problem(f"data streams {', '.join(streams)} cannot be backed up or restored: delete them")
    known = [item for item in found["indices"] if not item["name"].startswith(".") and not ASIDE.match(item["name"])]
    if closed := [item["name"] for item in known if "closed" in item["attributes"]]:
        raise Problem(f"indices {', '.join(closed)} are closed, and cannot be read: open or delete them")
    return sorted(item["name"] for item in known)


def templates(server: Server) -> list[Body]:
    """Those that somebody has made, each with kind, name and body."""
    return [
        {"kind": kind, "name": item["name"], "body": item[kind]}
        for kind in TEMPLATES
        for item in server.ask("GET", f"/_{kind}")[f"{kind}s"]
        if not item["name"].startswith(".") and not (item[kind].get("_meta") or {}).get("managed")
    ]


def path(name: str, rest: str = "") -> str:
    """Of an index, or of something of it."""
    return f"/{quote(name, safe='')}{rest}"


def definition(server: Server, name: str) -> Body:
    """What an index is made with: settings by their whole names, mappings, aliases."""
    [found] = server.ask("GET", path(name, "?flat_settings=true")).values()
    settings = {
        key: value for key, value in found["settings"].items() if value is not None and not key.startswith(NOT_GIVEN)
    }
    return {"settings": settings, "mappings": found["mappings"], "aliases": found["aliases"]}


def early(index: Body) -> Body:
    """Settings that an index is made with."""
    return {key: value for key, value in index["settings"].items() if not key.startswith(LATE)}


def dump(server: Server, name: str, file: Path) -> Body:
    """Write an index's documents into a file; returns its record: definition, file, count and checksum."""
    with moment(server, name) as at:
        # Read after the moment, so it knows all fields of the documents.
        index = definition(server, name)
        kept = index["mappings"].get("_source") or {}
        if kept.get("enabled", True) in (False, "false") or kept.keys() & {"includes", "excludes"}:
            raise Problem(
                f"index {name} does not keep its documents' source (mappings._source): it cannot be backed up"
            )
        expected = index | {"file": file.name, "count": counted(server, at)}
        with gzip.open(file, "wt", compresslevel=1) as lines:

            def written() -> Iterator[str]:
                for line in documents(server, name, at):
                    lines.write(line + "\n")
                    yield line

            count, checksum = total(written())
    if count != expected["count"]:
        raise Problem(f"index {name}: expected {expected['count']} documents, found {count}")
    return expected | {"checksum": checksum}


@contextmanager
def moment(server: Server, name: str) -> Iterator[Body]:
    """An index as it is now, whatever is written to it; by `id`. What is not closed ends by itself."""
    server.ask("POST", path(name, "/_refresh"))
    at = {"id": server.ask("POST", path(name, f"/_pit?keep_alive={KEEP}"))["id"], "keep_alive": KEEP}
    yield at
    server.ask("DELETE", "/_pit", {"id": at["id"]})


def counted(server: Server, at: Body) -> int:
    """How many documents Elasticsearch says that there are."""
    found = search(server, at, {"size": 0, "track_total_hits": True})
    return found["hits"]["total"]["value"]


def documents(server: Server, name: str, at: Body) -> Iterator[str]:
    """All documents, each as one line, which is the same wherever it was read."""
    body: Body = {"size": PAGE, "sort": ["_shard_doc"], "version": True, "track_total_hits": False}
    while hits := search(server, at, body)["hits"]["hits"]:
        for hit in hits:
            if "_source" not in hit:
                raise Problem(f"index {name}: document {hit['_id']} has no source: it cannot be backed up")
            yield canonical({key: hit[key] for key in ("_id", "_routing", "_version", "_source") if key in hit})
        body["search_after"] = hits[-1]["sort"]


def search(server: Server, at: Body, body: Body) -> Body:
    """All shards' answer, or none."""
    found = server.ask("POST", "/_search?allow_partial_search_results=false", body | {"pit": at})
    at["id"] = found["pit_id"]
    return found


def canonical(value: Body) -> str:
    """JSON on one line, the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def total(lines: Iterator[str]) -> tuple[int, str]:
    """Number and checksum of documents, in whatever order."""
    count = checksum = 0
    for line in lines:
        count += 1
        checksum += int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], "big")
    return count, f"{checksum % 2**64:016x}"


def equal(name: str, index: Body, count: int, checksum: str) -> None:
    """Find documents equal to their record.

    :raises Problem: what differs.
    """
    if count != index["count"]:
        raise Problem(f"index {name}: expected {index['count']} documents, found {count}")
    if checksum != index["checksum"]:
        raise Problem(f"index {name}: expected documents of checksum {index['checksum']}, found {checksum}")


def compare(server: Server, name: str, index: Body) -> None:
    """Find an index that was loaded equal to its record.

    :raises Problem: what differs.
    """
    with moment(server, name) as at:
        equal(name, index, *total(documents(server, name, at)))
        found = definition(server, name)["mappings"]
    if found != index["mappings"]:
        raise Problem(f"index {name}: expected mappings {canonical(index['mappings'])}, found {canonical(found)}")


def load(server: Server, name: str, index: Body, settings: Body, file: Path) -> None:
    """Make an index and write its documents, with the versions that they had; it is refreshed when all are there."""
    body = {"settings": settings | {"index.refresh_interval": "-1"}} | {
        key: index[key] for key in ("mappings", "aliases")
    }
    server.ask("PUT", path(name), body)
    bulk: list[str] = []
    size = 0
    with gzip.open(file, "rt") as lines:
        for line in lines:
            document = json.loads(line)
            action = {"_id": document["_id"], "version": document["_version"], "version_type": "external"}
            if "_routing" in document:
                action["routing"] = document["_routing"]
            bulk += [canonical({"index": action}), canonical(document["_source"])]
            size += len(line)
            if size > BULK:
                write(server, name, bulk)
                bulk, size = [], 0
    if bulk:
        write(server, name, bulk)


def write(server: Server, name: str, bulk: list[str]) -> None:
    """Have documents indexed.

    :raises Problem: the first one that was not.
    """
    found = server.ask("POST", path(name, "/_bulk?pipeline=_none"), ("\n".join(bulk) + "\n").encode())
    for item in found["items"] if found["errors"] else ():
        if "error" in item["index"]:
            raise Problem(f"index {name}: document {item['index']['_id']}: {item['index']['error']['reason']}")
