"""Action of `citadelbuy.platform.restart`: replace the pods of workloads in turn. Its manual is in plugins/modules."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils import before_roll, diff, restart
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, listed, named
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body, Change
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    APPLICATIONS,
    KINDS,
    Waiter,
    find_workloads,
    targets_of,
)

ROLLED = ("Deployment", "StatefulSet")
WORK = "A restart"  # one at a time: a second would have the pods replaced twice
LEASE = "restart"


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "names": {"type": "list", "elements": "str", "default": []},
        "roles": {
            "type": "list",
            "elements": "str",
            "default": [*APPLICATIONS, "postgres", "redis", "elasticsearch"],
        },
        "confirm": {"type": "bool", "default": False},
        "timeout": {"type": "float"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed, workloads with what was done to each, diff (in diff mode) and the same in msg."""
        cluster, namespace = self.connect(), self.settings.namespace
        workloads = find_workloads(cluster, args["roles"], namespace)
        found = [target.body for target in workloads if target.kind in ROLLED and target.body]
        names = listed(args["names"])
        if not names:
            there = ", ".join(sorted(body["metadata"]["name"] for body in found)) or "none"
            raise EngineError(f"restart_application is empty: name what to restart. There are: {there}.")
        chosen = named(found, names, "Deployment or StatefulSet", namespace)
        for body in chosen:
            if body["spec"].get("paused"):
                raise EngineError(
                    f"{_name(body)} is paused, so its pods would not be replaced. Nothing was restarted. To do: "
                    f"kubectl -n {namespace} rollout resume deployment {body['metadata']['name']}"
                )
        if self._task.check_mode:
            return self._foresee(cluster, chosen)
        stores = [body for body in chosen if body["kind"] == "StatefulSet"]
        if stores and not args["confirm"]:
            plan = ", ".join(f"{_name(body)} ({body['spec'].get('replicas', 1)} pods)" for body in stores)
            raise EngineError(
                f"{plan}: pods with data would be replaced one after the other, and where there is one alone, nothing "
                "serves meanwhile. Nothing was restarted. To do it: the same with -e restart_confirm=true."
            )
        return self._restart(cluster, chosen, args["timeout"] or self.settings.wait_timeout)

    def _foresee(self, cluster: Cluster, chosen: list[Body]) -> dict[str, Any]:
        """What the server would make of it."""
        done, diffs = [], []
        for body in chosen:
            after = restart.mark(cluster, body, _now(), dry=True)
            metadata = body["metadata"]
            change = Change(body["kind"], metadata["namespace"], metadata["name"], "changed", before=body, after=after)
            said = before_roll.command(change)
            change.reason = f"`{said}` would run in one of its pods first" if said else ""
            done.append(change)
            diffs.append(diff.yaml_diff(body, after, metadata["name"]))
        result: dict[str, Any] = {
            "changed": True,
            "workloads": [change.summary() for change in done],
            "msg": "\n".join(
                f"{change}: {(change.before or {})['spec'].get('replicas', 1)} pods would be replaced"
                + (f"; {change.reason}" if change.reason else "")
                for change in done
            ),
        }
        return result | ({"diff": diffs} if self._task.diff else {})

    def _restart(self, cluster: Cluster, chosen: list[Body], timeout: float) -> dict[str, Any]:
        """One workload after the other: the next one only when the pods of the last are ready."""
        done: list[Change] = []
        told: list[str] = []
        diffs = []
        with Lease(cluster, self.settings.namespace, LEASE, WORK) as lease:
            for number, listed_as in enumerate(chosen):
                began = time.monotonic()
                try:
                    lease.check()
                    metadata = listed_as["metadata"]
                    body = cluster.get(KINDS[listed_as["kind"]], metadata["namespace"], metadata["name"])
                    if body is None:
                        raise EngineError(f"{_name(listed_as)} is gone: something deleted it.")
                    said = before_roll.run(cluster, body) if body["kind"] == "StatefulSet" else ""
                    after = restart.mark(cluster, body, _now())
                    Waiter(cluster, timeout, progress_line(self.settings.cluster_name)).wait(targets_of([after]))
                except EngineError as error:
                    left = ", ".join(_name(body) for body in chosen[number + 1 :])
                    lines = [str(error), *told, *([f"Not restarted: {left}."] if left else [])]
                    raise EngineError("\n".join(lines)) from None
                seconds = time.monotonic() - began
                place = metadata["namespace"], metadata["name"]
                done.append(Change(body["kind"], *place, "changed", seconds, body, after, said))
                told.append(
                    f"{done[-1]}: restarted, {body['spec'].get('replicas', 1)} pods new and ready after {seconds:.0f} s"
                    + (f"; {said}" if said else "")
                )
                diffs.append(diff.yaml_diff(body, after, metadata["name"]))
        result = {"changed": True, "workloads": [change.summary() for change in done], "msg": "\n".join(told)}
        return result | ({"diff": diffs} if self._task.diff else {})


def _name(body: Body) -> str:
    return f"{body['kind']} {body['metadata']['namespace']}/{body['metadata']['name']}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
