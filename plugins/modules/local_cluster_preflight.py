#!/usr/bin/python
"""Check whether a machine can host an embedded cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: local_cluster_preflight
short_description: Check whether a machine can host an embedded cluster
description:
  - Names everything that this machine lacks to host an embedded cluster, all at once, and changes nothing.
  - Debian packages that are missing and can be installed are returned, not complained of.
options:
  name:
    description: Name of the cluster.
    type: str
    required: true
  state_dir:
    description: Folder that holds everything of the cluster.
    type: path
    required: true
  cache_dir:
    description: Folder for binaries and images.
    type: path
    required: true
  api_port:
    description: Loopback port of the cluster's API.
    type: int
    required: true
  minimum_memory:
    description: Memory that must be available where the cluster does not run yet, in MiB.
    type: int
    required: true
  minimum_disk:
    description: Free disk space that must be there where the cluster does not exist yet, in MiB.
    type: int
    required: true
  packages:
    description: Debian packages that the cluster needs.
    type: list
    elements: str
    required: true
author: CitadelBuy Infrastructure
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Check what this machine lacks
  citadelbuy.platform.local_cluster_preflight:
    name: citadelbuy
    state_dir: /var/lib/citadelbuy/citadelbuy
    cache_dir: /var/cache/citadelbuy
    api_port: 16443
    minimum_memory: 4096
    minimum_disk: 12288
    packages: [containerd]
"""

RETURN = r"""
missing_packages:
  description: Debian packages to install.
  type: list
  elements: str
  returned: success
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids")
"""cgroup controllers that a kubelet accounts with."""
MAXIMUM_NAME = 40
"""Longest cluster name in characters; a socket's path holds it and may have 107 in all."""


def missing_packages(packages: list[str]) -> list[str]:
    """Return the packages that dpkg does not list as installed."""
    result = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in result.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def existing_parent(path: Path) -> Path:
    """Return the path itself or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def has_free_port(port: int) -> bool:
    """Return whether nothing listens on a loopback TCP port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def has_cgroups() -> str | None:
    """Return what is missing of the cgroup controllers, or None."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        present = set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()) | {"cpuacct"}
    else:
        present = {name for name in CONTROLLERS if Path("/sys/fs/cgroup", name, "tasks").exists()}
    missing = [name for name in CONTROLLERS if name not in present]
    return f"the cgroup controllers {', '.join(missing)} are not mounted under /sys/fs/cgroup" if missing else None


def kernel_problems() -> Iterator[str]:
    """Yield the kernel features that are missing, each tried where trying changes nothing."""
    if problem := has_cgroups():
        yield problem
    namespaces = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    if namespaces.returncode:
        yield f"network, mount and PID namespaces cannot be made here ({namespaces.stderr.strip()})"
    elif shutil.which("ip"):
        for kind in ("bridge", "veth"):
            link = subprocess.run(
                ["unshare", "--net", "ip", "link", "add", "probe", "type", kind],
                capture_output=True,
                text=True,
                check=False,
            )
            if link.returncode:
                yield f"the kernel has no {kind} links ({link.stderr.strip()}): load or build the module {kind}"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        yield "the kernel has no overlay file system: modprobe overlay"


def problems(parameters: dict[str, Any]) -> Iterator[str]:
    """Yield every reason why this machine cannot host the cluster, each a sentence that names what is missing."""
    name, state_dir = parameters["name"], Path(parameters["state_dir"])
    if not re.fullmatch(rf"[a-z0-9][a-z0-9-]{{0,{MAXIMUM_NAME - 1}}}", name):
        yield f"local_cluster_name {name!r} must be of a-z, 0-9 and -, at most {MAXIMUM_NAME} characters"
    if os.uname().sysname != "Linux":
        yield f"the embedded cluster needs Linux, this is {os.uname().sysname}"
        return
    if os.geteuid() != 0:
        yield "the embedded cluster needs root: it makes network namespaces and cgroups"
        return
    if not shutil.which("apt-get") or not shutil.which("dpkg-query"):
        yield "the embedded cluster needs Debian: its containerd, runc and tools are Debian packages"
    yield from kernel_problems()
    if (state_dir / "supervisor.sock").exists():
        return
    if not has_free_port(parameters["api_port"]):
        yield f"port {parameters['api_port']} on 127.0.0.1 is taken: set local_cluster_api_port to a free one"
    memory = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    available = int(memory[1]) // 1024 if memory else 0
    if available < parameters["minimum_memory"]:
        needed = f"{parameters['minimum_memory']} are needed (local_cluster_minimum_memory)"
        yield f"{available} MiB of memory are available, {needed}"
    for folder in {existing_parent(state_dir), existing_parent(Path(parameters["cache_dir"]))}:
        free = shutil.disk_usage(folder).free // 1024**2
        if free < parameters["minimum_disk"] and not state_dir.exists():
            needed = f"{parameters['minimum_disk']} are needed (local_cluster_minimum_disk)"
            yield f"{free} MiB are free in {folder}, {needed}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "api_port": {"type": "int", "required": True},
            "minimum_memory": {"type": "int", "required": True},
            "minimum_disk": {"type": "int", "required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    found = list(problems(module.params))
    if found:
        module.fail_json(msg="this machine cannot host the embedded cluster: " + "; ".join(found))
    module.exit_json(changed=False, missing_packages=missing_packages(module.params["packages"]))


if __name__ == "__main__":
    main()
