"""Action of `citadelbuy.platform.verify`: an end-to-end proof of a deployed platform."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.smoke import FAILED, PLAN, Smoke, table


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster; what it makes it removes."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "namespaces": {"type": "list", "elements": "str"},
        "search_timeout": {"type": "float", "default": 10.0},
        "page": {"type": "str", "default": "/"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns checks (a list of rows) and, for people, a table as msg."""
        # Shown in normal output too: the table is what this task is for.
        result: dict[str, Any] = {"_ansible_verbose_always": True}
        if self._task.check_mode:
            plan = "\n".join(f"- {text}" for _name, text in PLAN)
            return result | {"msg": f"check mode: nothing is verified; a run would see that\n{plan}"}
        try:
            cluster = self.connect()
            rows = Smoke(
                cluster, args["namespaces"] or [self.settings.namespace], args["search_timeout"], args["page"]
            ).run()
        except EngineError as error:
            return result | {"failed": True, "msg": str(error)}
        failed = [row for row in rows if row.result == FAILED]
        if failed:
            names = ", ".join(row.check for row in failed)
            count = f"{len(failed)} of {len(rows)} checks failed"
            return result | {"failed": True, "msg": f"{count}: {names}\n{table(rows)}"}
        # Rows stay out of normal output: they are the same as the table.
        return (
            result
            | {"msg": table(rows)}
            | ({"checks": [asdict(row) for row in rows]} if self._display.verbosity else {})
        )
