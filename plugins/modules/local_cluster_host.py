#!/usr/bin/python
"""Prepare or clear the host's part of an embedded cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: local_cluster_host
short_description: Prepare or clear the host's part of an embedded cluster
description:
  - Makes the network namespaces, links, routes and cgroups of an embedded cluster's nodes, and starts its supervisor.
  - Everything lies in network namespaces of the cluster's own; the host's routes, firewall and settings stay as is.
  - Converges from any leftover, such as processes whose supervisor was killed, a stale namespace or a half-made link.
  - Makes the key that the API server encrypts Secrets and ConfigMaps with, once, in C(api-server/encryption.yaml).
  - Waits until kubeadm has made every node a member and writes the kubeconfig that reaches the API on loopback.
options:
  name:
    description: Name of the cluster; its namespaces are called C(<name>.fabric) and C(<name>.<node>).
    type: str
    required: true
  state:
    description: V(present) prepares and starts, V(absent) ends every process and leaves nothing behind.
    type: str
    choices: [present, absent]
    default: present
  state_dir:
    description: Folder that holds everything of the cluster.
    type: path
    required: true
  supervisord:
    description: The supervisord program that runs the cluster, with C(supervisord.conf) in O(state_dir).
    type: path
  nodes:
    description: The nodes, each with C(name), C(address) and C(pod_network).
    type: list
    elements: dict
    default: []
  files:
    description: Files of the cluster by name in O(state_dir), with their contents.
    type: dict
    default: {}
  api_port:
    description: Loopback port of the cluster's API, for the kubeconfig C(admin.conf) in O(state_dir).
    type: int
  cpu_weight:
    description: Weight of the whole cluster for the processors' time, where any other process of the host has 1.
    type: int
    choices: [1, 10, 100]
    default: 1
  timeout:
    description: Seconds that kubeadm may take for all nodes together.
    type: int
    default: 180
author: CitadelBuy Infrastructure
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Prepare the host's part of the cluster
  citadelbuy.platform.local_cluster_host:
    name: citadelbuy
    state_dir: /var/lib/citadelbuy/citadelbuy
    supervisord: /opt/venv/bin/supervisord
    nodes:
      - {name: node1, address: 10.89.0.11, pod_network: 10.244.1.0/24}
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in words.
  type: list
  elements: str
  returned: always
"""

import base64
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

CGROUP = Path("/sys/fs/cgroup")
CPU_WEIGHTS = (("cpu.shares", 1024), ("cpu.weight", 100))
"""What says a cgroup's weight for the processors' time, on v1 and on v2, and its default."""
NETNS = Path("/run/netns")
FABRIC_ADDRESS = "10.89.0.1/24"
PREFIX_LENGTH = 24
END_TIMEOUT = 30.0
"""Seconds that killed processes may take to be gone."""
LOG_LINES = 15
"""Lines of kubeadm's log that an error shows."""
AGENTS = "supervisor"
"""The cgroup of all nodes' agents: kubelets, containerd with its shims, those of the network policies."""
AGENTS_WEIGHT, CONTROL_PLANE_WEIGHT = 1, 2
"""Weights for the processors' time, where another node's pods have 1: of the agents for each node, and of the pods of
the control plane's node. Else pods that start on one node hold up what real nodes do not share: for seconds no pod is
started or ended on any of them, and the API server does not answer."""

ENCRYPTION = """\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets, configmaps]
    providers:
      - secretbox:
          keys:
            - {{name: first, secret: {key}}}
      # Reads what was stored before there was a key.
      - identity: {{}}
"""


class HostError(Exception):
    """The host refused a step; the message names the step and what the system said."""


def run(*command: str) -> str:
    """Run a command and return what it printed.

    Raises:
        HostError: the command failed; holds the command and its error output.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise HostError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def cgroup_hierarchies() -> list[Path]:
    """Return the roots of the cgroup hierarchies that a kubelet uses: one on cgroup v2, one a controller on v1."""
    if (CGROUP / "cgroup.controllers").exists():
        return [CGROUP]
    return [path for path in sorted(CGROUP.iterdir()) if path.is_dir() and (path / "cgroup.procs").exists()]


def make_cgroup(path: Path) -> bool:
    """Make a cgroup and its parents, usable at once: cpuset filled on v1, controllers passed on down on v2.

    Returns:
        Whether it was made by this call.
    """
    if path.exists():
        return False
    make_cgroup(path.parent)
    controllers = path.parent / "cgroup.subtree_control"
    if controllers.exists():
        available = (path.parent / "cgroup.controllers").read_text().split()
        if available:
            controllers.write_text(" ".join(f"+{controller}" for controller in available))
    path.mkdir()
    for setting in ("cpuset.cpus", "cpuset.mems"):
        if (path / setting).exists() and not (path / setting).read_text().strip():
            (path / setting).write_text((path.parent / setting).read_text())
    return True


def weigh(path: Path, weight: int) -> None:
    """Let a cgroup have so many times the processors' time that one has by default, where there is too little for all.

    Args:
        path: The cgroup; in a hierarchy of v1 without the controller `cpu` it is left as it is.
        weight: 1 to 100.
    """
    for setting, default in CPU_WEIGHTS:
        if (path / setting).exists():
            (path / setting).write_text(str(default * weight))


def weight(path: Path) -> int:
    """The weight that `weigh` gave a cgroup, in a hierarchy without the controller `cpu` 1."""
    for setting, default in CPU_WEIGHTS:
        if (path / setting).exists():
            return int((path / setting).read_text()) // default
    return 1


class Host:
    """The host's part of one embedded cluster."""

    def __init__(self, module: AnsibleModule) -> None:
        self.check_mode: bool = module.check_mode
        self.name: str = module.params["name"]
        self.state_dir = Path(module.params["state_dir"])
        self.supervisord: str | None = module.params["supervisord"]
        self.nodes: list[dict[str, str]] = module.params["nodes"]
        self.files: dict[str, str] = module.params["files"]
        self.api_port: int = module.params["api_port"]
        self.cpu_weight: int = module.params["cpu_weight"]
        self.timeout: int = module.params["timeout"]
        self.actions: list[str] = []

    def done(self, action: str) -> bool:
        """Note an action; return whether to carry it out, which check mode does not."""
        self.actions.append(action)
        return not self.check_mode

    def folder(self, node: dict[str, str]) -> Path:
        """Return the folder that holds everything of a node."""
        return self.state_dir / "nodes" / node["name"]

    # Processes

    def processes(self) -> set[int]:
        """Return the ids of every process of the cluster: each lives in a cgroup below the cluster's own."""
        found: set[int] = set()
        for hierarchy in cgroup_hierarchies():
            # Not pathlib's way: that one stumbles over the cgroups of pods that end meanwhile.
            for folder, _, _ in os.walk(hierarchy / "citadelbuy" / self.name):
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
        return found

    def end_processes(self) -> None:
        """Kill every process of the cluster and wait until all are gone.

        Raises:
            HostError: some were still there after END_TIMEOUT seconds.
        """
        if not self.processes() or not self.done("ended the processes of the cluster"):
            return
        deadline = time.monotonic() + END_TIMEOUT
        while left := self.processes():
            if time.monotonic() > deadline:
                raise HostError(f"processes {sorted(left)} of cluster {self.name} do not end when killed")
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def supervisor_answers(self, folder: Path | None = None) -> bool:
        """Return whether the cluster's supervisor, or that of a node's folder, accepts connections."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str((folder or self.state_dir) / "supervisor.sock"))
            except OSError:
                return False
        return True

    def start_supervisor(self) -> None:
        """Start the supervisor in the cluster's cgroup, or have a running one take up changed programs."""
        configuration = str(self.state_dir / "supervisord.conf")
        if self.supervisor_answers():
            control = str(Path(self.supervisord or "").with_name("supervisorctl"))
            if not self.check_mode and run(control, "-c", configuration, "update").strip():
                self.done("updated the supervisor's programs")
            for node in self.nodes:
                failed = (self.folder(node) / "failed").exists() or not self.encrypted(node)
                if failed and self.done(f"restarted {node['name']}"):
                    run(control, "-c", configuration, "restart", node["name"])
            return
        self.end_processes()
        if not self.done("started the supervisor"):
            return
        folders = [self.folder(node) for node in self.nodes]
        if not (folders[0] / "joined").exists():
            # Without its control plane there is no cluster that the others could be members of.
            for folder in folders:
                (folder / "joined").unlink(missing_ok=True)
        groups = [root / "citadelbuy" / self.name / AGENTS for root in cgroup_hierarchies()]

        def enter() -> None:
            for group in groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        result = subprocess.run(
            [str(self.supervisord), "--configuration", configuration],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            preexec_fn=enter,
        )
        if result.returncode:
            raise HostError(f"supervisord: {result.stderr.strip() or result.stdout.strip()}")

    # Network

    def namespace(self, name: str) -> str:
        """Return the full name of the cluster's network namespace for a node or the fabric."""
        return f"{self.name}.{name}"

    def namespace_works(self, name: str) -> bool:
        """Return whether a network namespace of that name is there and can be entered."""
        return not subprocess.run(
            ["ip", "-n", self.namespace(name), "link", "show", "lo"], capture_output=True, check=False
        ).returncode

    def make_namespace(self, name: str) -> bool:
        """Make a namespace with its loopback up; a file left by a lost one is cleared first.

        Returns:
            Whether it was made by this call.
        """
        if self.namespace_works(name):
            return False
        if self.done(f"made the network namespace {self.namespace(name)}"):
            self.remove_namespace(name)
            run("ip", "netns", "add", self.namespace(name))
            run("ip", "-n", self.namespace(name), "link", "set", "lo", "up")
        return True

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace by name, whatever is left of it."""
        path = NETNS / self.namespace(name)
        if path.exists():
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
            path.unlink()

    def make_network(self) -> None:
        """Join the nodes by a bridge in a namespace of its own and route each node's pods to it.

        A node whose link or namespace is broken is made anew; the supervisor then restarts it in the new one.
        """
        fabric = self.namespace("fabric")
        if self.make_namespace("fabric") and not self.check_mode:
            run("ip", "-n", fabric, "link", "add", "nodes", "type", "bridge")
            run("ip", "-n", fabric, "link", "set", "nodes", "up")
            run("ip", "-n", fabric, "address", "add", FABRIC_ADDRESS, "dev", "nodes")
            # There is no way out of the cluster: its gateway says so at once, instead of dropping packets.
            run("ip", "-n", fabric, "route", "add", "unreachable", "default")
            self.forward(fabric)
        for node in self.nodes:
            self.make_namespace(node["name"])
            self.join_node(node)
        for node in self.nodes:
            self.route_pods(node)

    def join_node(self, node: dict[str, str]) -> None:
        """Give a node its link to the fabric, its address and forwarding."""
        name, fabric = self.namespace(node["name"]), self.namespace("fabric")
        if self.namespace_works(node["name"]) and self.namespace_works("fabric"):
            ends = (
                subprocess.run(["ip", "-n", name, "link", "show", "eth0"], capture_output=True, check=False),
                subprocess.run(["ip", "-n", fabric, "link", "show", node["name"]], capture_output=True, check=False),
            )
            if not any(end.returncode for end in ends):
                return
        if not self.done(f"joined {name} to the nodes' network"):
            return
        for where, link in ((name, "eth0"), (fabric, node["name"])):
            subprocess.run(["ip", "-n", where, "link", "delete", link], capture_output=True, check=False)
        run("ip", "-n", fabric, "link", "add", node["name"], "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "-n", fabric, "link", "set", node["name"], "master", "nodes", "up")
        run("ip", "-n", name, "address", "add", f"{node['address']}/{PREFIX_LENGTH}", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "route", "replace", "default", "via", FABRIC_ADDRESS.partition("/")[0])
        self.forward(name)

    @staticmethod
    def forward(namespace: str) -> None:
        """Let a network namespace pass on packets that are not for itself."""
        run("nsenter", f"--net={NETNS / namespace}", "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def route_pods(self, node: dict[str, str]) -> None:
        """Route the pod networks of all other nodes from this one."""
        name = self.namespace(node["name"])
        if self.check_mode and not self.namespace_works(node["name"]):
            return
        routes = run("ip", "-n", name, "route", "show")
        for other in self.nodes:
            route = f"{other['pod_network']} via {other['address']}"
            if other is not node and route not in routes and self.done(f"routed {route} in {name}"):
                run("ip", "-n", name, "route", "replace", *route.split())

    # Files

    def write(self, name: str, content: str) -> None:
        """Write a file of the state folder as a whole, readable by root alone, unless it is the same already."""
        target = self.state_dir / name
        if not self.check_mode:
            target.parent.mkdir(mode=0o700, exist_ok=True)
        if (target.exists() and target.read_text() == content) or not self.done(f"wrote {target}"):
            return
        new = target.with_name(f"{target.name}.new")
        new.touch(mode=0o600)
        new.write_text(content)
        new.rename(target)

    def encrypted(self, node: dict[str, str]) -> bool:
        """Return whether a node's API server, where it has one, encrypts: one made by an earlier version does not."""
        folder = self.folder(node)
        return node is not self.nodes[0] or not (folder / "joined").exists() or (folder / "encrypted").exists()

    def make_key(self) -> None:
        """Make the key of encryption at rest, once.

        Raises:
            HostError: it is gone and what it encrypted is not; another key could not read that.
        """
        path = self.state_dir / "api-server" / "encryption.yaml"
        if path.exists():
            return
        first = self.folder(self.nodes[0])
        if (first / "joined").exists() and (first / "encrypted").exists():
            raise HostError(
                f"{path}, the key of every stored Secret and ConfigMap, is gone: bring it back,"
                " or take the cluster down and make it anew"
            )
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.write("api-server/encryption.yaml", ENCRYPTION.format(key=key))

    # Members

    def wait_for_members(self) -> None:
        """Wait until kubeadm has made every node a member.

        Raises:
            HostError: kubeadm failed or took longer than the time-out; holds the end of its log.
        """
        deadline = time.monotonic() + self.timeout
        for node in self.nodes:
            folder = self.folder(node)
            while not (folder / "joined").exists() or not self.encrypted(node):
                self.supervisor_answers()
                late = time.monotonic() > deadline
                if late or (folder / "failed").exists():
                    log = folder / "logs" / "kubeadm.log"
                    lines = log.read_text().splitlines()[-LOG_LINES:] if log.exists() else []
                    what = f"is not done after {self.timeout} s" if late else "failed"
                    raise HostError(f"kubeadm {what} on {node['name']}; {log} ends with:\n" + "\n".join(lines))
                # A supervisor that has just started looks at its programs after a second, or when somebody calls.
                self.supervisor_answers(folder)
                time.sleep(0.05)

    def wait_for_api(self) -> None:
        """Wait until the API answers on loopback that it is ready.

        Raises:
            HostError: it did not within the time-out; holds the last error.
        """
        authority = self.folder(self.nodes[0]) / "etc/kubernetes/pki/ca.crt"
        context = ssl.create_default_context(cafile=str(authority))
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{self.api_port}/readyz", context=context, timeout=5):
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise HostError(f"the API is not ready after {self.timeout} s: {error}") from error
            time.sleep(0.1)

    def write_kubeconfig(self) -> None:
        """Write the kubeconfig for users: the control plane's own, with the API's address on loopback."""
        source = self.folder(self.nodes[0]) / "etc/kubernetes/admin.conf"
        if self.check_mode and not source.exists():
            return
        content = re.sub(r"server: \S+", f"server: https://127.0.0.1:{self.api_port}", source.read_text())
        self.write("admin.conf", content.replace(f"kubernetes-admin@{self.name}", self.name))

    # States

    def make_present(self) -> None:
        """Bring the host's part up from whatever is there."""
        names = ["fabric", *(node["name"] for node in self.nodes if (self.folder(node) / "joined").exists())]
        if not self.supervisor_answers() or not all(self.namespace_works(name) for name in names):
            self.end_processes()
        if not self.check_mode:
            (self.state_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in self.files.items():
            self.write(name, content)
        self.make_key()
        self.make_network()
        weights = {node["name"]: 1 for node in self.nodes} | {self.nodes[0]["name"]: CONTROL_PLANE_WEIGHT}
        for name, share in (weights | {AGENTS: AGENTS_WEIGHT * len(self.nodes)}).items():
            for hierarchy in cgroup_hierarchies():
                path = hierarchy / "citadelbuy" / self.name / name
                if not path.exists() and self.done(f"made the cgroup {path}"):
                    make_cgroup(path)
                if not self.check_mode:
                    weigh(path, share)
        if not self.check_mode:
            self.weigh_cluster()
        self.start_supervisor()
        if not self.check_mode:
            self.wait_for_members()
            self.wait_for_api()
        self.write_kubeconfig()

    def weigh_cluster(self) -> None:
        """Weigh the cluster against the host's processes; what all clusters share has the weight of the heaviest."""
        for hierarchy in cgroup_hierarchies():
            clusters = hierarchy / "citadelbuy"
            weigh(clusters / self.name, self.cpu_weight)
            weigh(clusters, max(weight(path) for path in clusters.iterdir() if path.is_dir()))

    def make_absent(self) -> None:
        """End and remove everything of the cluster: processes, namespaces with their links, cgroups, the folder."""
        self.end_processes()
        for path in sorted(NETNS.glob(f"{self.name}.*")) if NETNS.exists() else []:
            if self.done(f"removed the network namespace {path.name}"):
                self.remove_namespace(path.name.removeprefix(f"{self.name}."))
        for hierarchy in cgroup_hierarchies():
            top = hierarchy / "citadelbuy" / self.name
            if top.exists() and self.done(f"removed the cgroup {top}"):
                for folder, _, _ in os.walk(top, topdown=False):
                    os.rmdir(folder)
                with contextlib.suppress(OSError):
                    top.parent.rmdir()
        if self.state_dir.exists() and self.done(f"removed {self.state_dir}"):
            shutil.rmtree(self.state_dir)
            with contextlib.suppress(OSError):
                self.state_dir.parent.rmdir()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "state_dir": {"type": "path", "required": True},
            "supervisord": {"type": "path"},
            "nodes": {"type": "list", "elements": "dict", "default": []},
            "files": {"type": "dict", "default": {}},
            "api_port": {"type": "int"},
            "cpu_weight": {"type": "int", "default": 1, "choices": [1, 10, 100]},
            "timeout": {"type": "int", "default": 180},
        },
        required_if=[("state", "present", ["supervisord", "nodes", "api_port"])],
        supports_check_mode=True,
    )
    host = Host(module)
    try:
        if module.params["state"] == "present":
            host.make_present()
        else:
            host.make_absent()
    except (HostError, OSError) as error:
        module.fail_json(msg=f"embedded cluster {host.name}: {error}")
    module.exit_json(changed=bool(host.actions), actions=host.actions)


if __name__ == "__main__":
    main()
