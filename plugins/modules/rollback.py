"""Manual of the `citadelbuy.platform.rollback` action (plugins/action/rollback.py)."""

DOCUMENTATION = r"""
---
module: rollback
short_description: Show the revisions of Deployments, or go back to one
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Gives a Deployment the pod template of an earlier revision, and waits until its pods are ready.
  - The values of ConfigMaps and Secrets are not rolled back, nor are migrations of the database.
  - The next run of the role applies what the inventory says.
options:
  name:
    description:
      - Name of the Deployment. Without it, every Deployment of the sets whose rollout is under way or stuck, if any;
        not those whose pods have been ready in the current revision.
    type: str
  roles:
    description:
      - Sets, which are role names, whose Deployments are meant.
    type: list
    elements: str
    default: [applications, applications-canary]
  revision:
    description:
      - Number of the revision, of the Deployment that O(name) names.
      - Default is the newest earlier one that still has ready pods, else the newest earlier one.
    type: int
  show:
    description:
      - Only show the revisions.
    type: bool
    default: false
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
- name: Show the revisions of all applications
  citadelbuy.platform.rollback:
    show: true

- name: Take the API back by one revision
  citadelbuy.platform.rollback:
    name: citadelbuy-api
"""

RETURN = r"""
deployments:
  description: Every Deployment that was meant, with the revisions it had before.
  returned: success
  type: list
  elements: dict
  sample:
    - name: citadelbuy-api
      revisions:
        - revision: 4
          images: [citadelbuy.local/api:1.0.0]
          created: "2026-01-01T00:00:00Z"
          ready: 3
          current: true
          config_checksum: 5d1c0f3e
"""
