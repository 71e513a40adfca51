"""Action of `citadelbuy.platform.login`: a login for a service account. Its manual is in plugins/modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.citadelbuy.platform.plugins.module_utils import login
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.settings import Settings

SERVICE_ACCOUNT = Resource("v1", "ServiceAccount", "serviceaccounts", True)


class ActionModule(ActionBase):
    """Runs on the control node, once a cluster. The token is in the file and nowhere else."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns changed and, of a new token, when it ends."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars) | {"changed": False}
        _valid, args = self.validate_argument_spec(
            argument_spec={
                "service_account": {"type": "str", "required": True},
                "namespace": {"type": "str", "required": True},
                "path": {"type": "str", "required": True},
                "hours": {"type": "float", "required": True},
            }
        )
        settings = Settings(self._templar, task_vars)
        try:
            return result | self._log_in(args, settings)
        except EngineError as error:
            raise AnsibleActionFail(str(error)) from None

    def _log_in(self, args: dict[str, Any], settings: Settings) -> dict[str, Any]:
        namespace, name = args["namespace"], args["service_account"]
        cluster = Cluster.from_kubeconfig(settings.cluster_name, settings.kubeconfig, settings.context)
        target = login.cluster_of(str(settings.kubeconfig), settings.context)
        file = Path(args["path"]).expanduser()
        account = cluster.get(SERVICE_ACCOUNT, namespace, name)
        if account and login.is_good(file, target, account["metadata"]["uid"]):
            return {"msg": f"{file} is good for more than half of its hours"}
        if self._task.check_mode:
            return {"changed": True, "msg": f"{file} would be written"}
        if not account:
            raise EngineError(f"ServiceAccount {namespace}/{name} does not exist: no token can be had for it.")
        token, expires = login.request_token(cluster, namespace, name, args["hours"])
        login.write(file, login.kubeconfig(target, namespace, name, token))
        return {"changed": True, "expires": expires, "msg": f"{file} logs in as {namespace}/{name} until {expires}"}
