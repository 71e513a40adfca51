"""A drill: a writer writes, something happens to the store, and every acknowledged write is looked for afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    Cluster,
    EngineError,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_alarm import Prometheus
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_faults import FAULTS, Fault, Nodes
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_stores import STORES, Store
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_writer import NAME as WRITER
from ansible_collections.citadelbuy.platform.plugins.module_utils.drill_writer import Write, Writer, longest_gap
from ansible_collections.citadelbuy.platform.plugins.module_utils.report import is_ready
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import POD

STEADY = 1000  # writes before anything happens
AFTER = 400  # and after the store is at full strength
PAUSE = 0.3


@dataclass(frozen=True)
class Round:
    """What one round has shown; times in seconds."""

    store: str
    scenario: str
    leader: str
    new_leader: str
    without_writes: float  # from the last acknowledged write before to the first after
    strength: float  # until all members are there again, from the fault's begin, or from its end where it lasts
    acknowledged: int
    lost: list[int]
    rate: float  # acknowledged writes a second before it
    notes: str  # what else the writes tell

    def line(self) -> str:
        """For people."""
        lost = f"{len(self.lost)} of {self.acknowledged:,} acknowledged writes lost"
        who = f"{self.leader} led, {self.new_leader} leads"
        return (
            f"{self.store} {self.scenario}: {self.without_writes:.2f} s without writes, {lost}, full strength after "
            f"{self.strength:.1f} s; {self.rate:.0f} writes/s before; {who}{self.notes}"
        )


class Drill:
    """One scenario for one store in one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        store: str,
        scenario: str,
        nodes: Nodes,
        prometheus: Prometheus,
        program: str,
        timeout: float,
    ) -> None:
        """Nothing is sent.

        :param store: a name of `drill_stores.STORES`.
        :param scenario: a name of `drill_faults.FAULTS`.
        :param program: the store's writer.
        :param timeout: seconds that each step may take.
        """
        self.cluster, self.timeout = cluster, timeout
        self.store: Store = STORES[store](cluster, namespace)
        self.fault: Fault = FAULTS[scenario](cluster, self.store, nodes, prometheus)
        self.nodes, self.spaces = nodes, (namespace, prometheus.namespace)
        self.writer = Writer(cluster, namespace, program)

    def require_possible(self) -> str:
        """Refuse what would show nothing; returns the pod that leads.

        :raises EngineError: the scenario needs the machine of the nodes, the store is not at full strength, or what
            the scenario itself needs is not there.
        """
        outside = self.fault.embedded or (self.store.first and self.fault.name == "process-killed")
        if outside and not self.nodes.here:
            raise EngineError(
                f"{self.fault.name} needs the machine that the nodes run on: run it on an embedded cluster "
                "(playbooks/local_cluster.yml)."
            )
        if (members := self.store.members()) < 2:
            raise EngineError(
                f"{self.store.title} has {members} member: a drill shows something where there are more "
                f"({self.store.name}_replicas)."
            )
        self._until("full strength before the drill", lambda: not self._missing(), self._missing)
        self._until("rest before the drill", lambda: not self._unrest(), self._unrest)
        leader = self.store.leader()
        self.fault.require_possible(leader)
        return leader

    def heal(self) -> None:
        """End what a killed run may have left."""
        self.fault.end()

    def round(self) -> Round:
        """Do it once.

        :raises EngineError: the store does not come back; says what is missing.
        """
        self.heal()
        leader = self._choose()
        try:
            self.writer.start(self.store.writer(), [*self.store.ports], self.store.name, self.fault.node)
            self._until(f"{STEADY} writes", lambda: self.writer.count() >= STEADY)
            since, begun = self.writer.now(), time.monotonic()
            try:
                self.fault.begin()
                self._until("end of what happens", self._over, self.fault.awaited)
            finally:
                if self.fault.lasts:
                    self.fault.end()
                    begun = time.monotonic()
            self._until("full strength", lambda: not self._missing(), self._missing)
            strength = time.monotonic() - begun
            written = self.writer.count()
            self._until(f"{AFTER} more writes", lambda: self.writer.count() >= written + AFTER)
            writes, numbers = self.writer.stop()
        finally:
            self.writer.remove()
        return self.measure(leader, since, strength, writes, numbers)

    def _choose(self) -> str:
        """Who leads, on a node that it may happen to: another member is asked to lead where it is not."""
        for _ in range(self.store.members()):
            leader = self.require_possible()
            self.fault.look(leader)
            if self.fault.suits():
                self._until("end of an earlier one", lambda: not self.fault.remains(), self.fault.remains)
                return leader
            self.store.hand_over(leader)
            self._until("other leader", self.fault.another_leads)
        raise EngineError(f"{self.fault.name} suits no member that {self.store.title} chooses to lead, last {leader}.")

    def measure(self, leader: str, since: float, strength: float, writes: list[Write], numbers: set[int]) -> Round:
        """What a round has shown.

        :param since: when it was begun, by the writer's clock.
        :param numbers: those that the store has.
        :raises EngineError: nothing was written after it.
        """
        gap, before, after = longest_gap(writes, since)
        steady = [write for write in writes if write.at <= since]
        return Round(
            self.store.name,
            self.fault.name,
            leader,
            self.store.leader(),
            gap,
            strength,
            len(writes),
            sorted({write.number for write in writes} - numbers),
            len(steady) / max(since - steady[0].at, 0.001),
            self.store.remark(before.note, after.note, [write.note for write in writes]),
        )

    def _over(self) -> bool:
        """Whether it has happened, and writes are acknowledged again."""
        return self.fault.happened() and self.writer.flows()

    def _missing(self) -> str:
        """What lacks of full strength; a member that cannot be asked does."""
        try:
            return self.store.missing()
        except EngineError as error:
            return str(error)

    def _unrest(self) -> str:
        """Pods of the platform that are still to come, as those that an earlier round has moved: they take their time
        from what is measured."""
        pods = [pod for space in self.spaces for pod in self.cluster.list(POD, space)["items"]]
        starting = [
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            for pod in pods
            if pod["metadata"]["name"] != WRITER and not is_ready(pod) and pod["status"].get("phase") != "Failed"
        ]
        return f"not ready are {', '.join(sorted(starting))}" if starting else ""

    def _until(self, what: str, condition: Callable[[], bool], why: Callable[[], str] = lambda: "") -> None:
        deadline = time.monotonic() + self.timeout
        while not condition():
            if time.monotonic() > deadline:
                reason = f": {said}" if (said := why()) else ""
                raise EngineError(
                    f"{self.store.name} {self.fault.name}: no {what} after {self.timeout:.0f} s{reason}. To do: look "
                    "at its pods; the same call ends what this drill has left."
                )
            time.sleep(PAUSE)


def table(rounds: list[Round]) -> list[str]:
    """A line a store and scenario, of Markdown: minimum, median and maximum of each time."""

    def three(values: list[float]) -> str:
        return " / ".join(f"{value:.1f}" for value in (min(values), median(values), max(values)))

    lines = [
        "| store | scenario | rounds | without writes, s | full strength, s | acknowledged | lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((item.store, item.scenario) for item in rounds):
        of = [item for item in rounds if (item.store, item.scenario) == key]
        lines.append(
            f"| {key[0]} | {key[1]} | {len(of)} | {three([item.without_writes for item in of])} "
            f"| {three([item.strength for item in of])} | {sum(item.acknowledged for item in of):,} "
            f"| {sum(len(item.lost) for item in of)} |"
        )
    return lines


def as_records(rounds: list[Round]) -> list[dict[str, Any]]:
    """For a file."""
    return [asdict(item) for item in rounds]
