#!/usr/bin/env python3
"""Run cyclonus' cases against the network policy enforcer of an embedded cluster; end with 1 unless every case passes.

run.py CLUSTER [--include TAG,...]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).parent / "images/cyclonus-worker/cyclonus"
REPORTS = CHECKOUT / ".cache/tests"
CASES = 230  # of cyclonus v0.5.6, all its tags


def main() -> int:
    """Build the client, run it, judge its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cluster")
    parser.add_argument("--include", default="", help="tags of cyclonus; all cases without them")
    options = parser.parse_args()
    REPORTS.mkdir(parents=True, exist_ok=True)
    client, report = REPORTS / "cyclonus", REPORTS / "cyclonus.xml"
    report.unlink(missing_ok=True)
    build = ["go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-o", str(client), "."]
    subprocess.run(build, cwd=CLIENT, env=os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}, check=True)
    environment = os.environ | {"KUBECONFIG": f"/var/lib/citadelbuy/{options.cluster}/admin.conf"}
    begun = time.monotonic()
    command = [str(client), "-junit", str(report), "-include", options.include]
    ended = subprocess.run(command, env=environment, check=False).returncode
    results = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
    failed = [str(case.get("name")) for case in results if case.find("failure") is not None]
    for name in failed:
        print(f"FAILED: {name}")
    print(f"{len(results)} cases, {len(failed)} failed, in {time.monotonic() - begun:.0f} s")
    enough = bool(results) if options.include else len(results) == CASES
    if not enough:
        print(f"There should have been {CASES}: cyclonus did not run them all.")
    return 0 if ended == 0 and enough and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
