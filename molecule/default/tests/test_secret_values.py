"""No value of a secret is where it does not belong: all places are searched for the real values.

Searched for are the values of all Secrets of the platform's namespaces, one that a run would add, and the keys of the
embedded cluster itself. Searched are: what Ansible prints at its highest verbosity, with --diff, and as diagnose; its
reports and temporary files; the checkout's .cache; every object of the cluster that can be listed (of Secrets, all but
their data); the logs of every container, and the lines that VictoriaLogs keeps; the arguments and the environment of
all processes while playbooks run; and the cluster's whole state folder: its logs, the audit log, etcd, and all volumes,
those of PostgreSQL too.

Of the state folder the files of images are left out, which are older than the secrets, and VictoriaLogs' volume, which
is packed: it is asked for all its lines instead. Volumes of Secrets lie in
memory and cannot be seen from outside of the node. In each kind of place a harmless marker is planted, and must be
found there.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import gzip
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import CHECKOUT, CLUSTER, KUBECONFIG, forwarded, program

sys.path.insert(0, str(CHECKOUT / "tests/tools"))

from secret_search import Search

STATE = Path("/var/lib/citadelbuy", CLUSTER)
NAMESPACES = ("citadelbuy", "citadelbuy-monitoring", "citadelbuy-nodes")
NOT_SECRET = ("DATABASE_USER", "ELASTICSEARCH_USERNAME", "BACKUP_S3_ACCESS_KEY")
"""Keys of Secrets that are users' names, which objects and logs may hold."""

LEFT_OUT = (
    *("*/io.containerd.content.v1.content", "*/io.containerd.snapshotter.v1.*", "*/var/log/pods/*.tmp"),
    "*/local-path/*_data-victoria-logs-0",
)
"""Of the state folder: the files of images, a log that the kubelet is packing, which is beside it as it was, and what
is searched as kept logs."""

HOLDERS = {
    "the encryption key": ("api-server/encryption.yaml",),
    "the administrator's key": ("admin.conf", "nodes/*/etc/kubernetes/*.conf"),
    "the key *": ("nodes/*/etc/kubernetes/pki/*",),
    # containerd keeps the environment of its containers, and so what IN_ENVIRONMENT names.
    "citadelbuy/citadelbuy-secrets/*": ("nodes/*/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db",),
}
"""Files of the state folder that may hold a value, by its name: none but root may read them, or their folder."""

IN_ENVIRONMENT = {
    "citadelbuy-api/api": "the document's API reads its environment",
    "citadelbuy-migration/migration": "as the API",
    "elasticsearch/elasticsearch": "the official image takes its first password so",
    "elasticsearch/exporter": "it takes its password so",
    "object-store/object-store": "it takes its keys so",
    "redis/exporter": "it takes its password so",
    "redis/redis": "its probes' redis-cli takes its password so",
}
"""Containers of the platform whose programs may have values in their environment, and why."""

ARRIVAL = 60.0  # seconds until a line that was written is found
PLANTED = f"planted-{secrets.token_hex(12)}"
GIVEN = "given/SENDGRID_API_KEY"
KINDS = (
    "output at -vvvv",
    "output of --check --diff",
    "output of diagnose",
    "reports",
    "objects",
    "container logs",
    "kept logs",
    "state folder",
    "temporary files",
    "arguments",
    "environments",
)
UNPLANTED = (
    "reports",
)  # no text of one's own gets into a report; the search of a file is proven by the state folder's


def secret_values(kubectl: Any) -> dict[str, str | bytes]:
    """The values of all Secrets of the platform, and the passwords of URLs among them."""
    found: dict[str, str | bytes] = {}
    for namespace in NAMESPACES:
        for secret in kubectl("get", "secrets", "--namespace", namespace, "--output", "json")["items"]:
            for key, encoded in (secret.get("data") or {}).items():
                name, value = f"{namespace}/{secret['metadata']['name']}/{key}", base64.b64decode(encoded)
                if key not in NOT_SECRET:
                    found[name] = value
                with contextlib.suppress(ValueError):
                    if password := urlsplit(value.decode()).password:
                        found[f"{name}, its password"] = password
    return found


def cluster_keys() -> dict[str, str | bytes]:
    """The embedded cluster's own keys."""
    configuration = yaml.safe_load((STATE / "api-server/encryption.yaml").read_text())
    [key] = re.findall(r"'secret': '([^']+)'", str(configuration))
    user = yaml.safe_load((STATE / "admin.conf").read_text())["users"][0]["user"]
    found: dict[str, str | bytes] = {
        "the encryption key": base64.b64decode(key),
        "the administrator's key": base64.b64decode(user["client-key-data"]),
    }
    for file in STATE.glob("nodes/*/etc/kubernetes/pki/**/*.key"):
        found[f"the key {file.name}"] = file.read_bytes()
    return found


class Processes(threading.Thread):
    """All that /proc shows of arguments and environments until told to stop; each text once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.arguments: set[bytes] = set()
        self.environments: set[tuple[bytes, str]] = set()
        """Each with the identity of its container, empty outside of one."""

    def run(self) -> None:
        """Look again and again."""
        while not self.ended.wait(0.3):
            for process in os.listdir("/proc"):
                if process.isdecimal():
                    with contextlib.suppress(OSError):  # ended meanwhile
                        self.look(Path("/proc", process))

    def look(self, folder: Path) -> None:
        """Note what a process has."""
        self.arguments.add((folder / "cmdline").read_bytes())
        if environment := (folder / "environ").read_bytes():
            group = re.search(r"/kubepods/.*/pod[^/]+/([0-9a-f]{64})", (folder / "cgroup").read_text())
            self.environments.add((environment, group[1] if group else ""))


@contextlib.contextmanager
def watched_containers(file: Path) -> Iterator[dict[str, str]]:
    """What runs in each container, by its identity: the pod's name by label, and the container's.

    Those of pods that were going, and of such as come and go meanwhile, are among them: it is filled at the end from
    a watch of all pods, which is kept in a file.
    """
    found: dict[str, str] = {}
    command = [program(), f"--kubeconfig={KUBECONFIG}", "get", "pods", "--all-namespaces", "--watch", "--output=json"]
    with file.open("wb") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            yield found
            assert process.poll() is None, "the watch of pods ended before its time"
        finally:
            process.terminate()
    text, decoder, place = file.read_text(), json.JSONDecoder(), 0
    while (place := text.find("{", place)) >= 0:
        try:
            pod, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            break  # the last one, half written
        labels, status = pod["metadata"].get("labels") or {}, pod["status"]
        for item in [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]:
            for state in (item, item["state"].get("terminated", {}), item["lastState"].get("terminated", {})):
                if identity := state.get("containerID", "").rpartition("/")[2]:
                    found[identity] = f"{labels.get('app.kubernetes.io/name', pod['metadata']['name'])}/{item['name']}"


def logs(kubectl: Any) -> Iterator[tuple[str, str]]:
    """The logs of every container of the cluster, those before its last restart too."""
    asked = []
    for pod in kubectl("get", "pods", "--all-namespaces", "--output", "json")["items"]:
        metadata, status = pod["metadata"], pod["status"]
        for item in [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]:
            words = ("logs", metadata["name"], "--namespace", metadata["namespace"], "--container", item["name"])
            asked += [words] if item["state"].keys() & {"running", "terminated"} else []
            asked += [(*words, "--previous")] if item["lastState"] else []
    with ThreadPoolExecutor(4) as pool:
        yield from zip(map(" ".join, asked), pool.map(lambda words: kubectl(*words), asked), strict=True)


def kept_logs() -> bytes:
    """All lines that VictoriaLogs keeps, once it has the planted one."""
    end = time.monotonic() + ARRIVAL
    with forwarded("victoria-logs", 9428) as url:
        while True:
            with urllib.request.urlopen(f"{url}/select/logsql/query", b"query=_time:1d", timeout=60) as answer:
                lines = answer.read()
            if PLANTED.encode() in lines:
                return lines
            assert time.monotonic() < end, f"VictoriaLogs does not have the planted line within {ARRIVAL:.0f} s"
            time.sleep(1)


def objects(kubectl: Any) -> Iterator[tuple[str, str]]:
    """Every object that can be listed, as JSON; of Secrets, all but their data."""
    kinds = set(kubectl("api-resources", "--verbs=list,get", "--output", "name").split()) - {"secrets"}
    everything = ("--all-namespaces", "--show-managed-fields", "--output", "json")
    yield "objects", json.dumps(kubectl("get", ",".join(sorted(kinds)), *everything))
    for secret in kubectl("get", "secrets", *everything)["items"]:
        secret.pop("data", None)
        yield f"Secret {secret['metadata']['name']} without its data", json.dumps(secret)


def private(path: Path) -> bool:
    """Whether none but root may read a file: by its own mode, or by that of a folder above it."""
    return any(place.stat().st_uid == 0 and not place.stat().st_mode & 0o077 for place in (path, *path.parents))


@pytest.fixture(scope="module")
def places(kubectl: Any, play: Any, tmp_path_factory: Any) -> Iterator[dict[str, Search]]:
    """What was found in each kind of place, the marker among it."""
    folder = tmp_path_factory.mktemp("search")
    values = secret_values(kubectl) | {GIVEN: secrets.token_urlsafe(24), "planted": PLANTED}
    if STATE.exists():
        values |= cluster_keys()
    # Compressed, as a rotated log would be.
    planted = [STATE / "logs" / "planted.log", Path.home() / ".ansible/tmp/planted", CHECKOUT / ".cache/planted"]
    given, inventory = folder / "given.yml", folder / f"{PLANTED}.yml"
    given.write_text(json.dumps({
        "secrets_third_party": {GIVEN.partition("/")[2]: values[GIVEN]},
        "applications_api_environment": {"PLANTED": PLANTED},
    }))  # fmt: skip
    inventory.write_text("all: {}\n")
    found = {kind: Search(values) for kind in KINDS}
    common = ("-e", f"local_cluster_name={CLUSTER}")

    def played(kind: str, *arguments: str) -> str:
        done = play(*arguments, *common)
        if done.rc:  # its output may hold what it must not, so it is not shown
            pytest.fail(f"{' '.join(arguments)} ended with {done.rc}")
        found[kind].text(kind, done.stdout + done.stderr)
        return str(done.stdout)

    processes, watch = Processes(), contextlib.ExitStack()
    names = watch.enter_context(watched_containers(folder / "pods"))
    processes.start()
    try:
        kubectl("create", "configmap", PLANTED, "--namespace", "citadelbuy")
        into = ("exec", "redis-0", "--namespace", "citadelbuy", "--container", "redis", "--")
        # Into the container's log; on its way, arguments of processes and the audit log have it too.
        kubectl(*into, "sh", "-c", f"echo {PLANTED} > /proc/1/fd/1; PLANTED={PLANTED} sleep 1")
        for path in planted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(PLANTED.encode()))
        reports = [folder / "report.json", folder / "report-of-check.json"]
        output = played(
            KINDS[0], "site", "-vvvv", "--diff", "-i", str(inventory), "-e", f"platform_report_file={reports[0]}"
        )
        assert "changed=0" in output
        output = played(
            KINDS[1], "site", "--check", "--diff", "-e", f"@{given}", "-e", f"platform_report_file={reports[1]}"
        )
        assert GIVEN.partition("/")[2] in output
        for playbook in ("backup", "verify_backup"):  # their programs are there only then
            played(KINDS[0], playbook, "-vvvv")
        played(KINDS[2], "diagnose", "-e", "diagnose_what=who", "-e", "diagnose_since=10m")
        played(KINDS[2], "diagnose", "-e", f"diagnose_report_dir={folder}/diagnosis")
        diagnosis = list((folder / "diagnosis").iterdir())
        assert len(diagnosis) == 2
        for file in diagnosis:
            found["reports"].path(file)
        for report in reports:
            assert json.loads(report.read_text())["clusters"]
            found["reports"].path(report)
        for name, text in objects(kubectl):
            found["objects"].text(name, text)
        for name, text in logs(kubectl):
            found["container logs"].text(name, text)
        found["kept logs"].text("VictoriaLogs", kept_logs())
        temporary = [CHECKOUT / ".cache", Path.home() / ".ansible/tmp", *Path(tempfile.gettempdir()).glob("ansible*")]
        for path in temporary:
            found["temporary files"].path(path)
        found["state folder"].path(STATE, lambda path: any(fnmatch.fnmatch(str(path), one) for one in LEFT_OUT))
        processes.ended.set()
        processes.join()
        watch.close()
        for arguments in processes.arguments:
            found["arguments"].text(arguments.split(b"\0")[0].decode(errors="replace"), arguments)
        for environment, identity in processes.environments:
            name = names.get(identity, f"container {identity}") if identity else "a process outside of pods"
            found["environments"].text(name, environment)
        yield found
    finally:
        processes.ended.set()
        watch.close()
        for path in planted:
            path.unlink(missing_ok=True)
        kubectl("delete", "configmap", PLANTED, "--namespace", "citadelbuy", "--ignore-not-found")


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_is_where_it_does_not_belong(places: dict[str, Search], kind: str) -> None:
    assert not places[kind].unreadable, "\n".join(places[kind].unreadable)
    found = {find for find in places[kind].found if find.name != "planted" and not allowed(kind, find.place, find.name)}
    assert not found, "\n".join(sorted(map(str, found)))


def allowed(kind: str, place: str, name: str) -> bool:
    """Whether the design has a value there."""
    if kind == "environments":
        return place in IN_ENVIRONMENT
    if kind != "state folder" or "!" in place or not place.startswith(f"{STATE}/"):
        return False
    holders = [files for pattern, files in HOLDERS.items() if fnmatch.fnmatch(name, pattern)]
    path = Path(place)
    return private(path) and any(fnmatch.fnmatch(str(path.relative_to(STATE)), one) for one in sum(holders, ()))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UNPLANTED])
def test_what_is_planted_is_found(places: dict[str, Search], kind: str) -> None:
    found = {find.place for find in places[kind].found if find.name == "planted"}
    assert found, f"nothing was searched in: {kind}"
    if kind == "state folder":
        files = {Path(place.partition("!")[0]).name for place in found}
        assert {"planted.log", "audit.log"} <= files
        assert any("/var/log/pods/" in place for place in found)
    if kind == "temporary files":
        assert len({place for place in found if place.endswith("planted!(gzip)")}) == 2
