"""Manual of the `citadelbuy.platform.upgrade_postgres` action (plugins/action/upgrade_postgres.py)."""

DOCUMENTATION = r"""
---
module: upgrade_postgres
short_description: Bring PostgreSQL's data to another major version
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Without O(confirm) a rehearsal, where backups are verified. The newest backup is restored, upgraded with O(image)
    and compared with what was recorded; the platform is not touched.
  - With O(confirm) and a rehearsal of this image, the applications and the members are stopped, the first member's
    data is set aside, and a copy of it upgraded; the StatefulSet gets the image, other members copy the first one, a
    backup is made.
  - A run that is killed is completed by the same call.
options:
  image:
    description:
      - PostgreSQL's image. Its tag begins with the major version.
    type: str
    required: true
  restore_namespace:
    description:
      - Namespace that backups are verified in.
    type: str
    required: true
  back:
    description:
      - Go back to the data that was set aside, and to O(image), the former one. What was written since is lost.
    type: bool
    default: false
  confirm:
    description:
      - Do it.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that a rehearsal, a backup, or the work on a volume may take.
    type: float
    default: 21600
attributes:
  check_mode:
    support: none
"""

EXAMPLES = r"""
- name: Rehearse an upgrade
  citadelbuy.platform.upgrade_postgres:
    image: citadelbuy.local/postgres-17:17-1
    restore_namespace: citadelbuy-restore
"""

RETURN = r"""
told:
  description: Majors, seconds by step, bytes of the upgraded data, what pg_upgrade --check says, and a comparison.
  returned: except on the way back
  type: dict
  sample:
    former: "15"
    now: "17"
    size: 52428800
    check: Clusters are compatible
    steps: {check: 2.1, upgrade: 4.9, analyze: 0.7}
    seconds: 7.7
"""
