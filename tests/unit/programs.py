#!/usr/bin/env python3
"""Install what the tests of the image backup run: Debian's packages of it, as root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import debian

PACKAGES = {"restic": "restic", "redis-server": "redis-server", "redis-cli": "redis-tools", "openssl": "openssl"}

if __name__ == "__main__":
    debian.install(PACKAGES, "python3-redis")
