"""Action of `citadelbuy.platform.backup`: back up, or verify, now. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import CRON_JOB, Ran, run_once
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, listed
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line

STORES = ("postgres", "redis", "elasticsearch", "kubernetes", "volumes")
WORK = "A backup or its verification"  # one at a time: both write the repository's list of backups
MARGIN = 60  # seconds beyond a Job's own deadline


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "stores": {"type": "list", "elements": "str", "default": []},
        "what": {"type": "str", "choices": ["backup", "verify"], "default": "backup"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed, and by store its Job, line and seconds; msg has a line a store."""
        cluster, what = self.connect(), args["what"]
        namespace = self.settings.namespace if what == "backup" else self.settings.restore_namespace
        found: dict[str, Body] = {
            store: body for store in STORES if (body := cluster.get(CRON_JOB, namespace, f"{store}-{what}")) is not None
        }
        asked = listed(args["stores"]) or [*found]
        if missing := [f"CronJob {namespace}/{store}-{what}" for store in asked if store not in found]:
            there = ", ".join(found) or "none"
            raise EngineError(f"there is no {', no '.join(missing)}. Stores that have one: {there}.")
        if not asked:
            raise EngineError(
                f"there are no CronJobs of backups in {namespace}: platform_backups is false, or site.yml has not run."
            )
        if suspended := [f"{namespace}/{store}-{what}" for store in asked if found[store]["spec"].get("suspend")]:
            raise EngineError(
                f"CronJobs {', '.join(suspended)} are suspended: with platform_backups_read_only the backups are "
                "another cluster's."
            )
        if self._task.check_mode:
            return {"changed": True, "stores": {}, "msg": f"would run: {', '.join(asked)}"}
        ran: dict[str, Ran] = {}
        failed: list[str] = []
        with Lease(cluster, self.settings.namespace, "backups", WORK):
            for store in asked:
                deadline = found[store]["spec"]["jobTemplate"]["spec"].get("activeDeadlineSeconds") or 86400
                try:
                    ran[store] = run_once(
                        cluster, found[store], deadline + MARGIN, progress_line(self.settings.cluster_name)
                    )
                except EngineError as error:
                    failed.append(f"{store}: {error}")
        told = [f"{store}: {one.line}" for store, one in ran.items()]
        if failed:
            raise EngineError("; ".join([*failed, *(f"{line} (this one is good)" for line in told)]))
        return {
            "changed": True,
            "stores": {
                store: {"job": one.job, "line": one.line, "seconds": round(one.seconds, 1)}
                for store, one in ran.items()
            },
            "msg": "\n".join(told),
            "_ansible_verbose_always": True,
        }
