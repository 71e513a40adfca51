"""What every benchmark shares: commands timed in pairs A B A B, the table of a pair, memory, and the written result."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = CHECKOUT / ".cache/benchmarks"
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
ENOUGH = 3  # pairs; fewer tell nothing about a target
SAMPLE_EVERY = 0.05  # seconds between two looks at a process tree's memory

Command = Sequence[str | Path]


class BenchmarkError(Exception):
    """What keeps a benchmark from being measured, and what to do, in one line."""


def run(
    command: Command, env: dict[str, str] | None = None, stdin: str | None = None, hidden: Callable[[str], str] = str
) -> str:
    """Run a command in the checkout and return its standard output.

    :param hidden: masks secret values in what an error quotes.
    :raises BenchmarkError: the command and the end of its output, when it fails.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=CHECKOUT, env=os.environ | (env or {}), input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        end = hidden((done.stdout + done.stderr).strip())[-1500:]
        raise BenchmarkError(f"{' '.join(words)[:200]}: failed ({done.returncode}):\n{end}")
    return done.stdout


def seconds(action: Callable[[], Any]) -> float:
    """How long an action takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


@dataclass
class Pair:
    """Samples of this project (ours) and of a rival, taken alternately; sample i of both is one pair.

    `limit` is the most that the median ratio ours / rival may be, `least` the least where more is better, `own_limit`
    the most that the median of ours may be.
    """

    title: str
    our_name: str
    rival_name: str
    unit: str = "s"
    limit: float | None = None
    least: float | None = None
    own_limit: float | None = None
    ours: list[float] = field(default_factory=list)
    rival: list[float] = field(default_factory=list)

    def measure(self, ours: Callable[[], Any], rival: Callable[[], Any], rounds: int) -> Pair:
        """Time both, alternately, after the caller has run each once where that matters."""
        for number in range(rounds):
            progress(f"{self.title}: round {number + 1} of {rounds}")
            self.ours.append(seconds(ours))
            self.rival.append(seconds(rival))
        progress("")
        return self

    def alternate(self, ours: Callable[[], float], rival: Callable[[], float], rounds: int) -> Pair:
        """Take a figure of each, first the one and then the other, as what comes second may find things otherwise."""
        sides = [(self.ours, ours), (self.rival, rival)]
        for number in range(rounds):
            progress(f"{self.title}: round {number + 1} of {rounds}")
            for samples, figure in sides:
                samples.append(figure())
            sides.reverse()
        progress("")
        return self

    @property
    def ratios(self) -> list[float]:
        """Ours divided by the rival's, pair by pair."""
        return [ours / rival for ours, rival in zip(self.ours, self.rival, strict=True)]

    def verdict(self) -> str:
        """Of all targets of the pair: ok (without one, too), MISSED, or too few pairs."""
        verdicts = [verdict for _, verdict in self._targets()]
        return next((text for text in ("MISSED", "too few pairs") if text in verdicts), "ok")

    def _targets(self) -> list[tuple[str, str]]:
        """What is asked of the medians, and the verdict."""
        return [
            (f"{what} {bound} {limit:g}{unit}", self._verdict(holds(median(values), limit)))
            for what, values, bound, holds, limit, unit in (
                ("ratio", self.ratios, "at most", operator.le, self.limit, ""),
                ("ratio", self.ratios, "at least", operator.ge, self.least, ""),
                (self.our_name, self.ours, "at most", operator.le, self.own_limit, f" {self.unit}"),
            )
            if limit is not None
        ]

    def _verdict(self, holds: bool) -> str:
        if len(self.ours) < ENOUGH:
            return "too few pairs"
        return "ok" if holds else "MISSED"

    def table(self) -> str:
        """The pair as people read it."""
        width = max(len(self.our_name), len(self.rival_name), 24)
        lines = [f"{self.title}", f"  {'':{width}}     n       min    median       max"]
        for name, values, unit in (
            (self.our_name, self.ours, self.unit),
            (self.rival_name, self.rival, self.unit),
            ("ratio", self.ratios, ""),
        ):
            figures = "".join(f"{number:10.3f}" for number in (min(values), median(values), max(values)))
            lines.append(f"  {name:{width}}{len(values):6}{figures} {unit}".rstrip())
        lines += [f"  target: median {target}: {verdict}" for target, verdict in self._targets()]
        return "\n".join(lines)


@dataclass
class Report:
    """What one benchmark found: pairs, and figures without a rival."""

    name: str
    pairs: list[Pair] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    def add(self, pair: Pair) -> None:
        """Print a pair and keep it."""
        self.pairs.append(pair)
        print(f"\n{pair.table()}", flush=True)

    def note(self, what: str, value: str) -> None:
        """Print a figure and keep it."""
        self.figures[what] = value
        print(f"  {what}: {value}", flush=True)

    def write(self, begun: datetime, load: float) -> Path:
        """Write all as JSON, samples included; returns the file.

        :param load: processes that wanted to run in the minute before the benchmark began.
        """
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"{begun:%Y%m%dT%H%M%SZ}-{self.name}.json"
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
        pairs = [asdict(pair) | {"ratios": pair.ratios, "verdict": pair.verdict()} for pair in self.pairs]
        content = {
            "benchmark": self.name,
            "begun": begun.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit.stdout.strip() or "unknown",
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "pairs": pairs,
            "figures": self.figures,
        }
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return file


def progress(text: str) -> None:
    """One line that the next one overwrites, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def peak_memory(action: Callable[[], Any]) -> float:
    """The most memory that the processes started by an action held at once, in MiB.

    Looking costs time: what is timed is not measured this way.
    """
    others = descendants()
    peak = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(SAMPLE_EVERY):
            peak = max(peak, memory(descendants() - others))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        over.set()
        watcher.join()
    return peak


def memory(pids: set[int]) -> float:
    """What processes hold together, in MiB; pages that they share count once (PSS)."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total / 1024


def descendants() -> set[int]:
    """The processes below this one."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}
