"""Manual of the `citadelbuy.platform.login` action (plugins/action/login.py)."""

DOCUMENTATION = r"""
---
module: login
short_description: Write a kubeconfig for a service account
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Asks the API server for a token of a service account, and writes it into a kubeconfig of mode 0600.
  - The token ends by itself, and dies with the service account. It is in the file and nowhere else.
  - Does nothing where the file logs in to this server as this account for more than half of its hours.
options:
  service_account:
    description:
      - Name of the service account.
    type: str
    required: true
  namespace:
    description:
      - Namespace of the service account, and of the context.
    type: str
    required: true
  path:
    description:
      - The file, on the control node.
    type: str
    required: true
  hours:
    description:
      - Hours that the token is good for. The API server may give fewer, and gives no fewer than ten minutes.
    type: float
    required: true
attributes:
  check_mode:
    support: full
    description: Says whether the file would be written; no token is made.
"""

EXAMPLES = r"""
- name: Write the kubeconfig of the deployer
  citadelbuy.platform.login:
    service_account: citadelbuy-deployer
    namespace: citadelbuy
    path: ~/.kube/citadelbuy
    hours: 8
"""

RETURN = r"""
expires:
  description: When the new token ends.
  returned: changed
  type: str
  sample: "2026-01-01T08:00:00Z"
"""
