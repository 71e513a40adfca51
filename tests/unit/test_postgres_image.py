"""PostgreSQL's entrypoint: what it hands to Patroni, and that no password comes into a log."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils.rotation_stores import Database
from conftest import load_program

entrypoint = load_program("images/postgres/files/docker-entrypoint.py")
ARGUMENTS = ["-c", "shared_buffers=512MB", "-c", "max_connections=200", "-c", "log_min_duration_statement=1000"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"POSTGRES_PASSWORD": "pass", "PGDATA": "/nowhere/pgdata", "PGBACKREST_STANZA": "p"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_a_member_starts_with_its_own_parameters() -> None:
    configuration = entrypoint.patroni_configuration(ARGUMENTS)
    own, shared = configuration["postgresql"]["parameters"], configuration["bootstrap"]["dcs"]["postgresql"]
    assert own["shared_buffers"] == shared["parameters"]["shared_buffers"] == "512MB"
    assert shared["parameters"]["max_connections"] == "200"
    assert own["unix_socket_directories"] == entrypoint.SOCKETS
    assert own["archive_mode"] == "on"


def test_statements_with_passwords_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: seen.update(rest, command=command))
    entrypoint.psql("postgres", entrypoint.PASSWORD_SQL, "s3cret", role="shop")
    options = seen["env"]["PGOPTIONS"].split("-c ")
    for setting in ("log_statement=none", "log_min_duration_statement=-1", "log_min_error_statement=panic"):
        assert setting in [option.strip() for option in options]
    assert "s3cret" not in seen["input"] + " ".join(seen["command"])
    assert "SET log_min_duration_statement = -1;" in Database.session
