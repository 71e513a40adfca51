"""The core rule set's own cases, as its source has them."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

# SQL injection, cross-site scripting, path traversal.
FILES = tuple(
    f"REQUEST-{name}"
    for name in ("942-APPLICATION-ATTACK-SQLI", "941-APPLICATION-ATTACK-XSS", "930-APPLICATION-ATTACK-LFI")
)


@dataclass
class Case:
    """One request, and what the rule it is for makes of it."""

    title: str
    rule: int
    level: int  # paranoia level from which that rule is asked
    attack: bool  # the rule has to match; else it must not
    raw: bytes


def load(folder: Path, rules: Path) -> list[Case]:
    """All cases of the three kinds.

    :param folder: a folder for each file of rules.
    :param rules: where those files are.
    """
    levels = {rule: level for name in FILES for rule, level in _levels(rules / f"{name}.conf")}
    return [
        case
        for name in FILES
        for file in sorted((folder / name).glob("*.yaml"))
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
        for case in _cases(test, levels)
    ]


def with_id(raw: bytes, request_id: str) -> bytes:
    """The request with an id, by which it is found in the log."""
    return raw.replace(b"\r\n", f"\r\nX-Request-Id: {request_id}\r\n".encode(), 1)


def _levels(file: Path) -> Iterator[tuple[int, int]]:
    # Rules of a level are behind the marker that skips them below it.
    level = 1
    for line in file.read_text(encoding="utf-8").splitlines():
        if skipping := re.search(r"PARANOIA_LEVEL \"@lt (\d)\"", line):
            level = int(skipping[1])
        elif found := re.search(r"\bid:(\d{6})\b", line):
            yield int(found[1]), level


def _cases(test: dict, levels: dict[int, int]) -> Iterator[Case]:
    stages = [stage["stage"] for stage in test["stages"]]
    for number, stage in enumerate(stages, 1):
        output = stage["output"]
        expected = str(output.get("log_contains") or output.get("no_log_contains") or "")
        found = re.search(r"id \"(\d{6})\"", expected)
        title = test["test_title"] + (f" ({number})" if len(stages) > 1 else "")
        rule = int(found[1]) if found else int(title[:6])
        yield Case(title, rule, levels[rule], "log_contains" in output, _raw(stage["input"]))


def _raw(wanted: dict) -> bytes:
    """The request's bytes, made the way the rule set's own test runner makes them."""
    data = wanted.get("data") or ""
    text = "\r\n".join(data) if isinstance(data, list) else str(data)
    headers = {str(name): str(value) for name, value in (wanted.get("headers") or {}).items()}
    named = {name.lower() for name in headers}
    if text and not wanted.get("stop_magic"):
        if "content-type" not in named:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        form = headers.get("Content-Type") == "application/x-www-form-urlencoded"
        if form and urllib.parse.unquote(text) == text and (pairs := urllib.parse.parse_qsl(text)):
            text = urllib.parse.urlencode(pairs)
        if "content-length" not in named:
            headers["Content-Length"] = str(len(text.encode()))
    headers["Connection"] = "close"
    first = f"{wanted.get('method', 'GET')} {wanted.get('uri', '/')} {wanted.get('version', 'HTTP/1.1')}"
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", text]).encode()
