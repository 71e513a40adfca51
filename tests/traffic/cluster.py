"""The platform of the drill: playbooks on it, and kubectl as an independent witness."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tools"))  # At the end: it has modules whose names others have too.

from embedded_cluster import EmbeddedCluster, awaited

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NAME = os.environ.get("CITADELBUY_TRAFFIC_CLUSTER", "")
CLUSTER = EmbeddedCluster(NAME)
kubectl, prometheus = CLUSTER.kubectl, CLUSTER.prometheus
API, WEB, FIREWALL, TRAEFIK = "citadelbuy-api", "citadelbuy-web", "citadelbuy-firewall", "traefik"
CANARIES = {API: f"{API}-canary", WEB: f"{WEB}-canary"}
# What the applications' environment is without a test's own: a variable replaces it as a whole.
API_ENVIRONMENT = {"TRUST_PROXY": "true"}
WEB_ENVIRONMENT = {"NODE_ENV": "production", "TRUST_PROXY": "true"}

Json = dict[str, Any]


def command(name: str, *arguments: str, **variables: object) -> list[str]:
    """How a playbook of this project is run on the cluster, with variables beside the drill's.

    It takes what the platform leaves: elsewhere it is another machine, here one process has the weight of all nodes.
    """
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    extra = ["-e", f"@{HERE / 'variables.yml'}", "-e", json.dumps({"local_cluster_name": NAME} | variables)]
    return ["nice", "-n", "19", program, f"playbooks/{name}.yml", "-i", "inventories/local", *extra, *arguments]


def attempt(name: str, *arguments: str, **variables: object) -> tuple[int, str]:
    """Run a playbook; its exit code, and what it printed."""
    words = command(name, *arguments, **variables)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def playbook(name: str, *arguments: str, **variables: object) -> str:
    """Run a playbook; it must end well. Returns what it printed."""
    code, output = attempt(name, *arguments, **variables)
    assert code == 0, output[-5000:]
    return output


def deploy(**variables: object) -> None:
    """Applications and what configures them, as the drill's variables and these say, with no pod left over."""
    playbook("site", "--tags", "configuration,applications", **variables)
    settled()


def release(number: int, **more: object) -> Json:
    """Variables of another version: other pods of API and web, and another migration Job, of the images there are."""
    mark = {"RELEASE": str(number)}
    return {
        "applications_api_environment": API_ENVIRONMENT | mark,
        "applications_web_environment": WEB_ENVIRONMENT | mark,
    } | more


def get(*arguments: str) -> Json:
    """An object, or a list of them."""
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def pods(name: str) -> list[Json]:
    """Pods of a Deployment, but for those that are ending."""
    found = get("pods", "-l", f"app.kubernetes.io/name={name}")["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def identities(name: str) -> set[str]:
    """What tells a Deployment's pods from their successors."""
    return {pod["metadata"]["uid"] for pod in pods(name)}


def template(name: str) -> Json:
    """What a Deployment makes its pods from."""
    return get("deployment", name)["spec"]["template"]


def another_name(image: str, tag: str) -> str:
    """An image that is on the nodes, under another tag too: a version of its own to whoever goes by names."""
    other = f"{image.rpartition(':')[0]}:{tag}"
    for socket in sorted(Path(f"/var/lib/citadelbuy/{NAME}/nodes").glob("*/containerd.sock")):
        words = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "tag", "--force", image, other]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return other


def answers(name: str) -> int:
    """How many requests of customers the pods of a Deployment have answered, by their own count."""
    script = "fetch('http://127.0.0.1:3000/metrics').then((answer) => answer.text()).then(console.log)"
    return sum(answered(kubectl("exec", pod["metadata"]["name"], "--", "node", "-e", script)) for pod in pods(name))


def answered(metrics: str) -> int:
    """The requests in a pod's metrics that are not probes' or Prometheus' own."""
    lines = re.findall(r'^http_request_duration_seconds_count\{.*?route="([^"]*)".*\} (\d+)$', metrics, re.MULTILINE)
    return sum(int(count) for route, count in lines if not re.match(r"/health/|/api/health$|/metrics$", route))


def settled() -> None:
    """Wait until all that customers' requests pass is ready, and no pod of it is ending."""
    awaited(lambda: not moving(), 180, "no Deployment rolls, no pod ends")


def moving() -> list[str]:
    """What requests pass and is not as it will be: Deployments that roll or are not there, pods that end."""
    names = (API, WEB, FIREWALL, TRAEFIK, *CANARIES.values())
    there = {body["metadata"]["name"]: body for body in get("deployments")["items"]}
    found = [name for name in names if name not in there and name not in CANARIES.values()]
    for body in (there[name] for name in names if name in there):
        status, wanted = body["status"], body["spec"]["replicas"]
        counts = {status.get(word, 0) for word in ("replicas", "updatedReplicas", "availableReplicas")}
        if status.get("observedGeneration") != body["metadata"]["generation"] or counts != {wanted}:
            found.append(body["metadata"]["name"])
    theirs = get("pods", "-l", f"app.kubernetes.io/name in ({','.join(names)})")["items"]
    return found + [pod["metadata"]["name"] for pod in theirs if "deletionTimestamp" in pod["metadata"]]
