"""Stores' data exchanged for that of backups, with the applications stopped around it.

Here is the order, and what was running before: a ConfigMap holds it while a restore is under way, so the next run
completes one that was killed. What a store needs is in restore_stores.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.apply import owns_replicas
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply_own import apply_own
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore_stores import (
    LABELS,
    MERGE,
    PAUSE,
    STORES,
    Work,
    pods_of,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    APPLICATIONS,
    KINDS,
    Target,
    Waiter,
    find_workloads,
)

Body = dict[str, Any]
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps", True)
STATE = "restore"  # the ConfigMap's name, and the Lease's


class Restore:
    """One restore in one cluster, of one store or some."""

    playbook = "restore"
    """Which begins it, and alone completes it."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        stores: list[str],
        timeout: float,
        ready_timeout: float,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is sent.

        :param stores: names of `restore_stores.STORES`.
        :param timeout: seconds for the work on a volume.
        :param ready_timeout: seconds until pods are ready, or gone.
        :param say: takes lines about what is done.
        """
        self.cluster, self.namespace, self.say = cluster, namespace, say
        self.ready_timeout = ready_timeout
        self.stores = [STORES[name](cluster, namespace, timeout, ready_timeout, say) for name in stores]

    def under_way(self) -> Body | None:
        """The state of a restore that has not ended.

        Its playbook, target, timeline and undo, and whether it began as one; by store its members; by name of what was
        stopped its replicas; since when.
        """
        found = self.cluster.get(CONFIG_MAP, self.namespace, STATE)
        return json.loads(found["data"]["state"]) if found else None

    def plan(self, target: str, timeline: str) -> dict[str, Body]:
        """What a restore to a target would bring, by store.

        :raises EngineError: it is not possible; there is no such backup, or a repository cannot be read.
        """
        for store in self.stores:
            store.require_possible(undo=False)
        return {store.name: store.plan(target, timeline) for store in self.stores}

    def run(self, target: str, timeline: str, undo: bool) -> dict[str, Body]:
        """Restore, or undo the last restore; returns by store what was told of it.

        :raises EngineError: what is not done yet, and that the same call completes it.
        """
        for store in self.stores:
            store.require_possible(undo)
        state = self.under_way()
        if state is None:
            state = self._begin(target, timeline, undo)
        else:
            self._require_same(state, target, timeline, undo)
            state |= {"undo": undo}
            self._write(state)
        self._stop(state["deployments"])
        self.say(f"applications stopped: {', '.join(state['deployments']) or 'none was running'}")
        restore = f"restore {state['since']}"
        # Where a restore has not come to, its undoing would go back to what an earlier one has set aside.
        work = (
            Work(f"undo {state['since']}", undo=True, of="" if state["began_as_undo"] else restore)
            if undo
            else Work(restore, target, timeline)
        )
        told = {store.name: store.exchange(work, state["stores"][store.name]) for store in self.stores}
        for name, replicas in state["deployments"].items():
            self._scale(name, replicas)
        Waiter(self.cluster, self.ready_timeout).wait(
            [Target("Deployment", self.namespace, name) for name in state["deployments"]]
        )
        self.cluster.request("DELETE", CONFIG_MAP.path(self.namespace, STATE))
        return told

    def discard(self) -> list[str]:
        """Delete what restores have set aside on every member's volume; a line a member."""
        if self.under_way():
            raise EngineError("a restore is under way: complete it, or undo it; what is set aside may be needed.")
        return [line for store in self.stores for line in store.discard()]

    def _require_same(self, state: Body, target: str, timeline: str, undo: bool) -> None:
        """One restore ends before another begins; only its own undoing may take its place."""
        if (name := state.get("playbook", "restore")) != self.playbook:
            raise EngineError(
                f"what playbooks/{name}.yml has begun at {state['since']} is under way. To do: complete it,"
                " or go back, by that playbook."
            )
        same = (state["target"], state["timeline"], state["undo"]) == (target, timeline, undo)
        mine = {store.name for store in self.stores} == state["stores"].keys()
        if mine and (same or undo):
            return
        aim = "its undoing" if state["undo"] else f"the restore to {state['target'] or 'the newest'}"
        raise EngineError(
            f"{aim} of {state['since']} is under way. To do: complete it by the same call, or undo it by "
            f"-e restore_stores={','.join(state['stores'])} -e restore_undo=true; then begin this one."
        )

    def _begin(self, target: str, timeline: str, undo: bool) -> Body:
        """Note what runs now, before it is stopped."""
        deployments = {
            item.name: item.body["spec"]["replicas"]
            for item in find_workloads(self.cluster, APPLICATIONS, self.namespace)
            if item.kind == "Deployment" and item.body and item.body["spec"]["replicas"]
        }
        state = {
            "playbook": self.playbook,
            "target": target,
            "timeline": timeline,
            "undo": undo,
            "stores": {store.name: store.members() for store in self.stores},
            "began_as_undo": undo,
            "deployments": deployments,
            "since": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        }
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": STATE, "namespace": self.namespace, "labels": LABELS},
            "data": {"state": json.dumps(state)},
        }
        self.cluster.request("POST", CONFIG_MAP.path(self.namespace), body)
        return state

    def _write(self, state: Body) -> None:
        body = {"data": {"state": json.dumps(state)}}
        self.cluster.request("PATCH", CONFIG_MAP.path(self.namespace, STATE), body, content=MERGE)

    def _stop(self, names: Iterable[str]) -> None:
        """Scale Deployments to zero, and wait until their last pod is gone: it would write into what is restored.

        :raises EngineError: one does not end.
        """
        for name in names:
            self._scale(name, 0)
        deadline = time.monotonic() + self.ready_timeout
        while left := [pod for name in names for pod in self._pods(name)]:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"pods {', '.join(left)} of the applications have not ended after {self.ready_timeout:.0f} s, and "
                    "nothing was restored. To do: see why, then run this again."
                )
            time.sleep(PAUSE)

    def _pods(self, name: str) -> list[str]:
        """Names of a Deployment's pods, those that are ending too."""
        found = self.cluster.get(KINDS["Deployment"], self.namespace, name)
        return pods_of(self.cluster, found) if found else []

    def _scale(self, name: str, replicas: int) -> None:
        """By a patch that owns nothing for long: its number is its autoscaler's, which rests at zero.

        A canary's number is the engine's own, and stays that.
        """
        live = self.cluster.get(KINDS["Deployment"], self.namespace, name)
        if live and owns_replicas(live):

            def change(body: Body, _live: Body) -> None:
                body["spec"] = body["spec"] | {"replicas": replicas}

            apply_own(self.cluster, KINDS["Deployment"], self.namespace, name, change)
            return
        path = KINDS["Deployment"].path(self.namespace, name)
        query = {"fieldManager": "citadelbuy-restore"}
        self.cluster.request("PATCH", path, {"spec": {"replicas": replicas}}, query, MERGE)
