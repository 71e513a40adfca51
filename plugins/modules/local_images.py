#!/usr/bin/python
"""Build the images of a folder into a cache of archives."""

from __future__ import annotations

DOCUMENTATION = r"""
module: local_images
short_description: Build the images of a folder into a cache of archives
description:
  - Every folder of O(images_dir) that holds a C(Containerfile) is an image, named after the folder and tagged by
    the label C(org.opencontainers.image.version) of its C(Containerfile).
  - An image's key is a hash of the folder's files, of how it is built, and of the keys of the images it starts C(FROM).
    An archive of that key is built once; checkouts that share O(cache_dir) share the archives.
  - A folder with an executable C(prepare) has it called first, with the folder of the build, to make files that
    the C(Containerfile) adds.
  - An image is built with storage and mount namespaces of its own, so that nothing is left beside its archive and
    what apt fetched, which the next builds use again.
options:
  images_dir:
    description: Folder with one folder an image.
    type: path
    required: true
  cache_dir:
    description: Folder of the archives, C(<name>-<key>.tar).
    type: path
    required: true
  names:
    description: The images to take care of, with the images that they start from; all of them when empty.
    type: list
    elements: str
    default: []
  exclude:
    description: Images that somebody else builds.
    type: list
    elements: str
    default: []
  build:
    description: Whether to build missing archives; V(false) tells only which images there are and which are missing.
    type: bool
    default: true
  registry:
    description: What the names of the images begin with.
    type: str
    default: citadelbuy.local
  keep_days:
    description: After a build, archives that no run has used for so many days are removed.
    type: int
    default: 14
author: CitadelBuy Infrastructure
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Build the images
  citadelbuy.platform.local_images:
    images_dir: "{{ playbook_dir }}/../images"
    cache_dir: /var/cache/citadelbuy/images
  register: local_images

- name: Show an archive that a cluster can import
  ansible.builtin.debug:
    msg: "{{ local_images.images | selectattr('name', 'equalto', 'redis') | map(attribute='archive') | first }}"
"""

RETURN = r"""
images:
  description: The images in the order in which they are built, each after those that it starts from.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name of the image's folder.
      type: str
    ref:
      description: Name and tag of the image in its archive.
      type: str
    archive:
      description: Path of the archive, in the format of C(docker save), its layers not compressed.
      type: str
    key:
      description: Hash of what the image is built from.
      type: str
    present:
      description: Whether the archive is there now.
      type: bool
    built:
      description: Whether this call built it, or in check mode would build it.
      type: bool
    seconds:
      description: Time that the build took.
      type: float
missing_programs:
  description: Programs that a build needs and that are not on this machine; empty when nothing is to be built.
  type: list
  elements: str
  returned: always
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

FORMAT = f"1 {platform.machine()}"
"""Part of every key; a change in how images are built needs another number."""

IGNORED = frozenset({"node_modules", "__pycache__", ".pytest_cache", ".ruff_cache", "coverage", "README.md"})
"""Names of files and folders that are no part of an image."""

PROGRAMS = ("buildah", "mmdebstrap", "unshare")
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/usr/local/share/ca-certificates")
"""Mounted into builds, so that they reach what the host reaches; never part of an image."""

APT = {"lists": "/var/lib/apt/lists", "packages": "/var/cache/apt"}
"""What apt fetches, by folder of the cache: mounted into builds, so that it is fetched once for all images."""

POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
TAG = re.compile(r'^LABEL org\.opencontainers\.image\.version="?([A-Za-z0-9_][A-Za-z0-9_.-]*)"?\s*$', re.MULTILINE)
BASE = re.compile(r"^FROM\s+(\S+)", re.MULTILINE | re.IGNORECASE)
ERROR_LINES = 25


class ImageError(Exception):
    """An image cannot be built; the message names it and what to do."""


@dataclass
class Image:
    """One image: a folder with a Containerfile."""

    name: str
    folder: Path
    ref: str
    bases: list[str]
    files: list[Path]
    key: str = ""
    archive: Path = field(default_factory=Path)
    built: bool = False
    seconds: float = 0.0

    def result(self) -> dict[str, str | bool | float]:
        """Return what the module tells about the image."""
        return {
            "name": self.name,
            "ref": self.ref,
            "archive": str(self.archive),
            "key": self.key,
            "present": self.archive.exists(),
            "built": self.built,
            "seconds": round(self.seconds, 1),
        }


def image_files(folder: Path) -> list[Path]:
    """Return the files that an image is built from, relative to its folder, in a fixed order."""
    found: list[Path] = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in IGNORED]
        found += [(Path(where) / name).relative_to(folder) for name in files if name not in IGNORED]
    return sorted(found)


def read_image(folder: Path, registry: str) -> Image:
    """Read an image's folder.

    Raises:
        ImageError: its Containerfile does not say the tag.
    """
    text = (folder / "Containerfile").read_text()
    tag = TAG.search(text)
    if not tag:
        raise ImageError(
            f"image {folder.name}: {folder}/Containerfile has no tag; "
            'add a line such as LABEL org.opencontainers.image.version="1.0.0"'
        )
    prefix = f"{registry}/"
    bases = [ref.removeprefix(prefix) for ref in BASE.findall(text) if ref.startswith(prefix)]
    return Image(folder.name, folder, f"{prefix}{folder.name}:{tag[1]}", bases, image_files(folder))


def in_order(images: dict[str, Image]) -> list[Image]:
    """Return the images so that each comes after those that it starts from.

    Raises:
        ImageError: one starts from an image that is not there, or two start from each other.
    """
    ordered: list[Image] = []

    def add(image: Image, path: tuple[str, ...]) -> None:
        if image in ordered:
            return
        if image.name in path:
            raise ImageError(f"images start from each other: {' -> '.join((*path, image.name))}")
        for base in image.bases:
            name = base.partition(":")[0]
            if name not in images or not images[name].ref.endswith(f"/{base}"):
                raise ImageError(
                    f"image {image.name}: it starts FROM {base}, which is no image here; see {image.folder}"
                )
            add(images[name], (*path, image.name))
        ordered.append(image)

    for image in images.values():
        add(image, ())
    return ordered


def give_keys(images: list[Image], cache: Path) -> None:
    """Set the key and the archive of images that are in order."""
    keys: dict[str, str] = {}
    for image in images:
        digest = hashlib.sha256(f"{FORMAT} {image.ref}\n".encode())
        for base in image.bases:
            digest.update(keys[base.partition(":")[0]].encode())
        for file in image.files:
            path = image.folder / file
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            executable = os.access(path, os.X_OK)
            digest.update(f"{file}\0{executable}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        keys[image.name] = image.key = digest.hexdigest()
        image.archive = cache / f"{image.name}-{image.key[:12]}.tar"


def with_bases(images: list[Image], names: list[str]) -> list[Image]:
    """Return the named images and those that they start from.

    Raises:
        ImageError: a name has no image.
    """
    known = {image.name: image for image in images}
    if unknown := sorted(set(names) - set(known)):
        raise ImageError(f"there is no image {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = set(names) or set(known)
    for image in reversed(images):
        if image.name in wanted:
            wanted.update(base.partition(":")[0] for base in image.bases)
    return [image for image in images if image.name in wanted]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one builder at a time, whichever checkout it is of."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Builder:
    """Builds one image in a scratch folder, which holds its files, its storage and its unfinished archive."""

    def __init__(self, image: Image, scratch: Path) -> None:
        self.image = image
        self.scratch = scratch
        self.context = scratch / "context"
        self.policy = scratch / "policy.json"

    def run(self, step: str, *command: str | Path) -> None:
        """Run a step in a mount namespace of its own.

        Raises:
            ImageError: it failed; holds the end of what it printed.
        """
        result = subprocess.run(
            ["unshare", "--mount", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "TMPDIR": str(self.scratch), "BUILDAH_ISOLATION": "chroot"},
        )
        if result.returncode:
            said = "\n".join(result.stdout.strip().splitlines()[-ERROR_LINES:])
            raise ImageError(f"image {self.image.name}: {step} failed; see {self.image.folder}. It said:\n{said}")

    def buildah(self, step: str, *command: str | Path) -> None:
        """Run buildah on the storage of this build."""
        storage = ("--root", self.scratch / "storage", "--runroot", self.scratch / "run", "--storage-driver", "overlay")
        self.run(step, "buildah", *storage, *command)

    def build(self, bases: list[Image]) -> None:
        """Build the image and put its archive in its place."""
        for file in self.image.files:
            target = self.context / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.image.folder / file, target, follow_symlinks=False)
        self.policy.write_text(POLICY)
        if (self.context / "prepare").exists():
            self.run("its program prepare", self.context / "prepare", self.context)
        trust = ("--signature-policy", self.policy)
        for base in bases:
            self.buildah(f"reading {base.archive}", "pull", "--quiet", *trust, f"docker-archive:{base.archive}")
        volumes = [f"--volume={path}:{path}:ro" for path in CERTIFICATES if Path(path).exists()]
        for name, path in APT.items():
            folder = self.image.archive.parent / "apt" / name
            folder.mkdir(parents=True, exist_ok=True)
            volumes.append(f"--volume={folder}:{path}")
        options = ("--pull-never", "--format=docker", *volumes, "--tag", self.image.ref)
        self.buildah("the build", "bud", *trust, *options, "--file", self.context / "Containerfile", self.context)
        archive = self.scratch / "archive.tar"
        self.buildah(
            "writing its archive",
            "push",
            "--quiet",
            *trust,
            self.image.ref,
            f"docker-archive:{archive}:{self.image.ref}",
        )
        archive.rename(self.image.archive)


def remove_scratch(path: Path) -> None:
    """Remove a scratch folder, whose files may be read-only to their owner."""

    def force(function: object, name: str, _error: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(name), stat.S_IRWXU)
            os.chmod(name, stat.S_IRWXU)
            function(name)  # type: ignore[operator]

    shutil.rmtree(path, onerror=force)


def build_missing(images: list[Image], cache: Path, check_mode: bool) -> None:
    """Build the images whose archives are missing, in order."""
    for image in images:
        if image.archive.exists():
            continue
        image.built = True
        if check_mode:
            continue
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache):
            if image.archive.exists():
                image.built = False
                continue
            for left in cache.glob("build-*"):
                remove_scratch(left)
            started = time.monotonic()
            scratch = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
            try:
                Builder(image, scratch).build([base for base in images if base.ref.partition("/")[2] in image.bases])
            finally:
                remove_scratch(scratch)
            image.seconds = time.monotonic() - started


def keep_fresh(images: list[Image], cache: Path, keep_days: int) -> None:
    """Note that the archives are in use; after a build, remove those that have not been for long."""
    for image in images:
        with contextlib.suppress(OSError):
            os.utime(image.archive)
    if any(image.built for image in images):
        oldest = time.time() - keep_days * 86400
        for archive in (path for image in images for path in cache.glob(f"{image.name}-????????????.tar")):
            with contextlib.suppress(FileNotFoundError):
                if archive.stat().st_mtime < oldest:
                    archive.unlink()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "images_dir": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "build": {"type": "bool", "default": True},
            "registry": {"type": "str", "default": "citadelbuy.local"},
            "keep_days": {"type": "int", "default": 14},
        },
        supports_check_mode=True,
    )
    folder, cache = Path(module.params["images_dir"]), Path(module.params["cache_dir"])
    images: list[Image] = []
    missing_programs: list[str] = []
    try:
        folders = [path.parent for path in sorted(folder.glob("*/Containerfile"))]
        found = [
            read_image(path, module.params["registry"]) for path in folders if path.name not in module.params["exclude"]
        ]
        if not found:
            raise ImageError(f"there is no image in {folder}: no folder below it holds a Containerfile; see images_dir")
        everything = in_order({image.name: image for image in found})
        give_keys(everything, cache)
        images = with_bases(everything, module.params["names"])
        if any(not image.archive.exists() for image in images):
            missing_programs = [program for program in PROGRAMS if not shutil.which(program)]
            if module.params["build"] and missing_programs and not module.check_mode:
                raise ImageError(f"programs to build images are missing: {', '.join(missing_programs)}; install them")
        if module.params["build"]:
            build_missing(images, cache, module.check_mode)
        if not module.check_mode:
            keep_fresh(images, cache, module.params["keep_days"])
    except (ImageError, OSError) as error:
        module.fail_json(msg=str(error), images=[image.result() for image in images], missing_programs=missing_programs)
    module.exit_json(
        changed=any(image.built for image in images),
        images=[image.result() for image in images],
        missing_programs=missing_programs,
    )


if __name__ == "__main__":
    main()
