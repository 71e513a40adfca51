"""Action of `citadelbuy.platform.preflight`: all that is wrong, at once, before anything is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from ansible.errors import AnsibleError
from ansible_collections.citadelbuy.platform.plugins.filter.secret_source_problems import (
    BELONGS,
    secret_source_problems,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils import container_rules
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import leave_replicas_to_autoscalers
from ansible_collections.citadelbuy.platform.plugins.module_utils.cluster_checks import ClusterChecks
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest, render
from ansible_collections.citadelbuy.platform.plugins.module_utils.role_variables import (
    Role,
    typed,
    unknown_variables,
    value_problems,
    written_at,
)


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster, and reads only."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "roles": {"type": "list", "elements": "str", "required": True},
        "cluster": {"type": "bool", "default": True},
        "capacity_required": {"type": "bool", "default": True},
        "new_cluster": {"type": "bool", "default": False},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns the cluster's version; fails with all problems at once."""
        task_vars = self.variables
        result: dict[str, Any] = {}
        roles = self._roles()
        deployed = [roles[name] for name in args["roles"] if name in roles]
        problems = [
            f"role {name} does not exist: correct preflight_roles." for name in args["roles"] if name not in roles
        ]
        problems += unknown_variables(task_vars, roles.values())
        faulty: set[str] = set()
        for role in deployed:
            found = value_problems(role, task_vars, self._templar)
            if role.name == "secrets" and not found:
                found = self._secrets(role, task_vars)
            if found:
                faulty.add(role.name)
                problems += found
        manifests: list[Manifest] = []
        rendered: list[tuple[Role, list[Manifest]]] = []
        for role in deployed:
            if role.name not in faulty:
                made, errors = self._render(role, task_vars)
                rendered.append((role, made))
                manifests += made
                problems += errors
        leave_replicas_to_autoscalers(manifests)
        problems += container_rules.problems(manifests)

        warnings: list[str] = []
        try:
            if self.settings.image_digests_required:
                for role, made in rendered:
                    problems += self._without_digest(role, made, task_vars)
        except EngineError as error:
            problems.append(str(error))
        if args["cluster"]:
            try:
                cluster = self.connect()
                found_there = ClusterChecks(cluster, manifests, args["capacity_required"], args["new_cluster"]).run()
                problems += found_there.problems
                warnings = found_there.warnings
                result["version"] = found_there.version
            except EngineError as error:
                problems.append(str(error))
        problems = list(dict.fromkeys(problems))
        if warnings:
            result["warnings"] = [f"{self.settings.cluster_name}: {warning}" for warning in warnings]
        if problems:
            if len(problems) == 1:
                return result | {"failed": True, "msg": f"Preflight, nothing was changed: {problems[0]}"}
            # A text, as lists are wrapped and quoted where Ansible prints them.
            result["problems"] = "\n".join(f"- {problem}" for problem in problems)
            return result | {"failed": True, "msg": f"Preflight found {len(problems)} problems, nothing was changed."}
        return result | {"msg": "all well"}

    def _roles(self) -> dict[str, Role]:
        """Every role of this checkout (or collection), for its variables are ours."""
        folder = Path(__file__).resolve().parents[2] / "roles"
        return {path.name: Role.load(path, self._loader) for path in sorted(folder.iterdir()) if path.is_dir()}

    def _secrets(self, role: Role, variables: dict[str, Any]) -> list[str]:
        """Placeholders, empty and short values, by name."""
        scope = role.scope(variables) | typed(role, variables, self._templar)
        templar = self._templar.copy_with_new_env(available_variables=scope)

        def value(name: str, default: Any = None) -> Any:
            return templar.template(scope[name]) if name in scope else default

        try:
            found = secret_source_problems(
                {name: value(name) for names in BELONGS.values() for name in names}
                | {"secrets_source": value("secrets_source")}
            )
        except AnsibleError as error:
            found = [str(error)]
        return [f"secret {problem}" for problem in found]

    def _without_digest(self, role: Role, made: list[Manifest], variables: dict[str, Any]) -> list[str]:
        """The variables of a role (`<role>_..._image`) whose image has no digest and is in what it makes."""
        scope = role.scope(variables) | typed(role, variables, self._templar)
        templar = self._templar.copy_with_new_env(available_variables=scope)
        found: list[str] = []
        used = json.dumps([manifest.body for manifest in made])
        for name in sorted(name for name in role.options if name.endswith("_image")):
            image = str(templar.template(scope[name]))
            if json.dumps(image) in used and not container_rules.DIGEST.search(image):
                found.append(
                    f"{name}{written_at(variables.get(name))}: image {image} has no digest: write it as "
                    "name:tag@sha256:..., or set platform_image_digests_required to false."
                )
        return found

    def _render(self, role: Role, variables: dict[str, Any]) -> tuple[list[Manifest], list[str]]:
        """A role's manifests, or what is wrong in each of its templates."""
        files = role.templates()
        scope = role.scope(variables) | typed(role, variables, self._templar)
        search = [str(role.path), str(role.path / "templates")]
        try:
            return render(self._templar, files, scope, search), []
        except EngineError as error:
            errors = [str(error)]
        for file in files:
            try:
                render(self._templar, [file], scope, search)
            except EngineError as error:
                errors.append(str(error))
        return [], list(dict.fromkeys(errors))
