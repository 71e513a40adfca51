"""Manual of the `citadelbuy.platform.ready` action (plugins/action/ready.py)."""

DOCUMENTATION = r"""
---
module: ready
short_description: Wait until all workloads of some sets are ready
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Waits, by watch and all at once, for the Deployments, StatefulSets, DaemonSets and Jobs that
    M(citadelbuy.platform.manifests) applied for the given sets.
  - Fails at once, with container state, events and last log lines, where a pod will not come.
  - Does nothing in check mode.
options:
  roles:
    description:
      - Names of sets, which are role names unless the role's task says otherwise.
    type: list
    elements: str
    required: true
  timeout:
    description:
      - Seconds to wait. Default is the variable C(platform_wait_timeout), else 300.
    type: float
  rollback_on_failure:
    description:
      - Whether Deployments that do not become ready go back to their last revision that was. The task still fails.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Waits for nothing.
"""

EXAMPLES = r"""
- name: Wait for the datastores
  citadelbuy.platform.ready:
    roles: [postgres, redis, elasticsearch]
"""

RETURN = r"""
objects:
  description: What was waited for, and how many seconds it took.
  returned: success
  type: list
  elements: dict
  sample:
    - {kind: StatefulSet, namespace: citadelbuy, name: postgres, seconds: 8.4}
"""
