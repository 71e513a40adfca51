"""Action of `citadelbuy.platform.restore`: a backup in place of the data. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore import STATE, Restore

CONFIRM = "To do it: the same with -e restore_confirm=true."


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "to": {"type": "str", "default": ""},
        "timeline": {"type": "int"},
        "beside": {"type": "bool", "default": False},
        "undo": {"type": "bool", "default": False},
        "discard": {"type": "bool", "default": False},
        "confirm": {"type": "bool", "default": False},
        "timeout": {"type": "float", "default": 21600.0},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed and in msg the plan, or what was done."""
        target = "" if args["to"] in ("", "newest") else args["to"]
        timeline = str(args["timeline"] or "")
        if args["undo"] + args["discard"] + (bool(target) or args["beside"]) > 1:
            raise EngineError("restore_undo and restore_discard are alone: leave out the others.")
        restore = Restore(
            self.connect(),
            self.settings.namespace,
            args["timeout"],
            self.settings.wait_timeout,
            lambda line: self._display.display(f"{self.settings.cluster_name}: {line}"),
        )
        go = args["confirm"] and not self._task.check_mode
        if args["discard"]:
            if not go:
                return {"msg": f"Would delete for good what restores have set aside on PostgreSQL's volumes. {CONFIRM}"}
            with Lease(restore.cluster, restore.namespace, STATE, "A restore"):
                return {"changed": True, "msg": "\n".join(restore.discard())}
        begun = restore.under_way()
        plan = {} if args["undo"] else restore.plan(target, timeline)
        text = (
            self._plan(plan, begun) if plan else "PostgreSQL goes back to the data that the last restore has set aside."
        )
        if args["beside"] and not self._task.check_mode:
            pod = restore.beside(target, timeline)
            where = f"kubectl -n {restore.namespace}"
            return {
                "changed": True,
                "plan": plan,
                "msg": f"Backup {plan['label']}, as of {plan['target'] or 'the newest that was archived'}, is served by"
                f" pod {pod}: `{where} exec -it {pod} -- psql -U postgres`, and away by `{where} delete pod {pod}`.",
            }
        if not go:
            return {"changed": args["confirm"], "plan": plan, "msg": f"{text}\n{CONFIRM}"}
        self._display.display(text)
        with Lease(restore.cluster, restore.namespace, STATE, "A restore"):
            told = restore.run(target, timeline, args["undo"])
        return {"changed": True, "plan": plan, "restored": told, "msg": self._told(told)}

    def _plan(self, plan: Body, begun: Body | None) -> str:
        """What will be done, and what will be lost."""
        lost = (
            f"Lost: whatever was written after {plan['lost_from']}."
            if plan["lost_from"]
            else "Lost: what has not been archived yet; nothing, where PostgreSQL can still shut down by itself."
        )
        lines = [
            f"PostgreSQL of {self.settings.namespace} goes to {plan['target'] or 'the newest that was archived'}, "
            f"from backup {plan['label']} of {plan['made']}: {plan['size'] / 1e6:.0f} MB.",
            lost,
            "The applications are stopped around it. The data of now is set aside on its volume, and stays there until "
            "-e restore_discard=true.",
        ]
        if begun:
            lines.insert(
                0, f"A restore to {begun['target'] or 'the newest'} of {begun['since']} is under way, and is completed."
            )
        return "\n".join(lines)

    @staticmethod
    def _told(told: Body) -> str:
        if "back" in told:
            return f"PostgreSQL has the data of {told['back']} again, timeline {told['timeline']}."
        kept = f"what was there is kept as {told['aside']}" if told["aside"] else "there was no data before"
        return (
            f"Backup {told['label']} was restored in {told['seconds']:.0f} s, the last transaction is of "
            f"{told['reached'] or 'before that backup'}, timeline {told['timeline']}; {kept}."
        )
