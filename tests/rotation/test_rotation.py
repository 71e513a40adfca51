"""Rotation on a running platform: under load, killed at every step, with nothing shown. `make drill-rotation` runs it.

The platform is the one that CITADELBUY_ROTATION_CLUSTER names, an embedded cluster that make brings up. The tests
share it and run in order.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from secret_search import Search

ROOT = Path(__file__).parents[2]
NAME = os.environ.get("CITADELBUY_ROTATION_CLUSTER", "")
PORT = os.environ.get("CITADELBUY_ROTATION_PORT", "17443")
NODE = f"{NAME}.node1"
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
VARIABLES = {
    "local_cluster_name": NAME,
    "local_cluster_api_port": PORT,
    # The load comes from one address.
    **dict.fromkeys(
        (f"configuration_rate_limit_{kind}" for kind in ("public_max", "max_requests", "search_max")), 10**6
    ),
}
SECRETS = ("citadelbuy-secrets", "citadelbuy-postgres")
STEP = re.compile(r"^local: .*")

pytestmark = pytest.mark.skipif(not NAME, reason="make drill-rotation brings the cluster that this needs")


def command(name: str, *arguments: str, **variables: object) -> list[str]:
    """How a playbook of this project is run on the cluster."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    extra = json.dumps(VARIABLES | variables)
    return [program, f"playbooks/{name}.yml", "-i", "inventories/local", "--extra-vars", extra, *arguments]


def playbook(name: str, *arguments: str, **variables: object) -> str:
    """Run a playbook; it must end well. Returns what it printed."""
    words = command(name, *arguments, **variables)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout + done.stderr


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl on the cluster and return what it printed."""
    program = max(CACHE.glob("binaries/*/kubectl"), key=lambda path: path.stat().st_mtime)
    words = [str(program), "--kubeconfig", f"/var/lib/citadelbuy/{NAME}/admin.conf", "-n", "citadelbuy", *arguments]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def secrets() -> dict[str, str]:
    """All values of the platform's Secrets."""
    bodies = [json.loads(kubectl("get", "secret", name, "-o", "json")) for name in SECRETS]
    return {key: base64.b64decode(value).decode() for body in bodies for key, value in (body.get("data") or {}).items()}


def restarts() -> dict[str, tuple[str, int]]:
    """Of each pod of a store: its identity, and how often its containers were started anew."""
    pods = json.loads(kubectl("get", "pods", "-l", "tier in (database,cache,search)", "-o", "json"))["items"]
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(status["restartCount"] for status in pod["status"]["containerStatuses"]),
        )
        for pod in pods
    }


def accepted(values: dict[str, str]) -> dict[str, bool]:
    """Whether each store lets these credentials in, asked from the node's network by the stores' own clients."""
    pod = json.loads(kubectl("get", "pod", "postgres-0", "-o", "json"))["status"]["podIP"]

    def database(user: str, key: str) -> bool:
        script = (
            "read -r PGPASSWORD; export PGPASSWORD PGSSLMODE=verify-full PGSSLROOTCERT=/etc/citadelbuy/tls/ca.crt; "
            f"psql -X -At 'host=postgres hostaddr={pod} dbname=postgres user={user}' -c 'SELECT 1' 2>/dev/null || true"
        )
        words = ("exec", "-i", "postgres-0", "-c", "postgres", "--", "sh", "-c", script)
        return kubectl(*words, stdin=values[key] + "\n").strip() == "1"

    cache = kubectl(
        *("exec", "-i", "redis-0", "-c", "redis", "--", "redis-cli", "-s", "/run/redis/redis.sock"),
        stdin=f'AUTH "{values["REDIS_PASSWORD"]}"\nPING\n',
    )
    search = json.loads(kubectl("get", "pod", "elasticsearch-0", "-o", "json"))["status"]["podIP"]
    login = f'user = "{values["ELASTICSEARCH_USERNAME"]}:{values["ELASTICSEARCH_PASSWORD"]}"\n'
    authority = json.loads(kubectl("get", "secret", "elasticsearch-tls", "-o", "json"))["data"]["ca.crt"]
    with tempfile.NamedTemporaryFile() as file:
        file.write(base64.b64decode(authority))
        file.flush()
        place = ["--cacert", file.name, "--resolve", f"elasticsearch:9200:{search}", "https://elasticsearch:9200/"]
        ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--config", "-", *place]
        reply = subprocess.run(
            ["ip", "netns", "exec", NODE, *ask], input=login, capture_output=True, text=True, check=True
        ).stdout
    return {
        "DATABASE_PASSWORD": database(values["DATABASE_USER"], "DATABASE_PASSWORD"),
        "DATABASE_SUPERUSER_PASSWORD": database("postgres", "DATABASE_SUPERUSER_PASSWORD"),
        "DATABASE_REPLICATION_PASSWORD": database("replicator", "DATABASE_REPLICATION_PASSWORD"),
        "REDIS_PASSWORD": "PONG" in cache,
        "ELASTICSEARCH_PASSWORD": reply == "200",
    }


@contextmanager
def load(folder: Path) -> Iterator[None]:
    """Load on the API all the while; not one request may fail, and there must have been some."""
    address = kubectl("get", "service", "citadelbuy-api", "-o", "jsonpath={.spec.clusterIP}")
    stop = folder / "stop"
    words = ["ip", "netns", "exec", NODE, sys.executable, str(Path(__file__).with_name("load.py"))]
    worker = subprocess.Popen([*words, f"http://{address}:3000", str(stop)], stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        stop.touch()
        summary = json.loads(worker.communicate(timeout=60)[0])
    print(f"{summary['sent']} requests, {len(summary['failed'])} failed")
    assert not summary["failed"], summary["failed"][:10]
    assert summary["sent"] > 50


def test_every_secret_under_load(tmp_path: Path) -> None:
    before, pods = secrets(), restarts()
    assert all(accepted(before).values()), accepted(before)
    with load(tmp_path):
        output = playbook("rotate_secrets", rotate_secrets_names="all", rotate_secrets_token_lifetime=0)
    print(output)
    after = secrets()
    names = set(accepted(before)) | {"JWT_SECRET", "SESSION_SECRET"}
    assert {name for name in names if before[name] == after[name]} == set()
    assert not any(accepted(before).values()), accepted(before)
    assert all(accepted(after).values()), accepted(after)
    assert restarts() == pods, "a store was restarted"
    assert not [key for key in after if key.endswith("_ALSO_ACCEPTED")]
    assert "changed=0 " in playbook("site"), "site.yml had something left to do"


def test_check_mode_changes_nothing_and_no_value_is_shown_at_the_highest_verbosity() -> None:
    before = secrets()
    output = playbook("rotate_secrets", "--check", "-vvvv", rotate_secrets_names="all")
    assert secrets() == before
    output += playbook("rotate_secrets", "-vvvv", "--diff", rotate_secrets_names="all", rotate_secrets_token_lifetime=0)
    for values in (before, secrets()):
        search = Search({key: value for key, value in values.items() if "USER" not in key})
        search.text("output", output)
        assert not search.found


def kill(pid: int) -> None:
    """Kill a process and its descendants: Ansible's workers are sessions of their own, so not in its group."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, signal.SIGKILL)
    for child in children:
        kill(int(child))


def steps_until_killed(number: int, folder: Path) -> bool:
    """Rotate all; at the step of this number kill the run, children included. Tells whether it came so far."""
    words = command("rotate_secrets", rotate_secrets_names="all", rotate_secrets_token_lifetime=0)
    log = folder / f"killed-{number}"
    with log.open("w") as file:
        run = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file)
        while run.poll() is None:
            if sum(1 for line in log.read_text().splitlines() if STEP.match(line)) > number:
                kill(run.pid)
                break
            time.sleep(0.02)
    return run.wait() != 0


def test_killed_at_every_step_it_is_completed_by_the_same_command(tmp_path: Path) -> None:
    number = 0
    with load(tmp_path):
        while steps_until_killed(number, tmp_path):
            between = secrets()
            playbook("rotate_secrets", rotate_secrets_names="all", rotate_secrets_token_lifetime=0)
            after = secrets()
            assert all(accepted(after).values()), (number, accepted(after))
            state = json.loads(kubectl("get", "secret", "citadelbuy-secrets-rotation", "-o", "json"))
            assert not state.get("data"), f"killed at step {number}: something is left"
            print(
                f"killed at step {number}: completed; {sum(between[k] != after[k] for k in after if k in between)} new"
            )
            number += 1
    assert number > 8, f"only {number} steps were seen"
    assert "changed=0 " in playbook("site")
