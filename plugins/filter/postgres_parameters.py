"""Filter `citadelbuy.platform.postgres_parameters`: PostgreSQL's settings from the size of its pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError

DOCUMENTATION = """
name: postgres_parameters
short_description: PostgreSQL's parameters from its pod's memory, its volume and its connections
version_added: 1.0.0
author: CitadelBuy Platform (@citadelbuy)
description:
  - C(shared_buffers) is a quarter of the memory, C(effective_cache_size) a half, C(maintenance_work_mem) a sixteenth.
  - C(work_mem) is what each connection has of another quarter, at least 1 MiB.
  - C(max_wal_size) is a tenth of the volume, at most 8 GiB, and C(min_wal_size) a quarter of that.
options:
  _input:
    description: The container's memory limit as Kubernetes takes it.
    type: str
    required: true
  storage:
    description: The volume's size as Kubernetes takes it.
    type: str
    required: true
  connections:
    description: C(max_connections).
    type: int
    required: true
  slow_statement_milliseconds:
    description: Statements that take as long are logged, without the values of their parameters. 0 means none.
    type: int
    required: true
"""
EXAMPLES = """
- name: Show what a member of 2 GiB gets
  ansible.builtin.debug:
    msg: "{{ '2Gi' | citadelbuy.platform.postgres_parameters('20Gi', 200, 1000) }}"
"""
RETURN = """
_value:
  description: Parameters by name, with PostgreSQL's units, which are powers of 1024.
  type: dict
"""

KIB, MIB = 1 << 10, 1 << 20
FEWEST_CONNECTIONS = 25
"""Patroni leaves out a smaller `max_connections`, and 100 would be in force."""

LEAST_WORK_MEMORY = 1 * MIB
MOST_MAINTENANCE_MEMORY = 1024 * MIB
LEAST_WAL, MOST_WAL = 32 * MIB, 8192 * MIB


def postgres_parameters(
    memory: Any, storage: Any, connections: Any, slow_statement_milliseconds: Any
) -> dict[str, str | int]:
    """Parameters that fit into the pod; each rule is that of PostgreSQL 15's documentation, chapter 20.

    20.4.1 (resource consumption, memory): a reasonable `shared_buffers` is 25 % of the memory. `work_mem` is what one
    sort may use, so that all sessions together may use many times as much, and hashes twice of it: a quarter of the
    memory is shared out among all connections. `maintenance_work_mem` may be used three times at once, by as many
    workers of autovacuum, and VACUUM uses no more than 1 GB.
    20.7.2 (planner): `effective_cache_size` counts `shared_buffers` and the kernel's cache of files. That cache is in
    the container's limit too, so it has what is left: another quarter.
    20.5.2 (checkpoints): between two checkpoints the WAL grows to `max_wal_size`, a soft limit; `min_wal_size` of it is
    kept for reuse, and is two segments (32 MiB) at least.
    20.8.2 (logging): with `log_parameter_max_length` 0, no bound value is logged.

    :param memory: bytes, as a Kubernetes quantity; so is `storage`.
    :raises AnsibleFilterError: one of them is no quantity, or too small.
    """
    limit, volume = _bytes(memory, "postgres_resources.limits.memory"), _bytes(storage, "postgres_storage_size")
    if connections < FEWEST_CONNECTIONS:
        raise AnsibleFilterError(
            f"postgres_max_connections is {connections}: Patroni takes no fewer than {FEWEST_CONNECTIONS}."
        )
    if slow_statement_milliseconds < 0:
        raise AnsibleFilterError(
            f"postgres_slow_statement_milliseconds is {slow_statement_milliseconds}: 0 logs no statement."
        )
    work = limit // 4 // connections
    if work < LEAST_WORK_MEMORY:
        fitting = limit // 4 // LEAST_WORK_MEMORY
        other = f", or lower postgres_max_connections to {fitting}" if fitting >= FEWEST_CONNECTIONS else ""
        raise AnsibleFilterError(
            f"postgres_resources.limits.memory is {memory}, too small for {connections} connections "
            f"(postgres_max_connections): a quarter of it leaves each of them {work // KIB} kB to sort in, less than "
            f"1 MB. Raise the limit to {4 * connections}Mi{other}."
        )
    wal = min(volume // 10, MOST_WAL)
    if wal < LEAST_WAL:
        raise AnsibleFilterError(
            f"postgres_storage_size is {storage}: a tenth of it has to hold two segments of the WAL. "
            f"Raise it to {10 * LEAST_WAL // MIB}Mi at least."
        )
    slow = slow_statement_milliseconds or -1
    return {
        "shared_preload_libraries": "pg_stat_statements",
        "max_connections": connections,
        "shared_buffers": _megabytes(limit // 4),
        "effective_cache_size": _megabytes(limit // 2),
        "work_mem": f"{work // KIB}kB",
        "maintenance_work_mem": _megabytes(min(limit // 16, MOST_MAINTENANCE_MEMORY)),
        "max_wal_size": _megabytes(wal),
        "min_wal_size": _megabytes(max(wal // 4, LEAST_WAL)),
        "log_min_duration_statement": slow,
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
    }


def _bytes(text: Any, what: str) -> int:
    try:
        return int(quantity(text))
    except EngineError as error:
        raise AnsibleFilterError(f"{what}: {error}.") from None


def _megabytes(size: int) -> str:
    return f"{size // MIB}MB"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file by name."""
        return {"postgres_parameters": postgres_parameters}
