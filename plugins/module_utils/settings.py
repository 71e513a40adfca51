"""The inventory variables that the engine's actions read."""

from __future__ import annotations

from typing import Any

from ansible.template import Templar


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
    def wait_timeout(self) -> float:
        """Seconds to wait for readiness."""
        return float(self._value("platform_wait_timeout", 300))
