#!/usr/bin/env python3
"""Known vulnerabilities of what is pinned here: pip-audit, npm audit and govulncheck, each with its public data base.

Exits with 1 where one finds something, with 2 where one was not possible (and none found anything): a data base that
is out of reach is said, never taken as good news.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests/graders"))

import programs  # noqa: E402

CLEAN, FOUND, NOT_POSSIBLE = "nothing known", "FOUND", "NOT POSSIBLE"


def audits() -> Iterator[tuple[str, list[str], Path, dict[str, str]]]:
    """What is audited, by which command, in which folder, with which further environment."""
    for file in ("requirements.txt", "tests/graders/requirements.txt"):
        options = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--strict"]
        yield file, [f"{Path(sys.executable).parent}/pip-audit", *options, "--requirement", file], CHECKOUT, {}
    for lock in sorted(CHECKOUT.glob("images/*/package-lock.json")):
        yield str(lock.relative_to(CHECKOUT)), ["npm", "audit", "--package-lock-only"], lock.parent, {}
    go = programs.installed().kube_score.parent / "go"
    for module in sorted([*CHECKOUT.glob("images/**/go.mod"), *CHECKOUT.glob("tests/**/go.mod")]):
        if "node_modules" not in module.parts:
            tools = CHECKOUT / "tests/tools/govulncheck"
            command = [str(go), "tool", f"-modfile={tools}/go.mod", "govulncheck", "-scan=module"]
            yield str(module.relative_to(CHECKOUT)), command, module.parent, {"GOTOOLCHAIN": "local"}


def verdict(command: list[str], code: int, said: str) -> str:
    """What an exit code means: 0 is nothing known for each of the programs, a failure looks like a find for some."""
    if code == 0:
        return CLEAN
    program = "govulncheck" if "govulncheck" in command else Path(command[0]).name
    found = {
        "pip-audit": "known vulnerabilit" in said,
        "npm": "vulnerabilit" in said and "audit endpoint returned an error" not in said,
        "govulncheck": code == 3 and "fetching vulnerabilities" not in said,
    }
    return FOUND if found[program] else NOT_POSSIBLE


def main() -> int:
    """Run all, print one line each and what was said where it is not good."""
    verdicts = []
    for name, command, folder, environment in audits():
        try:
            done = subprocess.run(
                command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
            )
            said = (done.stdout + done.stderr).strip()
            verdicts.append(verdict(command, done.returncode, said))
        except OSError as error:
            said = f"{command[0]}: {error.strerror}"
            verdicts.append(NOT_POSSIBLE)
        print(f"{verdicts[-1]:14}{name}", flush=True)
        if verdicts[-1] != CLEAN:
            lines = said.splitlines() if verdicts[-1] == FOUND else said.splitlines()[-3:]
            print("\n".join(f"    {line}" for line in lines), flush=True)
    return 1 if FOUND in verdicts else 2 if NOT_POSSIBLE in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
