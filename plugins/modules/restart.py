"""Manual of the `citadelbuy.platform.restart` action (plugins/action/restart.py)."""

DOCUMENTATION = r"""
---
module: restart
short_description: Replace the pods of workloads in turn
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Does what C(kubectl rollout restart) does, by the same annotation, one workload after the other, and waits for each.
  - Runs first what a StatefulSet has to do before its pods are replaced, such as a switchover of PostgreSQL.
  - The next run of a role leaves the restarted pods alone. One restart at a time.
options:
  names:
    description:
      - Names of Deployments and StatefulSets, which commas may separate.
      - Without any the task fails, and says which there are.
    type: list
    elements: str
    default: []
  roles:
    description:
      - Sets, which are role names, whose workloads are meant.
    type: list
    elements: str
    default: [applications, applications-canary, postgres, redis, elasticsearch]
  confirm:
    description:
      - Needed for StatefulSets. Without it nothing is restarted.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for each workload. Default is the variable C(platform_wait_timeout), else 300.
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
- name: Restart API and web front end
  citadelbuy.platform.restart:
    names: [citadelbuy-api, citadelbuy-web]

- name: Restart PostgreSQL, its primary last
  citadelbuy.platform.restart:
    names: [postgres]
    confirm: true
"""

RETURN = r"""
workloads:
  description: Every workload that was restarted, or in check mode would be; the reason is what was done before.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: StatefulSet
      namespace: citadelbuy
      name: postgres
      action: changed
      seconds: 41.2
      reason: postgres-0 leads after postgres-2
"""
