"""Manual of the `citadelbuy.platform.diagnose_request` action (plugins/action/diagnose_request.py)."""

DOCUMENTATION = r"""
---
module: diagnose_request
short_description: Tell what became of one request
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Prints every line of the platform's logs that has the request's id, in order of time, names the first error and its
    pod, and shows the request's trace as a tree of spans. It changes nothing.
  - Asks VictoriaLogs and Jaeger. Where logs are not kept, it reads what the running containers' logs hold, and says so.
  - Values of the platform's Secrets are masked.
options:
  namespaces:
    description:
      - The platform's namespaces, that of the stores first. Default is C(platform_namespace).
    type: list
    elements: str
  request:
    description:
      - The request's id, as the answer's header C(X-Request-Id) has it.
    type: str
    required: true
  since:
    description:
      - How far back lines are looked for, as in V(90s), V(30m), V(1h) or V(2d).
    type: str
    default: 1h
  timeout:
    description:
      - Seconds that each question to VictoriaLogs and Jaeger may take.
    type: float
    default: 20
attributes:
  check_mode:
    support: full
    description: The same as a run, which changes nothing.
"""

EXAMPLES = r"""
- name: See why a request has failed
  citadelbuy.platform.diagnose_request:
    request: 0b9f3f0c-7d0b-4a86-9a55-6b7a3c6f9d11
    since: 2h
"""

RETURN = r"""
msg:
  description: The error, the lines and the traces.
  returned: success
  type: str
"""
