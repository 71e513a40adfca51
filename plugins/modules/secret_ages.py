"""Manual of the `citadelbuy.platform.secret_ages` action (plugins/action/secret_ages.py)."""

DOCUMENTATION = r"""
---
module: secret_ages
short_description: Tell metrics when each secret was changed last
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Keeps a Lease for each key of the platform's Secrets that a rotation changes, as C(secret-database-password). Its
    C(renewTime) is the time of the last change, which kube-state-metrics shows without a right to read Secrets.
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Tell metrics how old the secrets are
  citadelbuy.platform.secret_ages:
"""

RETURN = r"""
leases:
  description: Names of the Leases that were made, changed or deleted.
  type: list
  elements: str
  returned: success
"""
