"""One run at a time, on a real API server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError

DURATION = 2  # seconds
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "collections")}


@pytest.fixture
def make(cluster, namespace):
    """A lease of this test's name; each call is another run."""

    def made(duration: int = DURATION) -> lease.Lease:
        return lease.Lease(cluster, namespace, "work", "The work", duration)

    return made


@pytest.fixture
def found(cluster, namespace):
    """The Lease as it is, or None."""
    return lambda: cluster.get(lease.LEASE, namespace, "work")


def test_it_is_held_renewed_and_gone(make, found):
    with make() as held:
        first = found()
        assert first["spec"]["holderIdentity"] == held.holder
        while found()["spec"]["renewTime"] == first["spec"]["renewTime"]:
            time.sleep(0.05)
        held.check()
        assert found()["spec"]["acquireTime"] == first["spec"]["acquireTime"]
    assert found() is None


def test_a_failure_gives_it_back(make, found):
    with pytest.raises(ZeroDivisionError), make():
        1 / 0  # noqa: B018
    assert found() is None


def test_while_its_holder_is_alive_another_run_is_refused_and_told_who_it_is(make, found):
    with make() as held:
        expected = f"The work of .* is under way: by {re.escape(held.holder)}, since .* Nothing was changed"
        with pytest.raises(EngineError, match=expected), make():
            pass
        held.check()
    with make():
        pass


def test_of_many_at_once_one_has_it_at_a_time(make):
    at_work, most, refused = set(), [], []
    lock, start = threading.Lock(), threading.Barrier(6)

    def run(number: int) -> None:
        start.wait()
        try:
            with make() as held:
                with lock:
                    at_work.add(number)
                    most.append(len(at_work))
                held.check()
                with lock:
                    at_work.discard(number)
        except EngineError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 6


HOLD = """
import sys, time
from ansible_collections.citadelbuy.platform.plugins.module_utils import connection, lease
cluster = connection.Cluster.from_kubeconfig("test", sys.argv[1])
with lease.Lease(cluster, sys.argv[2], "work", "The work", int(sys.argv[3])) as held:
    print("held", flush=True)
    sys.stdin.readline()
    held.check()
    print("still held", flush=True)
"""


@pytest.fixture
def holder(api_server, namespace):
    """Another process that holds the lease."""
    started = []

    def start(duration: int = DURATION) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, str(api_server.kubeconfig), namespace, str(duration)]
        process = subprocess.Popen(
            words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n", process.communicate()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_of_a_killed_run_it_is_taken_after_its_duration(make, holder, found):
    process = holder()
    process.kill()
    process.wait()
    left = found()
    with make() as held:
        assert found()["spec"]["holderIdentity"] == held.holder
        assert found()["metadata"]["uid"] != left["metadata"]["uid"]


def test_a_run_that_stood_still_does_nothing_more(make, holder, found):
    process = holder()
    os.kill(process.pid, signal.SIGSTOP)
    with make() as held:
        os.kill(process.pid, signal.SIGCONT)
        output, errors = process.communicate("\n")
        assert "still held" not in output
        assert f"another took its place ({held.holder})" in errors
        assert found()["spec"]["holderIdentity"] == held.holder, "the other run took it away"
    assert found() is None


def test_a_worker_ends_when_what_started_it_is_killed(make, api_server, namespace, eventually):
    """As Ansible's workers: sessions of their own, that a signal to their parent's group does not reach."""
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
    worker = HOLD.replace('print("held", flush=True)', "import os; print(os.getpid(), flush=True)")
    worker = worker.replace("sys.stdin.readline()", "time.sleep(600)")
    words = [sys.executable, "-c", parent, worker, str(api_server.kubeconfig), namespace, str(DURATION)]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    stat = Path("/proc", process.stdout.readline().strip(), "stat")
    assert stat.exists()
    process.kill()
    process.wait()
    eventually(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
    with make():
        pass
