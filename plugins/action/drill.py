"""Action of `citadelbuy.platform.drill`: a part of a store is lost while it is written to. Manual: plugins/modules."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill import Drill, Round, as_records, table
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_alarm import Prometheus
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_faults import FAULTS, Nodes
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import STORES
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, listed
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease

ALONE = {name for name, fault in FAULTS.items() if fault.alone}
CONFIRM = "It takes the store's writes away for seconds. To do it: the same with -e drill_confirm=true."


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "stores": {"type": "list", "elements": "str", "required": True},
        "scenarios": {"type": "list", "elements": "str", "required": True},
        "rounds": {"type": "int", "default": 1},
        "confirm": {"type": "bool", "default": False},
        "programs": {"type": "dict", "required": True},
        "nodes": {"type": "dict", "required": True},
        "monitoring_namespace": {"type": "str", "required": True},
        "disk_ratio": {"type": "float", "default": 0.0},
        "report": {"type": "path"},
        "timeout": {"type": "float", "default": 300.0},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed and each round; tells the plan, or each round and the table."""
        stores, scenarios = (
            named(args["stores"], [*STORES], "store"),
            named(args["scenarios"], [*FAULTS], "scenario", ALONE),
        )
        cluster, nodes = self.connect(), Nodes(args["nodes"]["name"], args["nodes"]["state_dir"])

        prometheus = Prometheus(cluster, args["monitoring_namespace"], args["disk_ratio"])

        def say(line: str) -> None:
            self._display.display(f"{self.settings.cluster_name}: {line}")

        drills = [
            Drill(
                cluster,
                self.settings.namespace,
                store,
                scenario,
                nodes,
                prometheus,
                args["programs"][store],
                args["timeout"],
            )
            for store in stores
            for scenario in scenarios
        ]
        for drill in drills:
            drill.require_possible()
        if self._task.check_mode or not args["confirm"]:
            times = f"{args['rounds']} times each" if args["rounds"] > 1 else "once each"
            for line in [*(f"{drill.store.title} {drill.fault.name}: {drill.fault.what}." for drill in drills), times]:
                say(line)
            say(CONFIRM)
            return {"changed": args["confirm"]}
        rounds: list[Round] = []
        if args["report"]:
            Path(args["report"]).parent.mkdir(parents=True, exist_ok=True)
        with Lease(cluster, self.settings.namespace, "drill", "A drill"):
            for drill in drills:
                for _ in range(args["rounds"]):
                    rounds.append(drill.round())
                    say(rounds[-1].line())
                    if args["report"]:
                        Path(args["report"]).write_text(json.dumps(as_records(rounds), indent=2) + "\n")
        for line in table(rounds):
            say(line)
        lost = [f"{one.store} {one.scenario}: {', '.join(map(str, one.lost[:10]))}" for one in rounds if one.lost]
        if lost:
            raise EngineError(f"acknowledged writes were lost, by number: {'; '.join(lost)}")
        return {"changed": True, "rounds": as_records(rounds)}


def named(given: list[str], known: list[str], what: str, alone: Collection[str] = ()) -> list[str]:
    """Names, which commas may separate, in the order of what there is; `all` are all but those that are alone.

    :raises EngineError: one that there is not.
    """
    names = listed(given)
    if names == ["all"]:
        return [name for name in known if name not in alone]
    if unknown := sorted(set(names) - {*known}):
        raise EngineError(f"drill_{what}s has {', '.join(unknown)}: there are {', '.join(known)}, and all.")
    if not names:
        raise EngineError(f"drill_{what}s is empty: name one of {', '.join(known)}, or all.")
    return [name for name in known if name in names]
