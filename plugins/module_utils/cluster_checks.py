"""Whether a cluster can take what will be applied: reachable, new enough, permitted, with storage and room."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import restore
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import WORKLOADS, pod_template
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import (
    demands,
    quantity,
    running_pods,
    shortage,
    usable_nodes,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    ApiError,
    Cluster,
    EngineError,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.prune import GUARDED
from ansible_collections.citadelbuy.platform.plugins.module_utils.reach import (
    cut_off,
    endpoints,
    kubelets,
    reads_kubelets,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest
from ansible_collections.citadelbuy.platform.plugins.module_utils.upgrade_postgres import image_of, major
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS

Body = dict[str, Any]
Question = tuple[str, str, str | None, str]  # API group, resource, namespace, name; a verb is asked about it
MINIMUM_VERSION = (1, 24)
APPLY = ("get", "create", "patch")
DEFAULT_CLASS = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
DEFAULT_INGRESS_CLASS = "ingressclass.kubernetes.io/is-default-class"
ISSUER_ANNOTATIONS = {"cert-manager.io/cluster-issuer", "cert-manager.io/issuer"}  # cert-manager makes the certificate
FEWER_REPLICAS = "citadelbuy.io/fewer-replicas"  # annotation of a StatefulSet: why a run does not take replicas away
SEALED_SECRETS_LEAVE = "sealedsecrets.bitnami.com/managed"
# What waiting, failing with reasons and verifying need beside the objects that are applied: group, resource, verbs.
ALSO_NEEDED = (
    ("", "pods", ("list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list", "watch")),
    ("apps", "daemonsets", ("list",)),
)
# And where there is more than what runs on every node.
ALSO_NEEDED_BY_SERVICES = (
    ("", "pods/exec", ("create", "get")),  # a WebSocket is a GET; since 1.35 it has to be allowed as create, too
    ("", "pods/portforward", ("create", "get")),
    ("apps", "replicasets", ("list", "watch")),
    ("", "persistentvolumeclaims", ("list",)),
)


@dataclass
class Findings:
    """What is wrong, what may be, and what was seen."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    version: str = ""


class ClusterChecks:
    """All checks of one cluster; after the first request they run side by side."""

    def __init__(
        self, cluster: Cluster, manifests: list[Manifest], capacity_required: bool = True, new_cluster: bool = False
    ) -> None:
        self.cluster = cluster
        self.manifests = manifests
        self.bodies = [manifest.body for manifest in manifests]
        self.capacity_required = capacity_required
        self.new_cluster = new_cluster
        self.namespaces = {manifest.name for manifest in manifests if manifest.kind == "Namespace"}
        self.namespaces |= {manifest.namespace for manifest in manifests if manifest.namespace}
        self.found = Findings()

    def run(self) -> Findings:
        """Check everything; problems come in a fixed order."""
        try:
            self.found.version = str(self.cluster.request("GET", "/version")[1].get("gitVersion"))
        except EngineError as error:
            text = f"{error}" if self.cluster.server in str(error) else f"{self.cluster.server}: {error}"
            self.found.problems.append(f"{text.rstrip('.')} (variables cluster_kubeconfig, cluster_context).")
            return self.found
        if _version(self.found.version) < MINIMUM_VERSION:
            self.found.problems.append(
                f"the cluster runs Kubernetes {self.found.version}: upgrade it to v1.24 or newer."
            )
        checks: tuple[Callable[[Findings], None], ...] = (
            self._login_and_permissions,
            self._served_kinds,
            self._storage,
            self._snapshots,
            self._priorities,
            self._capacity,
            self._pod_security,
            self._metrics,
            self._way_to_the_api_server,
            self._way_to_the_nodes,
            self._leave_for_sealed_secrets,
            self._no_restore_under_way,
            self._same_major,
            self._fewer_replicas,
            self._new_cluster,
            self._ingress_class,
            self._gateway,
            self._certificate_of_the_ingress,
        )
        results = [Findings() for _check in checks]
        with ThreadPoolExecutor(len(checks)) as pool:
            futures = [pool.submit(self._guarded, check, result) for check, result in zip(checks, results, strict=True)]
            for future in futures:
                future.result()
        for result in results:
            self.found.problems += result.problems
            self.found.warnings += result.warnings
        if any("login" in problem for problem in results[0].problems):
            self.found.problems, self.found.warnings = results[0].problems, []
        return self.found

    def _guarded(self, check: Callable[[Findings], None], result: Findings) -> None:
        """Run a check; what may not be read is a warning, whatever else fails a problem."""
        try:
            check(result)
        except ApiError as error:
            if error.status == 401:
                return  # told once, by the login check
            name = check.__name__.strip("_").replace("_", " ")
            target = result.warnings if error.status == 403 else result.problems
            target.append(f"{name} could not be checked: {error}")
        except EngineError as error:
            result.problems.append(str(error))
        finally:
            self.cluster.close()

    def _login_and_permissions(self, found: Findings) -> None:
        """What the roles apply is allowed; an administrator is asked for in one request."""
        try:
            if self._allowed("*", "*", "*", None):
                return
        except ApiError as error:
            if error.status != 401:
                raise
            found.problems.append(
                f"the cluster refuses the login of the kubeconfig: {error}."
                " Renew its credentials, or set cluster_context to another context."
            )
            return
        # What is not in a namespace is asked for by name: a deployer may hold it for the platform's own alone.
        wanted: dict[Question, set[str]] = {}
        for manifest in self.manifests:
            resource = self.cluster.resource(manifest.api_version, manifest.kind)
            if resource:
                kind = (manifest.key[0], resource.plural, manifest.namespace if resource.namespaced else None)
                wanted.setdefault((*kind, ""), set()).add("list")
                verbs = {"watch"} if manifest.kind in WORKLOADS else set()
                verbs |= set() if manifest.kind in GUARDED else {"delete"}  # prune
                name = "" if resource.namespaced else manifest.name
                wanted.setdefault((*kind, name), set()).update(APPLY, verbs)
        workloads = {(manifest.namespace, manifest.kind) for manifest in self.manifests if manifest.kind in WORKLOADS}
        for namespace, kind in workloads:
            for group, resource_name, verbs in ALSO_NEEDED + (ALSO_NEEDED_BY_SERVICES if kind != "DaemonSet" else ()):
                wanted.setdefault((group, resource_name, namespace, ""), set()).update(verbs)
        questions = [(question, verb) for question, verbs in wanted.items() for verb in verbs]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda asked: self._allowed(asked[1], *asked[0]), questions))
        denied: dict[Question, list[str]] = {}
        for (question, verb), allowed in zip(questions, answers, strict=True):
            if not allowed:
                denied.setdefault(question, []).append(verb)
        found.problems += sorted(
            f"no permission to {', '.join(sorted(verbs))} {resource}{'.' + group if group else ''}"
            f"{f' {name}' if name else ''}{f' in namespace {namespace}' if namespace else ' (cluster-wide)'}:"
            " grant it to the kubeconfig's user (playbooks/deployer.yml)."
            for (group, resource, namespace, name), verbs in denied.items()
        )

    def _allowed(self, verb: str, group: str, resource: str, namespace: str | None, name: str = "") -> bool:
        resource, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": resource}
        attributes |= {"subresource": subresource} if subresource else {}
        attributes |= {"namespace": namespace} if namespace else {}
        attributes |= {"name": name} if name else {}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)[1]
        return bool((answer.get("status") or {}).get("allowed"))

    def _served_kinds(self, found: Findings) -> None:
        """Kinds that the server does not know and that no CRD of ours will bring."""
        ours = {
            (body["spec"]["group"], body["spec"]["names"]["kind"])
            for body in self.bodies
            if body["kind"] == "CustomResourceDefinition"
        }
        kinds = {(manifest.api_version, manifest.kind): manifest for manifest in self.manifests}
        for (api_version, kind), manifest in sorted(kinds.items()):
            if (manifest.key[0], kind) not in ours and not self.cluster.resource(api_version, kind):
                found.problems.append(
                    f"{manifest}: the cluster does not serve {api_version} {kind}: install its operator."
                )

    def _storage(self, found: Findings) -> None:
        """Named storage classes exist, or there is a default one; no volume is to shrink."""
        claims = [
            (f"{body['kind']} {body['metadata']['name']}", body, claim)
            for body in self.bodies
            for claim in (
                body["spec"].get("volumeClaimTemplates") or []
                if body["kind"] == "StatefulSet"
                else [body]
                if body["kind"] == "PersistentVolumeClaim"
                else []
            )
        ]
        if not claims:
            return
        items = self.cluster.request("GET", "/apis/storage.k8s.io/v1/storageclasses")[1].get("items") or []
        names = sorted(item["metadata"]["name"] for item in items)
        default = any(
            (item["metadata"].get("annotations") or {}).get(key) == "true" for item in items for key in DEFAULT_CLASS
        )
        has = f"the cluster has: {', '.join(names) or 'none'}"
        for owner, _body, claim in claims:
            name = claim["spec"].get("storageClassName")
            if name and name not in names:
                found.problems.append(f"{owner}: StorageClass {name!r} does not exist (*_storage_class); {has}.")
        without = [owner for owner, _body, claim in claims if claim["spec"].get("storageClassName") is None]
        if without and not default:
            found.problems.append(
                f"{', '.join(without)}: no default StorageClass: name one in *_storage_class, or mark one; {has}."
            )
        for owner, body, claim in claims:
            self._shrinking(found, owner, body, claim)

    def _priorities(self, found: Findings) -> None:
        """The PriorityClasses of pods exist, or are made: without, a workload is applied and gets no pods."""
        ours = {manifest.name for manifest in self.manifests if manifest.kind == "PriorityClass"}
        missing = {
            f"{body['kind']} {body['metadata']['name']}": name
            for body in self.bodies
            if (name := ((pod_template(body) or {}).get("spec") or {}).get("priorityClassName")) and name not in ours
        }
        if not missing:
            return
        items = self.cluster.request("GET", "/apis/scheduling.k8s.io/v1/priorityclasses")[1].get("items") or []
        names = sorted(item["metadata"]["name"] for item in items)
        found.problems += [
            f"{owner}: PriorityClass {name!r} does not exist (*_priority_class); the cluster has: {', '.join(names)}."
            for owner, name in missing.items()
            if name not in names
        ]

    def _snapshots(self, found: Findings) -> None:
        """The class that volumes are snapshotted by exists."""
        wanted = [
            variable["value"]
            for body in self.bodies
            if body["kind"] == "CronJob"
            for container in body["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            for variable in container.get("env") or []
            if variable["name"] == "BACKUP_SNAPSHOT_CLASS"
        ]
        for name in wanted:
            try:
                items = self.cluster.request("GET", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses")[1][
                    "items"
                ]
            except ApiError as error:
                if error.status != 404:
                    raise
                found.problems.append(
                    f"VolumeSnapshotClass {name!r}: the cluster does not serve snapshot.storage.k8s.io/v1: install the"
                    " CRDs and the controller of kubernetes-csi/external-snapshotter, or leave platform_snapshot_class"
                    " empty."
                )
                return
            names = sorted(item["metadata"]["name"] for item in items)
            if name not in names:
                found.problems.append(
                    f"VolumeSnapshotClass {name!r} does not exist (platform_snapshot_class);"
                    f" the cluster has: {', '.join(names) or 'none'}."
                )

    def _shrinking(self, found: Findings, owner: str, body: Body, claim: Body) -> None:
        wanted_text = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", 0)
        try:
            wanted = quantity(wanted_text)
        except EngineError as error:
            found.problems.append(f"{owner}: volume {claim['metadata']['name']}: {error} (*_storage_size).")
            return
        namespace = body["metadata"].get("namespace", "default")
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        prefix = claim["metadata"]["name"]
        if body["kind"] == "StatefulSet":
            prefix += f"-{body['metadata']['name']}"
        for item in self.cluster.request("GET", path)[1].get("items") or []:
            if re.fullmatch(re.escape(prefix) + r"(-\d+)?", item["metadata"]["name"]):
                live = item["spec"]["resources"]["requests"]["storage"]
                if quantity(live) > wanted:
                    found.problems.append(
                        f"{owner}: volume {item['metadata']['name']} has {live} and cannot shrink to {wanted_text}:"
                        " raise *_storage_size again."
                    )

    def _capacity(self, found: Findings) -> None:
        """The requests of all pods fit beside those of others."""
        nodes = self.cluster.request("GET", "/api/v1/nodes")[1].get("items") or []
        lasting, passing = demands(self.bodies, len(nodes))
        if not lasting and not passing:
            return
        room = usable_nodes(nodes, running_pods(self.cluster, self.namespaces), self.namespaces)
        short = shortage(lasting, passing, room)
        if short:
            (found.problems if self.capacity_required else found.warnings).append(short)

    def _pod_security(self, found: Findings) -> None:
        """The admission that enforces Pod Security refuses a level that does not exist, where it is on."""
        enforce = "pod-security.kubernetes.io/enforce"
        ours = [body["metadata"]["name"] for body in self.bodies if enforce in _labels(body)]
        if not ours:
            return
        metadata = {"name": ours[0], "labels": {enforce: "no-such-level"}}
        probe = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        query = {"fieldManager": "citadelbuy-preflight", "force": "true", "dryRun": "All"}
        try:
            self.cluster.request("PATCH", f"/api/v1/namespaces/{ours[0]}", probe, query, "application/apply-patch+yaml")
        except ApiError as error:
            if error.status == 403 and "no-such-level" not in str(error):
                raise
            return
        found.warnings.append("Pod Security admission is off in this cluster: the namespaces' levels are not enforced.")

    def _metrics(self, found: Findings) -> None:
        """Autoscalers on CPU and memory need the metrics API."""
        scalers = [body["metadata"]["name"] for body in self.bodies if body["kind"] == "HorizontalPodAutoscaler"]
        if not scalers:
            return
        try:
            self.cluster.request("GET", "/apis/metrics.k8s.io/v1beta1")
        except ApiError as error:
            if error.status not in (404, 503):
                raise
            found.warnings.append(
                f"{', '.join(scalers)}: the cluster has no metrics API, nothing will scale: install metrics-server."
            )

    def _way_to_the_api_server(self, found: Findings) -> None:
        """Pods that need the API server are not cut off from it by our own network policies."""
        if not any(body["kind"] == "NetworkPolicy" for body in self.bodies):
            return
        path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
        query = {"labelSelector": "kubernetes.io/service-name=kubernetes"}
        slices = self.cluster.request("GET", path, query=query)[1].get("items") or []
        missing: dict[tuple[str, int], list[str]] = {}
        for body, endpoint in cut_off(self.bodies, endpoints(slices)):
            missing.setdefault(endpoint, []).append(f"{body['kind']} {body['metadata']['name']}")
        for (address, port), names in missing.items():
            found.problems.append(
                f"{', '.join(names)} {'needs' if len(names) == 1 else 'need'} the API server at {address}:{port}, and"
                f" no network policy lets {'it' if len(names) == 1 else 'them'}: add {address}/32 to"
                " network_policies_api_server_cidrs, the port to network_policies_api_server_ports."
            )

    def _way_to_the_nodes(self, found: Findings) -> None:
        """Nor is Prometheus from the nodes' kubelets."""
        if not any(body["kind"] == "NetworkPolicy" for body in self.bodies):
            return
        nodes = kubelets(self.cluster.request("GET", "/api/v1/nodes")[1].get("items") or [])
        missing: dict[str, list[tuple[str, int]]] = {}
        for body, endpoint in cut_off(self.bodies, nodes, reads_kubelets(self.bodies)):
            missing.setdefault(f"{body['kind']} {body['metadata']['name']}", []).append(endpoint)
        for workload, cut in missing.items():
            named = ", ".join(f"{nodes[address, port]} ({address}:{port})" for address, port in sorted(cut))
            cidrs = ", ".join(f"{address}/32" for address, _port in sorted(cut))
            found.problems.append(
                f"{workload} needs the kubelets of the nodes {named}, and no network policy lets it: add {cidrs}, or a"
                " network that holds them, to network_policies_node_cidrs."
            )

    def _leave_for_sealed_secrets(self, found: Findings) -> None:
        """Sealed Secrets takes over a Secret with leave alone; a SealedSecret it has refused stays so."""
        for body in self.bodies:
            if body["kind"] != "SealedSecret":
                continue
            namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
            metadata = (self.cluster.get(SECRET, namespace, name) or {}).get("metadata")
            if metadata is None or (metadata.get("annotations") or {}).get(SEALED_SECRETS_LEAVE) == "true":
                continue
            if not any(owner["kind"] == "SealedSecret" for owner in metadata.get("ownerReferences") or []):
                found.problems.append(
                    f"Secret {namespace}/{name} exists, and Sealed Secrets has no leave to take it over:"
                    f" kubectl -n {namespace} annotate secret {name} {SEALED_SECRETS_LEAVE}=true"
                )

    def _no_restore_under_way(self, found: Findings) -> None:
        """What playbooks/restore.yml has stopped would be started on data that is half restored."""
        for body in self.bodies:
            if body["kind"] == "StatefulSet" and body["metadata"]["name"] == "postgres":
                namespace = body["metadata"]["namespace"]
                if self.cluster.get(restore.CONFIG_MAP, namespace, restore.STATE):
                    found.problems.append(
                        f"a restore is under way in {namespace} (ConfigMap {restore.STATE}): complete it by the same "
                        "call of playbooks/restore.yml, or go back by -e restore_undo=true -e restore_confirm=true; "
                        "of playbooks/upgrade_postgres.yml, where that has begun it."
                    )

    def _same_major(self, found: Findings) -> None:
        """PostgreSQL of another major does not start on the data that is there."""
        for body in self.bodies:
            if body["kind"] != "StatefulSet" or body["metadata"]["name"] != "postgres":
                continue
            namespace, image = body["metadata"]["namespace"], image_of(body)
            live = self.cluster.get(KINDS["StatefulSet"], namespace, "postgres")
            runs = image_of(live) if live else image
            if None not in (majors := {major(runs), major(image)}) and len(majors) > 1:
                found.problems.append(
                    f"StatefulSet {namespace}/postgres runs {runs}, and postgres_image is {image}, another major"
                    " version does not start on its data. To do: playbooks/upgrade_postgres.yml, which rehearses the"
                    " upgrade, does it, or goes back; then this."
                )

    def _fewer_replicas(self, found: Findings) -> None:
        """Members that have to be taken leave of first are not just stopped."""
        for body in self.bodies:
            reason = (body["metadata"].get("annotations") or {}).get(FEWER_REPLICAS)
            if not reason:
                continue
            namespace, name, wanted = body["metadata"]["namespace"], body["metadata"]["name"], body["spec"]["replicas"]
            live = self.cluster.get(KINDS["StatefulSet"], namespace, name) or {"spec": {"replicas": 0}}
            if live["spec"]["replicas"] > wanted:
                found.problems.append(
                    f"StatefulSet {namespace}/{name} has {live['spec']['replicas']} replicas, and {wanted} are wanted"
                    f" ({name}_replicas): {reason}."
                )

    def _ingress_class(self, found: Findings) -> None:
        """An Ingress has a class that exists, else no controller takes it."""
        ingresses = [body for body in self.bodies if body["kind"] == "Ingress"]
        if not ingresses:
            return
        items = self.cluster.request("GET", "/apis/networking.k8s.io/v1/ingressclasses")[1].get("items") or []
        names = sorted(item["metadata"]["name"] for item in items)
        default = any(_annotations(item).get(DEFAULT_INGRESS_CLASS) == "true" for item in items)
        has = f"the cluster has: {', '.join(names) or 'none'}"
        for body in ingresses:
            owner, name = f"Ingress {body['metadata']['name']}", body["spec"].get("ingressClassName")
            if name and name not in names:
                found.problems.append(f"{owner}: IngressClass {name!r} does not exist (ingress_class); {has}.")
            elif not name and not default:
                found.problems.append(f"{owner}: no default IngressClass: name one in ingress_class; {has}.")
            by_cert_manager = _annotations(body).keys() & ISSUER_ANNOTATIONS
            if by_cert_manager and not self.cluster.resource("cert-manager.io/v1", "Certificate"):
                found.problems.append(
                    f"{owner}: the cluster has no cert-manager, and nobody makes its certificate: install that, or name"
                    " a Secret in ingress_tls_secret."
                )

    def _gateway(self, found: Findings) -> None:
        """The Gateway of HTTPRoutes exists, with their listeners; that the kinds are served is another check's."""
        for body in self.bodies:
            if body["kind"] != "HTTPRoute" or not self.cluster.resource(body["apiVersion"], "Gateway"):
                continue
            for parent in body["spec"]["parentRefs"]:
                path = f"/apis/{body['apiVersion']}/namespaces/{parent['namespace']}/gateways/{parent['name']}"
                owner = f"HTTPRoute {body['metadata']['name']}: Gateway {parent['namespace']}/{parent['name']}"
                try:
                    gateway = self.cluster.request("GET", path)[1]
                except ApiError as error:
                    if error.status != 404:
                        raise
                    found.problems.append(f"{owner} does not exist (ingress_gateway_name, ingress_gateway_namespace).")
                    continue
                listeners = sorted(listener["name"] for listener in gateway["spec"]["listeners"])
                if parent["sectionName"] not in listeners:
                    found.problems.append(
                        f"{owner} has no listener {parent['sectionName']} (ingress_gateway_http_listener,"
                        f" ingress_gateway_https_listener); it has: {', '.join(listeners)}."
                    )

    def _certificate_of_the_ingress(self, found: Findings) -> None:
        """A certificate that nothing here makes is there."""
        made = {(body["kind"], body["metadata"]["name"]) for body in self.bodies}
        for body in self.bodies:
            namespace = body["metadata"].get("namespace", "")
            names: list[str] = []
            if body["kind"] == "Ingress" and not _annotations(body).keys() & ISSUER_ANNOTATIONS:
                names = [entry["secretName"] for entry in body["spec"]["tls"]]
            elif body["kind"] == "Deployment" and body["metadata"]["name"] == "traefik":
                sources = [
                    source
                    for volume in body["spec"]["template"]["spec"]["volumes"]
                    for source in (volume.get("projected") or {}).get("sources") or []
                ]
                names = [source["secret"]["name"] for source in sources if "secret" in source]
            for name in names:
                if made & {("Secret", name), ("Certificate", name)}:
                    continue
                held = (self.cluster.get(SECRET, namespace, name) or {}).get("data") or {}
                if missing := sorted({"tls.crt", "tls.key"} - held.keys()):
                    found.problems.append(
                        f"{body['kind']} {body['metadata']['name']}: Secret {namespace}/{name} has no"
                        f" {' and no '.join(missing)} (ingress_tls_secret): kubectl -n {namespace} create secret tls"
                        f" {name} --cert=FILE --key=FILE, or leave it empty and have one made."
                    )

    def _new_cluster(self, found: Findings) -> None:
        """A platform that is there is not to be overwritten by another one's data."""
        if not self.new_cluster:
            return
        for body in self.bodies:
            namespace, name = body["metadata"].get("namespace"), body["metadata"]["name"]
            if body["kind"] == "StatefulSet" and self.cluster.get(KINDS["StatefulSet"], namespace, name):
                found.problems.append(
                    f"StatefulSet {namespace}/{name} is there, and this is for a new cluster: name another inventory."
                )


def _annotations(body: Body) -> dict[str, str]:
    return body["metadata"].get("annotations") or {}


def _labels(body: Body) -> dict[str, str]:
    return body["metadata"].get("labels") or {}


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
