"""The leading member is lost while somebody writes: another one takes over, and every acknowledged write is there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
REPORT = CHECKOUT / ".cache/tests/drill.json"


@pytest.fixture(scope="module")
def rounds() -> dict[str, dict[str, Any]]:
    """What a drill of each store has shown."""
    REPORT.unlink(missing_ok=True)
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    words = ["drill_stores=all", "drill_scenarios=pod-deleted", "drill_confirm=true", f"drill_report_file={REPORT}"]
    command = [
        "ansible-playbook",
        "playbooks/drill.yml",
        "-i",
        inventory,
        *(item for word in words for item in ("-e", word)),
    ]
    environment = os.environ | {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return {item["store"]: item for item in json.loads(REPORT.read_text())}


@pytest.mark.parametrize("store", ["postgres", "redis", "elasticsearch"])
def test_no_acknowledged_write_is_lost(rounds: dict[str, dict[str, Any]], store: str) -> None:
    assert rounds[store]["lost"] == []
    assert rounds[store]["acknowledged"] > 1000


def test_a_shard_is_always_somewhere(rounds: dict[str, dict[str, Any]]) -> None:
    assert rounds["elasticsearch"]["notes"] == ", never red"
