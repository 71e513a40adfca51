#!/usr/bin/env python3
"""Render every role of every inventory, without a cluster.

    rendering.py FOLDER [INVENTORY ...]    write FOLDER/<inventory>/<cluster>/<role>/<namespace>/<kind>-<name>.yaml

Secrets are never taken from an inventory: made-up values stand in for them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.vars.manager import VariableManager

CHECKOUT = Path(__file__).resolve().parents[2]
if not AnsibleCollectionConfig.collection_finder:
    init_plugin_loader([str(CHECKOUT / "collections")])

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset  # noqa: E402
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import (  # noqa: E402
    Manifest,
    find_templates,
    render,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.role_variables import Role  # noqa: E402

INVENTORIES = sorted(path.name for path in (CHECKOUT / "inventories").iterdir() if (path / "hosts.yml").exists())
ROLES = yaml.safe_load((CHECKOUT / "roles/preflight/defaults/main.yml").read_text())["preflight_roles"]
# Set name, and where its templates are below the role.
SETS = {role: [(role, "templates")] for role in ROLES} | {
    "applications": [
        ("applications-migration", "templates/migration"),
        ("applications", "templates"),
        ("applications-canary", "templates/canary"),
    ],
}
STAND_IN = "rendered-without-the-real-value-of-this-secret"
STAND_INS = {
    f"secrets_{name}": STAND_IN
    for name in (
        "database_password",
        "redis_password",
        "elasticsearch_password",
        "jwt_secret",
        "session_secret",
        "grafana_admin_password",
        "backup_s3_access_key",
        "backup_s3_secret_key",
        "backup_cipher_key",
    )
}


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, keys in the template's order."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass
class Rendered:
    """The manifests of one set for one cluster."""

    inventory: str
    cluster: str
    role: str
    set_name: str
    manifests: list[Manifest]


def render_inventory(inventory: str, roles: Sequence[str] = ROLES, **overrides: Any) -> Iterator[Rendered]:
    """Render roles, all unless some are named, for all clusters of an inventory, labelled as the engine does it.

    :param overrides: variables that win over the inventory's, as `-e` does.
    """
    loader = DataLoader()
    hosts = InventoryManager(loader, sources=[str(CHECKOUT / "inventories" / inventory / "hosts.yml")])
    manager = VariableManager(loader, hosts)
    for host in hosts.get_hosts("clusters"):
        inherited = manager.get_vars(host=host)
        dictionaries = {
            name: dict.fromkeys(inherited.get(name) or {}, STAND_IN)
            for name in ("secrets_third_party", "secrets_alertmanager")
        }
        # Whoever deploys says where backups go.
        unset = inherited.get("platform_backups_endpoint") == "CHANGE_ME"
        place = {"platform_backups_endpoint": "s3.example.com"} if unset else {}
        for role in roles:
            folder = CHECKOUT / "roles" / role
            variables = Role.load(folder, loader).scope(inherited | STAND_INS | dictionaries | place | overrides)
            for set_name, templates in SETS[role]:
                templar = Templar(loader=loader, variables=variables)
                files = find_templates([templates], [folder])
                manifests = render(templar, files, variables, [str(folder), str(folder / "templates")])
                applyset.add_labels(manifests, applyset.applyset_id(set_name, "citadelbuy"), host.name)
                applyset.leave_replicas_to_autoscalers(manifests)
                yield Rendered(inventory, host.name, role, set_name, manifests)


def write(rendered: Rendered, folder: Path) -> list[Path]:
    """Write each manifest to a file of its own."""
    place = folder / rendered.inventory / rendered.cluster / rendered.role
    files = []
    for manifest in rendered.manifests:
        file = place / (manifest.namespace or "cluster") / f"{manifest.kind}-{manifest.name}.yaml".lower()
        file.parent.mkdir(parents=True, exist_ok=True)
        body = yaml.dump(
            json.loads(json.dumps(manifest.body)), Dumper=_Dumper, sort_keys=False, explicit_start=True, width=140
        )
        file.write_text(body, encoding="utf-8")
        files.append(file)
    return files


def main() -> int:
    """Write the files and say how many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("inventories", nargs="*", default=INVENTORIES, help="default: all")
    arguments = parser.parse_args()
    for inventory in arguments.inventories:
        files = [file for rendered in render_inventory(inventory) for file in write(rendered, arguments.folder)]
        print(f"{inventory}: {len(files)} objects")
    return 0


if __name__ == "__main__":
    sys.exit(main())
