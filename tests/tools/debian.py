"""Programs of Debian that tests need: installed as root where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess


def install(packages: dict[str, str], *more: str) -> None:
    """Install the packages of the programs that are not on the PATH.

    :param packages: by program.
    :param more: packages that belong to them.
    :raises subprocess.CalledProcessError: where apt fails; it has said why.
    """
    missing = sorted({package for program, package in packages.items() if not shutil.which(program)})
    if not missing:
        return
    print(f"Installing {', '.join(missing)} (a minute, once)", flush=True)
    # In this runlevel no package's service is started.
    env = os.environ | {"RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    subprocess.run([*apt, "update"], env=env, check=True)
    command = [*apt, "install", "--yes", "--no-install-recommends", *missing, *more]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
