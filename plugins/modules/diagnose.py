"""Manual of the `citadelbuy.platform.diagnose` action (plugins/action/diagnose.py)."""

DOCUMENTATION = r"""
---
module: diagnose
short_description: Collect what is to be known of a platform that misbehaves, and name likely causes
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Reads the state of nodes, pods, workloads, volumes, Services and network policies, events, logs, the stores' own
    views and firing alerts, side by side, and changes nothing.
  - Writes one HTML file and one text file, and prints the likely causes, in normal output too.
  - What cannot be read is told in the report. Values of the platform's Secrets are masked in it.
  - Fails only where the cluster is out of reach, or the report cannot be written.
options:
  namespaces:
    description:
      - The platform's namespaces, that of the stores first. Default is C(platform_namespace).
    type: list
    elements: str
  report_dir:
    description:
      - Folder on the control node for C(<cluster>-<time>.html) and C(.txt); it is made.
    type: path
    required: true
  since:
    description:
      - How far back events, changes and log lines are read, as in V(90s), V(30m), V(1h) or V(2d).
    type: str
    default: 1h
  timeout:
    description:
      - Seconds that each part of the collection may take.
    type: float
    default: 20
attributes:
  check_mode:
    support: full
    description: The same as a run, which changes nothing in the cluster; the report is written.
"""

EXAMPLES = r"""
- name: See what is wrong
  citadelbuy.platform.diagnose:
    report_dir: /var/tmp/reports
    since: 2h
"""

RETURN = r"""
causes:
  description: The likely causes, the most basic first.
  returned: success, with verbosity
  type: list
  elements: dict
  sample:
    - {kind: out_of_memory, title: Container api needs more memory, objects: [Pod citadelbuy/citadelbuy-api-1]}
files:
  description: The report's files by their kind.
  returned: success, with verbosity
  type: dict
  sample: {html: /var/tmp/reports/prod-20250101T030000Z.html, txt: /var/tmp/reports/prod-20250101T030000Z.txt}
"""
