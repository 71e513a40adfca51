"""Manual of the `citadelbuy.platform.restore` action (plugins/action/restore.py)."""

DOCUMENTATION = r"""
---
module: restore
short_description: Put stores' data back to what a backup or a moment had
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Tells what would be restored and lost; does it with O(confirm).
  - The applications are stopped, the data is set aside on its volume, the backup is restored and recovered, and all is
    started again. Other members copy the first one. Elasticsearch runs on, and its indices of now are set aside in it.
  - A run that is killed is completed by the same call.
options:
  stores:
    description:
      - C(postgres), C(redis) and C(elasticsearch), together or alone; C(kubernetes), alone. Commas may separate them.
      - C(kubernetes) gives the Secrets of the platform to a new cluster, before its stores are deployed.
    type: list
    elements: str
    default: [postgres]
  to:
    description:
      - C(newest), a backup's label, or a time with its zone, as C(2026-03-01 12:00:00+00). PostgreSQL goes back to that
        time itself, the others to their newest backup before it.
    type: str
    default: ""
  timeline:
    description:
      - Number of the timeline that O(to) is looked for in. Default is the one that the data is in; another is needed
        for what an earlier restore has left behind.
    type: int
  beside:
    description:
      - Serve it in a pod of its own, and leave the data as it is; needs no O(confirm).
    type: bool
    default: false
  undo:
    description:
      - Go back to the data that the last restore has set aside.
    type: bool
    default: false
  discard:
    description:
      - Delete what restores have set aside.
    type: bool
    default: false
  confirm:
    description:
      - Do it. Without it, nothing is changed.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that the work on a volume may take.
    type: float
    default: 21600
attributes:
  check_mode:
    support: full
    description: Shows the plan.
"""

EXAMPLES = r"""
- name: See what going back an hour would lose
  citadelbuy.platform.restore:
    to: "2026-03-01 12:00:00+00"
"""

RETURN = r"""
plan:
  description: By store the backup, when it was made, its size in bytes, and from when on data is lost.
  returned: success
  type: dict
  sample:
    postgres: {label: 20260301-020003F, made: "2026-03-01 02:00:05+00", size: 31457280}
restored:
  description: By store what was restored.
  returned: with O(confirm)
  type: dict
  sample:
    postgres: {label: 20260301-020003F, reached: "2026-03-01 11:59:59+00", timeline: "3"}
"""
