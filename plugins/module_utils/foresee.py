"""What a check-mode run would have applied so far: later objects and roles are judged as if it were there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Foreseen:
    """Names and hashes of keys, never a Secret's data.

    :param folder: in the run's own temporary folder, to be seen by the run's later tasks; None: memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._values: dict[str, Any] = {}
        if folder:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, value: Any, *key: str | None) -> None:
        """Remember a value under (kind, namespace, name) or the like."""
        name = _file_name(key)
        self._values[name] = value
        if self._folder:
            (self._folder / name).write_text(json.dumps(value), encoding="utf-8")

    def get(self, *key: str | None) -> Any:
        """The remembered value or None."""
        name = _file_name(key)
        if name not in self._values and self._folder and (self._folder / name).exists():
            self._values[name] = json.loads((self._folder / name).read_text(encoding="utf-8"))
        return self._values.get(name)


def _file_name(key: tuple[str | None, ...]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
