"""Server-side apply of a set: rehearsed as a whole, then rank by rank, concurrently within a rank, then pruned."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, before_roll, diff, prune, replace
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import generate
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body, Change, Outcome
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER, Key, Parent
from ansible_collections.citadelbuy.platform.plugins.module_utils.rank import RANKS, rank_of
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

THREADS = 8
FEW = 2  # objects
TRIES = 8  # reads and patches of an object that others keep changing


@dataclass
class Policy:
    """What a run may do beyond creating and changing its own objects."""

    force_conflicts: bool = False
    prune: bool = True
    prune_data: list[str] = field(default_factory=list)  # guarded objects that may be pruned, as `Kind namespace/name`
    replace: list[str] = field(default_factory=list)  # objects that may be deleted and created anew


class Applier:
    """Applies the manifests of one set to one cluster."""

    def __init__(
        self, cluster: Cluster, parent: Parent, policy: Policy, foreseen: Foreseen | None = None, check: bool = False
    ) -> None:
        """Prepare; nothing is sent.

        :param foreseen: what earlier tasks of the same check-mode run would have applied.
        """
        self.cluster, self.parent, self.policy, self.check = cluster, parent, policy, check
        self.outcome = Outcome()
        self._foreseen = foreseen or Foreseen()

    def apply(
        self,
        manifests: list[Manifest],
        settle: Callable[[list[Body]], None] | None = None,
        hold: Callable[[list[Body], list[Body]], str] | None = None,
    ) -> Outcome:
        """Rehearse all as the server's dry run, then apply all; a set that has an error in it changes nothing.

        :param settle: called with a rank's live objects before the next rank starts (waits for CRDs).
        :param hold: called with what is to be pruned and with what was applied; why it may not go yet, else nothing.
        :returns: in check mode, and when the rehearsal finds errors, what would be.
        """
        for manifest in manifests:
            if manifest.kind == "Secret":
                self.outcome.secret_values |= diff.secret_values(manifest.body)
        try:
            self._apply(manifests, settle, hold)
        except ApiError as error:  # of the set itself; those of its objects are in the outcome
            advice = (
                " To do: grant this to the kubeconfig's user, or use another context." if error.status == 403 else ""
            )
            where = f"ConfigMap {self.parent.namespace}/{self.parent.name} and the members that it lists"
            self.outcome.errors.append(f"{where}: {str(error).rstrip('.')}.{advice}")
        return self.outcome

    def _apply(
        self,
        manifests: list[Manifest],
        settle: Callable[[list[Body]], None] | None,
        hold: Callable[[list[Body], list[Body]], str] | None,
    ) -> None:
        self.parent.read(manifests)
        wanted = {manifest.key for manifest in manifests}
        leftovers = [body for key, body in self.parent.members.items() if key not in wanted]
        rehearsal = _Pass(self, manifests, self._foreseen, dry=True)
        self.outcome = rehearsal.run(None)
        if not self.check and (self.outcome.errors or rehearsal.skipped != wanted):
            self.outcome.applied = []  # so far
            if not self.outcome.errors:
                self._apply_for_real(manifests, rehearsal, settle)
        if self.outcome.errors:
            return
        live = [change.after for change in self.outcome.applied if change.after]
        if self.policy.prune:
            held = hold(leftovers, live) if hold and leftovers else ""
            pruned = prune.prune(self.cluster, leftovers, live, self.policy.prune_data, self.check, held)
            self.outcome.applied += pruned
            leftovers = [change.before for change in pruned if change.action == "kept" and change.before]
        if not self.check:
            self.parent.finish([*live, *leftovers], zip(manifests, live, strict=True))

    def _apply_for_real(
        self, manifests: list[Manifest], rehearsal: _Pass, settle: Callable[[list[Body]], None] | None
    ) -> None:
        has_parent = self.parent.widen(manifests)
        if not has_parent and not any(_is_namespace(manifest, self.parent.namespace) for manifest in manifests):
            raise EngineError(
                f"ConfigMap {self.parent.namespace}/{self.parent.name}, the set's list of members: namespace "
                f"{self.parent.namespace} does not exist. To do: create it first (role namespaces)."
            )

        def after_rank(done: list[Change]) -> None:
            if any(change.action == "created" and _is_namespace(change, self.parent.namespace) for change in done):
                self.parent.read_again()
                self.parent.widen(manifests)
            if settle:
                settle([change.after for change in done if change.after])

        self.outcome = _Pass(self, manifests, Foreseen(), False, rehearsal).run(after_rank)


class _Pass:
    """One way through all ranks: the rehearsal, or for real."""

    def __init__(
        self,
        applier: Applier,
        manifests: list[Manifest],
        foreseen: Foreseen,
        dry: bool,
        rehearsal: _Pass | None = None,
    ) -> None:
        self.cluster, self.parent, self.policy = applier.cluster, applier.parent, applier.policy
        self.manifests, self.foreseen, self.dry = manifests, foreseen, dry
        self.skipped = set(rehearsal.skipped if rehearsal else ())  # members that are known to be as wanted
        # StatefulSets that have something to do before their pods are replaced, as they are.
        self.rolls: dict[Key, Body] = rehearsal.rolls if rehearsal else {}
        self.outcome = Outcome(secret_values=applier.outcome.secret_values)
        self._hashes: dict[tuple[str, str | None, str], dict[str, str] | None] = {}

    def run(self, after_rank: Callable[[list[Change]], None] | None) -> Outcome:
        """Apply the ranks in order; stops after the first one with a failure."""
        done: dict[Key, Change] = {}
        for rank in RANKS:
            members = [manifest for manifest in self.manifests if rank_of(manifest.body) == rank]
            if not members:
                continue
            # A connection for one request costs more than it saves.
            with ThreadPoolExecutor(min(THREADS, len(members) // 2 or 1)) as pool:
                changes = list((pool.map if len(members) > FEW else map)(self._attempt, members))
            done |= {manifest.key: change for manifest, change in zip(members, changes, strict=True) if change}
            if self.outcome.errors:
                break
            if after_rank:
                after_rank([change for change in changes if change])
        self.outcome.applied = [done[manifest.key] for manifest in self.manifests if manifest.key in done]
        return self.outcome

    def _attempt(self, manifest: Manifest) -> Change | None:
        try:
            return self._apply_one(manifest)
        except ApiError as error:
            message = explain(error, manifest)
        except EngineError as error:
            message = str(error)
        self.outcome.errors.append(diff.mask(message, self.outcome.secret_values))
        return None

    def _apply_one(self, manifest: Manifest) -> Change:
        started = time.monotonic()
        change = Change(manifest.kind, manifest.namespace, manifest.name, "created", after=manifest.body)
        resource = self._resource(manifest)
        applyset.add_checksum(manifest, self._key_hashes)
        if resource:
            if resource.namespaced and not manifest.namespace:
                raise EngineError(f"template {manifest.source}: {manifest} has no metadata.namespace.")
            if not resource.namespaced:
                manifest.body["metadata"].pop("namespace", None)
            said = ""
            if not self.dry and manifest.key in self.rolls:
                said = before_roll.run(self.cluster, self.rolls[manifest.key])
            self._read_and_patch(manifest, resource, change)
            if self.dry and (command := before_roll.command(change)):
                self.rolls[manifest.key] = change.before or {}
                said = f"`{command}` would run in one of its pods first"
            change.reason = "; ".join(filter(None, (said, change.reason)))
        assert change.after
        if manifest.kind in ("ConfigMap", "Secret"):
            self._hashes[manifest.kind, manifest.namespace, manifest.name] = applyset.hash_keys(change.after)
        if manifest.kind == "Secret":
            self.outcome.secret_values |= diff.secret_values(change.after)
        if self.dry:
            self._foresee(manifest, change.after)
        change.seconds = time.monotonic() - started
        return change

    def _resource(self, manifest: Manifest) -> Resource | None:
        """How the cluster serves the kind; None in a rehearsal for a kind whose CRD the run would install."""
        resource = self.cluster.resource(manifest.api_version, manifest.kind)
        if resource or (self.dry and self.foreseen.get("CustomResourceDefinition", manifest.key[0], manifest.kind)):
            return resource
        raise EngineError(
            f"{manifest} (template {manifest.source}): the cluster does not know kind {manifest.kind} of "
            f"{manifest.api_version}. To do: install its CRD first, or check apiVersion and kind for a slip."
        )

    def _read_and_patch(self, manifest: Manifest, resource: Resource, change: Change) -> None:
        """Fill the change; what others change at the same time is in neither or in both of before and after."""
        for attempt in range(TRIES):
            live = self.parent.members.get(manifest.key) if attempt == 0 else None
            if live is None:
                live = self.cluster.get(resource, manifest.namespace, manifest.name)
            if live and live["metadata"].get("deletionTimestamp"):
                if not self.dry:
                    replace.wait_gone(self.cluster, resource, manifest)
                live = None
            change.before = current = live
            if manifest.kind == "Secret":
                current = generate(self.cluster, manifest, resource, live, self.dry, self.foreseen)
            if manifest.autoscaled and live and owns_replicas(live):
                # Dropping the field would scale to 1; once the autoscaler has changed it, it is the owner.
                manifest.body["spec"]["replicas"] = live["spec"]["replicas"]
            failed = manifest.kind == "Job" and replace.has_failed(live)
            if live and not failed and self._is_unchanged(manifest, live):
                change.action, change.after = "unchanged", live
                return
            try:
                if failed and live:
                    self._replace(manifest, resource, live, change, "it has failed, and a Job runs once")
                    return
                change.after = self._patch(manifest, resource, current)
                change.action = _action(live, change.after)
                return
            except ApiError as error:
                if live and replace.is_refused_in_place(error):
                    self._replace(manifest, resource, live, change, str(error))
                    return
                # Fields conflict with those of an object that was not there: another run has made it meanwhile.
                if error.status != 409 or (error.causes and live) or attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _is_unchanged(self, manifest: Manifest, live: Body) -> bool:
        """Whether this object was found to be as wanted, here or in the rehearsal."""
        if self.dry and self.parent.is_unchanged(manifest, live):
            self.skipped.add(manifest.key)
        return manifest.key in self.skipped

    def _replace(self, manifest: Manifest, resource: Resource, live: Body, change: Change, refusal: str) -> None:
        """Replace an object that cannot change in place; its successor is tried under another name first."""
        remedy = replace.find_remedy(self.cluster, manifest, live, refusal, self.policy.replace)
        if self.dry:
            metadata = manifest.body["metadata"]
            successor = manifest.body | {"metadata": metadata | {"name": f"{manifest.name[:240]}-successor"}}
            change.after = self._send(successor, resource)
            change.after["metadata"]["name"] = manifest.name
        else:
            change.after = replace.carry_out(
                self.cluster, manifest, resource, live, remedy, lambda: self._send(manifest.body, resource)
            )
        change.action, change.reason = remedy.action, remedy.cost

    def _patch(self, manifest: Manifest, resource: Resource, current: Body | None) -> Body:
        body = manifest.body
        version = (current or {}).get("metadata", {}).get("resourceVersion")
        if version:
            body = body | {"metadata": body["metadata"] | {"resourceVersion": version}}
        try:
            return self._send(body, resource, manifest.forced)
        except ApiError as error:
            if self.dry and error.status == 404 and self._waits_for_foreseen(manifest):
                return manifest.body
            raise

    def _waits_for_foreseen(self, manifest: Manifest) -> bool:
        """Whether the object needs one that the run would create: its namespace, or the role that it binds."""
        role = manifest.body.get("roleRef") or {}
        place = manifest.namespace if role.get("kind") == "Role" else None
        return bool(
            self.foreseen.get("Namespace", None, manifest.namespace or "")
            or (role and self.foreseen.get(role.get("kind"), place, role.get("name")))
        )

    def _send(self, body: Body, resource: Resource, forced: bool = False) -> Body:
        metadata = body["metadata"]
        query = {
            "fieldManager": MANAGER,
            "force": str(forced or self.policy.force_conflicts).lower(),
            "fieldValidation": "Strict",
        } | ({"dryRun": "All"} if self.dry else {})
        path = resource.path(metadata.get("namespace"), metadata["name"])
        return self.cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]

    def _key_hashes(self, kind: str, namespace: str | None, name: str) -> dict[str, str] | None:
        """Hashes of a ConfigMap's or Secret's values: as just applied, as foreseen by a check, or live."""
        key = (kind, namespace, name)
        if key not in self._hashes:
            hashes = self.foreseen.get(*key) if self.dry else None
            if hashes is None:
                live = self.cluster.get(Resource("v1", kind, f"{kind.lower()}s", True), namespace, name)
                hashes = applyset.hash_keys(live) if live else None
            self._hashes[key] = hashes
        return self._hashes[key]

    def _foresee(self, manifest: Manifest, after: Body) -> None:
        if manifest.kind in ("Namespace", "Role", "ClusterRole"):
            self.foreseen.add(True, manifest.kind, manifest.namespace, manifest.name)
        elif manifest.kind == "CustomResourceDefinition":
            spec = manifest.body["spec"]
            self.foreseen.add(True, "CustomResourceDefinition", spec["group"], spec["names"]["kind"])
        elif manifest.kind in ("ConfigMap", "Secret"):
            self.foreseen.add(applyset.hash_keys(after), manifest.kind, manifest.namespace, manifest.name)
        elif manifest.kind == "HTTPRoute":
            self.foreseen.add(after["spec"], manifest.kind, manifest.namespace, manifest.name)


def _action(before: Body | None, after: Body) -> str:
    """What a patch did; a dry run moves the resourceVersion of nothing, so contents decide."""
    if before is None:
        return "created"
    return "unchanged" if diff.content(before) == diff.content(after) else "changed"


def _is_namespace(item: Manifest | Change, name: str) -> bool:
    return item.kind == "Namespace" and item.name == name


def owns_replicas(body: Body) -> bool:
    """Whether the engine, and not an autoscaler, set a workload's replicas last."""
    return any(
        entry.get("manager") == MANAGER and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        for entry in body["metadata"].get("managedFields") or []
    )


def explain(error: ApiError, manifest: Manifest) -> str:
    """One message for a refused apply: which object, from which template, why, and what to do."""
    what, advice = str(error), ""
    if error.status == 409 and any(cause.get("reason") == "FieldManagerConflict" for cause in error.causes):
        owners = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in error.causes)
        what = f"another field manager owns what the template sets: {owners}"
        advice = "remove the field from the template, or take it over with `force_conflicts: true`."
    elif error.status == 403 and "being terminated" in what:
        advice = "wait until the namespace is gone, then run again."
    elif error.status == 403:
        advice = "grant this to the kubeconfig's user, or use another context (cluster_kubeconfig, cluster_context)."
    elif error.status == 404:
        advice = f"create the namespace {manifest.namespace} first (role namespaces)." if "namespaces" in what else ""
    elif error.status in (400, 422):
        advice = "correct the template or the variable it takes this value from."
    return f"{manifest} (template {manifest.source}): {what.rstrip('.')}." + (f" To do: {advice}" if advice else "")
