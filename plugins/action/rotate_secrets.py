"""Action of `citadelbuy.platform.rotate_secrets`: new values for secrets. Its manual is in plugins/modules."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.filter.secret_problems import value_problem
from ansible_collections.citadelbuy.platform.plugins.module_utils import diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.rotation import OWN, Rotation


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "names": {"type": "list", "elements": "str", "required": True},
        "token_lifetime": {"type": "float", "default": 3600.0},
        "timeout": {"type": "float"},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns changed, secrets (what was done, by name) and the same as a table in msg."""
        # Read here, not given as arguments: a task's arguments are printed at -vvv.
        given = self._given()
        try:
            names = [name.strip() for item in args["names"] for name in item.split(",") if name.strip()]
            if not names:
                raise EngineError("rotate_secrets_names is empty: name secrets, as DATABASE_PASSWORD, or all.")
            source = "secrets_source" in self.variables and self._templar.resolve_variable_expression("secrets_source")
            if source not in (False, "values"):
                raise EngineError(
                    f"secrets_source is {source}: its controller would undo a rotation. Change the value where it comes"
                    " from, and run playbooks/site.yml."
                )
            for name in given if "all" in names else set(names) & set(given):
                if problem := value_problem(f"secrets_{name.lower()}", given[name]):
                    raise EngineError(f"{name} of the inventory {problem}")
            rotation = Rotation(
                self.connect(),
                self.settings.namespace,
                given,
                args["timeout"] or self.settings.wait_timeout,
                args["token_lifetime"],
                lambda line: self._display.display(f"{self.settings.cluster_name}: {line}"),
            )
            told = rotation.run(names, self._task.check_mode)
        except EngineError as error:
            raise EngineError(diff.mask(str(error), set(given.values()))) from None
        width = max(map(len, told), default=0)
        lines = [f"{name:<{width}}  {text}" for name, text in told.items()]
        changed = any(not text.startswith("left") for text in told.values())
        return {"changed": changed, "secrets": told, "msg": "\n".join(lines), "_ansible_verbose_always": True}

    def _given(self) -> dict[str, str]:
        """The inventory's own values by key."""
        found = {}
        for key in OWN:
            name = f"secrets_{key.lower()}"
            if self.variables.get(name):
                found[key] = str(self._templar.resolve_variable_expression(name) or "")
        if self.variables.get("secrets_third_party"):
            third = self._templar.resolve_variable_expression("secrets_third_party")
            found |= {str(key): str(value) for key, value in third.items()}
        return {key: value for key, value in found.items() if value}
