#!/usr/bin/env python3
"""Install what the viewer's tests need: missing Debian packages, as root, and the viewer's npm packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import debian

VIEWER = Path(__file__).resolve().parents[2] / "images/grafana-viewer"
PACKAGES = {"chromium": "chromium", "prometheus": "prometheus", "node": "nodejs", "npm": "npm"}


def main() -> None:
    """Install.

    :raises subprocess.CalledProcessError: where apt or npm fails; it has said why.
    """
    debian.install(PACKAGES, "fonts-liberation")
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(npm, cwd=VIEWER, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
