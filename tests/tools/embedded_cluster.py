"""What drills ask a platform on an embedded cluster: kubectl as an independent witness, Prometheus, and until when."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
POLL = 0.5
"""Seconds between two looks."""


class EmbeddedCluster:
    """One of them, by its name."""

    def __init__(self, name: str) -> None:
        self.configuration = Path("/var/lib/citadelbuy", name, "admin.conf")

    def kubectl(self, *arguments: str, stdin: str = "", namespace: str = "citadelbuy") -> str:
        """Run kubectl and return what it printed. It takes what processor the platform leaves.

        :raises AssertionError: with what it said, where it fails.
        """
        words = self._words(namespace, *arguments)
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def prometheus(self, path: str) -> Any:
        """An answer of Prometheus' API, from inside its pod: it lets nobody in by the network, the API server neither.

        :raises AssertionError: with what kubectl said, where it does not come to the pod.
        """
        words = self._words("citadelbuy-monitoring", "port-forward", "prometheus-0", ":9090")
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as forward:
            try:
                port = re.search(r"127\.0\.0\.1:(\d+) ->", forward.stdout.readline())
                assert port, f"kubectl port-forward prometheus-0: {forward.stderr.read()}"
                with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/api/v1/{path}", timeout=30) as answer:
                    return json.load(answer)["data"]
            finally:
                forward.terminate()

    def _words(self, namespace: str, *arguments: str) -> list[str]:
        program = max(CACHE.glob("binaries/*/kubectl"), key=lambda path: path.stat().st_mtime)
        words = ["nice", "-n", "19", str(program), "--kubeconfig", str(self.configuration), "--namespace", namespace]
        return [*words, *arguments]


def awaited(look: Callable[[], Any], seconds: float, what: str) -> Any:
    """What a look finds, once it is something.

    :raises AssertionError: with `what` was waited for, when the seconds are over.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not after {seconds:.0f} s"
        time.sleep(POLL)
    return found
