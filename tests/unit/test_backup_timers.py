"""What the role backup_timers installs: the calls in it are run as they are written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

PROGRAM = str(Path(sys.executable).with_name("ansible-playbook"))


def install(folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    given = {
        "backup_timers_systemd_folder": str(folder),
        "backup_timers_cron_folder": str(folder),
        "backup_timers_started": False,
        "backup_timers_inventory": "inventories/local",
        "backup_timers_environment": {"KUBECONFIG": "/nowhere"},
    } | variables
    words = [PROGRAM, "playbooks/backup_timers.yml", "-e", json.dumps(given)]
    env = os.environ | {"ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(words, cwd=CHECKOUT, env=env, text=True, capture_output=True, check=False)


def run(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As cron or systemd would, in an environment that has little else."""
    env = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]} | environment
    command += " -e cluster_kubeconfig=/nowhere"
    return subprocess.run(["sh", "-c", command], env=env, text=True, capture_output=True, check=False)


def told(done: subprocess.CompletedProcess[str]) -> bool:
    """One line, that the cluster of this call is not there."""
    lines = done.stderr.splitlines()
    return done.returncode == 2 and done.stdout == "" and len(lines) == 1 and "/nowhere does not exist" in lines[0]


@pytest.mark.parametrize(("name", "playbook"), [("backup", "backup"), ("verify-backup", "verify_backup")])
def test_units_of_systemd(tmp_path, name, playbook):
    done = install(tmp_path, backup_timers_on_failure="tell-ops.service", backup_timers_user="shop")
    assert done.returncode == 0, done.stdout
    assert "changed=1" in done.stdout
    assert (
        "changed=0" in install(tmp_path, backup_timers_on_failure="tell-ops.service", backup_timers_user="shop").stdout
    )
    assert len(list(tmp_path.iterdir())) == 4
    service = (tmp_path / f"citadelbuy-{name}.service").read_text()
    assert "User=shop" in service
    assert "OnFailure=tell-ops.service" in service
    at = {"backup": "05:30", "verify-backup": "06:00"}[name]
    assert f"OnCalendar=*-*-* {at}:00\n" in (tmp_path / f"citadelbuy-{name}.timer").read_text()
    folder = re.search("^WorkingDirectory=(.*)$", service, re.MULTILINE)[1]
    command = re.search("^ExecStart=(.*)$", service, re.MULTILINE)[1]
    assert f"playbooks/{playbook}.yml" in command
    environment = dict(re.findall('^Environment="(.*?)=(.*)"$', service, re.MULTILINE))
    assert environment["KUBECONFIG"] == "/nowhere"
    done = run(f"cd {shlex.quote(folder)} && {command}", environment)
    assert told(done), done


def test_table_of_cron(tmp_path):
    assert install(tmp_path, backup_timers_kind="cron", backup_timers_verify_at="16:05").returncode == 0
    [file] = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if re.match("[A-Z_]+=", line))
    assert environment["MAILTO"] == "root"
    runs = [line.split(maxsplit=6) for line in lines if re.match(r"\d", line)]
    assert [words[:6] for words in runs] == [["30", "5", "*", "*", "*", "root"], ["5", "16", "*", "*", "*", "root"]]
    for words in runs:
        done = run(words[6], environment)
        assert told(done), done


def test_a_time_that_is_none_is_refused_before_anything_is_written(tmp_path):
    done = install(tmp_path, backup_timers_verify_at="25:00")
    assert done.returncode == 2
    assert "backup_timers_verify_at is 25:00: write it as 05:30." in done.stdout
    assert list(tmp_path.iterdir()) == []
