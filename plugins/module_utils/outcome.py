"""What became of the objects of a set: the vocabulary of every report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
# In the order of reports. `kept` is what prune left alone, with its reason.
ACTIONS = ("created", "changed", "expanded", "replaced", "pruned", "kept", "unchanged")
NO_CHANGE = ("unchanged", "kept")


@dataclass
class Change:
    """What became of one object, or in check mode what would."""

    kind: str
    namespace: str | None
    name: str
    action: str  # one of ACTIONS
    seconds: float = 0.0
    before: Body | None = None
    after: Body | None = None  # the server's answer, in check mode its prediction; None when pruned
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    def summary(self) -> dict[str, Any]:
        """The entry of this object in a task's result."""
        entry = {
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "action": self.action,
            "seconds": round(self.seconds, 3),
        }
        return entry | ({"reason": self.reason} if self.reason else {})


@dataclass
class Outcome:
    """All of a set: applied objects in the manifests' order, then pruned and kept ones, and failures as messages."""

    applied: list[Change] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    secret_values: set[str] = field(default_factory=set)

    @property
    def changed(self) -> bool:
        """Whether anything in the cluster is other than before."""
        return any(change.action not in NO_CHANGE for change in self.applied)

    def counts(self) -> str:
        """Such as `2 created, 30 unchanged, 1 pruned`."""
        numbers = {action: sum(change.action == action for change in self.applied) for action in ACTIONS}
        return ", ".join(f"{number} {action}" for action, number in numbers.items() if number) or "nothing to apply"
