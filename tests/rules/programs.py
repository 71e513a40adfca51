#!/usr/bin/env python3
"""Find promtool, or put it into the cache out of Debian's package: nothing is installed, no service is started."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
PACKAGE = "prometheus"


def promtool() -> Path:
    """The program: from PATH, else from the cache, where apt puts it the first time.

    :raises RuntimeError: where it is not there and cannot be had.
    """
    place = CACHE / "tools/promtool/promtool"
    found = shutil.which("promtool")
    if found:
        return Path(found)
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _unpack(place)
    return place


def _unpack(place: Path) -> None:
    apt = shutil.which("apt-get")
    if not apt:
        raise RuntimeError("promtool is not there, nor is apt to get it: put Prometheus' promtool on the PATH")
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt downloads as a user of its own
        for command in (
            [apt, "-qq", "update"],
            [apt, "-qq", "download", PACKAGE],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"promtool is not there, and {' '.join(command)} failed: {done.stderr.strip()}")
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder / "out")], check=True)
        (folder / "out/usr/bin/promtool").rename(place)


if __name__ == "__main__":
    print(promtool())
