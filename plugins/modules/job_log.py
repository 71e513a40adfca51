"""Manual of the `citadelbuy.platform.job_log` action (plugins/action/job_log.py)."""

DOCUMENTATION = r"""
---
module: job_log
short_description: Show what a Job of the platform said
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Reads the log of a Job's newest pod, without the values of the Secrets that it uses.
options:
  name:
    description:
      - Name of the Job, in the namespace C(platform_namespace).
    type: str
    required: true
  ran:
    description:
      - Whether this run has made the Job, and not an earlier one; for the message.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: A Job that would be made has no log yet.
"""

EXAMPLES = r"""
- name: Show what a Job said
  citadelbuy.platform.job_log:
    name: citadelbuy-api-migrate-0123456789
"""

RETURN = r"""
completed:
  description: When the Job was complete; null where it is not.
  returned: success
  type: str
  sample: "2026-01-01T00:00:00Z"
log:
  description: The last 1,000 lines.
  returned: success
  type: list
  elements: str
  sample: [nothing to apply, 2 migration(s) in place]
"""
