#!/usr/bin/env python3
"""Search files, folders and texts for the values of secrets, and tell where one is without showing it.

secret_search.py VALUES PATH...      VALUES is a JSON object of names and values, a file or - for the standard input

A value is found as it is, in Base64 (of either alphabet, wherever it stands in the encoded text), URL-encoded, and as
JSON, Go, Python and YAML quote it; white space in between does not hide it, so wrapped Base64 is found too. The name
of a file or of an archive's member is searched as well. What gzip, bzip2, xz, tar and zip made is opened, told by its
content and not by its name, archives in archives too. Links are not followed; sockets, pipes and devices hold nothing.

Exits with 1 where a value is found, with 2 where something could not be read (and nothing was found): what was not
searched is said, never taken as good news.
"""

from __future__ import annotations

import base64
import bz2
import errno
import gzip
import io
import json
import lzma
import os
import stat
import sys
import tarfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

SHORTEST = 12
"""Bytes without white space that a value must have: a shorter one would be found by chance."""

LARGEST = 512 * 2**20
"""Bytes of a file, or of an archive's member when it is opened, that are searched; of a longer one the rest is not."""

DEEPEST = 12
"""How deep archives may lie in each other."""

WHITE_SPACE = b" \t\r\n"
BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
STREAMS: dict[bytes, tuple[str, Callable[[io.BytesIO], IO[bytes]]]] = {
    b"\x1f\x8b\x08": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    **{b"BZh%d1AY&SY" % level: ("bzip2", bz2.BZ2File) for level in range(1, 10)},
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
}
CLOSED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\x1f\x9d": "compress",
}
"""What is known by its first bytes and cannot be opened here."""


class Find(NamedTuple):
    """A place that holds a value: a path with the members of archives behind it, the secret's name, and the form."""

    place: str
    name: str
    form: str

    def __str__(self) -> str:
        return f"{self.place} holds the value of {self.name} ({self.form})"


def squeezed(content: bytes) -> bytes:
    """The content without white space."""
    return content.translate(None, WHITE_SPACE)


def base64_forms(value: bytes) -> Iterator[bytes]:
    """What of a value is sure to be in the Base64 of any text around it: it may begin at each of three places."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + value)
        # A character at an end that also holds bits of a neighbour is left out.
        end = len(encoded) - (0, 3, 2)[(before + len(value)) % 3]
        for alphabet in (encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))):
            yield alphabet[(0, 2, 3)[before] : end]


def quoted_forms(text: str) -> Iterator[str]:
    """How programs write a text between quotes."""
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        # Go's encoder writes those so that HTML may hold the text, and some write the slash so.
        go = once.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        for form in (once, go, once.replace("/", "\\/")):
            yield form
            yield json.dumps(form, ensure_ascii=ascii_only)[1:-1]  # JSON in JSON, as in an annotation
    yield repr(text)[1:-1]
    yield text.replace("'", "''")


def url_forms(text: str) -> Iterator[str]:
    """How a text stands in a URL."""
    for form in (urllib.parse.quote(text), urllib.parse.quote(text, safe=""), urllib.parse.quote_plus(text)):
        yield form
        parts = form.split("%")
        yield "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def forms(value: bytes) -> dict[bytes, str]:
    """All that a value may look like, without white space, with the name of the form."""
    found = dict.fromkeys(base64_forms(value), "Base64")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        pass
    else:
        found |= dict.fromkeys((form.encode() for form in url_forms(text)), "URL-encoded")
        found |= dict.fromkeys((form.encode() for form in quoted_forms(text)), "quoted")
    found[value] = "plain"
    return {squeezed(form): name for form, name in found.items()}


class _Data:
    """A file without its holes: zeros that take no room, of which a data base may set aside gigabytes."""

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.end = file, 0  # of the data that is being read

    def read1(self, size: int) -> bytes:
        """At most so many of the next bytes; none at the end."""
        position = self.file.tell()
        if position >= self.end:
            try:
                position = os.lseek(self.file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return b""
            self.end = os.lseek(self.file.fileno(), position, os.SEEK_HOLE)
            self.file.seek(position)
        return self.file.read(min(size, self.end - position))


class Search:
    """A search for the values of secrets; what it has come upon is in `found` and `unreadable`."""

    def __init__(self, values: Mapping[str, str | bytes]) -> None:
        """Take the values by the names that they are told by.

        :raises ValueError: where there is no value, or one is too short to be told from chance.
        """
        if not values:
            raise ValueError("There is no value to search for: give at least one.")
        self.found: list[Find] = []
        self.unreadable: list[str] = []
        """One sentence for each that was not searched, or only in part."""
        self.forms: list[tuple[bytes, str, str]] = []
        for name, value in values.items():
            encoded = value.encode() if isinstance(value, str) else value
            if len(squeezed(encoded)) < SHORTEST:
                raise ValueError(f"The value of {name} is shorter than {SHORTEST} bytes: it would be found by chance.")
            self.forms += [(form, name, kind) for form, kind in forms(encoded).items()]

    def text(self, place: str, content: str | bytes) -> None:
        """Search a text, or an archive in memory, that is to be called so."""
        self._content(place, content.encode(errors="surrogateescape") if isinstance(content, str) else content, 0)

    def path(self, path: Path, leave_out: Callable[[Path], bool] = lambda path: False) -> None:
        """Search a file, or a folder with all below it.

        :param leave_out: tells whether a file or folder below it is not searched.
        """
        if not path.is_dir():
            self._file(path)
            return

        def refused(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # gone since it was listed
                self._cannot(str(error.filename), error.strerror or "?")

        for folder, folders, files in os.walk(path, onerror=refused):
            folders[:] = sorted(name for name in folders if not leave_out(Path(folder, name)))
            for name in folders:
                self._name(f"{folder}/{name}")
            for name in sorted(files):
                if not leave_out(Path(folder, name)):
                    self._file(Path(folder, name), below=True)

    def _file(self, path: Path, below: bool = False) -> None:
        place = str(path)
        self._name(place)
        try:
            mode = (path.lstat() if below else path.stat()).st_mode
            if stat.S_ISLNK(mode):
                self._name(place, os.readlink(path))
            if not stat.S_ISREG(mode):
                return
            with path.open("rb", buffering=0) as file:
                content = self._drained(place, _Data(file))
        except FileNotFoundError as error:
            if not below:  # else gone since it was listed
                self._cannot(place, error.strerror)
        except OSError as error:
            self._cannot(place, error.strerror or str(error))
        else:
            self._content(place, content, 0)

    def _name(self, place: str, name: str = "") -> None:
        self._bytes(f"the name of {place}", os.fsencode(name or place))

    def _bytes(self, place: str, content: bytes) -> None:
        short = squeezed(content)
        self.found += [Find(self._shown(place), name, kind) for form, name, kind in self.forms if form in short]

    def _content(self, place: str, content: bytes, depth: int) -> None:
        self._bytes(place, content)
        try:
            for member, opened in self._members(place, content):
                if depth == DEEPEST:
                    self._cannot(place, f"archives lie in each other more than {DEEPEST} deep")
                    return
                if not member.startswith("("):
                    self._name(f"{place}!{member}", member)
                self._content(f"{place}!{member}", opened, depth + 1)
        except BROKEN as error:
            self._cannot(place, f"damaged: {error}")

    def _members(self, place: str, content: bytes) -> Iterator[tuple[str, bytes]]:
        """The members of an archive; nothing for what is none."""
        for magic, kind in CLOSED.items():
            if content.startswith(magic):
                self._cannot(place, f"{kind} cannot be opened here")
        for magic, (kind, reader) in STREAMS.items():
            if content.startswith(magic):
                member = f"({kind})"
                yield member, self._drained(f"{place}!{member}", reader(io.BytesIO(content)))
                return
        if is_tar(content):
            yield from self._tarred(place, content)
        elif content.startswith(b"PK\x03\x04") or zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for entry in archive.infolist():
                    yield entry.filename, self._zipped(f"{place}!{entry.filename}", archive, entry)

    def _zipped(self, place: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(entry) as file:
                return self._drained(place, file)
        except BROKEN as error:  # of an unknown method, or encrypted: the others are read
            self._cannot(place, str(error))
            return b""

    def _tarred(self, place: str, content: bytes) -> Iterator[tuple[str, bytes]]:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for entry in archive:
                self._name(f"{place}!{entry.name}", entry.linkname or entry.name)
                file = archive.extractfile(entry) if entry.isreg() else None
                yield entry.name, self._drained(f"{place}!{entry.name}", file) if file else b""
            if content[archive.offset :].strip(b"\0"):
                self._cannot(place, f"damaged: no tar header at byte {archive.offset}")

    def _drained(self, place: str, file: IO[bytes] | _Data) -> bytes:
        """All of a file, or what of it can be read."""
        content = io.BytesIO()
        try:
            # At most what one read of the source gives, so that nothing is lost to a damage behind it.
            while chunk := file.read1(2**20):  # type: ignore[attr-defined]
                content.write(chunk)
                if content.tell() > LARGEST:
                    self._cannot(place, f"longer than {LARGEST} bytes, the rest is not searched")
                    break
        except BROKEN as error:
            self._cannot(place, f"damaged: {error}")
        return content.getvalue()

    def _cannot(self, place: str, why: str) -> None:
        self.unreadable.append(self._shown(f"{place} cannot be searched: {why}"))

    def _shown(self, text: str) -> str:
        """A text that may be shown: with the secret's name where a name holds its value."""
        for form, name, _ in self.forms:
            text = text.replace(os.fsdecode(form), f"<{name}>")
        hidden = squeezed(os.fsencode(text))
        return "(a name that holds a value)" if any(form in hidden for form, _, _ in self.forms) else text


def is_tar(content: bytes) -> bool:
    """Whether the content begins with a tar header, which its checksum tells."""
    try:
        tarfile.TarInfo.frombuf(content[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def main(arguments: Iterable[str]) -> int:
    """Run the search and print what it has come upon."""
    source, *paths = arguments if arguments else [""]
    if not source or not paths:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        values = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError("It must hold a JSON object of names and texts.")
        search = Search(values)
    except (OSError, ValueError) as error:
        # An error of the JSON parser tells places, and not what is there.
        print(f"secret_search.py: cannot use the values of {source}: {error}", file=sys.stderr)
        return 2
    for path in paths:
        search.path(Path(path))
    for line in [*search.found, *search.unreadable]:
        print(line)
    return 1 if search.found else 2 if search.unreadable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
