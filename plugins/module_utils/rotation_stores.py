"""What a rotation does to each store: let a new credential in, turn the old one off, ask which of them it takes.

Values go through standard input or a request's body, never through a command line.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import NOT_ROLLED_BY
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import random_value
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.store_tls import client_context
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import http_through_pod, run_in_pod

Body = dict[str, Any]
POD = Resource("v1", "Pod", "pods", True)
STATEFUL_SET = Resource("apps/v1", "StatefulSet", "statefulsets", True)
FILES = "/etc/citadelbuy/secrets"  # where the stores' containers have their Secrets' keys as files
CERTIFICATE = "/etc/citadelbuy/tls"  # where they have their certificate, and its authority's
NUDGE = "citadelbuy.io/secrets-read-at"  # a changed annotation makes the kubelet look at a pod's volumes at once
PAUSE = 0.5  # seconds between looks
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,52}")


@dataclass
class Turn:
    """One secret on its way from one value to the next. Two users in turn, where a user has one password only."""

    name: str
    next: str
    previous: str
    next_user: str = ""
    previous_user: str = ""
    begun: float = 0.0  # seconds since the epoch
    switched: float = 0.0  # when every pod had the next value; 0: not yet
    seconds: float = field(default=0.0, compare=False)  # spent on it by this run

    @property
    def values(self) -> list[str]:
        """What may never be shown."""
        return [self.next, self.previous]


class Store:
    """A StatefulSet, and how its members are told of credentials."""

    tier = ""
    container = ""

    def __init__(self, cluster: Cluster, namespace: str, timeout: float) -> None:
        self.cluster, self.namespace, self.timeout = cluster, namespace, timeout

    def users(self, current: str) -> tuple[str, str]:
        """Who has the present credential, and who shall have the next; empty where there is one user."""
        return "", ""

    def check_deployed(self) -> None:
        """Refuse a deployment whose pods take their passwords from their environment: a rotation would not reach it."""
        for body in self.cluster.list(STATEFUL_SET, self.namespace, labelSelector=f"tier={self.tier}")["items"]:
            annotations = body["spec"]["template"]["metadata"].get("annotations") or {}
            if NOT_ROLLED_BY in annotations:
                return
            raise EngineError(
                f"StatefulSet {self.namespace}/{body['metadata']['name']} was deployed by a version that knows no "
                "rotation. To do: run playbooks/site.yml, then this again."
            )
        raise EngineError(f"no StatefulSet labelled tier={self.tier} in {self.namespace}: run playbooks/site.yml.")

    def accept(self, turn: Turn) -> None:
        """Make the next credential valid beside the present one."""

    def retire(self, turn: Turn) -> None:
        """Make the previous credential invalid."""

    def takes(self, user: str, value: str) -> bool:
        """Whether the store lets this credential in."""
        raise NotImplementedError

    def prove(self, turn: Turn, retired: bool) -> None:
        """Ask the store itself: it has to take the next credential and, once retired, to refuse the previous one."""
        if not self.takes(turn.next_user, turn.next):
            raise EngineError(f"{turn.name}: the store refuses the new value; the old one is still valid. Run again.")
        if retired and self.takes(turn.previous_user, turn.previous):
            raise EngineError(f"{turn.name}: the store still takes the old value. Run again.")

    def pods(self) -> list[Body]:
        """The store's pods, those that write first."""
        found = self.cluster.list(POD, self.namespace, labelSelector=f"tier={self.tier}")["items"]
        found = [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]
        return sorted(found, key=lambda pod: (not _leads(pod), pod["metadata"]["name"]))

    def ready_pods(self) -> list[Body]:
        """All of the store's pods, waited for: a rotation that leaves a member out would lock it out."""
        end = time.monotonic() + self.timeout
        while True:
            found = self.pods()
            missing = [pod["metadata"]["name"] for pod in found if not is_ready(pod)]
            if found and not missing:
                return found
            if time.monotonic() > end:
                names = ", ".join(missing) or f"no pod with the label tier={self.tier}"
                raise EngineError(f"not ready in {self.namespace}: {names}. Run again when all members are.")
            time.sleep(PAUSE)

    def run(self, pod: Body, script: str, stdin: str = "", *arguments: str) -> str:
        """Run a shell script in the store's container; `$1` is how many bytes it reads, then the arguments."""
        data = stdin.encode()
        command = ["sh", "-c", script, "sh", str(len(data)), *arguments]
        name = pod["metadata"]["name"]
        return run_in_pod(self.cluster, self.namespace, name, self.container, command, 30, data)

    def wait_for_files(self, wanted: dict[str, str | None]) -> None:
        """Have every member's files hold these values (None: no such file), as its next start will read them."""
        script = f"cd {FILES} && sha256sum -- *"
        hashes = {name: None if value is None else _sha256(value) for name, value in wanted.items()}
        end = time.monotonic() + self.timeout
        for pod in self.ready_pods():
            name, nudged = pod["metadata"]["name"], 0.0
            while True:
                if time.monotonic() - nudged > 10:
                    nudged = time.monotonic()
                    body = {"metadata": {"annotations": {NUDGE: str(time.time_ns())}}}
                    path = POD.path(self.namespace, name)
                    self.cluster.request("PATCH", path, body, content="application/merge-patch+json")
                lines = self.run(pod, script).splitlines()
                live = {file.strip(): digest for digest, _space, file in (line.partition(" ") for line in lines)}
                if all(live.get(key) == digest for key, digest in hashes.items()):
                    break
                if time.monotonic() > end:
                    raise EngineError(f"pod {self.namespace}/{name} does not get its new files: is its kubelet well?")
                time.sleep(PAUSE)


class Database(Store):
    """PostgreSQL: a role has one password, so the owner takes turns with a login that is the owner in all it does."""

    tier, container = "database", "postgres"
    session = (
        "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'; "
        "SET standard_conforming_strings = on;\n"
    )
    alternate = "{owner}_alternate"

    def users(self, current: str) -> tuple[str, str]:
        owner = self.owner()
        current = current or owner
        return current, self.alternate.format(owner=owner) if current == owner else owner

    def owner(self) -> str:
        """The role that owns the database, by the environment of the container."""
        return self._environment("POSTGRES_USER")

    def _environment(self, name: str) -> str:
        for pod in self.pods():
            for container in pod["spec"]["containers"]:
                for item in container.get("env") or []:
                    if item["name"] == name and item.get("value"):
                        return str(item["value"])
        raise EngineError(f"no pod with the label tier={self.tier} in {self.namespace} has {name} in its environment.")

    def _primary(self) -> Body:
        pods = self.ready_pods()
        if len(pods) > 1 and not _leads(pods[0]):
            raise EngineError("PostgreSQL has no primary at this moment. Run again.")
        return pods[0]

    def sql(self, text: str) -> str:
        """Run SQL as the superuser, over the socket of the primary."""
        script = (
            'size=$1; user=postgres; [ -n "${PATRONI_SCOPE:-}" ] || user=$POSTGRES_USER; head -c "$size" | '
            'PGOPTIONS="-c client_min_messages=warning -c pg_stat_statements.track_utility=off" '
            'exec psql -X -q -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=terse -v SHOW_CONTEXT=never -U "$user" -d postgres'
        )
        return self.run(self._primary(), script, self.session + text)

    def accept(self, turn: Turn) -> None:
        owner, user = self.owner(), turn.next_user
        missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{user}')"
        text = f"SELECT 'CREATE ROLE {_name(user)}' WHERE {missing} \\gexec\n"
        if user != owner:
            text += f"GRANT {_name(owner)} TO {_name(user)};\nALTER ROLE {_name(user)} SET role TO '{owner}';\n"
        self.sql(text + f"ALTER ROLE {_name(user)} LOGIN PASSWORD {_literal(turn.next)};\n")

    def retire(self, turn: Turn) -> None:
        # A member that became primary with the old files would set the old password again.
        self.wait_for_files({"DATABASE_PASSWORD": turn.next, "DATABASE_USER": turn.next_user})
        user = turn.previous_user
        self.sql(
            f"ALTER ROLE {_name(user)} PASSWORD NULL;\n"
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE usename = '{user}' AND client_addr IS NOT NULL;\n"
        )

    def takes(self, user: str, value: str) -> bool:
        pod = self._primary()
        # By the pod's own address: the images' rules let localhost in without a password, some of them.
        script = (
            'PGPASSWORD=$(head -c "$1"); export PGPASSWORD PGSSLMODE=verify-full '
            f"PGSSLROOTCERT={CERTIFICATE}/ca.crt PGHOST=postgres PGHOSTADDR=$3; "
            'if answer=$(psql -X -A -t -U "$2" -d postgres -c "SELECT 1" 2>&1); then echo yes; '
            'else case $answer in *"authentication failed"*) echo no;; *) echo "$answer" >&2; exit 1;; esac; fi'
        )
        return self.run(pod, script, value, user, pod["status"]["podIP"]).strip() == "yes"


class DatabaseMember(Database):
    """PostgreSQL's own users: members alone know their passwords. One password each: changed, then read by Patroni.

    Connections that stand are not asked again, and one that is refused in between is tried again by Patroni.
    """

    def __init__(self, cluster: Cluster, namespace: str, timeout: float, user: str) -> None:
        super().__init__(cluster, namespace, timeout)
        self.user = user

    def users(self, current: str) -> tuple[str, str]:
        return self.user, self.user

    def accept(self, turn: Turn) -> None:
        pass

    def prove(self, turn: Turn, retired: bool) -> None:
        if retired:
            super().prove(turn, retired)

    def retire(self, turn: Turn) -> None:
        self.wait_for_files({turn.name: turn.next})
        if not any(self._runs_patroni(pod) for pod in self.pods()):
            raise EngineError(f"{turn.name} is Patroni's, and postgres_patroni_enabled is false: nobody uses it.")
        self.sql(f"ALTER ROLE {_name(self.user)} PASSWORD {_literal(turn.next)};\n")
        for pod in self.ready_pods():
            self.run(pod, "exec docker-entrypoint.py reload")

    @staticmethod
    def _runs_patroni(pod: Body) -> bool:
        names = {item["name"] for container in pod["spec"]["containers"] for item in container.get("env") or []}
        return "PATRONI_SCOPE" in names


class Cache(Store):
    """Redis: the default user has as many passwords as one likes; each member has to be told, and each sentinel."""

    tier, container = "cache", "redis"
    server, sentinel = "/run/redis/redis.sock", "/run/redis/sentinel.sock"
    master = "redis"  # what the sentinels call it

    def _cli(self, pod: Body, socket: str, *lines: str) -> list[str]:
        """The answers of a member's server or sentinel."""
        script = 'unset REDISCLI_AUTH; head -c "$1" | redis-cli -s "$2"'
        answers = self.run(pod, script, "\n".join(lines) + "\n", socket).split("\n")
        return [line.strip() for line in answers if line.strip()]

    def _sockets(self, pod: Body) -> list[str]:
        """A single member has no sentinel."""
        watched = any(container["name"] == "sentinel" for container in pod["spec"]["containers"])
        return [self.server, self.sentinel] if watched else [self.server]

    def _must(self, pod: Body, turn: Turn, *commands: str, socket: str = server) -> None:
        """Log in with whichever password is valid, then run commands."""
        login = [f"AUTH {_quoted(turn.previous)}", f"AUTH {_quoted(turn.next)}"]
        answers = self._cli(pod, socket, *login, *commands)[len(login) :]
        if answers != ["OK"] * len(commands):
            reason = next((line for line in answers if line != "OK"), "no answer")
            where = f"pod {self.namespace}/{pod['metadata']['name']}, {socket}"
            raise EngineError(f"{turn.name}: {where}: Redis answered {reason[:200]}")

    def accept(self, turn: Turn) -> None:
        self.wait_for_files({f"{turn.name}.accepted": f"{turn.next}\n{turn.previous}\n"})
        for pod in self.ready_pods():
            for socket in self._sockets(pod):
                self._must(pod, turn, f"ACL SETUSER default on {_quoted('>' + turn.next)}", socket=socket)
        for pod in self.ready_pods():
            self._must(pod, turn, f"CONFIG SET masterauth {_quoted(turn.next)}")
            if self.sentinel in self._sockets(pod):
                commands = [
                    f"SENTINEL CONFIG SET sentinel-pass {_quoted(turn.next)}",
                    f"SENTINEL SET {self.master} auth-pass {_quoted(turn.next)}",
                ]
                self._must(pod, turn, *commands, socket=self.sentinel)

    def retire(self, turn: Turn) -> None:
        # A member that started with the old files would take the old password again.
        self.wait_for_files({turn.name: turn.next, f"{turn.name}.accepted": None})
        for pod in self.ready_pods():
            for socket in self._sockets(pod):
                self._must(pod, turn, f"ACL SETUSER default resetpass {_quoted('>' + turn.next)}", socket=socket)

    def takes(self, user: str, value: str) -> bool:
        return all(self._lets_in(pod, socket, value) for pod in self.ready_pods() for socket in self._sockets(pod))

    def _lets_in(self, pod: Body, socket: str, value: str) -> bool:
        return "PONG" in self._cli(pod, socket, f"AUTH {_quoted(value)}", "PING")

    def prove(self, turn: Turn, retired: bool) -> None:
        super().prove(turn, False)
        for pod in self.ready_pods() if retired else []:
            for socket in self._sockets(pod):
                if self._lets_in(pod, socket, turn.previous):
                    where = f"pod {pod['metadata']['name']}, {socket}"
                    raise EngineError(f"{turn.name}: {where}: still takes the old value. Run again.")


class Search(Store):
    """Elasticsearch: a user has one password, so two users take turns, by the API of its security."""

    tier, container = "search", "elasticsearch"
    names = ("elastic", "elastic_alternate")

    @cached_property
    def tls(self) -> tuple[ssl.SSLContext, str]:
        """Whom to trust, and as whom a member is to show itself."""
        return client_context(self.cluster, self.namespace, self.container), f"elasticsearch.{self.namespace}.svc"

    def users(self, current: str) -> tuple[str, str]:
        current = current or self.names[0]
        return current, self.names[1] if current == self.names[0] else self.names[0]

    def _ask(self, pod: Body, user: str, value: str, method: str, path: str, body: Any = None) -> int:
        token = base64.b64encode(f"{user}:{value}".encode()).decode()
        headers = {"Authorization": f"Basic {token}"}
        name = pod["metadata"]["name"]
        reply = http_through_pod(self.cluster, self.namespace, name, 9200, method, path, body, 30, headers, self.tls)
        if reply.status not in (200, 401):
            reason = " ".join(reply.text.split())[:200]
            raise EngineError(f"{method} {path} on pod {self.namespace}/{name} answered {reply.status}: {reason}")
        return reply.status

    def _set(self, turn: Turn, user: str, value: str) -> None:
        """Set a user's password as whoever of the two may, the user itself last."""
        body = {"password": value} | ({} if user == self.names[0] else {"roles": ["superuser"]})
        path = f"/_security/user/{user}" + ("/_password" if user == self.names[0] else "")
        pod = self.ready_pods()[0]
        for who, secret in ((turn.next_user, turn.next), (turn.previous_user, turn.previous)):
            if self._ask(pod, who, secret, "POST", path, body) == 200:
                return
        raise EngineError(f"{turn.name}: Elasticsearch takes neither the old nor the new value.")

    def accept(self, turn: Turn) -> None:
        self._set(turn, turn.next_user, turn.next)

    def retire(self, turn: Turn) -> None:
        self.wait_for_files({turn.name: turn.next, "ELASTICSEARCH_USERNAME": turn.next_user})
        self._set(turn, turn.previous_user, random_value())

    def takes(self, user: str, value: str) -> bool:
        return all(
            self._ask(pod, user, value, "GET", "/_cluster/health?local=true") == 200 for pod in self.ready_pods()
        )


STORES: dict[str, Callable[[Cluster, str, float], Store]] = {
    "DATABASE_PASSWORD": Database,
    "REDIS_PASSWORD": Cache,
    "ELASTICSEARCH_PASSWORD": Search,
    "DATABASE_SUPERUSER_PASSWORD": lambda *args: DatabaseMember(*args, user="postgres"),
    "DATABASE_REPLICATION_PASSWORD": lambda *args: DatabaseMember(*args, user="replicator"),
}


def _leads(pod: Body) -> bool:
    return (pod["metadata"].get("labels") or {}).get("role") in ("master", "primary")


def _sha256(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _name(identifier: str) -> str:
    """An SQL identifier; those that need quoting are refused, as by the image."""
    if not IDENTIFIER.fullmatch(identifier):
        raise EngineError(f"PostgreSQL role {identifier!r}: lower-case letters, digits and underscores only.")
    return f'"{identifier}"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(value: str) -> str:
    """A word of Redis' own command line."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
