#!/usr/bin/python
"""Put images into the nodes of an embedded cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: local_cluster_images
short_description: Put images into the nodes of an embedded cluster
description:
  - Loads image archives into the containerd of each node, each archive once.
  - Archives are unpacked once for all clusters, into a store in the cache; a new node's containerd begins as a copy
    of the store, made of hard links, which takes a second where loading the archives takes a minute.
options:
  state_dir:
    description: Folder that holds everything of the cluster.
    type: path
    required: true
  cache_dir:
    description: Folder of the cache; the store is its C(image-store).
    type: path
    required: true
  nodes:
    description: Names of the nodes.
    type: list
    elements: str
    required: true
  images:
    description: The images, each with C(ref), C(archive), C(key) (a hash of the content) and perhaps C(aliases).
    type: list
    elements: dict
    required: true
author: CitadelBuy Infrastructure
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Put the images into the nodes
  citadelbuy.platform.local_cluster_images:
    state_dir: /var/lib/citadelbuy/citadelbuy
    cache_dir: /var/cache/citadelbuy
    nodes: [node1]
    images:
      - ref: citadelbuy.local/redis:7.0-1
        archive: /var/cache/citadelbuy/images/redis-0123456789ab.tar
        key: 0123456789ab
"""

RETURN = r"""
loaded:
  description: What was loaded where.
  type: list
  elements: str
  returned: success
"""

import contextlib
import fcntl
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

START_TIMEOUT = 30.0
"""Seconds that a containerd may take to answer."""


class ImageError(Exception):
    """An image could not be loaded; the message names the image and what containerd said."""


def run(*command: str) -> str:
    """Run a command and return what it printed; raise ImageError with its error output when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ImageError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def answers(address: Path) -> bool:
    """Return whether something accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(address))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def containerd(root: Path, address: Path | None) -> Iterator[Path]:
    """Yield the socket of the containerd that serves a root folder, one started for the while if none runs.

    Args:
        root: containerd's root folder.
        address: socket of the node's own containerd, if there is one.

    Raises:
        ImageError: containerd does not start.
    """
    if address and answers(address):
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="citadelbuy-") as folder:
        own, log = Path(folder, "containerd.sock"), Path(folder, "log")
        configuration = Path(folder, "containerd.toml")
        configuration.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        # In a mount namespace of its own, so that an end at any moment leaves no mount.
        command = ["unshare", "--mount", "containerd", "--config", configuration, "--root", root]
        command += ["--state", Path(folder, "state"), "--address", own]
        with log.open("wb") as output:
            process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not answers(own):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ImageError(f"containerd does not start on {root}: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield own
        finally:
            process.terminate()
            process.wait()


class Store:
    """A containerd root folder and the record of what was loaded into it."""

    def __init__(self, root: Path, record: Path, address: Path | None = None) -> None:
        self.root = root
        self.record = record
        self.address = address

    def loaded(self) -> dict[str, str]:
        """Return the keys of the loaded images by reference."""
        if not self.record.exists() or not self.root.exists():
            return {}
        return json.loads(self.record.read_text())

    def missing(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the images that are not loaded in their present content."""
        loaded = self.loaded()
        return [image for image in images if loaded.get(image["ref"]) != image["key"]]

    def load(self, images: list[dict[str, Any]]) -> None:
        """Load images and note each once it is in."""
        self.root.mkdir(parents=True, exist_ok=True)
        loaded = self.loaded()
        with containerd(self.root, self.address) as address:
            control = ("ctr", "--address", str(address), "--namespace", "k8s.io", "images")
            for image in images:
                run(*control, "import", image["archive"])
                for alias in image.get("aliases", []):
                    run(*control, "tag", "--force", image["ref"], alias)
                loaded[image["ref"]] = image["key"]
                self.write_record(loaded)

    def write_record(self, loaded: dict[str, str]) -> None:
        """Replace the record as a whole."""
        new = self.record.with_suffix(".new")
        new.write_text(json.dumps(loaded, indent=1))
        new.rename(self.record)

    def copy_to(self, other: Store) -> None:
        """Begin another store as a copy of this one: hard links where one file system holds both, databases copied.

        Layers are never written to once unpacked, so their files can be shared.
        """
        new = other.root.with_name("containerd.new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        links = subprocess.run(["cp", "-al", str(self.root), str(new)], capture_output=True, check=False)
        if links.returncode:
            shutil.rmtree(new, ignore_errors=True)
            run("cp", "-a", str(self.root), str(new))
        for database in new.rglob("*.db"):
            database.unlink()
            shutil.copy2(self.root / database.relative_to(new), database)
        new.rename(other.root)
        other.write_record(self.loaded())


def put(parameters: dict[str, Any], check_mode: bool) -> list[str]:
    """Put the images into every node; return what was loaded where."""
    images, done = parameters["images"], []
    cache = Path(parameters["cache_dir"])
    store = Store(cache / "image-store" / "containerd", cache / "image-store" / "images.json")
    nodes = {
        name: Store(folder / "var/lib/containerd", folder / "images.json", folder / "containerd.sock")
        for name in parameters["nodes"]
        for folder in [Path(parameters["state_dir"], "nodes", name)]
    }
    if any(not node.root.exists() for node in nodes.values()):
        store.record.parent.mkdir(parents=True, exist_ok=True)
        with (store.record.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if missing := store.missing(images):
                done += [f"{image['ref']} into the store" for image in missing]
                if not check_mode:
                    store.load(missing)
            for name, node in nodes.items():
                if not node.root.exists():
                    done.append(f"the store into {name}")
                    if not check_mode:
                        store.copy_to(node)
    for name, node in nodes.items():
        if node.root.exists() and (missing := node.missing(images)):
            done += [f"{image['ref']} into {name}" for image in missing]
            if not check_mode:
                node.load(missing)
    return done


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "images": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        loaded = put(module.params, module.check_mode)
    except (ImageError, OSError) as error:
        module.fail_json(msg=f"embedded cluster's images: {error}")
    module.exit_json(changed=bool(loaded), loaded=loaded)


if __name__ == "__main__":
    main()
