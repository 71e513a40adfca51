"""The agent of Redis' members, with real servers and sentinels: who leads, and that nothing acknowledged is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates
from conftest import CHECKOUT, free_port

PYTHON = "/usr/bin/python3"  # Debian's, as in the image
PASSWORD = 'p"ss\\w'
QUOTED = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
CONFIGURATION = CHECKOUT / "roles/redis/templates/20-configmap.yaml.j2"
LATE = 40.0


class Members:
    """Three members: a server, a sentinel and an agent each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = [(free_port(), free_port()) for _ in range(3)]
        self.running: dict[tuple[int, str], subprocess.Popen[bytes]] = {}
        (folder / "secrets").mkdir()
        (folder / "secrets/REDIS_PASSWORD").write_text(PASSWORD)
        (folder / "slice").write_text(" 0")
        for number in range(3):
            (folder / f"run-{number}").mkdir()
        self.authority = certificates.authority("test")
        made = certificates.certificate(["redis.test.svc"], self.authority)
        for name, value in made.items():
            (folder / name).write_text(value)

    def start(self, number: int, *parts: str) -> None:
        """Start what is named of a member, all of it where nothing is."""
        for part in parts or ("server", "sentinel", "agent"):
            self.running[number, part] = getattr(self, f"_{part}")(number)

    def end(self, number: int, *parts: str, by: int = signal.SIGKILL) -> None:
        """End what is named of a member, all of it where nothing is."""
        for part in parts or ("agent", "sentinel", "server"):
            process = self.running.pop((number, part), None)
            if process:
                process.send_signal(by)
                process.wait()

    def _server(self, number: int) -> subprocess.Popen[bytes]:
        data = self.folder / f"data-{number}"
        data.mkdir(exist_ok=True)
        lines = [*self._listen(number, "redis"), f"dir {data}", "appendonly yes", 'save ""']
        # Those that the role writes for several members.
        text = CONFIGURATION.read_text().partition("knows who leads.")[2].partition("{%")[0]
        lines += [line.strip() for line in text.splitlines() if line.strip()]
        lines += [f'requirepass "{QUOTED}"', f'masterauth "{QUOTED}"', "replica-announce-ip 127.0.0.1"]
        return self._run(number, "server", lines)

    def _sentinel(self, number: int) -> subprocess.Popen[bytes]:
        lines = [*self._listen(number, "sentinel"), f"sentinel myid {number + 1:040d}", f"dir {self.folder}"]
        lines += [f'requirepass "{QUOTED}"', f'sentinel sentinel-pass "{QUOTED}"']
        return self._run(number, "sentinel", lines, "--sentinel")

    def _listen(self, number: int, part: str) -> list[str]:
        """By TLS on a port, and on the socket."""
        port = self.ports[number][part == "sentinel"]
        files = {"cert": "tls.crt", "key": "tls.key", "ca-cert": "ca.crt"}
        lines = [f"tls-{name}-file {self.folder / file}" for name, file in files.items()]
        lines += ["port 0", f"tls-port {port}", "tls-auth-clients no", "tls-replication yes"]
        lines.append(f"bind 127.0.0.1 {self.pod(number)}")
        return [*lines, f"unixsocket {self.folder}/run-{number}/{part}.sock"]

    def pod(self, number: int) -> str:
        """The address of its pod; that of its Service is 127.0.0.1."""
        return f"127.0.1.{number + 1}"

    def _run(self, number: int, part: str, lines: list[str], *more: str) -> subprocess.Popen[bytes]:
        file = self.folder / f"{part}-{number}.conf"
        file.write_text("".join(f"{line}\n" for line in lines))
        return subprocess.Popen(["redis-server", str(file), *more], stdout=self._log(number, part))

    def _agent(self, number: int) -> subprocess.Popen[bytes]:
        ports = [f"{server}:{sentinel}" for server, sentinel in self.ports]
        command = [PYTHON, str(CHECKOUT / "tests/unit/redis_member.py"), str(self.folder), str(number), *ports]
        env = os.environ | {"SENTINEL_DOWN_AFTER": "3000"}
        return subprocess.Popen(command, env=env, stdout=self._log(number, "agent"), stderr=subprocess.STDOUT)

    def _log(self, number: int, part: str):
        return (self.folder / f"{part}-{number}.log").open("ab")

    def __call__(self, number: int, *words: object, sentinel: bool = False) -> str:
        """An answer of a member's server, or of its sentinel."""
        socket = self.folder / f"run-{number}" / ("sentinel.sock" if sentinel else "redis.sock")
        command = ["redis-cli", "-s", str(socket), *map(str, words)]
        env = os.environ | {"REDISCLI_AUTH": PASSWORD}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30).stdout.strip()

    def role(self, number: int) -> str:
        """What a server says that it is: master, slave, or nothing."""
        return self(number, "ROLE").partition("\n")[0]

    def link(self, number: int) -> str:
        """Of a replica, whether it follows: up, or down."""
        lines = self(number, "INFO", "replication").split()
        return next((line.partition(":")[2] for line in lines if line.startswith("master_link_status")), "")

    def leader(self) -> int:
        """Whom the slice names; -1: nobody."""
        name = (self.folder / "slice").read_text().partition(" ")[0]
        return int(name.removeprefix("redis-")) if name else -1

    def whole(self) -> bool:
        """Whether one leads, the others follow it, and the slice and all sentinels name it."""
        leader = self.leader()
        if leader < 0 or self.role(leader) != "master":
            return False
        named = [self(number, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "redis", sentinel=True) for number in range(3)]
        if any(name.split() != ["127.0.0.1", str(self.ports[leader][0])] for name in named):
            return False
        others = [number for number in range(3) if number != leader]
        known = [
            self(number, "SENTINEL", "REPLICAS", "redis", sentinel=True).count("slave-repl-offset")
            for number in range(3)
        ]
        ready = [self(number, "CONFIG", "GET", "replica-priority").split()[-1:] for number in range(3)]
        return all(self.link(number) == "up" for number in others) and known == [2] * 3 and ready == [["100"]] * 3

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Look until a condition holds."""
        end = time.monotonic() + LATE
        while not condition():
            assert time.monotonic() < end, f"{what}: not after {LATE:.0f} s\n{self.told()}"
            time.sleep(0.1)

    def told(self) -> str:
        """What the agents have said."""
        return "\n".join(f"{file.name}:\n{file.read_text()}" for file in sorted(self.folder.glob("agent-*.log")))

    def write(self, count: int, start: int = 0) -> list[int]:
        """Write keys by whom the slice names; those that a replica has acknowledged."""
        leader, done = self.leader(), []
        for number in range(start, start + count):
            lines = f"SET key{number} {number}\nWAIT 1 1000\n"
            command = ["redis-cli", "-s", str(self.folder / f"run-{leader}/redis.sock")]
            env = os.environ | {"REDISCLI_AUTH": PASSWORD}
            answer = subprocess.run(command, env=env, input=lines, capture_output=True, text=True, check=False).stdout
            if answer.split()[:1] == ["OK"] and answer.split()[1:] not in ([], ["0"]):
                done.append(number)
        return done

    def missing(self, keys: list[int]) -> list[int]:
        """Which of these keys whom the slice names has not."""
        leader = self.leader()
        return [number for number in keys if self(leader, "GET", f"key{number}") != str(number)]


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    """Three that have just been made."""
    found = Members(tmp_path)
    try:
        for number in range(3):
            found.start(number)
        found.wait(found.whole, "three new members are whole")
        yield found
    finally:
        for number in range(3):
            found.end(number)


def test_the_first_member_of_a_new_set_leads(members: Members) -> None:
    assert members.leader() == 0
    assert len(members.write(20)) == 20
    assert members.missing(list(range(20))) == []


def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(members: Members) -> None:
    keys = members.write(50)
    members.end(0, "server")
    members.start(0, "server")
    members.wait(lambda: members.leader() != 0, "another member leads")
    members.wait(members.whole, "the former master follows")
    assert members.missing(keys) == []
    assert "was asked for a failover" in members.told()


def test_a_member_that_is_gone_is_replaced(members: Members) -> None:
    keys = members.write(50)
    members.end(0)
    members.wait(lambda: members.leader() not in (0, -1), "another member leads")
    members.wait(lambda: len(members.write(1, 1000)) == 1, "it takes writes")
    assert members.missing(keys) == []
    members.start(0)
    members.wait(members.whole, "it is back")


def test_an_agent_that_ends_hands_over(members: Members) -> None:
    keys = members.write(50)
    members.end(0, "agent", by=signal.SIGTERM)
    assert (members.folder / "run-0/left").exists()
    assert "was asked for a failover" in (members.folder / "agent-0.log").read_text(), (
        "else Sentinel alone did it, late"
    )
    assert members.role(0) == "slave"
    assert members.leader() not in (0, -1), "it has ended while clients were led to it"
    members.end(0, "sentinel", "server", by=signal.SIGTERM)
    members.wait(lambda: len(members.write(1, 1000)) == 1, "it takes writes")
    assert members.missing(keys) == []


def test_all_come_back_as_they_were(members: Members) -> None:
    members.end(0, "server")
    members.start(0, "server")
    members.wait(lambda: members.leader() != 0, "another member leads")
    members.wait(members.whole, "all follow it")
    leader, keys = members.leader(), members.write(50)
    for part in ("agent", "server", "sentinel"):
        for number in range(3):
            members.end(number, part)
    for number in (0, 1, 2):
        members.start(number)
    members.wait(members.whole, "three are whole")
    assert members.leader() == leader, "the one whose data is the newest"
    assert members.missing(keys) == []


def test_a_leader_that_has_lost_its_data_does_not_lead_those_who_have_it(members: Members) -> None:
    keys = members.write(50)
    for number in range(3):
        members.end(number)
    shutil.rmtree(members.folder / "data-0")
    for number in range(3):
        members.start(number)
    members.wait(lambda: members.leader() not in (0, -1), "a member with data leads")
    members.wait(members.whole, "three are whole")
    assert members.missing(keys) == []


def test_a_new_slice_makes_the_first_member_lead_whoever_led_before(members: Members) -> None:
    """As after a time with one member, when the others' volumes are old; and after a restore."""
    members.end(0, "server")
    members.start(0, "server")
    members.wait(lambda: members.leader() != 0, "another member leads")
    for number in range(3):
        members.end(number)
    (members.folder / "slice").write_text(" 0")
    for number in (2, 1, 0):
        members.start(number)
    members.wait(members.whole, "three are whole")
    assert members.leader() == 0


def test_a_server_without_its_agent_takes_no_write(members: Members) -> None:
    for number in range(3):
        members.end(number)
    members.start(0, "server", "sentinel")
    members.wait(lambda: members(0, "PING") == "PONG", "it serves")
    assert members(0, "SET", "a", "b").startswith("READONLY")
    assert members(0, "CONFIG", "GET", "replica-priority").split()[-1] == "0"


@pytest.mark.parametrize("dies", [False, True])
def test_all_sentinels_may_be_started_anew_at_once(members: Members, dies: bool) -> None:
    """As a renewed certificate does it; even where the master's server dies in that moment, nothing is lost."""
    keys = members.write(50)
    for number in range(3):
        members.end(number, "sentinel", by=signal.SIGTERM)
    for number in range(3):
        members.start(number, "sentinel")
    if dies:
        members.end(0, "server")
        members.start(0, "server")
    else:
        keys += (more := members.write(50, 50))
        assert len(more) == 50, "writes go on"
    members.wait(members.whole, "three are whole")
    assert dies or members.leader() == 0
    assert members.missing(keys) == []


def test_a_sentinel_that_does_not_sleep_connects_anew(members: Members) -> None:
    def connections() -> set[str]:
        """Those of sentinels to the first server, and to the second sentinel."""
        listed = [*members(0, "CLIENT", "LIST").splitlines(), *members(1, "CLIENT", "LIST", sentinel=True).splitlines()]
        return {line.split()[0] + line.split()[1] for line in listed if "name=sentinel-" in line}

    members.wait(lambda: len(connections()) == 8, "each sentinel has its connections")
    before = connections()
    socket = members.folder / "run-0/sentinel.sock"
    command = ["redis-benchmark", "-s", str(socket), "-a", PASSWORD, "-n", "1000000000", "-q", "ping"]
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        members.wait(lambda: "it connects anew" in members.told(), "the agent sees it")
    finally:
        load.kill()
        load.wait()
    members.wait(lambda: len(connections()) == 8 and len(connections() & before) <= 5, "new connections")
    members.wait(members.whole, "nothing has changed")
    assert members.leader() == 0


def test_a_master_that_is_known_by_its_pods_address_is_known_by_its_service_again(members: Members) -> None:
    for number in range(3):
        members(number, "SENTINEL", "REMOVE", "redis", sentinel=True)
        members(number, "SENTINEL", "MONITOR", "redis", members.pod(0), members.ports[0][0], 2, sentinel=True)
    members.wait(lambda: "by its pod's address" in members.told(), "its agent sees it")
    members.wait(members.whole, "the sentinels watch its Service")
    assert members.leader() == 0


def test_a_replica_that_is_known_by_its_pods_address_too_is_not_made_to_follow_itself(members: Members) -> None:
    """As a sentinel has it follow before it calls itself by its Service: its master tells of it so for good."""
    members(1, "CONFIG", "SET", "replica-announce-ip", members.pod(1))
    members(1, "CLIENT", "KILL", "TYPE", "master")

    def known(number: int) -> bool:
        return members.pod(1) in members(number, "SENTINEL", "REPLICAS", "redis", sentinel=True)

    members.wait(lambda: any(known(number) for number in range(3)), "the sentinels learn of it")
    members(1, "CONFIG", "SET", "replica-announce-ip", "127.0.0.1")
    members(1, "CLIENT", "KILL", "TYPE", "master")
    members.wait(lambda: not any(known(number) for number in range(3)), "they forget it")
    members.wait(members.whole, "three are whole")
    assert "is to forget 127.0.1.2: it is redis-1" in members.told()
