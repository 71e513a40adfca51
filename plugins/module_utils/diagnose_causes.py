"""The likely causes of what was collected: one small function a case, in the order in which people should look.

Each takes a Snapshot and yields causes; RULES names all of them. They read what is there and ask nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import pod_failure, report
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_collect import (
    Snapshot,
    event_time,
    parse_time,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_network import policies_of, refusals
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import progress

Body = dict[str, Any]
FULL = 85  # per cent of a volume
CONNECTIONS_FULL = 85  # per cent of PostgreSQL's connections
LONG_LOCK = 5.0  # seconds that a query may wait for another's lock
MEMORY_FULL = 95  # per cent of Redis' maxmemory
CERTIFICATE_SOON = timedelta(days=7)
LAST_LINES = 5  # of a log, as evidence
EVIDENCE = 6  # lines of it at most for one cause
UNANSWERED = re.compile(
    r"(?i)(ECONNREFUSED|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|connection refused|no route to host|i/o timeout"
    r"|connect(?:ion)?\W[^\n]{0,60}tim(?:ed ?out|eout))"
)
NO_NAME = re.compile(
    r"(?i)(EAI_AGAIN|ENOTFOUND|no such host|name resolution|could not translate host name|server misbehaving)"
)
ADDRESS = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d{1,3}){3}):(\d{2,5})\b")
HOST = re.compile(r"\b([a-z][a-z0-9-]*)(?:\.[a-z0-9-]+)*(?:\.svc[a-z0-9.]*)?:(\d{2,5})\b")
MISSING_VARIABLE = re.compile(
    r"(?i)(?:environment )?variables? [\"'`]?([A-Z][A-Z0-9_, ]+)[\"'`]? (?:is |are )?(?:not set|missing|required|must )"
    r"|(?:missing|required|undefined)[^\n]{0,40}?(?:variable|setting|env\w*)[^\n]{0,10}?\b([A-Z][A-Z0-9_]{3,})\b"
)
EXPIRED = re.compile(r"(?i)(certificate has expired|CERT_HAS_EXPIRED|certificate is not yet valid|expired certificate)")
FULL_DISK = re.compile(r"(?i)(no space left on device|ENOSPC|disk (?:is )?full|disk usage exceeded flood-stage)")
PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
EXIT_KILLED = 137


@dataclass
class Cause:
    """A likely cause: what, where, by which signs, and what to do."""

    title: str
    objects: list[str]
    evidence: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    kind: str = ""  # the rule that found it


Rule = Callable[[Snapshot], Iterator[Cause]]


def find(snapshot: Snapshot) -> list[Cause]:
    """All likely causes, most basic first; those that differ by their object only are one.

    A rule that breaks on something unforeseen is told as a problem and hides no other.
    """
    found: dict[tuple[str, str], Cause] = {}
    for rule in RULES:
        try:
            causes = list(rule(snapshot))
        except Exception as error:
            snapshot.problems[f"rule {rule.__name__}"] = f"it could not judge: {type(error).__name__}: {error}"
            continue
        for cause in causes:
            cause.kind = rule.__name__
            same = found.setdefault((cause.kind, cause.title), cause)
            if same is not cause:
                same.objects += [name for name in cause.objects if name not in same.objects]
                same.evidence += [line for line in cause.evidence if line not in same.evidence]
    return list(found.values())


# What rules have in common.


def _name(body: Body) -> str:
    metadata = body["metadata"]
    return "/".join(part for part in (metadata.get("namespace"), metadata["name"]) if part)


def _conditions(body: Body) -> dict[str, Body]:
    return {item["type"]: item for item in (body.get("status") or {}).get("conditions") or []}


def _events(snapshot: Snapshot, body: Body) -> list[Body]:
    """The events of the time looked back about an object, the last one last."""
    own = [
        event
        for event in snapshot.of("events")
        if (event.get("involvedObject") or {}).get("name") == body["metadata"]["name"]
        and event["involvedObject"].get("namespace") == body["metadata"].get("namespace")
        and event["involvedObject"].get("kind", body.get("kind")) == body.get("kind")
        and snapshot.recent(event_time(event))
    ]
    return sorted(own, key=event_time)


def _event_line(event: Body) -> str:
    count = event.get("count") or (event.get("series") or {}).get("count") or 1
    return (
        f"event {event.get('reason')}" + (f" x{count}" if count > 1 else "") + f": {event.get('message', '').strip()}"
    )


def _log(snapshot: Snapshot, pod: str, container: str) -> list[str]:
    """The last lines of a container that has crashed: of its previous run, or of this one."""
    parts = snapshot.parts
    place = f"log {pod}/{container}"
    return parts.get(f"{place} (previous run)") or parts.get(place) or []


def _logs(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """All log lines that were collected, with their pod."""
    for part, value in snapshot.parts.items():
        kind, _, place = part.partition(" ")
        if kind == "log":
            yield from ((place.partition("/")[0], line) for line in value)
        elif kind == "errors":
            yield from ((place, entry["line"]) for entry in value)


def _pod(snapshot: Snapshot, name: str) -> Body | None:
    return next((pod for pod in snapshot.of("pods") if pod["metadata"]["name"] == name), None)


def _living(snapshot: Snapshot) -> list[Body]:
    return [pod for pod in snapshot.of("pods") if not pod["metadata"].get("deletionTimestamp")]


def _owner(pod: Body) -> str:
    """What made a pod, in a word: the name without the random parts."""
    owner = next(iter(pod["metadata"].get("ownerReferences") or []), None)
    if not owner:
        return str(pod["metadata"]["name"])
    return re.sub(r"-[a-z0-9]{6,10}$", "", owner["name"]) if owner.get("kind") == "ReplicaSet" else owner["name"]


def _describe(pod: Body) -> str:
    return f"kubectl -n {pod['metadata'].get('namespace')} describe pod {pod['metadata']['name']}"


def _cut(text: str, length: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


# The cluster.


def node_not_ready(snapshot: Snapshot) -> Iterator[Cause]:
    """A node does not report, or is short of something."""
    for node in snapshot.of("nodes"):
        conditions = _conditions(node)
        ready = conditions.get("Ready", {})
        name = node["metadata"]["name"]
        if ready.get("status") != "True":
            yield Cause(
                "A node is not ready: its pods do not serve, and move only after five minutes",
                [f"Node {name}"],
                [f"{name}: Ready is {ready.get('status')}: {ready.get('reason')}: {ready.get('message')}"],
                [f"kubectl describe node {name}; look at its kubelet and container runtime, or replace the node"],
            )
        for kind in PRESSURES:
            if conditions.get(kind, {}).get("status") == "True":
                yield Cause(
                    f"A node has {kind}: it takes no new pods, and evicts some",
                    [f"Node {name}"],
                    [f"{name}: {conditions[kind].get('message')}"],
                    [f"kubectl describe node {name}; free what is short (images, logs, pods), or add a node"],
                )


def names_not_resolved(snapshot: Snapshot) -> Iterator[Cause]:
    """Names are not found: the cluster's DNS does not run, or the pod does not reach it."""
    dns = snapshot.parts.get("dns")
    lines = [(pod, line) for pod, line in _logs(snapshot) if NO_NAME.search(line)]
    down = dns is not None and not dns["ready"]
    if not lines and not down:
        return
    evidence = [f"no pod of the cluster's DNS is ready ({len(dns['pods'])} there)"] if down and dns else []
    evidence += [f"{pod}: {_cut(line, 200)}" for pod, line in lines[-3:]]
    refused = [] if down else _kept_from_dns(snapshot, sorted({pod for pod, _line in lines}))
    if down:
        title, todo = "the cluster's DNS does not run", "kubectl -n kube-system describe pods -l k8s-app=kube-dns"
    elif refused:
        title, todo = (
            "a network policy keeps pods from DNS",
            "does the pod have the labels of a part in docs/network.md?",
        )
    else:
        title, todo = (
            "DNS is not reached, or a name is wrong",
            "is the name right? kubectl -n kube-system logs -l k8s-app=kube-dns",
        )
    yield Cause(
        f"Names are not resolved: {title}",
        sorted({f"Pod {pod}" for pod, _line in lines}) or ["DNS of the cluster"],
        evidence + refused[:2],
        [todo],
    )


def _kept_from_dns(snapshot: Snapshot, names: list[str]) -> list[str]:
    """Which of these pods may not ask the cluster's DNS; its own side is the cluster's affair, and not looked at."""
    labels = _namespace_labels(snapshot)
    return [
        text
        for pod in snapshot.of("pods")
        if pod["metadata"]["name"] in names
        for server in (snapshot.parts.get("dns") or {}).get("pods", [])[:1]
        for text in refusals(pod, server, 53, snapshot.of("policies"), labels, "UDP")
    ]


def _namespace_labels(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    return {item["metadata"]["name"]: item["metadata"].get("labels") or {} for item in snapshot.of("namespaces")}


def creation_refused(snapshot: Snapshot) -> Iterator[Cause]:
    """Pods cannot even be made: a quota, Pod Security, the admission policy, a webhook."""
    for event in sorted(snapshot.of("events"), key=event_time):
        if event.get("reason") not in ("FailedCreate", "PolicyViolation") or not snapshot.recent(event_time(event)):
            continue
        target, message = event.get("involvedObject") or {}, event.get("message", "")
        kind, name = target.get("kind", ""), target.get("name", "")
        body = next((item for item in snapshot.of(f"{kind.lower()}s") if item["metadata"]["name"] == name), None)
        if body is not None and not _lacks_pods(body):
            continue  # it was refused, and has come since
        if "exceeded quota" in message:
            title, todo = (
                "A quota is used up: pods are refused",
                "kubectl -n {0} describe quota; raise it, or lower *_replicas",
            )
        elif "violates PodSecurity" in message:
            title = "Pods are refused by Pod Security"
            todo = "correct the pod's securityContext; it is one of the namespace's level restricted that it lacks"
        elif "ValidatingAdmissionPolicy" in message or "denied request" in message:
            title = "Pods are refused by an admission policy"
            todo = "the message names the rule: see docs/security.md, and admission_allowed_images in images.yml"
        else:
            title, todo = "Pods cannot be created", "kubectl -n {0} describe {1} {2}"
        yield Cause(
            title,
            [f"{kind} {target.get('namespace')}/{name}"],
            [_cut(message)],
            [todo.format(target.get("namespace"), kind.lower(), name)],
        )


def _lacks_pods(body: Body) -> bool:
    wanted = (body.get("spec") or {}).get("replicas", 1)
    return ((body.get("status") or {}).get("replicas") or 0) < wanted


def certificate_expired(snapshot: Snapshot) -> Iterator[Cause]:
    """A certificate of a TLS Secret is over or soon will be, or a program says that one is."""
    for certificate in snapshot.of("certificates"):
        until = parse_time(certificate["until"])
        if until is None or until > snapshot.taken + CERTIFICATE_SOON:
            continue
        over = until <= snapshot.taken
        yield Cause(
            "A certificate has expired" if over else "A certificate expires within a week",
            [f"Secret {certificate['secret']}"],
            [f"{certificate['subject']}: valid until {certificate['until']}"],
            ["renew it; cert-manager tells why it has not: kubectl describe certificate"],
        )
    lines = [(pod, line) for pod, line in _logs(snapshot) if EXPIRED.search(line)]
    if lines:
        yield Cause(
            "A program meets an expired certificate",
            sorted({f"Pod {pod}" for pod, _line in lines}),
            [f"{pod}: {_cut(line, 200)}" for pod, line in lines[-3:]],
            ["the lines name the peer: renew its certificate, or correct the clock of the node"],
        )


# Pods.


def image_not_pulled(snapshot: Snapshot) -> Iterator[Cause]:
    """An image cannot be pulled."""
    for pod in _living(snapshot):
        for failure in pod_failure.container_failures(pod):
            if failure.reason not in pod_failure.IMAGE_ERRORS and failure.reason != "ErrImagePull":
                continue
            image = next(
                (
                    item.get("image")
                    for item in pod_failure.container_statuses(pod)
                    if item["name"] == failure.container
                ),
                "",
            )
            evidence = [f"container {failure.container} of pod {pod['metadata']['name']}: {_cut(failure.text)}"]
            pulls = [event for event in _events(snapshot, pod) if "pull" in event.get("message", "").lower()]
            pulls = [event for event in pulls if event.get("type") == "Warning" and "Back-off" not in event["message"]]
            evidence += [_cut(_event_line(event)) for event in pulls[-1:]]
            text = " ".join(evidence).lower()
            if "not found" in text or "manifest unknown" in text:
                todo = "there is no such image: correct name or tag in images.yml, or push it; `rollback.yml` goes back"
            elif any(word in text for word in ("unauthorized", "denied", "forbidden", "authentication")):
                todo = "the registry refuses the login: see *_image_pull_secrets of the role and that Secret's content"
            elif any(word in text for word in ("timeout", "no such host", "name resolution", "refused", "tls")):
                todo = "the node does not reach the registry: its network, proxy, DNS or certificate"
            else:
                todo = f"{_describe(pod)}; correct the image in images.yml"
            yield Cause(f"The image {image} cannot be pulled", [f"Pod {_name(pod)}"], evidence, [todo])


def container_not_created(snapshot: Snapshot) -> Iterator[Cause]:
    """A container cannot be made: a ConfigMap, Secret or key that is missing, or a command that is not there."""
    for pod in _living(snapshot):
        for failure in pod_failure.container_failures(pod):
            if failure.reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
                what = "lacks its configuration" if "Config" in failure.reason else "cannot be started"
                yield Cause(
                    f"Container {failure.container} of {_owner(pod)} {what}",
                    [f"Pod {_name(pod)}"],
                    [_cut(failure.text)],
                    ["make the key or object that the message names: playbooks/site.yml --tags secrets,configuration"]
                    if "Config" in failure.reason
                    else [f"{_describe(pod)}; is the command in the image?"],
                )


def out_of_memory(snapshot: Snapshot) -> Iterator[Cause]:
    """The kernel has ended a container for its memory limit."""
    for pod in _living(snapshot):
        for container in pod_failure.container_statuses(pod):
            ended = _last_end(container, snapshot)
            if ended.get("reason") != "OOMKilled":
                continue
            name = container["name"]
            spec = next((item for item in pod["spec"]["containers"] if item["name"] == name), {})
            limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory", "none")
            yield Cause(
                f"Container {name} of {_owner(pod)} needs more memory than its limit of {limit}",
                [f"Pod {_name(pod)}"],
                [
                    f"OOMKilled at {ended.get('finishedAt')} (exit code {ended.get('exitCode')}), "
                    f"{container.get('restartCount', 0)} restarts"
                ],
                [
                    "raise the limit in sizing.yml (*_resources) and run site.yml; if it grows without end, a new"
                    " release leaks: rollback.yml"
                ],
            )


def _last_end(container: Body, snapshot: Snapshot) -> Body:
    """How a container has ended, in the time looked back or while it has not come again; empty else."""
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended = state.get("terminated")
        if ended and (not container.get("ready") or snapshot.recent(ended.get("finishedAt"))):
            return dict(ended)
    return {}


def container_crashes(snapshot: Snapshot) -> Iterator[Cause]:
    """A container ends by itself, with an error."""
    for pod in _living(snapshot):
        for container in pod_failure.container_statuses(pod):
            ended = _last_end(container, snapshot)
            if not ended.get("exitCode") or ended.get("reason") == "OOMKilled":
                continue
            name = container["name"]
            kills = [event for event in _events(snapshot, pod) if event.get("reason") == "Killing"]
            if any(f"Container {name} failed liveness" in event.get("message", "") for event in kills):
                continue  # its own rule
            log = _log(snapshot, pod["metadata"]["name"], name)
            evidence = [f"container {name} of pod {pod['metadata']['name']}: {_exit(container, ended)}"]
            evidence += [f"log: {_cut(line, 300)}" for line in log[-LAST_LINES:]]
            missing = next(
                (found for line in reversed(log) for found in [MISSING_VARIABLE.search(line)] if found), None
            )
            full = any(FULL_DISK.search(line) for line in log)
            if missing:
                variable = (missing[1] or missing[2]).strip(" ,")
                title = f"{_owner(pod)} does not start: its variable {variable} is not set"
                todo = (
                    f"set {variable} in the configuration or secrets of the inventory and run site.yml, or rollback.yml"
                )
            elif full:
                title = f"{_owner(pod)} crashes: its disk is full"
                todo = "see the volumes below; raise *_storage_size and run site.yml"
            elif any(UNANSWERED.search(line) or NO_NAME.search(line) for line in log[-LAST_LINES:]):
                title = f"Container {name} of {_owner(pod)} crashes: it does not reach another part"
                todo = "see which one in the log line; the causes about connections and Services tell why"
            else:
                title = f"Container {name} of {_owner(pod)} crashes with {_exit_code(ended)}"
                todo = (
                    f"kubectl -n {pod['metadata'].get('namespace')} logs {pod['metadata']['name']} -c {name} --previous"
                )
                todo += "; is it a new release? rollback.yml goes back"
            yield Cause(title, [f"Pod {_name(pod)}"], evidence, [todo])


def _exit_code(ended: Body) -> str:
    code = ended.get("exitCode")
    return f"exit code {code}" + (" (killed)" if code == EXIT_KILLED else "")


def _exit(container: Body, ended: Body) -> str:
    loop = ((container.get("state") or {}).get("waiting") or {}).get("reason")
    times = f"{container.get('restartCount', 0)} restarts"
    text = f"{_exit_code(ended)} at {ended.get('finishedAt')}, {times}" + (f", {loop}" if loop else "")
    return text + (f": {_cut(ended['message'], 200)}" if ended.get("message") else "")


def probe_fails(snapshot: Snapshot) -> Iterator[Cause]:
    """A liveness or startup probe fails, so the container is ended again and again; or readiness, so none asks it."""
    for pod in _living(snapshot):
        events = _events(snapshot, pod)
        failed = [event for event in events if event.get("reason") == "Unhealthy"]
        killing = [
            event for event in events if event.get("reason") == "Killing" and "failed" in event.get("message", "")
        ]
        ready = report.is_ready(pod)
        if not failed or (ready and not killing):
            continue
        for kind in ("Liveness", "Startup", "Readiness"):
            own = [event for event in failed if event.get("message", "").startswith(kind)]
            if not own or (kind == "Readiness" and ready):
                continue
            if kind == "Readiness" and (_failed_stores(snapshot, pod) or len(own) < len(failed)):
                continue  # the stores' rule tells more, and a liveness probe's failure comes first
            if kind == "Readiness" and (not _running(pod) or _speaks_of_service(snapshot, pod)):
                continue  # not the probe is wrong: the container does not run, or what it needs is not reached
            field_path = (own[-1].get("involvedObject") or {}).get("fieldPath", "")
            name = field_path[field_path.find("{") + 1 : field_path.find("}")] or pod["spec"]["containers"][0]["name"]
            outcome = "gets no requests" if kind == "Readiness" else "is ended and started again"
            log = _log(snapshot, pod["metadata"]["name"], name)
            yield Cause(
                f"The {kind.lower()} probe of container {name} of {_owner(pod)} fails: it {outcome}",
                [f"Pod {_name(pod)}"],
                [_cut(_event_line(own[-1]))] + [f"log: {_cut(line, 200)}" for line in log[-3:]],
                [
                    "does the program serve at all? (log above; CPU against its limit in the table of pods)",
                    f"{_describe(pod)}; correct path, port or timeout of the probe if the program is well",
                ],
            )


def _running(pod: Body) -> bool:
    return all(
        "running" in (item.get("state") or {}) for item in (pod.get("status") or {}).get("containerStatuses") or []
    )


def pod_pending(snapshot: Snapshot) -> Iterator[Cause]:
    """No node takes a pod: too little room, a taint, a selector, a volume."""
    for pod in _living(snapshot):
        message = pod_failure.unschedulable(pod)
        if message is None:
            continue
        volume = "persistentvolumeclaim" in message.lower() or "volume" in message.lower()
        short = re.findall(r"Insufficient ([\w./-]+?)[.,]? ?(?=[\d,.]|$)", message) or re.findall(
            r"Insufficient ([\w/-]+)", message
        )
        if short:
            title = f"No node has room for a pod: too little {', '.join(sorted(set(short)))}"
            todo = (
                "add a node, or lower *_replicas or the requests in *_resources; the table of nodes shows what is taken"
            )
        elif "taint" in message:
            title, todo = (
                "No node takes a pod: taints keep it away",
                "the table of nodes shows the taints: wait for the node to recover, or remove one",
            )
        elif volume:
            title, todo = "A pod waits for its volume", "see the claims below: class, zone and node of the volume"
        else:
            title, todo = (
                "No node fits a pod",
                "affinity, node selector or topology spread of the pod: " + _describe(pod),
            )
        yield Cause(title, [f"Pod {_name(pod)}"], [f"{pod['metadata']['name']}: {_cut(message)}"], [todo])


def evicted(snapshot: Snapshot) -> Iterator[Cause]:
    """A node has thrown a pod out."""
    for pod in snapshot.of("pods"):
        status = pod.get("status") or {}
        if status.get("reason") != "Evicted" or not snapshot.recent(
            status.get("startTime") or pod["metadata"].get("creationTimestamp")
        ):
            continue
        yield Cause(
            f"A pod of {_owner(pod)} was evicted",
            [f"Pod {_name(pod)}"],
            [_cut(status.get("message", ""))],
            ["the message names what ran out: raise that limit (often ephemeral-storage), or give the node more"],
        )


def job_failed(snapshot: Snapshot) -> Iterator[Cause]:
    """A Job has failed, such as the migration that a release waits for."""
    for job in snapshot.of("jobs"):
        failed = _conditions(job).get("Failed", {})
        if failed.get("status") != "True":
            continue
        name = job["metadata"]["name"]
        logs = [
            lines
            for part, lines in snapshot.parts.items()
            if part.startswith(f"log {name}-") and isinstance(lines, list) and lines
        ]
        yield Cause(
            f"The Job {name} has failed",
            [f"Job {_name(job)}"],
            [f"{failed.get('reason')}: {failed.get('message')}"]
            + [f"log: {_cut(line, 300)}" for line in (logs[-1][-LAST_LINES:] if logs else [])],
            [f"kubectl -n {job['metadata'].get('namespace')} logs job/{name}; then run site.yml again"],
        )


# Volumes.


def volume_not_bound(snapshot: Snapshot) -> Iterator[Cause]:
    """A claim has no volume, though a pod wants it."""
    wanted = {
        (pod["metadata"].get("namespace"), (volume.get("persistentVolumeClaim") or {}).get("claimName"))
        for pod in _living(snapshot)
        if (pod.get("status") or {}).get("phase") == "Pending"
        for volume in pod["spec"].get("volumes") or []
    }
    for claim in snapshot.of("claims"):
        phase = (claim.get("status") or {}).get("phase")
        key = claim["metadata"].get("namespace"), claim["metadata"]["name"]
        if phase == "Bound" or (phase == "Pending" and key not in wanted):
            continue
        events = [event for event in _events(snapshot, claim) if event.get("type") == "Warning"]
        class_name = claim["spec"].get("storageClassName") or "the default class"
        yield Cause(
            f"A volume is not there: claim {key[1]} is {phase}",
            [f"PersistentVolumeClaim {_name(claim)}"],
            [f"class {class_name}"] + [_cut(_event_line(event)) for event in events[-2:]],
            ["kubectl get storageclass; does the class exist, does its provisioner run? (*_storage_class)"],
        )


def volume_full(snapshot: Snapshot) -> Iterator[Cause]:
    """A volume is full, or nearly."""
    for part, rows in snapshot.parts.items():
        if not part.startswith("disk "):
            continue
        for row in rows:
            used = 100 * row["used_kib"] / max(1, row["used_kib"] + row["free_kib"])
            if used >= FULL:
                yield Cause(
                    f"The volume {row['claim']} is {used:.0f} % full",
                    [f"PersistentVolumeClaim {row['claim']}"],
                    [f"{row['free_kib'] / 2**20:.1f} GiB of {row['kib'] / 2**20:.1f} GiB free, seen in {part[5:]}"],
                    ["raise *_storage_size and run site.yml: it grows in place where its class can"],
                )
    lines = [(pod, line) for pod, line in _logs(snapshot) if FULL_DISK.search(line)]
    if lines:
        yield Cause(
            "A program finds its disk full",
            sorted({f"Pod {pod}" for pod, _line in lines}),
            [f"{pod}: {_cut(line, 200)}" for pod, line in lines[-3:]],
            ["volumes and their room are in the table; else it is the pod's ephemeral storage or the node's disk"],
        )


# Networks.


def service_without_endpoints(snapshot: Snapshot) -> Iterator[Cause]:
    """A Service leads nowhere."""
    if "endpoints" in snapshot.problems:
        return
    for service in snapshot.of("services"):
        selector, name = service["spec"].get("selector") or {}, service["metadata"]["name"]
        if not needs_endpoints(service) or _has_endpoints(snapshot, service):
            continue
        namespace = service["metadata"]["namespace"]
        chosen = snapshot.pods_of(namespace, selector)
        yield Cause(
            f"The Service {name} has no endpoints: who asks it is refused",
            [f"Service {namespace}/{name}"],
            [_why_no_endpoints(snapshot, namespace, selector, chosen)],
            [f"kubectl -n {namespace} get pods -l {','.join(f'{key}={value}' for key, value in selector.items())}"],
        )


def needs_endpoints(service: Body) -> bool:
    """Whether a Service selects pods that there must be: of PostgreSQL's replicas there may be none."""
    selector = service["spec"].get("selector")
    return bool(selector) and selector.get("role") != "replica"


def _has_endpoints(snapshot: Snapshot, service: Body) -> bool:
    return bool(addresses(snapshot, service)[0])


def addresses(snapshot: Snapshot, service: Body) -> tuple[list[str], list[str]]:
    """Where a Service leads, and where it would lead if those pods were ready."""
    found: tuple[list[str], list[str]] = ([], [])
    for item in snapshot.of("endpoints"):
        metadata = item["metadata"]
        names = (metadata["namespace"], (metadata.get("labels") or {}).get("kubernetes.io/service-name"))
        if names == (service["metadata"]["namespace"], service["metadata"]["name"]):
            for endpoint in item.get("endpoints") or []:
                ready = (endpoint.get("conditions") or {}).get("ready") is not False
                found[0 if ready else 1].extend(endpoint["addresses"])
    return found


def _why_no_endpoints(snapshot: Snapshot, namespace: str, selector: dict[str, str], chosen: list[Body]) -> str:
    if chosen:
        return f"none of its pods is ready: {', '.join(pod['metadata']['name'] for pod in chosen)}"
    if selector.get("role") == "master":
        members = snapshot.pods_of(namespace, _members(selector))
        if members:
            return f"no master among {', '.join(pod['metadata']['name'] for pod in members)}: see their agents' logs"
        selector = _members(selector)
    for kind in ("deployments", "statefulsets"):
        for body in snapshot.of(kind):
            labels = body["spec"]["template"]["metadata"].get("labels") or {}
            same_place = body["metadata"]["namespace"] == namespace
            if not same_place or any(labels.get(key) != value for key, value in selector.items()):
                continue
            if body["spec"].get("replicas", 1) == 0:
                return f"{body['kind']} {body['metadata']['name']} is scaled to 0"
            return f"{body['kind']} {body['metadata']['name']} has no pod"
    return f"no pod has its labels {', '.join(f'{key}={value}' for key, value in selector.items())}"


def _members(selector: dict[str, str]) -> dict[str, str]:
    """Of a Service that leads to the master, what all members have."""
    return {key: value for key, value in selector.items() if (key, value) != ("role", "master")}


def _failed_stores(snapshot: Snapshot, pod: Body) -> dict[str, str]:
    """The stores that a pod's readiness names as away, with its words."""
    answer = snapshot.parts.get(f"readiness {pod['metadata']['name']}") or {}
    body = answer.get("body")
    if not isinstance(body, dict) or answer.get("status") == 200:
        return {}
    checks = body.get("checks") or {}
    return {str(name): str((checks.get(name) or {}).get("error") or "down") for name in body.get("failed") or []}


def store_away(snapshot: Snapshot) -> Iterator[Cause]:
    """An application is not ready because it does not reach a store; and why it does not."""
    for pod in _living(snapshot):
        for store, error in _failed_stores(snapshot, pod).items():
            service = _service(snapshot, pod["metadata"].get("namespace", ""), store)
            why, todo = _investigate(snapshot, pod, service, store)
            yield Cause(
                f"{_owner(pod)} is not ready: {store} {why[0] if why else 'is away'}",
                [f"Pod {_name(pod)}"],
                [f"its readiness says of {store}: {_cut(error, 200)}", *why[1:]],
                todo,
            )


def connection_fails(snapshot: Snapshot) -> Iterator[Cause]:
    """A log tells of connections that are refused or not answered, to a Service of the platform."""
    seen: set[tuple[str, str]] = set()
    for name, line in reversed(list(_logs(snapshot))):
        pod = _pod(snapshot, name)
        if pod is None or not UNANSWERED.search(line):
            continue
        service = _target(snapshot, pod["metadata"].get("namespace", ""), line)
        if service is None:
            continue
        target = service["metadata"]["name"]
        if (name, target) in seen or any(target == store for store in _failed_stores(snapshot, pod)):
            continue
        seen.add((name, target))
        why, todo = _investigate(snapshot, pod, service, target)
        # A store that is away for a moment is reached again: told only where something is found, or the pod suffers.
        if not why and report.is_ready(pod):
            continue
        yield Cause(
            f"{_owner(pod)} does not reach {target}" + (f": it {why[0]}" if why else ""),
            [f"Pod {_name(pod)}"],
            [f"{name}: {_cut(line, 250)}", *why[1:]],
            todo,
        )


def _speaks_of_service(snapshot: Snapshot, pod: Body) -> bool:
    """Whether a pod's log tells of a Service that it does not reach."""
    return any(
        place == pod["metadata"]["name"]
        and UNANSWERED.search(line)
        and _target(snapshot, pod["metadata"].get("namespace", ""), line)
        for place, line in _logs(snapshot)
    )


def _service(snapshot: Snapshot, namespace: str, name: str) -> Body | None:
    return next((item for item in snapshot.of("services") if _name(item) == f"{namespace}/{name}"), None)


def _target(snapshot: Snapshot, namespace: str, line: str) -> Body | None:
    """The Service that a log line speaks of, by its address, by a pod's address, or by its name."""
    for address, _port in ADDRESS.findall(line):
        for service in snapshot.of("services"):
            if address in (service["spec"].get("clusterIP"), *(service["spec"].get("clusterIPs") or [])):
                return service
        for pod in snapshot.of("pods"):
            if (pod.get("status") or {}).get("podIP") == address:
                for service in snapshot.of("services"):
                    selector = service["spec"].get("selector")
                    if selector and pod in snapshot.pods_of(service["metadata"]["namespace"], _members(selector)):
                        return service
    for host, _port in HOST.findall(line):
        service = _service(snapshot, namespace, host)
        if service:
            return service
    return None


def _investigate(snapshot: Snapshot, pod: Body, service: Body | None, name: str) -> tuple[list[str], list[str]]:
    """Why a pod does not reach a Service: a few words and evidence (empty: nothing found), and what to do."""
    if service is None:
        return ["has no Service", f"there is no Service {name}"], ["run site.yml: it makes the Service anew"]
    namespace, selector = service["metadata"]["namespace"], service["spec"].get("selector") or {}
    selector = selector or {"app.kubernetes.io/name": service["metadata"]["name"]}
    chosen = snapshot.pods_of(namespace, selector) or snapshot.pods_of(namespace, _members(selector))
    targets = [item for item in chosen if not item["metadata"].get("deletionTimestamp")]
    if "endpoints" not in snapshot.problems and not _has_endpoints(snapshot, service):
        why = _why_no_endpoints(snapshot, namespace, selector, targets)
        return [
            f"does not serve ({why})",
            f"Service {namespace}/{name} has no endpoints",
        ], [f"bring {name} back first: its pods' own causes are named here; kubectl -n {namespace} get pods"]
    if "policies" in snapshot.problems:
        return [], ["network policies could not be read: compare with docs/network.md"]
    labels = _namespace_labels(snapshot)
    for target in targets:
        for entry in service["spec"].get("ports") or []:
            wanted = entry.get("targetPort", entry["port"])
            if isinstance(wanted, str):
                ports = [port for item in target["spec"]["containers"] for port in item.get("ports") or []]
                wanted = next((port["containerPort"] for port in ports if port.get("name") == wanted), entry["port"])
            refused = refusals(pod, target, int(wanted), snapshot.of("policies"), labels)
            if refused:
                return ["is kept from it by a network policy", *refused], [
                    "playbooks/site.yml --tags network_policies applies the policies anew;"
                    " docs/network.md has who may talk to whom"
                ]
    down = [target["metadata"]["name"] for target in targets if not report.is_ready(target)]
    if down:
        return [f"has pods that are not ready ({', '.join(down)})"], ["see those pods' causes and logs"]
    return [], [
        f"Service, endpoints and policies are in order: look at {name}'s log and load, and at the nodes' network"
    ]


# Stores.


def postgres_without_leader(snapshot: Snapshot) -> Iterator[Cause]:
    """Patroni has no leader: nothing can be written."""
    members = snapshot.parts.get("patroni")
    if members is None:
        return
    if not any(member.get("role") in ("leader", "master", "primary", "standby_leader") for member in members):
        yield Cause(
            "PostgreSQL has no leader: nothing can be written",
            ["StatefulSet postgres"],
            [f"{member.get('name')}: {member.get('role')}, {member.get('state')}" for member in members]
            or ["Patroni knows no member"],
            ["do the pods run, and reach the API server? kubectl logs -l app.kubernetes.io/name=postgres -c postgres"],
        )
    for member in members:
        lag = member.get("lag")
        if member.get("state") not in ("running", "streaming") or (isinstance(lag, int) and lag > 100 * 2**20):
            yield Cause(
                f"PostgreSQL's member {member.get('name')} does not follow",
                [f"Pod {member.get('name')}"],
                [f"{member.get('role')}, {member.get('state')}, lag {lag}"],
                ["its log tells why; `patronictl reinit postgres MEMBER` makes a replica anew"],
            )


def postgres_connections(snapshot: Snapshot) -> Iterator[Cause]:
    """PostgreSQL has no room for more sessions."""
    postgres = snapshot.parts.get("postgres") or {}
    limits = (postgres.get("limits") or [{}])[0]
    rows = [row for row in postgres.get("activity") or [] if row.get("state") != "-"]
    used, room = limits.get("used") or 0, limits.get("max_connections") or 0
    if room and used >= (room - (limits.get("reserved") or 0)) * CONNECTIONS_FULL / 100:
        yield Cause(
            f"PostgreSQL's connections are used up: {used} of {room}",
            [f"Pod {postgres.get('pod')}"],
            [f"{row['who']} ({row['application'] or '-'}): {row['sessions']} {row['state']}" for row in rows[:4]],
            ["fewer or smaller pools in the applications (DATABASE_POOL*), or a larger postgres_max_connections"],
        )
    lines = [
        (pod, line)
        for pod, line in _logs(snapshot)
        if "too many clients" in line or "remaining connection slots" in line
    ]
    if lines:
        yield Cause(
            "PostgreSQL refuses connections: too many clients",
            sorted({f"Pod {pod}" for pod, _line in lines}),
            [f"{pod}: {_cut(line, 200)}" for pod, line in lines[-2:]],
            ["fewer or smaller pools in the applications, or a larger postgres_max_connections"],
        )


def postgres_locks(snapshot: Snapshot) -> Iterator[Cause]:
    """Queries wait for another's lock."""
    rows = (snapshot.parts.get("postgres") or {}).get("blocked") or []
    waiting = [row for row in rows if (row.get("seconds") or 0) >= LONG_LOCK]
    for blocker in {row["blocked_by"] for row in waiting}:
        own = [row for row in waiting if row["blocked_by"] == blocker]
        first = own[0]
        yield Cause(
            f"PostgreSQL: session {blocker} blocks {len(own)} others",
            [f"Pod {(snapshot.parts.get('postgres') or {}).get('pod')}"],
            [
                f"{blocker} ({first['blocker']}, {first['blocker_state']} for {first['blocker_seconds']} s): "
                f"{_cut(first['blocker_query'] or '', 200)}",
                f"{first['pid']} waits for {first['seconds']} s: {_cut(first['query'] or '', 200)}",
            ],
            [f"SELECT pg_terminate_backend({blocker}) ends it; idle in transaction is a fault of its program"],
        )


def redis_memory(snapshot: Snapshot) -> Iterator[Cause]:
    """Redis is full, or refuses."""
    for part, answers in snapshot.parts.items():
        if not part.startswith("redis "):
            continue
        info, pod = answers.get("info") or {}, part[6:]
        used, most = int(info.get("used_memory") or 0), int(info.get("maxmemory") or 0)
        policy = info.get("maxmemory_policy", "")
        if most and used * 100 >= most * MEMORY_FULL and policy == "noeviction":
            yield Cause(
                "Redis is at its maxmemory and refuses writes (noeviction)",
                [f"Pod {pod}"],
                [f"used_memory {info.get('used_memory_human')} of {info.get('maxmemory_human')}, policy {policy}"],
                ["raise redis_maxmemory and the pod's memory, or choose a policy that evicts"],
            )
        refused, clients = int(info.get("rejected_connections") or 0), int(info.get("connected_clients") or 0)
        most_clients = int(info.get("maxclients") or 0)
        if refused and clients * 100 >= most_clients * CONNECTIONS_FULL:
            yield Cause(
                "Redis has refused connections: maxclients is reached",
                [f"Pod {pod}"],
                [f"{refused} refused since its start, {clients} of {most_clients} clients now"],
                ["who holds them? redis-cli CLIENT LIST; close connections in the application, or raise maxclients"],
            )
        if info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err":
            yield Cause(
                "Redis cannot write to its volume, and may refuse writes (MISCONF)",
                [f"Pod {pod}"],
                [f"rdb {info.get('rdb_last_bgsave_status')}, aof {info.get('aof_last_write_status')}"],
                ["see its log and how full its volume is"],
            )
        if info.get("role") == "slave" and info.get("master_link_status") == "down":
            yield Cause(
                "A replica of Redis does not reach its master",
                [f"Pod {pod}"],
                [f"master {info.get('master_host')}:{info.get('master_port')}, link down"],
                ["is the master's pod ready, and do the policies let redis reach redis on 6379?"],
            )


def elasticsearch_health(snapshot: Snapshot) -> Iterator[Cause]:
    """Elasticsearch is red or yellow, or a disk watermark is reached."""
    answers = snapshot.parts.get("elasticsearch") or {}
    health = answers.get("health") or {}
    status = health.get("status")
    explained = answers.get("explain") or {}
    reasons = [
        decider.get("explanation", "")
        for node in explained.get("node_allocation_decisions") or []
        for decider in node.get("deciders") or []
        if decider.get("decision") == "NO"
    ]
    watermark = [reason for reason in reasons if "watermark" in reason]
    full = [
        f"{node.get('name')}: disk {node.get('disk.used_percent')} % used"
        for node in answers.get("nodes") or []
        if float(node.get("disk.used_percent") or 0) >= FULL
    ]
    if watermark or full:
        yield Cause(
            "Elasticsearch is at a disk watermark: shards are not allotted, indices become read-only",
            [f"Pod {answers.get('pod')}"],
            [*full, *[_cut(text, 300) for text in watermark[:2]]],
            ["raise elasticsearch_storage_size, or delete old indices; volumes may share the node's disk"],
        )
    if status in ("red", "yellow"):
        what = f"{health.get('unassigned_shards')} shards unassigned, {health.get('number_of_nodes')} nodes"
        index = f"{explained.get('index')}: {_cut(explained.get('allocate_explanation') or '', 200)}"
        yield Cause(
            "Elasticsearch is red: a part of the data cannot be searched"
            if status == "red"
            else "Elasticsearch is yellow: it serves, but copies are missing",
            [f"Pod {answers.get('pod')}"],
            [what, *([index] if explained.get("index") else []), *[_cut(text, 200) for text in reasons[:2]]],
            ["bring missing nodes back first"]
            if status == "red"
            else ["bring missing members back; where none is missing, an index has more copies than other members"],
        )


# What scales and rolls.


def rollout_stands_still(snapshot: Snapshot) -> Iterator[Cause]:
    """A workload does not come to its newest revision, or to its number of pods."""
    for kind in ("deployments", "statefulsets", "daemonsets"):
        for body in snapshot.of(kind):
            ready, state = progress(body)
            progressing = _conditions(body).get("Progressing", {})
            changed = parse_time(progressing.get("lastUpdateTime") or body["metadata"].get("creationTimestamp"))
            late = changed is None or snapshot.taken - changed > timedelta(minutes=2)
            if ready or not (late or progressing.get("status") == "False"):
                continue
            evidence = [state]
            if progressing.get("status") == "False":
                evidence.append(f"{progressing.get('reason')}: {progressing.get('message')}")
            name, status = body["metadata"]["name"], body.get("status") or {}
            old = status.get("currentRevision") != status.get("updateRevision")
            rolling = (status.get("updatedReplicas") or 0) < body["spec"].get("replicas", 1)
            todo = [
                "its pods' causes stand above; playbooks/rollback.yml goes back to the last revision that was ready"
            ]
            if kind == "statefulsets" and old:
                todo.append("a StatefulSet waits for a broken pod of an earlier revision: delete that pod")
            title = "does not come forward" if rolling else "has too few ready pods"
            yield Cause(f"{body['kind']} {name} {title}", [f"{body['kind']} {_name(body)}"], evidence, todo)


def scaled_to_nothing(snapshot: Snapshot) -> Iterator[Cause]:
    """Somebody has scaled a workload to 0."""
    for kind in ("deployments", "statefulsets"):
        for body in snapshot.of(kind):
            if body["spec"].get("replicas", 1) != 0:
                continue
            entries = [
                entry for entry in body["metadata"].get("managedFields") or [] if entry.get("subresource") != "status"
            ]
            last = max(entries, key=lambda entry: entry.get("time") or "", default={})
            yield Cause(
                f"{body['kind']} {body['metadata']['name']} is scaled to 0",
                [f"{body['kind']} {_name(body)}"],
                [f"last written by {last.get('manager')} at {last.get('time')}"],
                ["run site.yml, or kubectl scale; diagnose_what=who tells who did it, where there is an audit log"],
            )


def autoscaler(snapshot: Snapshot) -> Iterator[Cause]:
    """An autoscaler has no metrics, or is at its end."""
    for body in snapshot.of("autoscalers"):
        conditions, status = _conditions(body), body.get("status") or {}
        active, limited = conditions.get("ScalingActive", {}), conditions.get("ScalingLimited", {})
        name = body["metadata"]["name"]
        if active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
            yield Cause(
                f"The autoscaler {name} has no metrics: it does not scale",
                [f"HorizontalPodAutoscaler {_name(body)}"],
                [f"{active.get('reason')}: {_cut(active.get('message', ''))}"],
                ["kubectl top pods; is metrics-server there? (kubectl get apiservice v1beta1.metrics.k8s.io)"],
            )
        most = body["spec"].get("maxReplicas")
        if limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas":
            yield Cause(
                f"The autoscaler {name} is at its maximum of {most}: it would take more",
                [f"HorizontalPodAutoscaler {_name(body)}"],
                [f"{status.get('currentReplicas')} replicas; {_cut(limited.get('message', ''))}"],
                ["raise its maximum if the nodes have room; look for what makes the load: errors, slow queries"],
            )


def policy_on_unready_pod(snapshot: Snapshot) -> Iterator[Cause]:
    """A pod runs, is not ready, and a policy lets nothing out of it: it cannot even ask DNS."""
    for pod in _living(snapshot):
        if report.is_ready(pod) or not _running(pod) or not (pod.get("status") or {}).get("containerStatuses"):
            continue
        chosen = policies_of(pod, snapshot.of("policies"), "Egress")
        if chosen and not any(policy["spec"].get("egress") for policy in chosen) and _is_unanswered(snapshot, pod):
            yield Cause(
                f"{_owner(pod)} may reach nothing: no network policy lets it out",
                [f"Pod {_name(pod)}"],
                [f"NetworkPolicies that select it: {', '.join(policy['metadata']['name'] for policy in chosen)}"],
                ["does it have a part's labels (docs/network.md)? playbooks/site.yml --tags network_policies"],
            )


def _is_unanswered(snapshot: Snapshot, pod: Body) -> bool:
    """Whether a pod's log speaks of connections, and of no Service: those have a rule of their own."""
    name = pod["metadata"]["name"]
    spoken = any(place == name and UNANSWERED.search(line) for place, line in _logs(snapshot))
    return spoken and not _speaks_of_service(snapshot, pod)


RULES: tuple[Rule, ...] = (
    node_not_ready,
    names_not_resolved,
    creation_refused,
    certificate_expired,
    scaled_to_nothing,
    image_not_pulled,
    container_not_created,
    out_of_memory,
    volume_not_bound,
    volume_full,
    pod_pending,
    evicted,
    container_crashes,
    probe_fails,
    job_failed,
    postgres_without_leader,
    postgres_connections,
    postgres_locks,
    redis_memory,
    elasticsearch_health,
    policy_on_unready_pod,
    store_away,
    connection_fails,
    service_without_endpoints,
    autoscaler,
    rollout_stands_still,
)
