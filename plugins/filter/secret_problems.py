"""Filter `citadelbuy.platform.secret_problems`: what is wrong with secrets, by name and never by value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: secret_problems
short_description: What is wrong with secrets, by name and never by value
version_added: 0.1.0
author: CitadelBuy Platform (@citadelbuy)
description:
  - Refuses values that are empty, a placeholder, shorter than 16 characters (32 for a JWT or session secret), that
    have white space at an end or hold control characters.
options:
  _input:
    description: The platform's own secrets by the name of their variable, such as C(secrets_jwt_secret).
    type: dict
    required: true
  third_party:
    description: API keys by the name of their environment variable, the variable C(secrets_third_party).
    type: dict
    default: {}
  generate:
    description: Whether an empty secret of the platform's own is in order, as the run will generate it.
    type: bool
    default: false
"""
EXAMPLES = """
- name: Refuse weak secrets
  ansible.builtin.assert:
    that: problems | length == 0
    fail_msg: "{{ problems | join('\\n') }}"
  vars:
    values: {secrets_jwt_secret: "{{ secrets_jwt_secret }}"}
    problems: "{{ values | citadelbuy.platform.secret_problems(secrets_third_party) }}"
"""
RETURN = """
_value:
  description: One sentence a problem; empty where all is well.
  type: list
  elements: str
"""

MINIMUM = 16
MINIMUM_OF_KEYS = 32  # they sign, and are never typed
SIGNING = re.compile(r"(jwt|session)_", re.IGNORECASE)
OWN_KEYS = ("DATABASE_PASSWORD", "REDIS_PASSWORD", "ELASTICSEARCH_PASSWORD", "JWT_SECRET", "SESSION_SECRET")
PLACEHOLDER = re.compile(
    r"(change|replace|fill)[-_ ]?(me|this|it|in)|placeholder"
    r"|^(todo|tbd|fixme|example|dummy|your[-_ ]|my[-_ ]?secret|secret|password|passw0rd|<)|^(.)\4*$",
    re.IGNORECASE,
)
ADVICE = "set it in the inventory's secrets.yml and encrypt that file with ansible-vault"


def value_problem(name: str, value: Any) -> str | None:
    """What is wrong with one value, as the rest of a sentence that begins with its name."""
    if value is None or not str(value).strip():
        return f"is empty: {ADVICE}."
    text = str(value)
    if PLACEHOLDER.search(text):
        return f"is a placeholder: {ADVICE}."
    minimum = MINIMUM_OF_KEYS if SIGNING.search(name) else MINIMUM
    if len(text) < minimum:
        return f"is shorter than {minimum} characters: {ADVICE}."
    if text != text.strip():
        return "has white space at its beginning or end: write it in one line, between quotes."
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return "holds a line break or another control character: write it in one line."
    return None


def secret_problems(
    secrets: Mapping[str, Any], third_party: Mapping[str, Any] | None = None, generate: bool = False
) -> list[str]:
    """One sentence a problem, in the order given."""
    if not isinstance(secrets, Mapping) or not isinstance(third_party or {}, Mapping):
        raise AnsibleFilterError(
            "secret_problems: secrets and third-party keys must be dictionaries of name and value."
        )
    found = []
    for name, value in secrets.items():
        problem = None if generate and value in (None, "") else value_problem(name, value)
        if problem:
            found.append(f"{name} {problem}")
    for name, value in (third_party or {}).items():
        label = f"secrets_third_party.{name}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            found.append(f"{label} is not a name for an environment variable: letters, digits and underscores only.")
        elif name in OWN_KEYS:
            found.append(f"{label} is a key of the platform's own: use secrets_{name.lower()}.")
        else:
            problem = value_problem("", value)
            if problem:
                found.append(f"{label} {problem.rstrip('.')}, or remove the entry.")
    return found


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Their names."""
        return {"secret_problems": secret_problems}
