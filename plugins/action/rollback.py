"""Action of `citadelbuy.platform.rollback`: show revisions, or go back to one. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff, rollback
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, named
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import (
    APPLICATIONS,
    Waiter,
    progress,
    targets_of,
)


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "name": {"type": "str"},
        "roles": {"type": "list", "elements": "str", "default": [*APPLICATIONS]},
        "revision": {"type": "int"},
        "show": {"type": "bool", "default": False},
        "timeout": {"type": "float"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed, deployments with their revisions, diff (in diff mode) and a table as msg."""
        if args["revision"] is not None and not args["name"]:
            raise EngineError("a revision needs the name of its Deployment: each one counts its own.")
        cluster = self.connect()
        chosen = self._choose(cluster, args)
        known = [rollback.revisions(cluster, body) for body in chosen]
        result: dict[str, Any] = {
            "deployments": [
                {"name": body["metadata"]["name"], "revisions": [revision.summary() for revision in found]}
                for body, found in zip(chosen, known, strict=True)
            ]
        }
        tables = [rollback.table(body, found) for body, found in zip(chosen, known, strict=True)]
        if args["show"]:
            return result | {"msg": "\n".join(tables)}
        if not chosen:
            return result | {"msg": "Every rollout is complete: there is none to undo. To go back, name a Deployment."}
        targets = [rollback.choose(body, found, args["revision"]) for body, found in zip(chosen, known, strict=True)]
        check, after = self._task.check_mode, []
        for body, revision in zip(chosen, targets, strict=True):
            after.append(body if revision.current else rollback.undo(cluster, body, revision, check))
        if not check:
            Waiter(cluster, args["timeout"] or self.settings.wait_timeout).wait(targets_of(after))
        result["changed"] = not all(revision.current for revision in targets)
        result["msg"] = "\n".join(
            f"Deployment {body['metadata']['namespace']}/{body['metadata']['name']}: "
            f"{'is at' if revision.current else 'would go back to' if check else 'is back at'} what revision "
            f"{revision.number} was ({', '.join(revision.images)})"
            for body, revision in zip(chosen, targets, strict=True)
        )
        if self._task.diff:
            result["diff"] = [
                diff.yaml_diff(before, now, before["metadata"]["name"])
                for before, now in zip(chosen, after, strict=True)
            ]
        return result

    def _choose(self, cluster: Cluster, args: dict[str, Any]) -> list[Body]:
        """The Deployment that was named; else all of the sets, to show them, or those whose rollout is not over."""
        ids = ",".join(applyset.applyset_id(role, self.settings.namespace) for role in args["roles"])
        selector = f"{applyset.PART_OF} in ({ids})"
        found = cluster.list(rollback.DEPLOYMENT, self.settings.namespace, labelSelector=selector)["items"]
        if args["name"]:
            found = named(found, [args["name"]], "Deployment", self.settings.namespace)
        elif not args["show"]:
            found = [body for body in found if self._is_rolling(cluster, body)]
        return found

    @staticmethod
    def _is_rolling(cluster: Cluster, body: Body) -> bool:
        return not progress(body)[0] and not rollback.rolled_out(body, rollback.revisions(cluster, body))
