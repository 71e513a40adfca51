"""Manual of the `citadelbuy.platform.preflight` action (plugins/action/preflight.py)."""

DOCUMENTATION = r"""
---
module: preflight
short_description: Check an inventory and its cluster before anything is changed
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Reports all problems at once, one line each, and changes nothing.
  - In the inventory it finds variables that no role knows, values that the roles' C(meta/argument_specs.yml) refuse,
    weak secrets (by name only), missing images and templates that do not render.
  - In the cluster it checks reachability, login, version (v1.24 or newer), the permissions that the roles' manifests
    need, served kinds, storage classes, shrinking volumes, capacity, Pod Security admission and the metrics API.
  - Capacity counts the requests of all rendered pods and of the largest pod that an update or Job adds, against what is
    allocatable and not requested by others.
options:
  roles:
    description:
      - Roles that will be deployed. Variables are checked against all roles there are.
    type: list
    elements: str
    required: true
  cluster:
    description:
      - Whether to check the cluster too; V(false) checks the inventory alone.
    type: bool
    default: true
  capacity_required:
    description:
      - Whether too small a cluster is a problem; V(false) makes it a warning, for clusters that grow on demand.
    type: bool
    default: true
  new_cluster:
    description:
      - Whether a store that is there already is a problem.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Reads only.
"""

EXAMPLES = r"""
- name: Check inventory and cluster
  citadelbuy.platform.preflight:
    roles: [namespaces, secrets, configuration, postgres]
"""

RETURN = r"""
problems:
  description: One line a problem.
  returned: failure, where there is more than one; msg holds a single one
  type: str
version:
  description: Version of the cluster.
  returned: success
  type: str
  sample: v1.35.4
"""
