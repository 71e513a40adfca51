#!/usr/bin/env python3
"""Put kube-score and checkov into the cache, once for all checkouts with the same pins."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
PINS = [HERE / "requirements.txt", HERE / "kube-score/go.mod", HERE / "kube-score/go.sum"]


@dataclass
class Programs:
    """Where the graders are."""

    kube_score: Path
    checkov: Path


def installed() -> Programs:
    """The graders, made where the cache does not have them: some two minutes, and the registries of PyPI and Go.

    :raises subprocess.CalledProcessError: where pip or Go fails; it has said why.
    """
    pins = sys.version.encode() + b"".join(file.read_bytes() for file in PINS)
    folder = CACHE / f"graders-{hashlib.sha256(pins).hexdigest()[:12]}"
    programs = folder / "bin"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            print(f"Making the graders {folder} (two minutes, once)", flush=True)
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            pip = [str(programs / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "--require-hashes", "--requirement", str(HERE / "requirements.txt")])
            go = {"CGO_ENABLED": "0", "GOBIN": str(programs), "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
            build = [str(programs / "go"), "install", "-trimpath", "-ldflags", "-s -w", "tool"]
            _run(build, cwd=HERE / "kube-score", environment=go)
            (folder / ".complete").touch()
    return Programs(programs / "kube-score", programs / "checkov")


def _run(command: list[str], cwd: Path = HERE, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=os.environ | (environment or {}), check=True)


if __name__ == "__main__":
    installed()
