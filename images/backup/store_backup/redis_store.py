"""Redis: an exact copy of all its keys, taken by a replica; and a copy in the place of a member's data.

The copy is compared with its source before it is stored, and again each time it is restored: the number of keys of each
database, and the values of some hundred keys that were read from the source itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis_tls

from store_backup.repository import Problem, wait, warn

DUMP, RECORD = "dump.rdb", "record.json"
SAMPLE = 500
"""Keys whose values are compared, at most."""

LARGE = 1000
"""Elements, or KiB of a text, of which a value may have more than is read while writers wait."""

PAUSE = 1000
"""Milliseconds that writers wait at most, for the moment at which the copy ends: some ten as a rule."""

ATTEMPTS = 20
SYNC = 3600
"""Seconds for the first copy, or for reading a file."""

NOWHERE = ("127.0.0.1", 1)
"""A replica of nobody: it serves, and no key of it expires."""

SIZES = {"string": "STRLEN", "list": "LLEN", "hash": "HLEN", "set": "SCARD", "zset": "ZCARD", "stream": "XLEN"}
READS: dict[str, tuple[Any, ...]] = {
    "string": ("GET",),
    "list": ("LRANGE", 0, -1),
    "hash": ("HGETALL",),
    "set": ("SMEMBERS",),
    "zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    "stream": ("XRANGE", "-", "+"),
}


def take(folder: Path) -> str:
    """Write a copy and its record into a folder; returns what there is to say of it."""
    host, authority = os.environ["REDIS_HOST"], Path(os.environ["REDIS_CA_FILE"])
    source = redis_tls.client(host, port(), authority, host, password=password(), socket_timeout=30)
    settings = {"masterauth": quoted(password()), "replicaof": f"{host} {port()}", "repl-diskless-load": "on-empty-db"}
    try:
        # First: a replica looks at the authority alone, and this looks at the name, too, before it gets the password.
        sample = choose_sample(source)
        with follower_files(authority) as files, server(folder, settings | files) as copy:
            if not wait(lambda: linked(copy, folder), SYNC):
                raise Problem(f"Redis gives no copy in {SYNC} s: {log_end(folder)}")
            record = stop_at_a_moment(source, copy, sample)
            compare(record, copy)
            copy.save()
    except redis.RedisError as error:
        raise Problem(f"Redis at {host}: {error}") from None
    (folder / "server.log").unlink()
    (folder / RECORD).write_text(json.dumps(record))
    return said(record)


@contextmanager
def follower_files(authority: Path) -> Iterator[dict[str, str]]:
    """Settings for following by TLS. It wants a certificate of its own, though nobody asks for it."""
    with tempfile.TemporaryDirectory(dir=os.environ["BACKUP_WORK"]) as folder:
        certificate, key = f"{folder}/tls.crt", f"{folder}/tls.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-subj", "/CN=copy", "-days", "2", "-out", certificate, "-keyout", key]
        subprocess.run(command, check=True, capture_output=True)
        yield {
            "tls-replication": "yes",
            "tls-cert-file": certificate,
            "tls-key-file": key,
            "tls-ca-cert-file": str(authority),
        }


def verify(folder: Path) -> str:
    """Serve a copy that was fetched, and compare it with its record; returns what there is to say of it."""
    record = json.loads((folder / RECORD).read_text())
    done = subprocess.run(["redis-check-rdb", folder / DUMP], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"redis-check-rdb: {' '.join(done.stdout.split())[-300:]}")
    with server(folder, {"replicaof": "{} {}".format(*NOWHERE)}) as copy:
        compare(record, copy)
    return said(record)


def put(folder: Path, data: Path) -> None:
    """Make a copy that was fetched the data of a member: its file, and the log of changes that begins with it."""
    (folder / DUMP).rename(data / DUMP)
    with server(data, {}) as member:
        member.config_set("appendonly", "yes")
        if not wait(lambda: not busy(member.info("persistence")), SYNC):
            raise Problem(f"Redis does not write what it has restored in {SYNC} s: {log_end(data)}")
        if member.info("persistence")["aof_last_bgrewrite_status"] != "ok":
            raise Problem(f"Redis could not write what it has restored: {log_end(data)}")
    (data / "server.log").unlink()


def busy(persistence: dict[str, Any]) -> bool:
    """Whether the log of changes is not whole yet."""
    return bool(persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"])


def port() -> int:
    """Of Redis."""
    return int(os.environ.get("REDIS_PORT", "6379"))


def password() -> str:
    """Of Redis, in use now."""
    return Path(os.environ["REDIS_PASSWORD_FILE"]).read_text().strip()


def quoted(text: str) -> str:
    """As a word of redis.conf."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def server(folder: Path, settings: dict[str, str]) -> Iterator[redis.Redis]:
    """A server of this pod alone, on the files of a folder, once it has read them; it writes none by itself.

    :raises Problem: it does not serve.
    """
    socket, log = folder / "redis.sock", folder / "server.log"
    own = {"port": "0", "unixsocket": str(socket), "dir": str(folder), "save": '""', "appendonly": "no"}
    process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=log.open("w"), text=True)
    assert process.stdin
    process.stdin.write("".join(f"{name} {value}\n" for name, value in (own | settings).items()))
    process.stdin.close()
    client = redis.Redis(unix_socket_path=str(socket))

    def serves() -> bool:
        if process.poll() is not None:
            raise Problem(f"a Redis server on the copy ends: {log_end(folder)}")
        try:
            return not client.info("persistence")["loading"]
        except redis.ConnectionError:
            return False

    try:
        if not wait(serves, SYNC):
            raise Problem(f"a Redis server on the copy does not serve after {SYNC} s: {log_end(folder)}")
        yield client
        client.shutdown(nosave=True)
    finally:
        client.close()
        if process.poll() is None:
            process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def log_end(folder: Path) -> str:
    """What a server said last that looks like a reason."""
    lines = [line for line in (folder / "server.log").read_text(errors="replace").splitlines() if " # " in line]
    return lines[-1].partition(" # ")[2] if lines else "it says nothing"


def linked(copy: redis.Redis, folder: Path) -> bool:
    """Whether it follows its source; what it cannot read it would ask for again and again."""
    if "Failed trying to load" in (folder / "server.log").read_text(errors="replace"):
        raise Problem(f"the copy cannot be read by the Redis of this image, which is too old for it: {log_end(folder)}")
    return copy.info("replication")["master_link_status"] == "up"


def choose_sample(source: redis.Redis) -> dict[bytes, str]:
    """Keys by chance that are small enough, with their types."""
    with source.pipeline(transaction=False) as pipeline:
        for _ in range(SAMPLE):
            pipeline.execute_command("RANDOMKEY")
        keys = sorted({key for key in pipeline.execute() if key is not None})
    types = asked(source, [("TYPE", key) for key in keys])
    known = [(key, kind.decode()) for key, kind in zip(keys, types, strict=True) if kind.decode() in READS]
    sizes = asked(source, [(SIZES[kind], key) for key, kind in known])
    return {
        key: kind
        for (key, kind), size in zip(known, sizes, strict=True)
        if isinstance(size, int) and size <= LARGE * (1024 if kind == "string" else 1)
    }


def asked(client: redis.Redis, commands: list[tuple[Any, ...]], together: bool = False) -> list[Any]:
    """The answers of commands sent at once; an error is an answer, as a key may have gone or become another."""
    with client.pipeline(transaction=together) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute(raise_on_error=False)


def values(client: redis.Redis, sample: dict[bytes, str]) -> dict[str, list[Any]]:
    """By key in Base64 its type, a digest of its value, and when it expires in milliseconds; what is there alone."""
    reads = [(READS[kind][0], key, *READS[kind][1:]) for key, kind in sample.items()]
    ends = [("PEXPIRETIME", key) for key in sample]
    found = asked(client, [*reads, *ends])
    return {
        base64.b64encode(key).decode(): [kind, digest(kind, value), end]
        for (key, kind), value, end in zip(sample.items(), found[: len(reads)], found[len(reads) :], strict=True)
        if isinstance(end, int) and end != -2 and not isinstance(value, Exception)
    }


def digest(kind: str, value: Any) -> str:
    """Of a value, whose members have an order or none."""
    if kind in ("hash", "set"):
        pairs = value.items() if isinstance(value, dict) else ((item,) for item in value)
        value = sorted(list(pair) for pair in pairs)
    return hashlib.sha256(repr(value).encode()).hexdigest()


def stop_at_a_moment(source: redis.Redis, copy: redis.Redis, sample: dict[bytes, str]) -> dict[str, Any]:
    """End the copy where the source stands, while no client of it can write; returns what the source held then.

    Writers go on by themselves after PAUSE, whatever becomes of this.
    """
    for _ in range(ATTEMPTS):
        source.execute_command("CLIENT", "PAUSE", PAUSE, "WRITE")
        ends = source.time()
        try:
            offset = source.info("replication")["master_repl_offset"]
            record = {"keys": keys_of(source), "values": values(source, sample)}
            reached = wait(lambda at=offset: copy.info("replication")["slave_repl_offset"] >= at, PAUSE / 2000, 0.001)
            copy.slaveof(*NOWHERE)
            now = source.time()
        finally:
            source.execute_command("CLIENT", "UNPAUSE")
        if reached and (now[0] - ends[0]) * 1000 + (now[1] - ends[1]) / 1000 < PAUSE:
            return record
        copy.slaveof(os.environ["REDIS_HOST"], port())
        if not wait(lambda: copy.info("replication")["master_link_status"] == "up", SYNC):
            break
    raise Problem(f"the copy could not follow Redis: it was behind each of {ATTEMPTS} times. Try at a quieter hour")


def keys_of(client: redis.Redis) -> dict[str, int]:
    """How many keys each database has."""
    return {name: found["keys"] for name, found in client.info("keyspace").items()}


def compare(record: dict[str, Any], copy: redis.Redis) -> None:
    """Find a copy equal to its record.

    :raises Problem: what differs.
    """
    if (found := keys_of(copy)) != record["keys"]:
        raise Problem(f"keys: expected {record['keys']}, found {found}")
    wanted = {base64.b64decode(key): kind for key, (kind, *_) in record["values"].items()}
    found_values = values(copy, wanted)
    seconds, microseconds = copy.time()
    now = seconds * 1000 + microseconds // 1000
    for key, (kind, value, end) in record["values"].items():
        if found_values.get(key) != [kind, value, end] and not 0 < end <= now:
            warn(f"expected {[kind, value, end]}, found {found_values.get(key)}")
            raise Problem(f"the value of key {base64.b64decode(key)!r} is not what it was")


def said(record: dict[str, Any]) -> str:
    """In words."""
    return f"{sum(record['keys'].values())} keys, the values of {len(record['values'])} compared"
