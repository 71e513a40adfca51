#!/usr/bin/env python3
"""Write what an image archive is made of beside it: <archive without .tar>.cdx.json, a CycloneDX 1.5 bill of materials.

    sbom.py ARCHIVE ...                 of these archives, as `docker save` writes them, layers not compressed
    sbom.py --newest IMAGES CACHE       of the newest archive in CACHE of each image that has a folder in IMAGES

Read from the image itself: Debian's packages (dpkg's status), Go's modules (the build information in each program),
npm's packages (package.json below node_modules), Python's distributions (METADATA), Maven's jars (pom.properties, else
the file's name). An image without dpkg's status names each program and library that tells nothing, with its SHA-256.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]
DPKG = "var/lib/dpkg/status"
GO_MAGIC = b"\xff Go buildinf:"
JAR = re.compile(r"(?P<name>.+?)-(?P<version>\d[\w.+-]*)\.jar\Z")


def component(kind: str, purl_type: str, name: str, version: str, *, namespace: str = "", query: str = "") -> Component:
    """A component with its package URL (github.com/package-url/purl-spec)."""
    path = "/".join(quote(part, safe="") for part in [*namespace.split("/"), *name.split("/")] if part)
    purl = f"pkg:{purl_type}/{path}" + (f"@{quote(version, safe='')}" if version else "") + query
    found = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return found | ({"group": namespace} if namespace and purl_type in ("maven", "npm") else {})


def debian(status: str) -> Iterator[Component]:
    """Installed packages of dpkg's status."""
    for paragraph in status.split("\n\n"):
        entry = email.parser.HeaderParser().parsestr(paragraph.lstrip())
        if entry["Package"] and str(entry["Status"]).endswith(" installed"):
            query = f"?arch={entry['Architecture']}"
            yield component("library", "deb", entry["Package"], entry["Version"], namespace="debian", query=query)


def _go_string(content: bytes, at: int) -> tuple[bytes, int]:
    """A string with its length as varint before it, and where it ends."""
    length = shift = 0
    while True:
        byte = content[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return content[at : at + length], at + length


def go(content: bytes) -> Iterator[Component]:
    """The modules and the Go of a program that Go 1.18 or newer has built (debug/buildinfo's inline format)."""
    at = content.find(GO_MAGIC)
    while at >= 0 and (at % 16 or not content[at + 15] & 2):
        at = content.find(GO_MAGIC, at + 1)
    if at < 0:
        return
    version, at = _go_string(content, at + 32)
    modules, _ = _go_string(content, at)
    yield component("library", "golang", "stdlib", version.decode().removeprefix("go").split(" ")[0])
    lines = [line.split("\t") for line in modules[16:-16].decode().splitlines()]
    for number, (word, *rest) in enumerate(lines):
        replaced = number + 1 < len(lines) and lines[number + 1][0] == "=>"
        if word in ("mod", "dep", "=>") and not replaced and not rest[0].startswith("."):
            yield component("library", "golang", rest[0], "" if rest[1] == "(devel)" else rest[1])


def npm(text: str) -> Iterator[Component]:
    """The package of a package.json, where it names one."""
    content = json.loads(text)
    if content.get("name") and content.get("version"):
        namespace, _, name = str(content["name"]).rpartition("/")
        yield component("library", "npm", name, str(content["version"]), namespace=namespace)


def python(text: str) -> Iterator[Component]:
    """The distribution of a METADATA."""
    entry = email.parser.HeaderParser().parsestr(text)
    yield component("library", "pypi", re.sub(r"[-_.]+", "-", entry["Name"]).lower(), entry["Version"])


def maven(name: str, content: bytes) -> Iterator[Component]:
    """The artifacts in a jar: those that say so themselves, else what its name says."""
    with zipfile.ZipFile(io.BytesIO(content)) as jar:
        properties = [
            dict(line.split("=", 1) for line in jar.read(entry).decode().splitlines() if "=" in line and line[0] != "#")
            for entry in jar.namelist()
            if re.fullmatch(r"META-INF/maven/[^/]+/[^/]+/pom\.properties", entry)
        ]
    found = False
    for entry in properties:
        if {"groupId", "artifactId", "version"} <= entry.keys():
            found = True
            coordinates = {key: entry[key].strip() for key in ("groupId", "artifactId", "version")}
            yield component(
                "library", "maven", coordinates["artifactId"], coordinates["version"], namespace=coordinates["groupId"]
            )
    match = JAR.match(name)
    if not found:
        yield component("library", "generic", match["name"] if match else name, match["version"] if match else "")


def files(archive: tarfile.TarFile) -> dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of an image, its layers laid upon each other."""
    (manifest,) = json.load(archive.extractfile("manifest.json"))
    found: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
    for layer in manifest["Layers"]:
        opened = tarfile.open(fileobj=archive.extractfile(layer))  # noqa: SIM115 - closed with the archive
        for info in opened:
            path = PurePosixPath(info.name.removeprefix("./").lstrip("/"))
            if path.name.startswith(".wh."):
                opaque = path.name == ".wh..wh..opq"
                gone = str(path.parent) if opaque else str(path.with_name(path.name.removeprefix(".wh.")))
                for name in [name for name in found if name == gone or name.startswith(f"{gone}/")]:
                    del found[name]
            elif info.isfile():
                found[str(path)] = (opened, info)
            elif not info.isdir():
                found.pop(str(path), None)
    return found


def bill(path: Path) -> dict[str, Any]:
    """The bill of materials of an archive.

    :raises KeyError: the archive is none of an image.
    """
    with tarfile.open(path) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        found: list[Component] = []
        content = files(archive)
        for name, (layer, info) in content.items():
            found += _components(name, layer, info, has_packages=DPKG in content)
    image, _, version = manifest["RepoTags"][0].rpartition(":")
    itself = {"type": "container", "bom-ref": manifest["RepoTags"][0], "name": image, "version": version}
    itself["hashes"] = [{"alg": "SHA-256", "content": manifest["Config"].removesuffix(".json").rpartition("/")[2]}]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": itself},
        "components": [each for _, each in sorted({each["bom-ref"]: each for each in found}.items())],
    }


def _components(name: str, layer: tarfile.TarFile, info: tarfile.TarInfo, *, has_packages: bool) -> Iterator[Component]:
    """What a file tells, a file of its own among it where nothing else names it."""

    def read() -> bytes:
        return layer.extractfile(info).read()

    path = PurePosixPath(name)
    if name == DPKG:
        yield from debian(read().decode())
    elif path.name == "package.json" and "node_modules" in path.parts:
        yield from npm(read().decode())
    elif path.name == "METADATA" and path.parent.name.endswith(".dist-info"):
        yield from python(read().decode())
    elif path.suffix == ".jar":
        yield from maven(path.name, read())
    elif info.mode & 0o111 or ".so" in path.name:
        content = read()
        if content[:4] == b"\x7fELF":
            modules = list(go(content))
            yield from modules
            if not modules and not has_packages:
                digest = hashlib.sha256(content).hexdigest()
                hashes = [{"alg": "SHA-256", "content": digest}]
                yield {"type": "file", "bom-ref": f"/{name}", "name": f"/{name}", "hashes": hashes}


def newest(images: Path, cache: Path) -> list[Path]:
    """The newest archive of each image that has one."""
    found = []
    for folder in sorted(path.parent for path in images.glob("*/Containerfile")):
        archives = sorted(cache.glob(f"{folder.name}-????????????.tar"), key=lambda file: file.stat().st_mtime)
        found += archives[-1:]
    return found


def main() -> int:
    """Write the bills that are not there yet, and print where they all are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--newest", nargs=2, type=Path, metavar=("IMAGES", "CACHE"))
    parser.add_argument("archives", nargs="*", type=Path, metavar="ARCHIVE")
    arguments = parser.parse_args()
    archives = newest(*arguments.newest) if arguments.newest else arguments.archives
    if not archives:
        print("There are no image archives yet: `make up` builds them.", file=sys.stderr)
        return 1
    for left in (path for archive in archives for path in archive.parent.glob("*.cdx.json")):
        if not Path(str(left).replace(".cdx.json", ".tar")).exists():
            left.unlink(missing_ok=True)
    for archive in archives:
        target = archive.with_suffix(".cdx.json")
        if not target.exists():
            unfinished = target.with_suffix(".tmp")
            unfinished.write_text(json.dumps(bill(archive), indent=1) + "\n", encoding="utf-8")
            unfinished.rename(target)
        print(f"{target}: {len(json.loads(target.read_text())['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
