"""The filter that sizes PostgreSQL by its pod."""

from __future__ import annotations

import re

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.citadelbuy.platform.plugins.filter.postgres_parameters import FilterModule, postgres_parameters

UNITS = {"kB": 1 << 10, "MB": 1 << 20}


def size(text: object) -> int:
    """Bytes of a parameter, as PostgreSQL reads it: whole numbers, powers of 1024."""
    number, unit = re.fullmatch(r"([1-9]\d*)(kB|MB)", str(text)).groups()
    return int(number) * UNITS[unit]


def test_what_prod_has() -> None:
    assert postgres_parameters("2Gi", "20Gi", 200, 1000) == {
        "shared_preload_libraries": "pg_stat_statements",
        "max_connections": 200,
        "shared_buffers": "512MB",
        "effective_cache_size": "1024MB",
        "work_mem": "2621kB",
        "maintenance_work_mem": "128MB",
        "max_wal_size": "2048MB",
        "min_wal_size": "512MB",
        "log_min_duration_statement": 1000,
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
    }


@pytest.mark.parametrize("memory", ["512Mi", "1G", "2Gi", "16Gi", "0.5Ti", 1 << 30])
@pytest.mark.parametrize("connections", [25, 100, 119])
def test_it_all_fits_into_the_memory(memory: object, connections: int) -> None:
    found = postgres_parameters(memory, "20Gi", connections, 0)
    limit = {"512Mi": 512 << 20, "1G": 10**9, "2Gi": 2 << 30, "16Gi": 16 << 30, "0.5Ti": 512 << 30}.get(memory, 1 << 30)
    sorts = size(found["work_mem"]) * connections
    workers = 3 * size(found["maintenance_work_mem"])
    assert 0.4 * limit < size(found["shared_buffers"]) + sorts <= limit / 2
    assert workers <= 3 * limit / 16
    assert size(found["effective_cache_size"]) <= limit / 2
    assert size(found["work_mem"]) >= 1 << 20
    assert size(found["maintenance_work_mem"]) <= 1 << 30


@pytest.mark.parametrize(
    ("storage", "most", "least"),
    [("1Gi", 102, 32), ("320Mi", 32, 32), ("5Gi", 512, 128), ("20Gi", 2048, 512), ("1Ti", 8192, 2048)],
)
def test_the_log_fits_on_the_volume(storage: str, most: int, least: int) -> None:
    found = postgres_parameters("2Gi", storage, 200, 0)
    assert (found["max_wal_size"], found["min_wal_size"]) == (f"{most}MB", f"{least}MB")


def test_no_slow_statement_is_logged() -> None:
    assert postgres_parameters("2Gi", "20Gi", 200, 0)["log_min_duration_statement"] == -1


def test_connections_cost_memory() -> None:
    more = postgres_parameters("2Gi", "20Gi", 400, 0)
    assert size(more["work_mem"]) == 1310 << 10
    assert postgres_parameters("2Gi", "20Gi", 512, 0)["work_mem"] == "1024kB"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("2Gi", "20Gi", 513, 0),
            "postgres_resources.limits.memory is 2Gi, too small for 513 connections (postgres_max_connections): a "
            "quarter of it leaves each of them 1022 kB to sort in, less than 1 MB. Raise the limit to 2052Mi, or lower "
            "postgres_max_connections to 512.",
        ),
        (("64Mi", "20Gi", 100, 0), "Raise the limit to 400Mi."),
        (("", "20Gi", 100, 0), "postgres_resources.limits.memory: '' is not a quantity: write it as"),
        (("2GiB", "20Gi", 100, 0), "postgres_resources.limits.memory: '2GiB' is not a quantity"),
        (("2Gi", "20 GB", 100, 0), "postgres_storage_size: '20 GB' is not a quantity"),
        (("2Gi", "319Mi", 100, 0), "postgres_storage_size is 319Mi: a tenth of it has to hold two segments"),
        (("2Gi", "20Gi", 24, 0), "postgres_max_connections is 24: Patroni takes no fewer than 25."),
        (("2Gi", "20Gi", 100, -1), "postgres_slow_statement_milliseconds is -1: 0 logs no statement."),
    ],
)
def test_what_is_refused(given: tuple[object, ...], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(message)):
        postgres_parameters(*given)


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"postgres_parameters": postgres_parameters}
