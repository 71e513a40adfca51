"""Manual of the `citadelbuy.platform.drill` action (plugins/action/drill.py)."""

DOCUMENTATION = r"""
---
module: drill
short_description: Let something happen to a store while it is written to, and look for every acknowledged write
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - A pod writes to the store without a rest and notes each write that was acknowledged.
  - Something happens to the member that leads; what it was is undone where it lasts.
  - Told is the time from the last acknowledged write before to the first after, the time to full strength, and which
    acknowledged writes the store does not have; one that is lost fails the task.
  - What a killed run has left (a cordoned node, a cut network, a file that fills a volume) is ended by the same call.
options:
  stores:
    description: Names of stores, or C(all). Commas may separate them.
    type: list
    elements: str
    required: true
  scenarios:
    description: Names of what happens, or C(all), which leaves out C(disk-filled). Commas may separate them.
    type: list
    elements: str
    required: true
  rounds:
    description: How often each happens.
    type: int
    default: 1
  confirm:
    description: Do it. Without it, it is told what would happen.
    type: bool
    default: false
  programs:
    description: By store the source of the program that writes.
    type: dict
    required: true
  nodes:
    description: C(name) and C(state_dir) of the embedded cluster, whose nodes are lost and cut from outside.
    type: dict
    required: true
  monitoring_namespace:
    description: Namespace of Prometheus, which C(disk-filled) asks for its alert.
    type: str
    required: true
  disk_ratio:
    description:
      - Share of a volume that C(disk-filled) fills.
      - 0 is a hundredth above the ratio of the critical alert in Prometheus.
    type: float
    default: 0.0
  report:
    description: File that gets every round as JSON, written after each.
    type: path
  timeout:
    description: Seconds that each step of a round may take.
    type: float
    default: 300
attributes:
  check_mode:
    support: full
    description: Tells what would happen.
"""

EXAMPLES = r"""
- name: Delete the pod of PostgreSQL's primary, ten times
  citadelbuy.platform.drill:
    stores: [postgres]
    scenarios: [pod-deleted]
    rounds: 10
    confirm: true
    programs:
      postgres: "{{ lookup('ansible.builtin.file', 'postgres_writer.py') }}"
    nodes: {name: citadelbuy, state_dir: /var/lib/citadelbuy/citadelbuy}
    monitoring_namespace: citadelbuy-monitoring
"""

RETURN = r"""
rounds:
  description: Each round; its times are seconds.
  returned: with O(confirm)
  type: list
  elements: dict
  sample:
    - store: postgres
      scenario: pod-deleted
      leader: postgres-0
      new_leader: postgres-1
      without_writes: 2.31
      strength: 9.4
      acknowledged: 7421
      lost: []
      rate: 398.2
      notes: ", timeline 3 -> 4"
"""
