"""Manual of the `citadelbuy.platform.secret_ready` action (plugins/action/secret_ready.py)."""

DOCUMENTATION = r"""
---
module: secret_ready
short_description: Wait for a Secret that a controller makes
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Waits until an ExternalSecret or SealedSecret of the same name says that it is done and its Secret has all keys.
  - Fails with that object and what it says of itself when this does not come. Does nothing in check mode.
options:
  name:
    description:
      - Name of both.
    type: str
    required: true
  namespace:
    description:
      - Namespace of both.
    type: str
    required: true
  made_by:
    description:
      - Kind of the object that the Secret is made from.
    type: str
    choices: [ExternalSecret, SealedSecret]
    required: true
  keys:
    description:
      - Keys that the Secret must have, with a value.
    type: list
    elements: str
    required: true
  timeout:
    description:
      - Seconds to wait. Default is the variable C(platform_wait_timeout), else 300.
    type: float
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Wait for the Secret
  citadelbuy.platform.secret_ready:
    name: citadelbuy-secrets
    namespace: citadelbuy
    made_by: ExternalSecret
    keys: [JWT_SECRET]
"""

RETURN = r"""
"""
