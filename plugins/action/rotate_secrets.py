"""Action of `citadelbuy.platform.rotate_secrets`: new values for secrets. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.citadelbuy.platform.plugins.filter.secret_problems import value_problem
from ansible_collections.citadelbuy.platform.plugins.module_utils import diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.rotation import OWN, Rotation
from ansible_collections.citadelbuy.platform.plugins.module_utils.settings import Settings


class ActionModule(ActionBase):
    """Runs on the control node, once a cluster."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns changed, secrets (what was done, by name) and the same as a table in msg."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars) | {"changed": False, "_ansible_verbose_always": True}
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "names": {"type": "list", "elements": "str", "required": True},
                "token_lifetime": {"type": "float", "default": 3600.0},
                "timeout": {"type": "float"},
            }
        )
        settings = Settings(self._templar, task_vars)
        # Read here, not given as arguments: a task's arguments are printed at -vvv.
        given = self._given(task_vars)
        try:
            names = [name.strip() for item in args["names"] for name in item.split(",") if name.strip()]
            if not names:
                raise EngineError("rotate_secrets_names is empty: name secrets, as DATABASE_PASSWORD, or all.")
            source = "secrets_source" in task_vars and self._templar.resolve_variable_expression("secrets_source")
            if source not in (False, "values"):
                raise EngineError(
                    f"secrets_source is {source}: its controller would undo a rotation. Change the value where it comes"
                    " from, and run playbooks/site.yml."
                )
            for name in given if "all" in names else set(names) & set(given):
                if problem := value_problem(f"secrets_{name.lower()}", given[name]):
                    raise EngineError(f"{name} of the inventory {problem}")
            cluster = Cluster.from_kubeconfig(settings.cluster_name, settings.kubeconfig, settings.context)
            rotation = Rotation(
                cluster,
                settings.namespace,
                given,
                args["timeout"] or settings.wait_timeout,
                args["token_lifetime"],
                lambda line: self._display.display(f"{settings.cluster_name}: {line}"),
            )
            told = rotation.run(names, self._task.check_mode)
        except EngineError as error:
            raise AnsibleActionFail(diff.mask(str(error), set(given.values()))) from None
        width = max(map(len, told), default=0)
        lines = [f"{name:<{width}}  {text}" for name, text in told.items()]
        changed = any(not text.startswith("left") for text in told.values())
        return result | {"changed": changed, "secrets": told, "msg": "\n".join(lines)}

    def _given(self, task_vars: dict[str, Any]) -> dict[str, str]:
        """The inventory's own values by key."""
        found = {}
        for key in OWN:
            name = f"secrets_{key.lower()}"
            if task_vars.get(name):
                found[key] = str(self._templar.resolve_variable_expression(name) or "")
        if task_vars.get("secrets_third_party"):
            third = self._templar.resolve_variable_expression("secrets_third_party")
            found |= {str(key): str(value) for key, value in third.items()}
        return {key: value for key, value in found.items() if value}
