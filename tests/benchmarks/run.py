#!/usr/bin/env python3
"""Measure this project against its rivals: `make bench`. The embedded cluster must be up, with the platform on it.

run.py [no-change] [per-object] [clusters] [policy-effect] [first-deployment --destroy] [backup] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import backup
import clusters
import first_deployment
import no_change
import per_object
import policy_effect
from pairing import CHECKOUT, BenchmarkError, Report

Measure = Callable[[Report, int, Path], None]
BENCHMARKS: dict[str, Measure] = {
    "no-change": no_change.measure,
    "per-object": per_object.measure,
    "clusters": clusters.measure,
    "policy-effect": policy_effect.measure,
    "first-deployment": first_deployment.measure,
    "backup": backup.measure,
}
DESTROYS = "first-deployment"
NAMED = "backup"  # alone when it is named: its platform has backups, so is another one than the others want


def main() -> int:
    """Run the benchmarks that were named. Returns 1 when a target was not met, 2 when one could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=7, help="pairs of samples; slow rivals get fewer (7)")
    parser.add_argument("--destroy", action="store_true", help=f"{DESTROYS} may delete the platform and its data")
    arguments = parser.parse_args()
    names = arguments.names or [
        name for name in BENCHMARKS if name != NAMED and (name != DESTROYS or arguments.destroy)
    ]
    if DESTROYS in names and not arguments.destroy:
        parser.error(f"{DESTROYS} deletes the platform's namespaces and data on the embedded cluster: add --destroy")
    outcome: dict[str, str] = {}
    for name in names:
        report, begun, load = Report(name), datetime.now(UTC), os.getloadavg()[0]
        print(f"\n===== {name} ({os.cpu_count()} cores, load {load:.1f}) =====", flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="citadelbuy-benchmark-") as folder:
                BENCHMARKS[name](report, arguments.rounds, Path(folder))
            verdicts = [pair.verdict() for pair in report.pairs]
            outcome[name] = next((text for text in ("MISSED", "too few pairs") if text in verdicts), "ok")
        except BenchmarkError as error:
            print(f"{name}: {error}", flush=True)
            outcome[name] = "not measured"
        if report.pairs:
            print(f"written to {report.write(begun, load).relative_to(CHECKOUT)}")
    print("\n" + ", ".join(f"{name}: {result}" for name, result in outcome.items()))
    if "not measured" in outcome.values():
        return 2
    return 0 if set(outcome.values()) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
