#!/usr/bin/env python3
"""Install what the viewer's tests need: missing Debian packages, as root, and the viewer's npm packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

VIEWER = Path(__file__).resolve().parents[2] / "images/grafana-viewer"
PACKAGES = {"chromium": "chromium", "prometheus": "prometheus", "node": "nodejs", "npm": "npm"}


def main() -> None:
    """Install.

    :raises subprocess.CalledProcessError: where apt or npm fails; it has said why.
    """
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        print(f"Installing {', '.join(missing)} (a minute, once)", flush=True)
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        subprocess.run([*apt, "update"], check=True)
        install = [*apt, "install", "--yes", "--no-install-recommends"]
        subprocess.run([*install, *missing, "fonts-liberation"], check=True, stdout=subprocess.DEVNULL)
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(npm, cwd=VIEWER, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
