"""kubectl and psql on the platform of the embedded cluster, for benchmarks that need more than its objects."""

from __future__ import annotations

import time
from collections.abc import Callable

from contenders import program
from pairing import BenchmarkError, run
from platform_objects import KUBECONFIG, NAMESPACE

LIMIT = 300  # seconds for whatever is waited for


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl in the platform's namespace."""
    words = [program("kubectl"), f"--kubeconfig={KUBECONFIG}", f"--namespace={NAMESPACE}", *arguments]
    return run(words, stdin=stdin)


def in_postgres(*words: str) -> str:
    """What a command prints in the database's pod."""
    return kubectl("exec", "postgres-0", "--container=postgres", "--", *words)


def sql(text: str) -> str:
    """What the platform's database says."""
    words = ("psql", "-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "citadelbuy", "-c", text)
    return in_postgres(*words).strip()


def awaited(condition: Callable[[], bool], what: str) -> None:
    """Look until a condition holds.

    :raises BenchmarkError: when it does not.
    """
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what}: not after {LIMIT} s.")
        time.sleep(0.5)
