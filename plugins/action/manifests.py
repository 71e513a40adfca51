"""Action of `citadelbuy.platform.manifests`: render, apply server-side, wait. Its manual is in plugins/modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply import Applied, Applier, Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import find_templates, render
from ansible_collections.citadelbuy.platform.plugins.module_utils.settings import Settings
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import Waiter, targets_of


class ActionModule(ActionBase):
    """Runs on the control node, once a cluster."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns changed, objects, diff (in diff mode) and, on failure, one msg for all that is wrong."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "templates": {"type": "list", "elements": "str", "default": ["templates"]},
                "name": {"type": "str"},
                "wait": {"type": "bool", "default": True},
                "wait_timeout": {"type": "float"},
                "force_conflicts": {"type": "bool", "default": False},
            }
        )
        settings = Settings(self._templar, task_vars)
        try:
            return result | self._deploy(args, settings, task_vars)
        except EngineError as error:
            raise AnsibleActionFail(str(error)) from None

    def _deploy(self, args: dict[str, Any], settings: Settings, task_vars: dict[str, Any]) -> dict[str, Any]:
        role = self._task._role
        name = args["name"] or (role.get_name(include_role_fqcn=False) if role else None)
        if not name:
            raise EngineError("manifests: outside a role the argument `name` (the set's name) is needed.")
        base = [Path(role._role_path)] if role else []
        base += [Path(role._role_path, "templates")] if role else []
        files = find_templates(args["templates"], [*base, Path(self._loader.get_basedir())])
        manifests = render(self._templar, files, task_vars, [str(folder) for folder in base])
        applyset.add_labels(manifests, applyset.applyset_id(name, settings.namespace), settings.cluster_name)
        applyset.leave_replicas_to_autoscalers(manifests)

        check = self._task.check_mode
        cluster = Cluster.from_kubeconfig(settings.cluster_name, settings.kubeconfig, settings.context)
        foreseen = Foreseen(Path(C.DEFAULT_LOCAL_TMP) / f"citadelbuy-{settings.cluster_name}")
        applier = Applier(cluster, foreseen, check, args["force_conflicts"])
        timeout = args["wait_timeout"] or settings.wait_timeout

        def settle(done: list[Applied]) -> None:
            """CRDs are established before objects of their kinds are applied."""
            crds = [item.after for item in done if item.manifest.kind == "CustomResourceDefinition"]
            if crds:
                Waiter(cluster, timeout).wait(targets_of(crds))
                cluster.forget_kinds()

        outcome = applier.apply(manifests, settle)
        result = _summary(outcome.applied)
        if self._task.diff:
            changes = [item for item in outcome.applied if item.action != "unchanged"]
            result["diff"] = [diff.yaml_diff(item.before, item.after, str(item.manifest)) for item in changes]
        if outcome.errors:
            return result | {"failed": True, "msg": "\n".join(dict.fromkeys(outcome.errors))}
        if args["wait"] and not check:
            targets = targets_of(item.after for item in outcome.applied)
            try:
                Waiter(cluster, timeout).wait(targets)
            except EngineError as error:
                return result | {"failed": True, "msg": diff.mask(str(error), outcome.secret_values)}
            waited = {(target.kind, target.namespace, target.name): target.seconds for target in targets}
            for entry in result["objects"]:
                seconds = waited.get((entry["kind"], entry["namespace"], entry["name"]))
                if seconds and seconds > 0.05:
                    entry["ready_after"] = round(seconds, 1)
        return result


def _summary(applied: list[Applied]) -> dict[str, Any]:
    """The result without diff: small, whatever the manifests hold."""
    counts = {action: sum(item.action == action for item in applied) for action in ("created", "changed", "unchanged")}
    return {
        "changed": bool(counts["created"] or counts["changed"]),
        "objects": [item.summary() for item in applied],
        "msg": ", ".join(f"{count} {action}" for action, count in counts.items() if count) or "nothing to apply",
    }
