"""Manual of the `citadelbuy.platform.backup` action (plugins/action/backup.py)."""

DOCUMENTATION = r"""
---
module: backup
short_description: Make backups now, or verify the newest ones now
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Runs the CronJobs of backups out of their turn, one store after the other, and waits for each.
  - A Job that is under way is waited for; of two runs at a time, of either kind, the second fails.
  - A run that is killed leaves its Job working; the next run waits for that.
  - A store that fails does not keep the others from theirs.
options:
  stores:
    description:
      - C(postgres), C(redis), C(elasticsearch), C(kubernetes), C(volumes); commas may separate them. Default is all
        that have a CronJob. Those of C(volumes) are snapshots, which nothing verifies.
    type: list
    elements: str
    default: []
  what:
    description:
      - Whether a backup is made, or the newest one is restored in the restore namespace and compared.
    type: str
    choices: [backup, verify]
    default: backup
attributes:
  check_mode:
    support: full
    description: Tells which stores there are, and runs nothing.
"""

EXAMPLES = r"""
- name: Back up PostgreSQL
  citadelbuy.platform.backup:
    stores: [postgres]

- name: Verify the newest backup of every store
  citadelbuy.platform.backup:
    what: verify
"""

RETURN = r"""
stores:
  description: By store, the Job, the line that it said, and how long it took.
  returned: success
  type: dict
  sample:
    postgres: {job: postgres-backup-20260101020000, line: "full backup 20260101-020003F: 3 s, 5.1 MB", seconds: 9.1}
"""
