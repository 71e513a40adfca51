"""Nothing but what went wrong, one line each: for cron, which mails whatever is said."""

from __future__ import annotations

from typing import Any

from ansible.executor.task_result import CallbackTaskResult
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
---
name: quiet
type: stdout
short_description: One line for each failure, and nothing else
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - For playbooks that cron or a timer runs. What went well is shown with C(-v).
"""


class CallbackModule(CallbackBase):
    """Prints failures to standard error."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "citadelbuy.platform.quiet"

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """A task failed."""
        if not ignore_errors:
            self._tell(result)

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """A host did not answer."""
        self._tell(result)

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """A task ended well."""
        if self._display.verbosity:
            self._display.display(self._line(result.host.get_name(), result.task_name, result.result))

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Nothing would be done, without a word."""
        self._display.display("no cluster of the inventory matches: nothing was done", stderr=True)

    def _tell(self, result: CallbackTaskResult) -> None:
        line = self._line(result.host.get_name(), f"{result.task_name} failed", result.result)
        self._display.display(line, stderr=True)

    @staticmethod
    def _line(host: str, what: str, result: dict[str, Any]) -> str:
        message = " ".join(str(result.get("msg") or result.get("censored") or "").split())
        return f"{host}: {what}: {message}" if message else f"{host}: {what}"
