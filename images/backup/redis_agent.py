"""What a member of Redis does beside others: it follows whom Sentinel names, and brings Service `redis` to the master.

A server starts as a replica of nobody, which takes no write and whose data nobody copies. Its agent asks all sentinels
who leads. What a majority names is true; while none does, it is who the EndpointSlice `redis` names, and on an empty
slice the first member. The slice is the only memory: nothing on a volume has an opinion.

A member's `replica-priority` is 0 from its start until it has followed the master, and again once it is to end:
Sentinel promotes none with 0. So a server that has come back with old data is not promoted while one lives that has the
newest.

Others are reached by TLS, the servers beside by their sockets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redis_tls

Info = dict[str, Any]
Place = tuple[str, int] | Path
"""Address and port of another's server, or the socket of one beside."""

NAME = "redis"
"""Of the master for Sentinel, of the Service and of the EndpointSlice."""

NOWHERE = "127.0.0.1"
"""Whom a server follows that has just started."""

PRIORITY = 100
PERIOD = 0.25
"""Seconds between looks."""

ANSWER = 1.0
"""Seconds for an answer of a member."""

GRACE = 10.0
"""Seconds in which Sentinel may bring a failover to its end, before a server that differs from it is corrected."""

ALONE = 30.0
"""Seconds after which a server with data may be promoted though it has not followed the master since its start."""

LEAVE = 12.0
"""Seconds for handing over; then the server is ended, and Sentinel replaces it."""

STAY = 2.0
"""Seconds that a server stays when the slice names another: clients who are still led to it are refused at once, and
ask again. kube-proxy changes its rules at most once a second, and of a pod that is gone they would hear nothing."""

SEEN = 5.0
"""Seconds after which the slice is read again, and the sentinels are asked by which addresses they know this member."""

WEIGH = 5.0
"""Seconds between looks at how much of a CPU the sentinel beside takes."""

BUSY = 0.1
"""Share of a CPU; a sentinel with work to do takes a tenth of it."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Problem(Exception):
    """What happened, to which object, and what to do."""


@dataclass(frozen=True)
class Member:
    """A member, by an address that stays when its pod gets another."""

    name: str
    address: str
    port: int = 6379
    sentinel: int = 26379


class Links:
    """Connections to members; each password that is valid during a rotation is tried."""

    def __init__(self, secrets: Path, authority: Path, name: str) -> None:
        """Nothing is sent.

        :param secrets: folder with the passwords.
        :param authority: file with the certificate that the members' is signed by.
        :param name: one of those in the members' certificate.
        """
        self.secrets, self.authority, self.name = secrets, authority, name
        self.clients: dict[tuple[Place, str], redis.Redis] = {}

    def passwords(self) -> list[str]:
        """The one in use, then those that a rotation has under way."""
        found = [(self.secrets / "REDIS_PASSWORD").read_text().strip()]
        accepted = self.secrets / "REDIS_PASSWORD.accepted"
        if accepted.exists():
            found += accepted.read_text().split("\n")
        return list(dict.fromkeys(value for value in found if value))

    def ask(self, place: Place, *command: Any) -> Any:
        """The answer to a command.

        :raises redis.RedisError: there is none, or it is an error.
        """
        refused: redis.RedisError | None = None
        for password in self.passwords():
            key = (place, password)
            if key not in self.clients:
                self.clients[key] = self._client(place, password)
            try:
                return self.clients[key].execute_command(*command)
            except redis.AuthenticationError as error:
                self.clients.pop(key).close()
                refused = error
        raise refused or redis.AuthenticationError("REDIS_PASSWORD is empty")

    def _client(self, place: Place, password: str) -> redis.Redis:
        common = {
            "password": password,
            "socket_timeout": ANSWER,
            "decode_responses": True,
            "client_name": "redis-agent",
        }
        if isinstance(place, Path):
            return redis.Redis(unix_socket_path=str(place), **common)
        return redis_tls.client(*place, self.authority, self.name, socket_connect_timeout=ANSWER, **common)


class Slice:
    """The EndpointSlice that Service `redis` leads by."""

    def __init__(self, member: str, address: str) -> None:
        self.member, self.address = member, address
        self.namespace = (ACCOUNT / "namespace").read_text().strip()

    def read(self) -> tuple[str, str, str]:
        """Who is named, at which address, and the version of that; empty where nobody is.

        :raises Problem: it cannot be read.
        """
        found = self._ask("GET")
        for endpoint in found.get("endpoints") or []:
            name = (endpoint.get("targetRef") or {}).get("name", "")
            return name, endpoint["addresses"][0], found["metadata"]["resourceVersion"]
        return "", "", found["metadata"]["resourceVersion"]

    def write(self, version: str) -> None:
        """Name this member, if nobody has written since.

        :raises Problem: it could not be written.
        """
        target = {"kind": "Pod", "namespace": self.namespace, "name": self.member}
        endpoint = {"addresses": [self.address], "conditions": {"ready": True}, "targetRef": target}
        if node := os.environ.get("NODE_NAME"):
            endpoint["nodeName"] = node
        self._ask("PATCH", {"metadata": {"resourceVersion": version}, "endpoints": [endpoint]})

    def _ask(self, method: str, body: Any = None) -> Any:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        host = f"[{host}]" if ":" in host else host
        path = f"apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices/{NAME}?fieldManager=redis-agent"
        headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"}
        headers["Content-Type"] = "application/merge-patch+json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://{host}:{port}/{path}", data, headers, method=method)
        tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        try:
            with urllib.request.urlopen(request, timeout=3, context=tls) as answer:
                return json.load(answer)
        except (OSError, ValueError) as error:
            what = f"EndpointSlice {self.namespace}/{NAME}: the API server does not take {method}"
            raise Problem(f"{what}: {error}") from None


class Agent:
    """The agent of one member."""

    def __init__(
        self, members: list[Member], me: Member, links: Links, record: Slice, run: Path, say: Callable[[str], None]
    ) -> None:
        """Nothing is sent.

        :param record: what Service `redis` leads by.
        :param run: folder that the member's containers share.
        """
        self.members, self.me, self.links, self.record, self.run, self._say = members, me, links, record, run, say
        self.others = [member for member in members if member != me]
        self.settings = {
            "down-after-milliseconds": os.environ.get("SENTINEL_DOWN_AFTER", "5000"),
            "failover-timeout": os.environ.get("SENTINEL_FAILOVER_TIMEOUT", "6000"),
            "parallel-syncs": "1",
        }
        self.pool = ThreadPoolExecutor(len(members) * 2)
        self.leader: Member | None = None
        self.led = False  # whether a majority has named this member, and it was the master
        self.former: Member | None = None  # whom the majority named before
        self.changed = 0.0  # when that ended
        self.wrong = self.headless = self.cold = self.seen = self.asked = 0.0
        self.serves = False
        self.weighed = self.used = self.known = 0.0
        self.said = ""

    def say(self, line: str) -> None:
        """Tell a line once."""
        if line != self.said:
            self.said = line
            self._say(line)

    # Questions

    def server(self, member: Member) -> Place:
        """Of a member."""
        return self.run / "redis.sock" if member == self.me else (member.address, member.port)

    def sentinel(self, member: Member) -> Place:
        """Of a member."""
        return self.run / "sentinel.sock" if member == self.me else (member.address, member.sentinel)

    def own(self, *command: Any) -> Any:
        """An answer of this member's server."""
        return self.links.ask(self.server(self.me), *command)

    def votes(self) -> dict[Member, str | None]:
        """Whose address each sentinel names: empty where it knows none, None where it does not answer."""

        def ask(member: Member) -> str | None:
            try:
                found = self.links.ask(self.sentinel(member), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
            except redis.RedisError:
                return None
            return f"{found[0]}:{found[1]}" if found else ""

        return dict(zip(self.members, self.pool.map(ask, self.members), strict=True))

    def majority(self, votes: dict[Member, str | None]) -> Member | None:
        """Whom more than half of all sentinels name."""
        named = [vote for vote in votes.values() if vote]
        for member in self.members:
            if named.count(f"{member.address}:{member.port}") * 2 > len(self.members):
                return member
        return None

    def look(self, member: Member) -> Info | None:
        """INFO of a server; None where it does not answer, and empty where nothing listens."""
        try:
            return self.links.ask(self.server(member), "INFO")
        except redis.TimeoutError:
            return None
        except redis.ConnectionError:
            return {}
        except redis.RedisError:
            return None

    def look_around(self) -> dict[Member, Info]:
        """INFO of the others that answer."""
        found = zip(self.others, self.pool.map(self.look, self.others), strict=True)
        return {member: info for member, info in found if info}

    # What is done each time

    def tick(self) -> None:
        """Look, and do what is to be done."""
        votes = self.votes()
        leader = self.majority(votes)
        if votes[self.me] == "" and (known := leader or self.recorded()):
            self.introduce(known, self.me)
        if votes[self.me]:
            self.unstick()
        if leader is None:
            if self.named_by_pod(votes):
                self._say(f"the sentinels know {self.me.name} by its pod's address: they are to watch its Service")
                self.yield_to(self.me)
            else:
                self.say("no majority of the sentinels names a master")
            return
        if leader != self.leader:
            now = time.monotonic()
            self.former, self.changed = self.leader, now
            self.leader, self.wrong, self.headless, self.cold = leader, 0.0, 0.0, now
            self.say(f"the master is {leader.name}")
        info = self.look(self.me)
        if leader == self.me:
            self.lead(info)
        else:
            self.serves = False
            if info:
                self.follow(leader, info)
        self.known_once(leader, votes)

    def named_by_pod(self, votes: dict[Member, str | None]) -> bool:
        """Whether more than half of all sentinels name this member, but by its pod's address."""
        named = list(votes.values()).count(f"{self.record.address}:{self.me.port}")
        return self.record.address != self.me.address and named * 2 > len(self.members)

    def known_once(self, leader: Member, votes: dict[Member, str | None]) -> None:
        """Have sentinels forget a replica with this pod's address.

        A server is known by its Service. Where a sentinel has learnt of it by its pod, it is two for it, and once it
        leads, the sentinel has "the other one" follow it, that is, the master follow itself. One that has not just
        answered is not asked: that would hold up what is to be done next.
        """
        now = time.monotonic()
        if now - self.known < SEEN or self.record.address == self.me.address:
            return
        self.known = now
        for member in (member for member, vote in votes.items() if vote):
            try:
                rows = [pairs(row) for row in self.links.ask(self.sentinel(member), "SENTINEL", "REPLICAS", NAME)]
                if (self.record.address, str(self.me.port)) not in [(row["ip"], row["port"]) for row in rows]:
                    continue
                master = pairs(self.links.ask(self.sentinel(member), "SENTINEL", "MASTER", NAME))
                if "failover_in_progress" not in master["flags"]:
                    self._say(f"the sentinel of {member.name} is to forget {self.record.address}: it is {self.me.name}")
                    self.introduce_anew(leader, member)
            except redis.RedisError:
                continue  # asked again

    def unstick(self) -> None:
        """Have the sentinel beside make its connections anew where it is busy.

        Where a Service has no member yet, the first packet of a connection is refused while `connect` holds the socket;
        Linux (`tcp_v4_err`) then queues the error and goes on. Where the next packet is taken, the connection works and
        has an error for good, and a sentinel, which never reads it, does not sleep any more.
        """
        now = time.monotonic()
        if now - self.weighed < WEIGH:
            return
        spent = self.links.ask(self.sentinel(self.me), "INFO", "CPU")
        used = spent["used_cpu_user"] + spent["used_cpu_sys"]
        share = (used - self.used) / (now - self.weighed) if self.weighed else 0.0
        self.weighed, self.used = now, used
        if share > BUSY:
            password = self.links.passwords()[0]
            # Each ends the connections that the password is for, also where it is the same: to servers, to sentinels.
            self.links.ask(self.sentinel(self.me), "SENTINEL", "SET", NAME, "auth-pass", password)
            self.links.ask(self.sentinel(self.me), "SENTINEL", "CONFIG", "SET", "sentinel-pass", password)
            self._say(f"the sentinel beside took {share:.0%} of a CPU: it connects anew")

    def recorded(self) -> Member | None:
        """Who led last; the first member where nobody has."""
        try:
            name, _address, _version = self.record.read()
        except Problem as error:
            self.say(str(error))
            return None
        return next((member for member in self.members if member.name == name), self.members[0])

    def yield_to(self, heir: Member) -> None:
        """Have all sentinels watch another one; they know no replica of a master that has never been one."""
        for member in self.members:
            try:
                self.introduce_anew(heir, member)
            except redis.RedisError as error:
                self._say(f"the sentinel of {member.name} does not watch {heir.name}: {error}")

    def introduce_anew(self, leader: Member, member: Member) -> None:
        """Have the sentinel of a member forget what it knows, and tell it whom to watch."""
        self.links.ask(self.sentinel(member), "SENTINEL", "REMOVE", NAME)
        self.introduce(leader, member)

    def introduce(self, leader: Member, member: Member) -> None:
        """Tell the sentinel of a member whom to watch."""
        quorum = len(self.members) // 2 + 1
        password = self.links.passwords()[0]
        words = [word for pair in self.settings.items() for word in pair]

        def tell(*command: Any) -> None:
            self.links.ask(self.sentinel(member), "SENTINEL", *command)

        tell("CONFIG", "SET", "announce-ip", member.address)
        tell("CONFIG", "SET", "announce-port", member.sentinel)
        # It compares the replicas by what it has read last; by default that is up to 10 seconds old.
        tell("DEBUG", "info-period", 500)
        tell("MONITOR", NAME, leader.address, leader.port, quorum)
        try:
            tell("SET", NAME, *words, "auth-pass", password)
        except redis.RedisError:
            tell("REMOVE", NAME)
            raise
        self.say(f"the sentinel of {member.name} watches {leader.name}")

    def lead(self, info: Info | None) -> None:
        """Where this member is named."""
        if info and info["role"] == "master":
            if not self.led:
                self.own("CONFIG", "SET", "replica-priority", PRIORITY)
                self._say(f"{self.me.name} leads")
            self.led, self.headless = True, 0.0
            self.serve()
            return
        if info is None:
            return
        # Its server has ended, or has come back with what it had on its volume: a replica may have more.
        now = time.monotonic()
        self.led, self.headless, self.serves = False, self.headless or now, False
        around = self.look_around()
        if now - self.headless < GRACE and self.pass_on(around):
            return
        if not info or info["loading"]:
            return
        heirs = {keys(other): member for member, other in around.items() if keys(other)}
        if not keys(info) and heirs:
            self.say(f"{self.me.name} has no data, and {', '.join(heir.name for heir in heirs.values())} has")
            if now - self.headless > GRACE:
                self.yield_to(heirs[max(heirs)])
        elif keys(info) or (len(around) + 1) * 2 > len(self.members):
            self.own("REPLICAOF", "NO", "ONE")
            self.say(f"{self.me.name} is made the master with the data of its volume")

    def pass_on(self, around: dict[Member, Info]) -> bool:
        """Have the sentinels promote a replica now, where all have followed this member to its end.

        Returns whether that is so.
        """
        if len(around) < len(self.others) or not all(follows(info, self.me) for info in around.values()):
            return False
        if not any(info["slave_priority"] for info in around.values()):
            return False
        if any(info["master_link_status"] == "up" for info in around.values()):
            return True  # it is about to notice
        self.fail_over({member: info["slave_repl_offset"] for member, info in around.items()})
        return True

    def fail_over(self, offsets: dict[Member, int]) -> None:
        """Ask for a failover the sentinel that knows the newest master.

        :param offsets: how far the replicas are. It is asked when it has seen that, too; empty: all are as far.
        """
        if time.monotonic() - self.asked < 2:
            return
        known = []
        for member in self.members:
            try:
                master = pairs(self.links.ask(self.sentinel(member), "SENTINEL", "MASTER", NAME))
                rows = [pairs(row) for row in self.links.ask(self.sentinel(member), "SENTINEL", "REPLICAS", NAME)]
            except redis.RedisError:
                continue
            if (master["ip"], int(master["port"])) != (self.me.address, self.me.port):
                continue  # it would replace the new one
            seen = {(row["ip"], int(row["port"])): int(row["slave-repl-offset"]) for row in rows}
            known.append((int(master["config-epoch"]), member != self.me, member, seen))
        for _epoch, _other, member, seen in sorted(known, key=lambda item: item[:2], reverse=True):
            wanted = {(other.address, other.port): offset for other, offset in offsets.items()}
            if len(set(wanted.values())) > 1 and wanted.items() - seen.items():
                return
            try:
                self.links.ask(self.sentinel(member), "SENTINEL", "FAILOVER", NAME)
            except redis.RedisError as error:
                self.say(f"the sentinel of {member.name} does not fail over: {error}")
                if not str(error).startswith("INPROG"):
                    continue
            self.asked = time.monotonic()
            self._say(f"the sentinel of {member.name} was asked for a failover")
            return

    def follow(self, leader: Member, info: Info) -> None:
        """Where another one is named."""
        now = time.monotonic()
        if info["role"] == "slave" and follows(info, leader):
            self.led, self.wrong = False, 0.0
            if info["master_link_status"] == "up":
                self.cold = 0.0
            else:
                self.cold = self.cold or now
            late = self.cold and now - self.cold > ALONE and keys(info) and not info["master_sync_in_progress"]
            if not info["slave_priority"] and (info["master_link_status"] == "up" or late):
                self.own("CONFIG", "SET", "replica-priority", PRIORITY)
                self._say(f"{self.me.name} follows {leader.name}" if not late else f"{self.me.name} may be promoted")
            return
        # What Sentinel does in a failover, it does before a majority names the new master.
        self.wrong = self.wrong or now
        known = info["role"] == "slave" and (info["master_host"], info["master_port"]) == (NOWHERE, 1)
        known |= bool(self.former and follows(info, self.former)) and now - self.changed < GRACE
        if known or self.led or now - self.wrong > GRACE:
            self.become_replica(leader, info)

    def become_replica(self, leader: Member, info: Info) -> None:
        """Follow another one; clients of a former master are sent away."""
        self.own("REPLICAOF", leader.address, leader.port)
        if info["role"] == "master":
            self.own("CLIENT", "KILL", "TYPE", "normal")
        self.led, self.wrong = False, 0.0
        self._say(f"{self.me.name} is to follow {leader.name}")

    def serve(self) -> None:
        """Have Service `redis` lead to this member; asked again after the version was read, so none newer is undone."""
        now = time.monotonic()
        if self.serves and now - self.seen < SEEN:
            return
        try:
            name, address, version = self.record.read()
            self.seen = now
            self.serves = (name, address) == (self.record.member, self.record.address)
            if not self.serves and self.majority(self.votes()) == self.me:
                self.record.write(version)
                self.serves = True
                self._say(f"Service {NAME} leads to {self.me.name}")
        except Problem as error:
            self.say(str(error))

    # The end of the pod

    def leave(self) -> None:
        """Hand over, and let the server end; its preStop waits for the file `left`."""
        (self.run / "leaving").touch()
        end, led = time.monotonic() + LEAVE, self.led
        self.asked = 0.0
        try:
            while time.monotonic() < end:
                try:
                    if self.may_leave():
                        break
                except redis.RedisError as error:
                    self.say(f"{self.me.name} ends: {error}")
                time.sleep(0.05)
            if led and self.majority(self.votes()) not in (None, self.me):
                self.stay(end)
        finally:
            (self.run / "left").touch()
            self._say(f"{self.me.name} ends")

    def stay(self, end: float) -> None:
        """Answer until clients are led to the new master."""
        try:
            while time.monotonic() < end and self.record.read()[0] == self.record.member:
                time.sleep(0.1)
        except Problem as error:
            self.say(str(error))
        time.sleep(STAY)

    def may_leave(self) -> bool:
        """Whether nothing is lost by it: a master hands over, a replica outlives a master that ends, too."""
        self.own("CONFIG", "SET", "replica-priority", 0)
        info = self.look(self.me)
        if not info:
            return True
        leader = self.majority(self.votes())
        if info["role"] != "master":
            leader = leader or next((member for member in self.others if follows(info, member)), None)
            if leader in (None, self.me) or info["master_link_status"] != "up":
                return True
            return bool(int(self.links.ask(self.server(leader), "CONFIG", "GET", "replica-priority")[1]))
        if leader not in (None, self.me):
            self.become_replica(leader, info)
            self.own("CLIENT", "UNPAUSE")
            return True
        self.own("CLIENT", "PAUSE", int(LEAVE * 1000), "WRITE")
        if leader == self.me:
            self.serve()
        info = self.look(self.me) or info
        replicas = [item for item in self.look_around().values() if follows(item, self.me)]
        linked = [item for item in replicas if item["master_link_status"] == "up"]
        if any(item["slave_repl_offset"] < info["master_repl_offset"] for item in linked):
            return False
        heirs = [item for item in linked if item["slave_priority"]]
        if not heirs and not self.asked:
            return True
        self.fail_over({})
        return False


def follows(info: Info, member: Member) -> bool:
    """Whether a server is a replica of a member."""
    return info["role"] == "slave" and (info["master_host"], info["master_port"]) == (member.address, member.port)


def pairs(row: list[str]) -> dict[str, str]:
    """What Sentinel tells of an instance."""
    return dict(zip(row[::2], row[1::2], strict=True))


def keys(info: Info) -> int:
    """How many a server has."""
    return sum(value["keys"] for key, value in info.items() if key.startswith("db") and key[2:].isdigit())


def resolve(name: str) -> str:
    """The address of a member's Service; it stays. Asked until DNS has it."""
    while True:
        try:
            return socket.gethostbyname(name)
        except OSError as error:
            print(f"{name} has no address: {error}", flush=True)
            time.sleep(1)


def serve_until(ended: threading.Event, agent: Agent) -> None:
    """Look again and again, then hand over."""
    for file in ("leaving", "left"):
        (agent.run / file).unlink(missing_ok=True)
    while not ended.is_set():
        try:
            agent.tick()
        except redis.RedisError as error:
            agent.say(f"{type(error).__name__}: {error}")
        (agent.run / "agent").touch()
        ended.wait(PERIOD)
    agent.leave()


def main() -> None:
    """Run until the pod ends."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: ended.set())
    name, number = os.environ["REDIS_MEMBER"], int(os.environ["REDIS_MEMBERS"])
    record, run = Slice(name, os.environ["POD_IP"]), Path(os.environ["REDIS_RUN"])
    authority = Path(os.environ["REDIS_CA_FILE"])
    links = Links(Path(os.environ["REDIS_SECRETS"]), authority, f"{NAME}.{record.namespace}.svc")
    # The short name is the pod itself where the pod has it.
    members = [Member(f"{NAME}-{index}", resolve(f"{NAME}-{index}.{record.namespace}.svc")) for index in range(number)]
    me = next(member for member in members if member.name == name)
    serve_until(ended, Agent(members, me, links, record, run, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
