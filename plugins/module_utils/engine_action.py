"""What the engine's actions do alike: read arguments and settings, reach the cluster, fail with one message."""

from __future__ import annotations

import re
from abc import abstractmethod
from datetime import timedelta
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.settings import Settings

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def look_back(since: str) -> timedelta:
    """A span such as 90s, 30m, 1h or 2d.

    :raises EngineError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", since)
    if not found:
        raise EngineError(f"since is {since!r}: write a number and s, m, h or d, as in 90s, 30m, 1h or 2d.")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def listed(given: list[str]) -> list[str]:
    """Names, which commas may separate."""
    return [name.strip() for item in given for name in item.split(",") if name.strip()]


def named(found: list[Body], names: list[str], kinds: str, namespace: str) -> list[Body]:
    """The objects of these names, each once, in the order of the names.

    :param kinds: what they are, as in `Deployment or StatefulSet`.
    :raises EngineError: one that there is not, with those that there are.
    """
    known = {body["metadata"]["name"] for body in found}
    if missing := [name for name in names if name not in known]:
        there = ", ".join(sorted(known)) or "none"
        raise EngineError(f"no {kinds} {', '.join(missing)} in {namespace}; there are: {there}.")
    return [body for name in dict.fromkeys(names) for body in found if body["metadata"]["name"] == name]


class EngineAction(ActionBase):
    """Runs on the control node, once a cluster."""

    _supports_check_mode = True
    _requires_connection = False
    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns what `act` does, with changed."""
        self.variables: dict[str, Any] = task_vars or {}
        result = super().run(tmp, self.variables) | {"changed": False}
        _valid, args = self.validate_argument_spec(argument_spec=self.ARGUMENTS)
        self.settings = Settings(self._templar, self.variables)
        try:
            return result | self.act(args)
        except EngineError as error:
            raise AnsibleActionFail(str(error)) from None

    @abstractmethod
    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """The action itself.

        :param args: as ARGUMENTS have them.
        :raises EngineError: whose text becomes the task's message.
        """

    def connect(self) -> Cluster:
        """The cluster of this inventory host."""
        return Cluster.from_kubeconfig(self.settings.cluster_name, self.settings.kubeconfig, self.settings.context)
