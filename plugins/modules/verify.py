"""Manual of the `citadelbuy.platform.verify` action (plugins/action/verify.py)."""

DOCUMENTATION = r"""
---
module: verify
short_description: Prove a deployed platform end to end
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Creates a product through the web front end, and finds it in PostgreSQL, in Redis on the second read, by search and
    on the web's page; then deletes it and sees that it is gone.
  - Also looks whether all pods are ready and (as a warning) whether autoscalers read their metrics.
  - Reaches pods by port-forward and exec through the API server, with the kubeconfig's rights.
  - Prints a table, in normal output too, and fails with the list of all failed checks.
options:
  namespaces:
    description:
      - Namespaces whose pods must be ready; the first one holds the platform. Default is C(platform_namespace).
    type: list
    elements: str
  search_timeout:
    description:
      - Seconds until search must find a new product.
    type: float
    default: 10
  page:
    description:
      - Page of the web front end that shows the newest products.
    type: str
    default: /
attributes:
  check_mode:
    support: full
    description: Tells what it would do, deployed or not.
"""

EXAMPLES = r"""
- name: Prove the platform
  citadelbuy.platform.verify:
"""

RETURN = r"""
checks:
  description: The rows of the table.
  returned: success, with verbosity
  type: list
  elements: dict
  sample:
    - {check: postgres, result: ok, detail: 1 row in products, ms: 41}
"""
