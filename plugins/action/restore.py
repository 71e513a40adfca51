"""Action of `citadelbuy.platform.restore`: backups in place of the data. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, listed
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore import STATE, Restore
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore_stores import STORES

ASIDE = (
    "The applications are stopped around it. The data of now is set aside on its volume, and stays there until "
    "-e restore_discard=true."
)
CONFIRM = "To do it: the same with -e restore_confirm=true."


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "stores": {"type": "list", "elements": "str", "default": ["postgres"]},
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
            named(args["stores"]),
            args["timeout"],
            self.settings.wait_timeout,
            lambda line: self._display.display(f"{self.settings.cluster_name}: {line}"),
        )
        titles = " and ".join(store.title for store in restore.stores)
        go = args["confirm"] and not self._task.check_mode
        if args["discard"]:
            if not go:
                return {"msg": f"Would delete for good what restores have set aside of {titles}. {CONFIRM}"}
            with Lease(restore.cluster, restore.namespace, STATE, "A restore"):
                return {"changed": True, "msg": "\n".join(restore.discard())}
        begun = restore.under_way()
        plan = {} if args["undo"] else restore.plan(target, timeline)
        if args["beside"] and not self._task.check_mode:
            return {"changed": True, "plan": plan, "msg": self._beside(restore, plan, target, timeline)}
        text = (
            self._plan(restore, plan, begun)
            if plan
            else f"{titles}: back to the data that the last restore has set aside."
        )
        if not go:
            return {"changed": args["confirm"], "plan": plan, "msg": f"{text}\n{CONFIRM}"}
        self._display.display(text)
        with Lease(restore.cluster, restore.namespace, STATE, "A restore"):
            told = restore.run(target, timeline, args["undo"])
        lines = [self._told(store.title, told[store.name]) for store in restore.stores]
        return {"changed": True, "plan": plan, "restored": told, "msg": "\n".join(lines)}

    @staticmethod
    def _beside(restore: Restore, plan: dict[str, Body], target: str, timeline: str) -> str:
        """Serve it, and say where."""
        [store] = restore.stores
        pod = store.beside(target, timeline)
        where = f"kubectl -n {restore.namespace}"
        return (
            f"Backup {plan[store.name]['label']}, as of {target or 'the newest that was archived'}, is served "
            f"by pod {pod}: `{where} exec -it {pod} -- psql -U postgres`, and away by `{where} delete pod {pod}`."
        )

    def _plan(self, restore: Restore, plan: dict[str, Body], begun: Body | None) -> str:
        """What will be done, and what will be lost."""
        lines = []
        if begun:
            aim = begun["target"] or "the newest"
            lines.append(f"A restore to {aim} of {begun['since']} is under way, and is completed.")
        for store in restore.stores:
            found = plan[store.name]
            lines.append(
                f"{store.title} of {self.settings.namespace} goes to {found['target'] or 'the newest'}, "
                f"from backup {found['label']} of {found['made']}: {found['size'] / 1e6:.0f} MB."
            )
            lines.append(
                f"Lost: whatever was written after {found['lost_from']}."
                if found["lost_from"]
                else "Lost: what has not been archived yet; nothing, where PostgreSQL can still shut down by itself."
            )
        return "\n".join([*lines, ASIDE])

    @staticmethod
    def _told(title: str, told: Body) -> str:
        if "secrets" in told:
            return f"{title}: the values of Secrets {', '.join(told['secrets'])} are those of the backup."
        timeline = f", timeline {told['timeline']}" if "timeline" in told else ""
        if told.get("back") == "":
            return f"{title} was left as it is: the restore had not come to it."
        if "back" in told:
            return f"{title} has the data of {told['back']} again{timeline}."
        kept = f"what was there is kept as {told['aside']}" if told["aside"] else "there was no data before"
        found = told.get("said") or f"the last transaction is of {told['reached'] or 'before that backup'}"
        return f"{title}: backup {told['label']} was restored in {told['seconds']:.0f} s, {found}{timeline}; {kept}."


def named(stores: list[str]) -> list[str]:
    """Names of stores, which commas may separate, in the order in which they are restored.

    :raises EngineError: one that there is not, or that is not restored together with others.
    """
    names = listed(stores)
    if unknown := sorted(set(names) - STORES.keys()):
        raise EngineError(f"restore_stores has {', '.join(unknown)}: there are {', '.join(STORES)}.")
    if "kubernetes" in names and len(names) > 1:
        raise EngineError("kubernetes is restored alone, before the stores are there: leave out the others.")
    return [name for name in STORES if name in names]
