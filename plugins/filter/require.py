"""Filter `citadelbuy.platform.require`: a template refuses what cannot be right, before anything is applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: require
short_description: Refuse to render a template where a condition does not hold
version_added: 1.0.0
author: CitadelBuy Platform (@citadelbuy)
description:
  - Renders to nothing where the condition holds. Preflight renders every template, so it finds these first.
options:
  _input:
    description: The condition.
    type: raw
    required: true
  message:
    description: What is wrong, and what to do.
    type: str
    required: true
"""
EXAMPLES = """
- name: Refuse several members without replication, at the top of a template
  ansible.builtin.debug:
    msg: "{{ (replicas == 1 or replicated) | citadelbuy.platform.require('replicas is not 1: set it to 1') }}"
"""
RETURN = """
_value:
  description: The empty text.
  type: str
"""


def require(condition: Any, message: str) -> str:
    """The empty text.

    :raises AnsibleFilterError: with the message, where the condition is false or empty.
    """
    if not condition:
        raise AnsibleFilterError(message)
    return ""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file by name."""
        return {"require": require}
