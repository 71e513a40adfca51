"""Action of `citadelbuy.platform.manifests`: render, apply server-side, wait. Its manual is in plugins/modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ansible import constants as C
from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff, rollback, senders
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply import Applier, Policy
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import NO_CHANGE
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import Parent
from ansible_collections.citadelbuy.platform.plugins.module_utils.progress import progress_line
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import find_templates, render
from ansible_collections.citadelbuy.platform.plugins.module_utils.role_variables import Role, typed, value_problems
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import Waiter, targets_of


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "templates": {"type": "list", "elements": "str", "default": ["templates"]},
        "name": {"type": "str"},
        "wait": {"type": "bool", "default": True},
        "wait_timeout": {"type": "float"},
        "force_conflicts": {"type": "bool", "default": False},
        "prune": {"type": "bool", "default": True},
        "prune_after": {"type": "list", "elements": "str", "default": []},
        "parent_namespace": {"type": "str"},
        "rollback_on_failure": {"type": "bool", "default": False},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed, objects, diff (in diff mode) and, on failure, one msg for all that is wrong."""
        task_vars = self.variables
        role = self._task._role
        name = args["name"] or (role.get_name(include_role_fqcn=False) if role else None)
        if not name:
            raise EngineError("manifests: outside a role the argument `name` (the set's name) is needed.")
        if role:
            task_vars = task_vars | self._check_variables(Path(role._role_path), task_vars)
        base = [Path(role._role_path)] if role else []
        base += [Path(role._role_path, "templates")] if role else []
        files = find_templates(args["templates"], [*base, Path(self._loader.get_basedir())])
        manifests = render(self._templar, files, task_vars, [str(folder) for folder in base])

        cluster = self.connect()
        parent = Parent(cluster, name, args["parent_namespace"] or self.settings.namespace)
        applyset.add_labels(manifests, parent.id, self.settings.cluster_name)
        applyset.leave_replicas_to_autoscalers(manifests)
        check = self._task.check_mode
        foreseen = Foreseen(Path(C.DEFAULT_LOCAL_TMP) / f"citadelbuy-{self.settings.cluster_name}") if check else None
        policy = Policy(args["force_conflicts"], args["prune"], self.settings.prune_data, self.settings.replace)
        timeout = args["wait_timeout"] or self.settings.wait_timeout

        def settle(done: list[dict[str, Any]]) -> None:
            """CRDs are established before objects of their kinds are applied."""
            crds = [body for body in done if body["kind"] == "CustomResourceDefinition"]
            if crds:
                Waiter(cluster, timeout).wait(targets_of(crds))
                cluster.forget_kinds()

        def hold(doomed: list[dict[str, Any]], applied: list[dict[str, Any]]) -> str:
            """Nothing goes while other sets' proxies may send requests to it."""
            bodies = senders.members(cluster, args["prune_after"], parent.namespace)
            named = senders.named_by(bodies, doomed, foreseen or Foreseen())
            tell = progress_line(self.settings.cluster_name)
            return named or ("" if check else senders.wait_until_quiet(cluster, [*bodies, *applied], timeout, tell))

        outcome = Applier(cluster, parent, policy, foreseen, check).apply(
            manifests, settle, hold if args["prune_after"] else None
        )
        result: dict[str, Any] = {
            "changed": outcome.changed,
            "objects": [change.summary() for change in outcome.applied],
            "msg": outcome.counts(),
        }
        kept = [
            f"{self.settings.cluster_name}: {item} is kept: {item.reason}"
            for item in outcome.applied
            if item.action == "kept"
        ]
        if kept:
            result["warnings"] = kept
        if self._task.diff:
            changes = [item for item in outcome.applied if item.action not in NO_CHANGE]
            result["diff"] = [diff.yaml_diff(item.before, item.after, str(item)) for item in changes]
        if outcome.errors:
            return result | {"failed": True, "msg": "\n".join(dict.fromkeys(outcome.errors))}
        if args["wait"] and not check:
            targets = targets_of(item.after for item in outcome.applied if item.after)
            try:
                Waiter(cluster, timeout, progress_line(self.settings.cluster_name)).wait(targets)
            except EngineError as error:
                lines = [str(error)]
                if args["rollback_on_failure"]:
                    lines += rollback.undo_failed(cluster, targets, timeout)
                return result | {"failed": True, "msg": diff.mask("\n".join(lines), outcome.secret_values)}
            waited = {(target.kind, target.namespace, target.name): target.seconds for target in targets}
            for entry in result["objects"]:
                seconds = waited.get((entry["kind"], entry["namespace"], entry["name"]))
                if seconds and seconds > 0.05:
                    entry["ready_after"] = round(seconds, 1)
        return result

    def _check_variables(self, role: Path, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Judge the role's variables by its argument_specs.yml, in a tenth of the time of Ansible's own task for it.

        :returns: those that were given as text and are none.
        """
        known = Role(role.name, role, options=Role.read_options(role))
        problems = value_problems(known, task_vars, self._templar)
        if problems:
            raise EngineError("\n".join(problems))
        return typed(known, task_vars, self._templar)
