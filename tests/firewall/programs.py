#!/usr/bin/env python3
"""Put Debian's nginx, ModSecurity and core rule set, and that one's own tests, into the cache: nothing is installed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
PACKAGES = ["nginx", "libnginx-mod-http-modsecurity", "modsecurity-crs"]
# Debian's package is without the tests; its source has them.
VERSION = "3.3.4"
SOURCE = f"modsecurity-crs_{VERSION}.orig.tar.gz"
SOURCE_SHA256 = "15a84aaa041aa532905a34546b613bd3aed122e3f9814fbb5c28e1655d02b74d"


@dataclass
class Programs:
    """Where they are."""

    root: Path  # the packages' files, as below /
    cases: Path  # the rule set's tests, a folder for each file of rules


def installed() -> Programs:
    """Download and unpack what the cache does not have: some seconds, and Debian's mirror.

    :raises subprocess.CalledProcessError: where apt fails; it has said why.
    :raises RuntimeError: where this machine's Debian has another version of the rules.
    """
    folder = CACHE / f"firewall-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            print(f"Unpacking nginx and ModSecurity into {folder} (seconds, once)", flush=True)
            _unpack(folder)
            (folder / ".complete").touch()
    return Programs(folder / "root", folder / f"coreruleset-{VERSION}/tests/regression/tests")


def _unpack(folder: Path) -> None:
    packages, root = folder / "packages", folder / "root"
    packages.mkdir(parents=True, exist_ok=True)
    root.mkdir(exist_ok=True)
    simulated = _output("apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES)
    missing = [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ")]
    wanted = sorted({*PACKAGES, *missing})
    # apt's own user may not write below somebody's home.
    subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *wanted], cwd=packages, check=True)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    address, name = _output("apt-get", "download", "--print-uris", "modsecurity-crs").replace("'", "").split()[:2]
    if not name.startswith(f"modsecurity-crs_{VERSION}-"):
        raise RuntimeError(f"{name} is not the {VERSION} that the firewall's image has: run this on Debian bookworm.")
    source = f"{address.rpartition('/')[0]}/{SOURCE}"
    helper = ["/usr/lib/apt/apt-helper", "-o", "APT::Sandbox::User=root", "download-file"]
    subprocess.run([*helper, source, folder / SOURCE, f"SHA256:{SOURCE_SHA256}"], check=True)
    with tarfile.open(folder / SOURCE) as archive:
        archive.extractall(folder, filter="data")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    installed()
