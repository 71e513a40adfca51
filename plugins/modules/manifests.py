"""Manual of the `citadelbuy.platform.manifests` action (plugins/action/manifests.py)."""

DOCUMENTATION = r"""
---
module: manifests
short_description: Render a role's templates and apply them to a cluster, server-side
version_added: "1.0.0"
author: CitadelBuy Platform (@citadelbuy)
description:
  - Renders every C(*.yaml.j2) file of a role's C(templates) folder with the task's variables, applies the objects with
    server-side apply, concurrently within a rank (namespaces and CRDs; configuration, RBAC and volumes; the rest), and
    waits until they are ready.
  - The role's variables are judged by its C(meta/argument_specs.yml).
  - All templates are rendered and parsed, and all objects rehearsed as the server's dry run, before the first one is
    applied. An object that is known to be as wanted costs no request of its own.
  - Objects that this set has applied before and that no template renders any more are deleted. What holds data
    (namespaces, volumes and their claims, CRDs, StatefulSets with volumes, Secrets with generated values) is kept, with
    a warning, unless the variable C(platform_prune_data) names it, as in C(["StatefulSet citadelbuy/postgres"]).
  - A change that Kubernetes refuses in place (an immutable field) fails with what would have to be done and what that
    costs; the variable C(platform_replace), a list of the same form, allows it. The volumes of a StatefulSet grow in
    place where their class allows it. A Job that has failed is replaced without being named.
  - Every object gets the labels C(app.kubernetes.io/part-of), C(app.kubernetes.io/managed-by),
    C(app.kubernetes.io/instance) and the ApplySet label of its set (KEP-3659). Pod templates of Deployments,
    StatefulSets and DaemonSets get the annotation C(citadelbuy.io/config-checksum), so that a change of a ConfigMap or
    Secret that the pods use rolls them.
  - A Secret's annotation C(citadelbuy.io/generate) names keys, separated by commas, that are generated once (32 letters
    and digits) and kept from then on.
  - A Secret's annotation C(citadelbuy.io/same-as), as in C(shop/keys:USER,PASSWORD shop/tls:tls.crt), names keys whose
    values are those of other Secrets, which earlier tasks have made; a pod reads Secrets of its own namespace alone.
  - A StatefulSet's annotation C(citadelbuy.io/before-roll) is a command that runs in one of its ready pods, in
    their default container, before a change of its pod template is applied; not where it has one replica. Where it
    fails, the task fails, and the pods go on as they are.
  - C(spec.replicas) of a workload that a HorizontalPodAutoscaler of the same set scales is left to the autoscaler.
  - The cluster is that of the inventory host, by its variables C(cluster_kubeconfig) and C(cluster_context).
options:
  templates:
    description:
      - Files and folders of templates, relative to the role. Sub-folders are not entered.
    type: list
    elements: str
    default: [templates]
  name:
    description:
      - Name of the set. Objects of one set must all be rendered by one task. Default is the role's name.
    type: str
  wait:
    description:
      - Whether to wait until workloads, volume claims, CRDs, API services, Ingresses and autoscalers are ready; not for
        objects with the annotation C(citadelbuy.io/wait=false). Not in check mode.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds to wait. Default is the variable C(platform_wait_timeout), else 300.
    type: float
  force_conflicts:
    description:
      - Whether to take over fields that another field manager owns.
    type: bool
    default: false
  prune:
    description:
      - Whether to delete what the set applied before and no longer renders.
    type: bool
    default: true
  prune_after:
    description:
      - Names of sets whose proxies may send requests to this one. What is to be deleted is kept, with a warning, while
        an object of theirs names a Service of it. Else it goes once no pod of theirs or of this set is ending any more,
        and controllers have seen their routes; that is waited for, C(wait_timeout) seconds.
    type: list
    elements: str
    default: []
  parent_namespace:
    description:
      - Namespace of the set's list of members, the ConfigMap C(applyset-NAME). Default is the variable
        C(platform_namespace), else C(citadelbuy).
    type: str
  rollback_on_failure:
    description:
      - Whether Deployments that do not become ready go back to their last revision that was. The task still fails.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Predicts by the server's dry run, on a first run too.
  diff_mode:
    support: full
    description: Shows live against predicted objects. Values of Secrets are masked.
"""

EXAMPLES = r"""
- name: Apply PostgreSQL
  citadelbuy.platform.manifests:

- name: Apply the migration Job and wait for it
  citadelbuy.platform.manifests:
    name: applications-migration
    templates: [templates/migration]
    wait_timeout: 600
"""

RETURN = r"""
objects:
  description:
    - What became of each object; C(action) is one of created, changed, expanded, replaced, pruned, kept, unchanged.
  returned: always
  type: list
  elements: dict
  sample:
    - {kind: StatefulSet, namespace: citadelbuy, name: postgres, action: changed, seconds: 0.012, ready_after: 8.4}
"""
