"""The inventory variables that the engine's actions read."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.template import Templar
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError


class Settings:
    """Typed view of a cluster's variables; each is templated when it is read."""

    def __init__(self, templar: Templar, variables: dict[str, Any]) -> None:
        self._templar = templar
        self._variables = variables

    def _value(self, name: str, default: Any = None) -> Any:
        if self._variables.get(name) is None:
            return default
        value = self._templar.resolve_variable_expression(name)
        return default if value is None or value == "" else value

    @property
    def cluster_name(self) -> str:
        """The inventory host."""
        return str(self._value("inventory_hostname", "localhost"))

    @property
    def kubeconfig(self) -> str | None:
        """Path of the kubeconfig file."""
        value = self._value("cluster_kubeconfig")
        return None if value is None else str(value)

    @property
    def context(self) -> str | None:
        """Context in it; None for its current one."""
        value = self._value("cluster_context")
        return None if value is None else str(value)

    @property
    def namespace(self) -> str:
        """Where the platform, and the sets' parent objects, live."""
        return str(self._value("platform_namespace", "citadelbuy"))

    @property
    def restore_namespace(self) -> str:
        """Where backups are restored to be verified."""
        return str(self._value("platform_restore_namespace", "citadelbuy-restore"))

    @property
    def wait_timeout(self) -> float:
        """Seconds to wait for readiness."""
        return float(self._value("platform_wait_timeout", 300))

    @property
    def image_digests_required(self) -> bool:
        """Whether preflight refuses images without digest.

        :raises EngineError: where the variable is neither true nor false.
        """
        try:
            return bool(boolean(self._value("platform_image_digests_required", False)))
        except TypeError:
            raise EngineError("platform_image_digests_required must be true or false.") from None

    def _names(self, name: str) -> list[str]:
        """A list of objects, each as `Kind namespace/name`."""
        value = self._value(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise EngineError(f"{name} must be a list of texts such as 'StatefulSet citadelbuy/postgres'.")
        return [" ".join(item.split()) for item in value]

    @property
    def prune_data(self) -> list[str]:
        """Guarded objects that may be pruned."""
        return self._names("platform_prune_data")

    @property
    def replace(self) -> list[str]:
        """Objects that may be deleted and created anew."""
        return self._names("platform_replace")
