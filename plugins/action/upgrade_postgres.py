"""Action of `citadelbuy.platform.upgrade_postgres`: another major of PostgreSQL. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore import STATE
from ansible_collections.citadelbuy.platform.plugins.module_utils.upgrade_postgres import SPARE, Upgrade

LOST = "Lost by it: all that was written since the upgrade; that data is kept beside it."
CONFIRM = "To do it: the same with -e upgrade_postgres_confirm=true."
THEN = "To do: playbooks/site.yml, for what else has this image."


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"type": "str", "required": True},
        "restore_namespace": {"type": "str", "required": True},
        "back": {"type": "bool", "default": False},
        "confirm": {"type": "bool", "default": False},
        "timeout": {"type": "float", "default": 21600.0},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed and in msg what the rehearsal has told, or what was done."""
        upgrade = Upgrade(
            self.connect(),
            self.settings.namespace,
            args["restore_namespace"],
            args["image"],
            args["timeout"],
            self.settings.wait_timeout,
            lambda line: self._display.display(f"{self.settings.cluster_name}: {line}"),
        )
        if self._task.check_mode:
            raise EngineError("an upgrade has no --check: without -e upgrade_postgres_confirm=true it is a rehearsal.")
        if args["back"] and not args["confirm"]:
            return {"msg": f"Would go back to {args['image']} and its data. {LOST} {CONFIRM}"}
        with Lease(upgrade.cluster, upgrade.namespace, STATE, "An upgrade"):
            if args["back"]:
                told = upgrade.back()
                done = f"has the data of {told['back']} again" if told["back"] else "was not upgraded yet"
                return {"changed": True, "msg": f"PostgreSQL {done}, and image {args['image']}. {LOST}\n{THEN}"}
            if not args["confirm"]:
                return {"told": (told := upgrade.rehearse()), "msg": rehearsal(told)}
            told = upgrade.upgrade()
            return {"changed": True, "told": told, "msg": f"{upgraded(told)}\n{THEN}"}


def rehearsal(told: Body) -> str:
    """What a rehearsal has told, in lines."""
    return "\n".join(
        [
            f"Backup {told['label']} was restored beside in {told['restored']} s, upgraded by {told['image']}.",
            upgraded(told),
            f"Compared: {told['tables']} tables, {told['rows']} rows, all as recorded, in {told['checked']} s.",
            f"Room: {told['size'] * SPARE / 1e6:.0f} MB beside the data, on the first member's volume.",
            f"The platform was not touched. {CONFIRM}",
        ]
    )


def upgraded(told: Body) -> str:
    """What the work on the volume has told, in a line."""
    majors, steps = f"{told['former']} to {told['now']}", told["steps"]
    work = f"pg_upgrade --check {steps['check']} s ({told['check']}), pg_upgrade {steps['upgrade']} s"
    return f"PostgreSQL {majors} in {told['seconds']} s: {work}, ANALYZE {steps['analyze']} s."
