"""Secrets out of a diagnosis: the values of Secrets in all forms, what is named as a secret, literals of SQL."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

from ansible_collections.citadelbuy.platform.plugins.module_utils.diff import KEEP, SHORTEST_MASKED

Body = dict[str, Any]
MASKED = "*****"
SHORTEST = 4  # characters; a value of fewer would blank out numbers and words at random
LONGEST = 64 * 1024  # characters of a value that is looked for in other forms than its own
PUBLIC = re.compile(r"(USER|USERNAME|username|user)$")  # keys that hold the name of a user, not a secret
HELM = "helm.sh/release.v1"  # packed charts: nothing of them stands in a log

NAMED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)((?:password|passwd|secret|token|apikey|(?:\b|[_-])key)=)(\"[^\"]*\"|'[^']*'|[^\s,;&]+)"), r"\1"),
    (re.compile(r'(?i)("[\w.-]*(?:password|passwd|secret|token|key)"\s*:\s*")(?:[^"\\]|\\.)+'), r"\1"),
    (re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)"), r"\1"),
    (re.compile(r"(?i)((?:bearer|basic)\s+)[\w.~+/=-]{8,}"), r"\1"),
)
LITERAL = re.compile(r"\$(\w*)\$.*?\$\1\$|[eE]?'(?:[^'\\]|''|\\.)*('|$)|(?<![\w.$])\d+(?:\.\d+)?\b", re.DOTALL)
QUERY_LINE = re.compile(r"(?:STATEMENT|DETAIL|QUERY|CONTEXT|parameters):")
KEY_VALUE = re.compile(r"=\(.*?\)")


def mask_literals(query: str) -> str:
    """An SQL text without its values: texts and numbers become `?`."""
    return LITERAL.sub("?", query)


def _parts(text: str) -> Iterator[str]:
    """A value, its lines, the password of a URL, and the texts of a JSON document."""
    yield text
    if len(text) > LONGEST:
        return
    yield from text.splitlines()
    for line in text.splitlines():
        try:
            password = urlsplit(line.strip()).password
        except ValueError:
            continue
        if password:
            yield password
    if text.lstrip().startswith("{"):
        try:
            yield from _texts(json.loads(text))
        except ValueError:
            return


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _forms(text: str) -> Iterator[str]:
    """What a value looks like in logs, URLs, JSON and Base64."""
    yield text
    if len(text) > LONGEST:
        return
    for url in (quote(text), quote(text, safe=""), quote_plus(text)):
        yield url
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), url)
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        go = once.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        for form in (once, go, once.replace("/", "\\/")):
            yield form
            yield json.dumps(form, ensure_ascii=ascii_only)[1:-1]
    yield repr(text)[1:-1]
    yield text.replace("'", "''")
    encoded = text.encode()
    yield base64.b64encode(encoded).decode()
    # In the Base64 of a longer text a value may begin at each of three places; characters it shares are left out.
    for before in range(3):
        whole = base64.b64encode(bytes(before) + encoded).decode()
        inner = whole[(0, 2, 3)[before] : len(whole) - (0, 3, 2)[(before + len(encoded)) % 3]]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


class Mask:
    """Blanks secrets out of whatever was collected."""

    def __init__(self, secrets: Iterable[Body], names: Iterable[str] = ()) -> None:
        """Learn the values.

        :param secrets: Secret objects, with their data.
        :param names: names of objects that the report shows; a value that is one of them is no secret.
        """
        known = set(names)
        long: set[str] = set()
        short: set[str] = set()
        for secret in secrets:
            if secret.get("type") == HELM:
                continue
            kept = str((secret["metadata"].get("annotations") or {}).get(KEEP) or "").split(",")
            account = secret.get("type") == "kubernetes.io/service-account-token"
            for key, encoded in (secret.get("data") or {}).items():
                if key in kept or PUBLIC.search(key) or (account and key != "token"):
                    continue
                long.add(str(encoded))
                try:
                    value = base64.b64decode(encoded).decode()
                except ValueError:  # bytes, such as a key store: no text has them but in Base64
                    continue
                for part in {part.strip() for part in _parts(value)} - known:
                    if len(part) >= SHORTEST_MASKED:
                        long.update(_forms(part))
                    elif len(part) >= SHORTEST:
                        short.add(part)
        long = {value for value in long if len(value) >= SHORTEST_MASKED} - known
        words = [re.escape(value) for value in sorted(long, key=len, reverse=True)]
        words += [rf"(?<!\w){re.escape(value)}(?!\w)" for value in sorted(short, key=len, reverse=True)]
        self._values = re.compile("|".join(words)) if words else None

    def text(self, text: str) -> str:
        """One text without secrets."""
        if self._values:
            text = self._values.sub(MASKED, text)
        for pattern, kept in NAMED:
            text = pattern.sub(kept + MASKED, text)
        if QUERY_LINE.search(text):
            text = "\n".join(
                KEY_VALUE.sub("=(?)", self._after(line, mask_literals)) if QUERY_LINE.search(line) else line
                for line in text.split("\n")
            )
        return text

    @staticmethod
    def _after(line: str, change: Callable[[str], str]) -> str:
        """Change what stands behind the word that announces a query."""
        found = QUERY_LINE.search(line)
        end = found.end() if found else 0
        return line[:end] + change(line[end:])

    def deep(self, value: Any) -> Any:
        """A value with all texts in it masked; the keys of dictionaries stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.deep(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.deep(item) for item in value]
        return value
