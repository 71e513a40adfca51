"""Filter `citadelbuy.platform.heap_fits`: whether half of a pod's memory is enough for a JVM's heap."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError

DOCUMENTATION = """
name: heap_fits
short_description: Whether a JVM's heap is at most half of a pod's memory
version_added: 1.0.0
author: CitadelBuy Platform (@citadelbuy)
description:
  - Java's units are not those of Kubernetes. C(1g) is 1024 MiB there; C(1G) is 1000 MB here, and C(512m) half a byte.
options:
  _input:
    description: The heap as C(-Xmx) takes it.
    type: str
    required: true
  memory:
    description: The memory limit as Kubernetes takes it.
    type: str
    required: true
"""
EXAMPLES = """
- name: Refuse a heap that leaves too little
  ansible.builtin.assert:
    that: "'1g' | citadelbuy.platform.heap_fits('2Gi')"
"""
RETURN = """
_value:
  description: Whether it fits.
  type: bool
"""

HEAP = re.compile(r"([1-9]\d*)([kKmMgGtT]?)")


def heap_fits(heap: Any, memory: Any) -> bool:
    """Whether the heap is at most half of the memory.

    :raises AnsibleFilterError: where one of them is no size.
    """
    match = HEAP.fullmatch(str(heap))
    if not match:
        raise AnsibleFilterError(f"{str(heap)!r} is no size of a JVM's heap: write it as 512m or 1g.")
    size = int(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")
    try:
        return 2 * size <= quantity(memory)
    except EngineError as error:
        raise AnsibleFilterError(f"{error}.") from None


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file by name."""
        return {"heap_fits": heap_fits}
