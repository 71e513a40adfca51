"""Manual of the `citadelbuy.platform.scale` action (plugins/action/scale.py)."""

DOCUMENTATION = r"""
---
module: scale
short_description: Show how many pods the applications have, or have one keep more or fewer
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Sets the minimum of a Deployment's autoscaler, and its maximum where that is lower.
  - Waits until so many pods are ready.
  - A Deployment without autoscaler gets so many replicas.
  - The next run of the role applies what the inventory says.
options:
  name:
    description:
      - Name of the Deployment. Without O(replicas), only shown; without both, all are.
    type: str
  replicas:
    description:
      - Pods that it has at least, 1 or more.
    type: int
  capacity_required:
    description:
      - Whether pods that do not fit on the nodes are refused.
      - Otherwise that is a warning, for clusters that grow on demand.
    type: bool
    default: true
  timeout:
    description:
      - Seconds to wait. Default is the variable C(platform_wait_timeout), else 300.
    type: float
attributes:
  check_mode:
    support: full
    description: Asks by the server's dry run.
  diff_mode:
    support: full
    description: Shows live against predicted objects.
"""

EXAMPLES = r"""
- name: Show how many pods there are
  citadelbuy.platform.scale:

- name: Have five pods of the API at least
  citadelbuy.platform.scale:
    name: citadelbuy-api
    replicas: 5
"""

RETURN = r"""
applications:
  description: Every Deployment that was meant, as it was before; without autoscaler, minimum and maximum are null.
  returned: success
  type: list
  elements: dict
  sample:
    - name: citadelbuy-api
      replicas: 3
      ready: 3
      min_replicas: 3
      max_replicas: 10
"""
