"""Everything that is fetched has a hash of its own, or a signature that is checked."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split(
    "\n"
)


def tracked(ending: str) -> list[str]:
    """Files of the repository with this ending."""
    return [name for name in TRACKED if name.endswith(ending)]


@pytest.mark.parametrize("name", tracked("requirements.txt"))
def test_python(name: str) -> None:
    text = (CHECKOUT / name).read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 50
    bad = [
        line for line in lines if not re.fullmatch(r"[\w.-]+==\S+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", line)
    ]
    assert not bad


def test_every_python_choice_is_pinned() -> None:
    choices = [line for line in (CHECKOUT / "requirements.in").read_text().splitlines() if line[:1].isalpha()]
    pinned = (CHECKOUT / "requirements.txt").read_text().lower()
    names = [re.sub(r"\[.*\]", "", choice).lower() for choice in choices]
    assert [name for name in names if f"\n{name} " not in pinned] == []


@pytest.mark.parametrize("name", tracked("go.mod"))
def test_go(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    if not re.search(r"^\s*(require )?[\w.-]+\.\w+/\S+ v", text, re.MULTILINE):
        return  # nothing but Go itself
    sums = (CHECKOUT / name).with_name("go.sum").read_text()
    replaced = set(re.findall(r"^\s*(?:replace )?(\S+)(?: v\S+)? => ", text, re.MULTILINE))
    needed = re.findall(r"^\s*(?:require )?([\w.-]+\.\w+/\S+) (v\S+)(?: // indirect)?$", text, re.MULTILINE)
    missing = [f"{module} {version}" for module, version in needed if f"{module} {version}" not in sums]
    assert [line for line in missing if line.split()[0] not in replaced] == []


@pytest.mark.parametrize("name", tracked("package-lock.json"))
def test_npm(name: str) -> None:
    packages = json.loads((CHECKOUT / name).read_text())["packages"]
    # What is bundled lies in the archive of another package, and is under its hash.
    fetched = {path: entry for path, entry in packages.items() if path and not entry.get("inBundle")}
    assert fetched
    assert [path for path, entry in fetched.items() if not entry.get("integrity", "").startswith("sha512-")] == []


def test_npm_installs_what_is_locked() -> None:
    for name in tracked("Containerfile"):
        commands = re.findall(r"npm (install|i|ci)\b", (CHECKOUT / name).read_text())
        assert set(commands) <= {"ci"}, name


def test_maven() -> None:
    lines = (CHECKOUT / "images/elasticsearch/jars.sha256").read_text().splitlines()
    assert len(lines) > 20
    assert all(re.fullmatch(r"[0-9a-f]{64}  \S+", line) for line in lines)


@pytest.mark.parametrize("name", tracked("Containerfile"))
def test_images_start_from_images_built_here_alone(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    stages = re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.MULTILINE | re.IGNORECASE)
    bases = re.findall(r"^FROM\s+(\S+)", text, re.MULTILINE)
    assert bases
    assert [
        base for base in bases if base not in ("scratch", *stages) and not base.startswith("citadelbuy.local/")
    ] == []
