"""The search for secrets' values finds each form hidden on purpose, and says what it could not read."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import re
import socket
import subprocess
import sys
import tarfile
import textwrap
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests/tools"))

import secret_search  # noqa: E402
from secret_search import Search  # noqa: E402

# One as they are generated, and one with all that is written differently somewhere.
PLAIN, ODD = "Vq8ZsT4nWk2LxP7mRb9YcD3h", "pä/ss+w&rd?<o'f\"a\\ k~y>=%"
NAME = "citadelbuy/REDIS_PASSWORD"


def tarred(content: bytes, name: str = "inner", kind: str = "w:") -> bytes:
    """A tar archive of one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=kind) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zipped(content: bytes, name: str = "inner") -> bytes:
    """A zip archive of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


PACKERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "!(gzip)"),
    "bzip2": (bz2.compress, "!(bzip2)"),
    "xz": (lzma.compress, "!(xz)"),
    "tar": (tarred, "!inner"),
    "zip": (zipped, "!inner"),
    "zip behind a program": (lambda content: b"#!/usr/bin/python3\n" + zipped(content), "!inner"),
    "tar.gz": (lambda content: tarred(content, kind="w:gz"), "!(gzip)!inner"),
    "all": (
        lambda content: tarred(zipped(tarred(gzip.compress(bz2.compress(content)), kind="w:xz"))),
        "!inner!inner!(xz)!inner!(gzip)!(bzip2)",
    ),
    "two after each other": (lambda content: gzip.compress(b"first") + gzip.compress(content), "!(gzip)"),
}
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "URL": lambda value: "postgres://user:" + urllib.parse.quote(value, safe="") + "@postgres:5432/shop",
    "URL, lower case": lambda value: re.sub(
        "%..", lambda escape: escape[0].lower(), urllib.parse.quote(value, safe="")
    ),
    "form": lambda value: urllib.parse.urlencode({"password": value}),
    "JSON": lambda value: json.dumps({"password": value}),
    "JSON of other programs": lambda value: json.dumps(value, ensure_ascii=False).replace("/", "\\/"),
    "Go's JSON": lambda value: (
        json.dumps(value, ensure_ascii=False).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    ),
    "JSON in JSON": lambda value: json.dumps({"last-applied": json.dumps({"password": value})}),
    "Python": lambda value: repr({"password": value}),
    "YAML": lambda value: "password: '" + value.replace("'", "''") + "'",
    "Base64": lambda value: base64.b64encode(value.encode()).decode(),
    "basic authentication": lambda value: base64.b64encode(f"elastic:{value}".encode()).decode(),
    "Base64, wrapped": lambda value: "\n  ".join(
        textwrap.wrap(base64.b64encode(b"some text before " + value.encode() + b" and behind").decode(), 20)
    ),
}


def search(name: str = NAME, value: str = PLAIN) -> Search:
    return Search({"other": "n0t-anywhere-at-all-9f2c", name: value})


def found(content: str | bytes, value: str = PLAIN) -> list[str]:
    """The places where a search of a content comes upon the value."""
    one = search(value=value)
    one.text("file", content)
    assert not one.unreadable
    return sorted({find.place for find in one.found if find.name == NAME})


@pytest.mark.parametrize("value", [PLAIN, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_found(form: str, value: str) -> None:
    written = FORMS[form](value)
    assert found(f"line 1\n… {written} …\n", value) == ["file"]
    assert found(f"line 1\n… {FORMS[form](value[::-1])} …\n", value) == []


@pytest.mark.parametrize("value", [PLAIN, ODD, PLAIN[:-1], PLAIN[:-2]], ids=["plain", "odd", "one less", "two less"])
@pytest.mark.parametrize("behind", range(4))
@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode], ids=["standard", "URL-safe"])
def test_base64_is_found_wherever_the_value_begins(
    before: int, behind: int, value: str, encode: Callable[[bytes], bytes]
) -> None:
    for neighbour in (b"\0", b"\xff", b"k"):
        assert found(encode(neighbour * before + value.encode() + neighbour * behind), value) == ["file"]


@pytest.mark.parametrize("packer", PACKERS)
def test_archives_are_opened_by_their_content(packer: str, tmp_path: Path) -> None:
    pack, place = PACKERS[packer]
    hidden = pack(b"text " + base64.b64encode(b"x" + PLAIN.encode()))
    file = tmp_path / "notes.txt"
    file.write_bytes(hidden)
    one = search()
    one.path(tmp_path)
    assert f"{file}{place}" in {find.place for find in one.found}
    assert not one.unreadable
    assert found(pack(b"text")) == []


def test_names_are_searched_and_never_shown(tmp_path: Path) -> None:
    folder = tmp_path / f"of-{PLAIN}"
    folder.mkdir()
    (folder / "file").write_text("nothing")
    (tmp_path / "link").symlink_to(f"/nowhere/{PLAIN}")
    (tmp_path / "packed").write_bytes(gzip.compress(tarred(b"nothing", name=f"member-{PLAIN}")))
    (tmp_path / "zip").write_bytes(zipped(PLAIN.encode(), name=f"member-{PLAIN}"))
    one = search()
    one.path(tmp_path)
    assert {f"the name of {tmp_path}/{name}" for name in (f"of-<{NAME}>", "link")} <= {find.place for find in one.found}
    assert f"the name of {tmp_path}/packed!(gzip)!member-<{NAME}>" in {find.place for find in one.found}
    assert f"{tmp_path}/zip!member-<{NAME}>" in {find.place for find in one.found}
    assert PLAIN not in "\n".join(map(str, one.found))


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    packed = gzip.compress(PLAIN.encode() + os.urandom(200_000).hex().encode())
    encrypted = bytearray(zipped(b"nothing"))
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    encrypted[6] |= 1
    broken = tarred(b"x" * 2000) + tarred(b"y")
    cases = {
        "cut.gz": packed[:-1000],
        "cut.xz": lzma.compress(os.urandom(5000))[:-100],
        "cut.bz2": bz2.compress(os.urandom(5000))[:-100],
        "cut.tar": tarred(os.urandom(5000))[:2000],
        "damaged.tar": broken[:2560] + b"not a header" * 100,
        "cut.zip": zipped(os.urandom(5000))[:-100],
        "encrypted.zip": bytes(encrypted),
        "log.zst": b"\x28\xb5\x2f\xfd\x04\x00",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    one = search()
    one.path(tmp_path)
    one.path(tmp_path / "missing")
    told = {Path(line.split(" ")[0].partition("!")[0]).name for line in one.unreadable}
    assert told == {*cases, "missing"}
    # What came before the damage is searched.
    assert {find.place for find in one.found} == {f"{tmp_path}/cut.gz!(gzip)"}


def test_archives_in_archives_without_end_are_told() -> None:
    content = PLAIN.encode()
    for _ in range(secret_search.DEEPEST + 1):
        content = gzip.compress(content)
    one = search()
    one.text("file", content)
    assert not one.found
    assert "archives lie in each other more than 12 deep" in one.unreadable[0]


def test_what_is_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_search, "LARGEST", 2**21)
    one = search()
    one.text("file", gzip.compress(PLAIN.encode() + bytes(2**22)))
    assert {find.place for find in one.found} == {"file!(gzip)"}
    assert one.unreadable == ["file!(gzip) cannot be searched: longer than 2097152 bytes, the rest is not searched"]


def test_holes_of_a_file_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_search, "LARGEST", 2**21)
    with (tmp_path / "file").open("wb") as file:
        for gigabytes in (0, 1, 2):
            file.seek(gigabytes * 2**30)
            file.write(b"nothing" if gigabytes != 1 else PLAIN.encode())
        file.truncate(3 * 2**30)
    one = search()
    one.path(tmp_path / "file")
    assert {find.place for find in one.found} == {str(tmp_path / "file")}
    assert not one.unreadable


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "elsewhere").symlink_to("/dev/zero")
        (tmp_path / "left out").write_text(PLAIN)
        one = search()
        one.path(tmp_path, leave_out=lambda path: path.name == "left out")
    assert not one.found
    assert not one.unreadable


@pytest.mark.parametrize(
    ("values", "problem"), [({}, "no value"), ({"PIN": "1234 5678 90"}, "value of PIN is shorter")]
)
def test_values_that_would_be_found_everywhere_are_refused(values: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        Search(values)
    assert "1234" not in str(raised.value)


def test_a_value_that_is_no_text_is_found() -> None:
    value = bytes(range(128, 160))
    one = Search({"key": value})
    one.text("file", base64.b64encode(b"k" + value + b"k"))
    assert [str(find) for find in one.found] == ["file holds the value of key (Base64)"]


def test_the_program(tmp_path: Path) -> None:
    tool = [sys.executable, str(CHECKOUT / "tests/tools/secret_search.py")]

    def run(*arguments: object, values: object) -> tuple[int, str]:
        words = [*tool, *map(str, arguments)]
        done = subprocess.run(words, input=json.dumps(values), capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    clean, bad, cut = tmp_path / "clean", tmp_path / "bad", tmp_path / "cut"
    clean.write_text("nothing")
    bad.write_text(PLAIN)
    cut.write_bytes(gzip.compress(b"nothing")[:-4])
    assert run("-", clean, values={NAME: PLAIN}) == (0, "")
    assert run("-", clean, bad, cut, values={NAME: PLAIN})[0] == 1
    code, said = run("-", tmp_path, values={NAME: PLAIN})
    assert f"{bad} holds the value of {NAME} (plain)" in said
    assert f"{cut}!(gzip) cannot be searched" in said
    assert PLAIN not in said
    code, said = run("-", cut, values={NAME: PLAIN})
    assert (code, said.count("\n")) == (2, 1)
    code, said = run("-", clean, values=[PLAIN])
    assert code == 2
    assert PLAIN not in said
    assert run("-", values={})[0] == 2
    assert run(values={})[0] == 2
