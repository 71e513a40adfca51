"""The report of a run: what became of the objects of each cluster, for people and as a file for machines."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.inventory.host import Host
from ansible.playbook import Playbook
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar
from ansible_collections.citadelbuy.platform.plugins.module_utils import progress
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import ACTIONS, NO_CHANGE

DOCUMENTATION = r"""
---
name: report
type: aggregate
short_description: What a run created, changed, pruned and waited for
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Prints, after the recap, what became of the objects of each cluster, by set; one line where nothing changed.
  - Writes the same as JSON into the file that the variable C(platform_report_file) names.
  - Lets a terminal show what is being waited for.
"""

FILE = "platform_report_file"
VERSION = 1  # of the file's shape
WIDTH = 100
NAMED = 20  # objects a set
SLOWEST = 3
LINES = 3  # of a reason or failure; all of it was printed when it happened, and is in the file
WAITED = 0.05  # seconds from which on a wait is worth a word
MANIFESTS = "citadelbuy.platform.manifests"
READY = "citadelbuy.platform.ready"
# In check mode; any other action is itself.
VERBS = {
    "created": "create",
    "changed": "change",
    "expanded": "expand",
    "replaced": "replace",
    "pruned": "prune",
    "kept": "keep",
}
OK = "ok"
FAILED = "failed"
UNFINISHED = "unfinished"
Object = dict[str, Any]  # an entry of `objects` in a task's result


@dataclass
class Entry:
    """What a task did in a cluster."""

    task: str
    role: str | None  # the set's name where the task applied one
    action: str  # fully qualified
    seconds: float
    objects: list[Object] = field(default_factory=list)
    failure: str = ""

    @property
    def waits(self) -> list[Object]:
        """Objects that were waited for, each with `seconds`."""
        key = "seconds" if self.action == READY else "ready_after"
        waited = [item for item in self.objects if item.get(key, 0) > WAITED]
        return [
            {"task": self.task}
            | {name: item.get(name) for name in ("kind", "namespace", "name")}
            | {"seconds": item[key]}
            for item in waited
        ]


class CallbackModule(CallbackBase):
    """Gathers results while a playbook runs; reports at its end, or at that of the process."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "citadelbuy.platform.report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun = time.time()
        self._playbooks: list[str] = []
        self._entries: dict[str, list[Entry]] = {}  # by host
        self._printed: Counter[str] = Counter()  # how many of them, by host
        self._files: dict[str, Path | None] = {}  # by host
        self._unwritable: set[Path] = set()
        self._running: dict[tuple[str, str], tuple[Task, float]] = {}  # by host and the task's id
        self._failed: set[str] = set()
        self._finished = True

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """A playbook begins; ansible-playbook runs several, one after the other."""
        self._playbooks.append(str(playbook._file_name))
        if self._finished:
            self._finished = False
            progress.prepare()
            atexit.register(self._interrupted)

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Whatever ends the process, the file does not show an earlier run, or less than the plays before."""
        self._write()

    def v2_runner_on_start(self, host: Host, task: Task) -> None:
        """A worker is about to run a task."""
        name = host.get_name()
        self._running[name, task._uuid] = (task, time.monotonic())
        if name not in self._files:
            self._files[name] = self._file_of(host, task)
            self._write()

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """A task ended well."""
        self._take(result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """A task failed."""
        self._take(result, failed=not ignore_errors)

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """The host of a task did not answer."""
        self._take(result, failed=True)

    def v2_runner_on_skipped(self, result: CallbackTaskResult) -> None:
        """A task had nothing to do."""
        self._running.pop(_key(result), None)

    def v2_runner_item_on_ok(self, result: CallbackTaskResult) -> None:
        """A loop's item ended well."""
        self._take(result, item=True)

    def v2_runner_item_on_failed(self, result: CallbackTaskResult) -> None:
        """A loop's item failed; the loop's own result is the failure."""
        self._take(result, item=True)

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """A playbook has ended."""
        self._finished = True
        atexit.unregister(self._interrupted)
        self._failed = {*stats.failures, *stats.dark}
        self._print()
        self._write()

    def _interrupted(self) -> None:
        """The process ends, and its playbook has not."""
        now = time.monotonic()
        for (host, _), (task, started) in self._running.items():
            entry = Entry(task.name or task.action, _set_of(task, {}), "", now - started, failure="interrupted")
            self._entries.setdefault(host, []).append(entry)
            self._failed.add(host)
        self._print()
        self._write()

    def _take(self, result: CallbackTaskResult, failed: bool = False, item: bool = False) -> None:
        """Note what a task did, where it is one of the engine's or failed."""
        key, now = _key(result), time.monotonic()
        task, started = self._running.get(key, (result.task, now))
        if item:
            self._running[key] = (task, now)  # the next item begins
        else:
            self._running.pop(key, None)
        action = task.action if task.action.rpartition(".")[2] in ("manifests", "ready") else ""
        action = (task.resolved_action or "") if action else ""
        ours = action in (MANIFESTS, READY) and (item or "results" not in result.result)
        if not (ours or failed):
            return
        found = result.result
        message = [found.get(part) for part in ("msg", "problems", "censored") if isinstance(found.get(part), str)]
        entry = Entry(
            result.task_name,
            _set_of(task, result.task_fields.get("args") or {}) if ours else _set_of(task, {}),
            action if ours else "",
            now - started,
            found.get("objects") or [] if ours else [],
            ("\n".join(message).strip() or "no message") if failed else "",
        )
        self._entries.setdefault(key[0], []).append(entry)

    def _file_of(self, host: Host, task: Task) -> Path | None:
        """The file that a host's variables name."""
        variables = task.get_variable_manager().get_vars(play=task.play, host=host)
        if not variables.get(FILE):
            return None
        try:
            value = Templar(task.get_loader(), variables).resolve_variable_expression(FILE)
        except AnsibleError as error:
            self._display.warning(f"{host.get_name()}: no report is written, as {FILE} cannot be templated: {error}")
            return None
        return Path(str(value)).expanduser().absolute() if value else None

    # The file

    def _write(self) -> None:
        """Write each file whole, or leave it as it was."""
        for path in {path for path in self._files.values() if path}:
            hosts = [host for host, file in self._files.items() if file == path]
            try:
                _replace(path, json.dumps(self._document(hosts), indent=1) + "\n")
            except OSError as error:
                if path not in self._unwritable:
                    self._unwritable.add(path)
                    self._display.warning(f"{FILE}: {path} cannot be written: {error.strerror}.")

    def _document(self, hosts: Iterable[str]) -> dict[str, Any]:
        clusters = {host: self._cluster(host) for host in hosts}
        failed = any(cluster["result"] == FAILED for cluster in clusters.values())
        ended = time.time()
        return {
            "version": VERSION,
            "started": _iso(self._begun),
            "ended": _iso(ended),
            "seconds": round(ended - self._begun, 1),
            "check": bool(context.CLIARGS.get("check")),
            "playbooks": self._playbooks,
            "result": (FAILED if failed else OK) if self._finished else UNFINISHED,
            "clusters": clusters,
        }

    def _cluster(self, host: str) -> dict[str, Any]:
        entries = self._entries.get(host, [])
        roles: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if entry.action == MANIFESTS:
                role = roles.setdefault(str(entry.role), {"seconds": 0.0, "objects": []})
                role["seconds"] = round(role["seconds"] + entry.seconds, 3)
                role["objects"] += entry.objects
        return {
            "result": FAILED if host in self._failed else OK,
            "roles": roles,
            "waits": [wait for entry in entries for wait in entry.waits],
            "failures": [
                {"task": entry.task, "role": entry.role, "message": entry.failure} for entry in entries if entry.failure
            ],
        }

    # For people

    def _print(self) -> None:
        """Print what was not printed yet; nothing where the engine did nothing."""
        new = {host: entries[self._printed[host] :] for host, entries in self._entries.items()}
        if not any(entry.action for entries in new.values() for entry in entries):
            return
        for host, entries in new.items():
            self._printed[host] += len(entries)
            if entries:
                headline, *lines = self._text(host, entries)
                changed = any(item["action"] not in NO_CHANGE for item in _applied(entries))
                bad = not self._finished or host in self._failed
                self._display.display(headline, C.COLOR_ERROR if bad else C.COLOR_CHANGED if changed else C.COLOR_OK)
                for line in lines:
                    self._display.display(line)
        self._display.display("", screen_only=True)

    def _text(self, host: str, entries: list[Entry]) -> list[str]:
        """The lines about a cluster."""
        check = bool(context.CLIARGS.get("check"))
        objects = _applied(entries)
        failures = [entry for entry in entries if entry.failure]
        sets = {entry.role for entry in entries if entry.action == MANIFESTS and entry.objects}
        failed = host in self._failed and bool(failures)
        parts = ["interrupted"] if not self._finished else ["failed"] if failed else []
        ready = sum(len(entry.objects) for entry in entries if entry.action == READY)
        if objects:
            parts.append(_total(objects, len(sets), check))
        else:
            parts.append(f"{_number(ready, 'workload')} ready" if ready else "nothing applied")
        parts.append(_duration(sum(entry.seconds for entry in entries if entry.action or entry.failure)))
        lines = [f"{host}: {', '.join(parts)}"]
        brief = not failures and all(item["action"] in NO_CHANGE for item in objects)
        rows = [(entry, *row) for entry in entries for row in [_row(entry, check)] if row]
        first = max((len(label) for _, label, _ in rows), default=0)
        second = max((len(text) for _, _, text in rows), default=0)
        for entry, label, text in rows:
            if not brief:
                lines.append(f"  {label:{first}}  {text:{second}}  {_duration(entry.seconds):>10}")
            lines += _named(entry.objects, check) if entry.action == MANIFESTS else []
        waits = sorted((wait for entry in entries for wait in entry.waits), key=lambda wait: -wait["seconds"])[:SLOWEST]
        longest = max((len(_name(wait)) for wait in waits), default=0)
        lines += [f"  waited for  {_name(wait):{longest}}  {_duration(wait['seconds']):>10}" for wait in waits]
        for entry in failures:
            lines += _wrap(
                "  failed  " if failed else "  failed, rescued  ",
                f"{entry.role or entry.task}: {entry.failure.splitlines()[0]}",
            )
        return lines


def _key(result: CallbackTaskResult) -> tuple[str, str]:
    return result.host.get_name(), result.task._uuid


def _set_of(task: Task, arguments: dict[str, Any]) -> str | None:
    """The name of the set that a task applies, else of its role."""
    name = arguments.get("name")
    return str(name) if name else task._role.get_name(include_role_fqcn=False) if task._role else None


def _applied(entries: list[Entry]) -> list[Object]:
    return [item for entry in entries if entry.action == MANIFESTS for item in entry.objects]


def _row(entry: Entry, check: bool) -> tuple[str, str] | None:
    """A task's line: its name and what it did."""
    if not entry.objects:
        return None
    if entry.action == READY:
        return textwrap.shorten(entry.task, 40, placeholder="..."), f"{len(entry.objects)} ready"
    return str(entry.role), _counts(entry.objects, check)


def _counts(objects: list[Object], check: bool) -> str:
    """Such as `2 created, 30 unchanged`; in check mode `would create 2, 30 unchanged`."""
    numbers = Counter(str(item["action"]) for item in objects)
    order = [action for action in ACTIONS if numbers[action]] + [other for other in numbers if other not in ACTIONS]
    if not check:
        return ", ".join(f"{numbers[action]} {action}" for action in order)
    would = [f"{VERBS.get(action, action)} {numbers[action]}" for action in order if action != "unchanged"]
    rest = [f"{numbers['unchanged']} unchanged"] if numbers["unchanged"] else []
    return ", ".join(["would " + ", ".join(would), *rest] if would else rest)


def _total(objects: list[Object], sets: int, check: bool) -> str:
    """The same for a cluster; such as `36 objects in 8 sets unchanged` where that is all."""
    same = sum(item["action"] == "unchanged" for item in objects)
    where = f"in {_number(sets, 'set')}"
    if same < len(objects):
        return f"{_counts(objects, check)} {where}"
    return f"{_number(same, 'object')} {where} {'would stay ' if check else ''}unchanged"


def _named(objects: list[Object], check: bool) -> list[str]:
    """A line for each object that is not as before, and for each that was kept."""
    chosen = [item for item in objects if item["action"] != "unchanged"]
    verbs = [
        f"would {VERBS.get(item['action'], item['action'])}" if check else item["action"] for item in chosen[:NAMED]
    ]
    width = max(map(len, verbs), default=0)
    lines = []
    for verb, item in zip(verbs, chosen, strict=False):
        text = _name(item)
        text += f": {item['reason']}" if item.get("reason") else ""
        lines += _wrap(f"    {verb:{width}}  ", text)
    return lines + ([f"    and {len(chosen) - NAMED} more"] if len(chosen) > NAMED else [])


def _name(item: Object) -> str:
    where = f"{item['namespace']}/" if item.get("namespace") else ""
    return f"{item['kind']} {where}{item['name']}"


def _wrap(lead: str, text: str) -> list[str]:
    """A few lines of at most WIDTH columns; names stay whole, to be copied."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
        max_lines=LINES,
        placeholder=" ...",
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    """Such as `1.9 s` or `2 min 5 s`."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _replace(path: Path, text: str) -> None:
    """Write a file, readable by its owner only, in one step.

    :raises OSError: and then the file is as it was.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
