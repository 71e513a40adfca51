"""Manual of the `citadelbuy.platform.rotate_secrets` action (plugins/action/rotate_secrets.py)."""

DOCUMENTATION = r"""
---
module: rotate_secrets
short_description: Give secrets new values while the platform serves
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - A new value goes into the store, then into the Secret, then into every pod; then the store refuses the old one.
  - Values come from the inventory's C(secrets_*) variables where they are set there, else they are generated.
  - What a run leaves half done is completed by the next one.
options:
  names:
    description:
      - Keys of the Secrets, such as C(DATABASE_PASSWORD), or C(all). Commas may separate them.
    type: list
    elements: str
    required: true
  token_lifetime:
    description:
      - Seconds that an old C(JWT_SECRET) or C(SESSION_SECRET) is accepted once the new one signs.
      - A run after that ends it; C(0) ends it at once.
    type: float
    default: 3600
  timeout:
    description:
      - Seconds that pods may take. Default is the variable C(platform_wait_timeout), else 300.
    type: float
attributes:
  check_mode:
    support: full
    description: Tells what would be rotated, and changes nothing.
"""

EXAMPLES = r"""
- name: Rotate the password of the application's login
  citadelbuy.platform.rotate_secrets:
    names: [DATABASE_PASSWORD]
"""

RETURN = r"""
secrets:
  description: By key, what was done.
  returned: success
  type: dict
  sample: {REDIS_PASSWORD: "rotated in 31 s, 6.2 s of them with its store; the store refuses the old one"}
"""
