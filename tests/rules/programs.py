#!/usr/bin/env python3
"""Install what the tests of rules and of Alertmanager need: Debian's packages, as root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import debian

PACKAGES = {
    "promtool": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
}

if __name__ == "__main__":
    debian.install(PACKAGES)
