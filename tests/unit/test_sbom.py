"""A bill of materials names what is in an image, and no more."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")

_spec = importlib.util.spec_from_file_location("sbom", CHECKOUT / "roles/local_images/files/sbom.py")
sbom = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sbom)

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""


def tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    """An archive of these files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def image(path: Path, *layers: bytes) -> Path:
    """An image archive of these layers."""
    manifest = [{"Config": "0" * 64 + ".json", "RepoTags": ["citadelbuy.local/some:1"], "Layers": []}]
    files = {f"{number}.tar": layer for number, layer in enumerate(layers)}
    manifest[0]["Layers"] = list(files)
    path.write_bytes(tar({"manifest.json": json.dumps(manifest).encode(), **files}))
    return path


def jar(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def purls(bill: dict) -> set[str]:
    return {each.get("purl", each["name"]) for each in bill["components"]}


def test_every_kind_is_named_and_what_an_upper_layer_removed_is_not(tmp_path: Path) -> None:
    properties = "groupId=org.example\nartifactId=inner\nversion=3.1\n"
    lower = tar(
        {
            "./var/lib/dpkg/status": STATUS.encode(),
            "app/node_modules/@scope/thing/package.json": b'{"name": "@scope/thing", "version": "1.2.3"}',
            "app/node_modules/removed/package.json": b'{"name": "removed", "version": "1.0.0"}',
            "usr/lib/python3/dist-packages/Some_Thing-2.dist-info/METADATA": b"Name: Some_Thing\nVersion: 2\n\nText",
            "opt/named-1.0.jar": jar({"META-INF/MANIFEST.MF": ""}),
            "opt/own.jar": jar({"META-INF/maven/org.example/inner/pom.properties": properties}),
        }
    )
    bill = sbom.bill(image(tmp_path / "a.tar", lower, tar({"app/node_modules/.wh.removed": b""})))
    assert purls(bill) == {
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64",
        "pkg:npm/%40scope/thing@1.2.3",
        "pkg:pypi/some-thing@2",
        "pkg:generic/named@1.0",
        "pkg:maven/org.example/inner@3.1",
    }
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(bill)) is None


def test_programs_of_an_image_without_packages_are_named_by_their_hash(tmp_path: Path) -> None:
    bill = sbom.bill(image(tmp_path / "a.tar", tar({"bin/tool": b"\x7fELF and so on", "bin/script": b"#!"}, 0o755)))
    assert purls(bill) == {"/bin/tool"}
    assert bill["components"][0]["hashes"][0]["alg"] == "SHA-256"


def test_modules_of_a_go_program(tmp_path: Path) -> None:
    program = Path(os.environ["CITADELBUY_BINARIES"]) / "local-path-provisioner"
    content = program.read_bytes()
    bill = sbom.bill(image(tmp_path / "a.tar", tar({"bin/program": content}, 0o755)))
    found = {purl.partition("@")[0] for purl in purls(bill)}
    assert {"pkg:golang/stdlib", "pkg:golang/github.com/rancher/local-path-provisioner"} <= found
    # What it is compiled with is what its module asks for.
    pinned = (CHECKOUT / "images/kubernetes/programs/kubernetes/go.mod").read_text()
    (version,) = [line.split()[1] for line in pinned.splitlines() if "github.com/beorn7/perks " in line]
    assert f"pkg:golang/github.com/beorn7/perks@{version}" in purls(bill)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("postgres", ["pkg:deb/debian/patroni@", "pkg:deb/debian/postgresql-15@", "pkg:pypi/"]),
        ("web", ["pkg:npm/prom-client@", "pkg:deb/debian/nodejs@"]),
        ("kubernetes", ["pkg:golang/k8s.io/kubernetes@", "pkg:deb/debian/nftables@"]),
        ("elasticsearch", ["pkg:maven/", "pkg:deb/debian/openjdk-17-jre-headless@"]),
    ],
)
def test_a_built_image(name: str, known: list[str]) -> None:
    archives = [path for path in sbom.newest(CHECKOUT / "images", CACHE / "images") if path.name.startswith(f"{name}-")]
    if not archives:
        pytest.skip(f"image {name} has not been built yet: `make up` does it")
    bill = sbom.bill(archives[0])
    assert [prefix for prefix in known if not any(purl.startswith(prefix) for purl in purls(bill))] == []
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(bill)) is None
