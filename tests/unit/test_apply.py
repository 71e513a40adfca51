"""Apply, check mode and diff, against a real API server."""

from __future__ import annotations

import base64
import threading
from datetime import UTC, datetime, timedelta

import pytest
from ansible_collections.citadelbuy.platform.plugins.module_utils import apply, applyset, certificates, diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import SECRET as SECRETS
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from conftest import actions
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification

CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
  namespace: "{{ ns }}"
data:
  a: "{{ a | default('1') }}"
{% if b is defined %}
  b: "{{ b }}"
{% endif %}
"""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: api
  namespace: "{{ ns }}"
spec:
  replicas: {{ replicas | default(2) }}
  selector:
    matchLabels: {app: api}
  template:
    metadata:
      labels: {app: api}
    spec:
      containers:
        - name: api
          image: "{{ image | default('api:1') }}"
          resources:
            limits: {cpu: "{{ cpu | default('1') }}", memory: "{{ memory | default('1Gi') }}"}
{% if spelled_out is defined %}
          imagePullPolicy: IfNotPresent
          terminationMessagePath: /dev/termination-log
{% endif %}
          env:
{% if swapped is defined %}
            - {name: SECOND, value: "2"}
{% endif %}
            - {name: FIRST, value: "1"}
{% if second | default(true) and swapped is not defined %}
            - {name: SECOND, value: "2"}
{% endif %}
            - name: PASSWORD
              valueFrom: {secretKeyRef: {name: keys, key: password}}
          envFrom:
            - configMapRef: {name: settings}
"""

AUTOSCALER = """
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: api-hpa
  namespace: "{{ ns }}"
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: api}
  minReplicas: 3
  maxReplicas: 10
"""

CERTIFICATE = """
apiVersion: v1
kind: Secret
metadata:
  name: server
  namespace: {{ ns }}
  annotations: {citadelbuy.io/certificate: "server.test.svc,server"}
type: kubernetes.io/tls
data: {}
"""
AUTHORITY = """
apiVersion: v1
kind: Secret
metadata:
  name: authority
  namespace: {{ ns }}
  annotations: {citadelbuy.io/authority: the authority of a namespace whose name is longer than a common name may be}
data: {}
---
apiVersion: v1
kind: Secret
metadata:
  name: server
  namespace: {{ ns }}
  annotations: {citadelbuy.io/certificate: "{{ names | default('server.test.svc') }}", citadelbuy.io/issuer: authority}
type: kubernetes.io/tls
data: {}
"""
COPY = """
apiVersion: v1
kind: Secret
metadata:
  name: copy
  namespace: {{ ns }}
  annotations: {citadelbuy.io/same-as: "{{ ns }}/keys:password,other {{ ns }}/server:tls.crt"}
data: {}
"""
FIXED = """
apiVersion: v1
kind: Secret
metadata:
  name: cipher
  namespace: {{ ns }}
  annotations: {citadelbuy.io/fixed: cipher}
data:
{% if cipher %}
  cipher: {{ cipher | b64encode }}
{% else %}
  {}
{% endif %}
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata:
  name: keys
  namespace: "{{ ns }}"
  annotations: {citadelbuy.io/generate: "{{ generate | default('password,token') }}"}
data:
  other: "{{ (other | default('first-secret-value')) | b64encode }}"
"""

WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: widgets.{{ ns }}.example.com
spec:
  group: "{{ ns }}.example.com"
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: v1
kind: Namespace
metadata:
  name: "{{ ns }}-new"
---
apiVersion: "{{ ns }}.example.com/v1"
kind: Widget
metadata:
  name: first
  namespace: "{{ ns }}-new"
spec: {size: 1}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
  namespace: "{{ ns }}-new"
data: {a: "1"}
"""


def test_labels_of_every_object(deploy, live):
    deploy(DEPLOYMENT)
    body = live("apis/apps/v1:deployments/api")
    assert body["metadata"]["labels"] == {
        "app.kubernetes.io/part-of": "citadelbuy",
        "app.kubernetes.io/managed-by": "citadelbuy-platform",
        "app.kubernetes.io/instance": "test",
        applyset.PART_OF: applyset.applyset_id("test", deploy.namespace),
    }
    assert body["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "citadelbuy"


def test_applyset_id_is_that_of_the_kep():
    # printf %s applyset-postgres.citadelbuy.ConfigMap. | sha256sum, in base64url without padding
    assert applyset.applyset_id("postgres", "citadelbuy") == "applyset-RLNTBI3wpSinUZbCDvJDGZKA_2tf8AV7Ep9vbBi597c-v1"


def test_a_removed_key_is_removed(deploy, live):
    assert actions(deploy(CONFIG, b="2")) == ["created"]
    assert actions(deploy(CONFIG)) == ["changed"]
    assert live("configmaps/settings")["data"] == {"a": "1"}


def test_an_object_that_others_made_is_adopted(deploy, cluster, namespace):
    body = {"metadata": {"name": "settings"}, "data": {"a": "1"}}
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
    assert actions(deploy(CONFIG)) == ["changed"]
    assert actions(deploy(CONFIG)) == ["unchanged"]


def with_metadata(line):
    return CONFIG.replace("  name: settings", f"  {line}\n  name: settings")


# Each pair: the first input, the second, and what becomes of the object.
CHANGES = {
    "nothing": (CONFIG, {}, {}, "unchanged"),
    "value": (CONFIG, {}, {"a": "2"}, "changed"),
    "new key": (CONFIG, {}, {"b": "2"}, "changed"),
    "removed key": (CONFIG, {"b": "2"}, {}, "changed"),
    "removed list item": (DEPLOYMENT, {}, {"second": False}, "changed"),
    "new list item": (DEPLOYMENT, {"second": False}, {}, "changed"),
    "image": (DEPLOYMENT, {}, {"image": "api:2"}, "changed"),
    "quantity written another way": (DEPLOYMENT, {"cpu": "1"}, {"cpu": "1000m"}, "unchanged"),
    "quantity in another unit": (DEPLOYMENT, {"memory": "1Gi"}, {"memory": "1024Mi"}, "unchanged"),
    "list items in another order": (DEPLOYMENT, {}, {"swapped": True}, "changed"),
    "defaulted fields": (DEPLOYMENT, {}, {}, "unchanged"),
    "defaulted fields spelled out": (DEPLOYMENT, {}, {"spelled_out": True}, "unchanged"),
    "defaulted fields left out again": (DEPLOYMENT, {"spelled_out": True}, {}, "unchanged"),
    "label": (with_metadata("labels: {tier: '{{ a }}'}"), {"a": "1"}, {"a": "2"}, "changed"),
    "annotation removed": (
        with_metadata("annotations: {{ '{x: y}' if b is defined else {} }}"),
        {"b": "1"},
        {},
        "changed",
    ),
    "replicas of an autoscaled workload": (DEPLOYMENT + AUTOSCALER, {}, {"replicas": 9}, "unchanged"),
    "secret value": (SECRET, {}, {"other": "second-secret-value"}, "changed"),
    "secret, nothing": (SECRET, {}, {}, "unchanged"),
    "secret, one more key to generate": (SECRET, {"generate": "password"}, {}, "changed"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_check_mode_predicts_what_the_run_does(case, deploy):
    template, first, second, expected = CHANGES[case]
    assert set(actions(deploy(template, check=True, **first))) == {"created"}
    assert set(actions(deploy(template, **first))) == {"created"}
    assert set(actions(deploy(template, check=True, **second))) == {expected}
    assert set(actions(deploy(template, check=True, **second))) == {expected}, "the check itself changed something"
    assert set(actions(deploy(template, **second))) == {expected}
    assert set(actions(deploy(template, **second))) == {"unchanged"}


def test_check_mode_where_nothing_exists_yet(deploy, namespace, cluster):
    """A namespace, a CRD and objects in them: in one set, and in the set of a later role of the same run."""
    assert actions(deploy(WIDGETS, check=True)) == ["created"] * 4
    later = CONFIG.replace("{{ ns }}", "{{ ns }}-new").replace("settings", "later")
    assert actions(deploy(later, check=True)) == ["created"]
    with pytest.raises(Exception, match="not found"):
        cluster.request("GET", f"/api/v1/namespaces/{namespace}-new")


def test_hashes_foreseen_for_a_later_role_roll_its_pods(deploy, namespace):
    deploy(CONFIG)
    deploy(DEPLOYMENT)
    assert actions(deploy(CONFIG, check=True, a="2")) == ["changed"]
    assert actions(deploy(DEPLOYMENT, check=True)) == ["changed"]


def test_checksum_follows_the_configuration_that_is_used(deploy, live):
    def checksum():
        template = live("apis/apps/v1:deployments/api")["spec"]["template"]
        return template["metadata"]["annotations"][applyset.CHECKSUM]

    everything = "---".join([CONFIG, SECRET, DEPLOYMENT])
    deploy(everything)
    first = checksum()
    assert actions(deploy(everything)) == ["unchanged"] * 3
    assert checksum() == first
    deploy(everything, other="second-secret-value")  # a key that the pod does not use
    assert checksum() == first
    deploy(everything, other="second-secret-value", a="2")
    assert checksum() != first
    assert actions(deploy(DEPLOYMENT)) == ["unchanged"], "configuration of another set is read live"


def test_an_autoscaler_owns_the_replicas(deploy, live, cluster, namespace):
    deploy(DEPLOYMENT + AUTOSCALER)
    scale = {"spec": {"replicas": 7}}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/api/scale"
    cluster.request("PATCH", path, scale, content="application/merge-patch+json")
    assert actions(deploy(DEPLOYMENT + AUTOSCALER)) == ["unchanged"] * 2
    assert live("apis/apps/v1:deployments/api")["spec"]["replicas"] == 7


def test_a_new_autoscaler_does_not_scale_down_to_one(deploy, live):
    deploy(DEPLOYMENT, replicas=5)
    deploy(DEPLOYMENT + AUTOSCALER, replicas=5)
    assert live("apis/apps/v1:deployments/api")["spec"]["replicas"] == 5


def test_a_conflict_names_field_and_owner(deploy, cluster, namespace, live):
    deploy(CONFIG)
    path = f"/api/v1/namespaces/{namespace}/configmaps/settings?fieldManager=the-other-one"
    cluster.request("PATCH", path, {"data": {"a": "theirs"}}, content="application/merge-patch+json")
    for check in (True, False):
        (error,) = deploy(CONFIG, check=check).errors
        assert f"ConfigMap {namespace}/settings" in error
        assert ".data.a" in error
        assert '"the-other-one"' in error
        assert "manifest.yaml.j2" in error
    assert live("configmaps/settings")["data"]["a"] == "theirs"
    assert actions(deploy(CONFIG, force=True)) == ["changed"]
    assert live("configmaps/settings")["data"]["a"] == "1"


def values(body):
    return {key: base64.b64decode(value).decode() for key, value in body["data"].items()}


def test_generated_values_are_kept(deploy, live):
    assert actions(deploy(SECRET)) == ["created"]
    first = values(live("secrets/keys"))
    assert len(first["password"]) == 32
    assert first["password"].isalnum()
    assert first["password"] != first["token"]
    assert actions(deploy(SECRET, other="second-secret-value")) == ["changed"]
    assert values(live("secrets/keys")) == first | {"other": "second-secret-value"}


def test_two_runs_at_once_generate_one_value(deploy, live):
    deploy.render(SECRET)  # threads do not load Ansible's filters at once
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(deploy(SECRET))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = values(live("secrets/keys"))
    assert [outcome.errors for outcome in outcomes] == [[]] * 4
    for outcome in outcomes:
        assert values(outcome.applied[0].after) == kept


def test_a_rehearsal_may_meet_values_that_another_run_has_generated_meanwhile(deploy, live, monkeypatch):
    real, others = apply.generate, []

    def late(*arguments):
        if not others:
            others.append(None)
            others[0] = deploy(SECRET)
        return real(*arguments)

    monkeypatch.setattr(apply, "generate", late)
    outcome = deploy(SECRET)
    assert (outcome.errors, others[0].errors) == ([], [])
    assert values(live("secrets/keys")) == values(others[0].applied[0].after)


def test_a_certificate_is_made_once_for_its_names(deploy, live):
    assert actions(deploy(CERTIFICATE, check=True)) == ["created"]
    assert actions(deploy(CERTIFICATE)) == ["created"]
    made = values(live("secrets/server"))
    certificate = x509.load_pem_x509_certificate(made["tls.crt"].encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.test.svc", "server"]
    certificate.verify_directly_issued_by(certificate)
    key = serialization.load_pem_private_key(made["tls.key"].encode(), None)
    assert key.public_key() == certificate.public_key()
    assert actions(deploy(CERTIFICATE)) == ["unchanged"]
    assert values(live("secrets/server")) == made


def trusted(made: dict[str, str], authority: dict[str, str]) -> x509.Certificate:
    """A server's certificate, which a client that knows the authority alone has verified."""
    held, ca = (
        x509.load_pem_x509_certificate(values[key].encode())
        for values, key in ((made, "tls.crt"), (authority, "ca.crt"))
    )
    assert made["ca.crt"] == authority["ca.crt"]
    store = verification.Store([ca])
    name = x509.DNSName("server.test.svc")
    verification.PolicyBuilder().store(store).build_server_verifier(name).verify(held, [])
    return held


def overwrite(cluster: Cluster, namespace: str, name: str, new: dict[str, str]) -> None:
    """Change values of a Secret as a hand would."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in new.items()}
    query, kind = {"fieldManager": "a-hand"}, "application/merge-patch+json"
    cluster.request("PATCH", SECRETS.path(namespace, name), {"data": encoded}, query, kind)


def test_an_authority_signs_a_certificate_in_one_run_and_both_stay(deploy, live):
    assert actions(deploy(AUTHORITY, check=True)) == ["created", "created"]
    assert actions(deploy(AUTHORITY)) == ["created", "created"]
    made, authority = values(live("secrets/server")), values(live("secrets/authority"))
    held = trusted(made, authority)
    assert held.not_valid_after_utc - held.not_valid_before_utc < timedelta(days=366)
    told = live("secrets/server")["metadata"]["annotations"]["rotated.citadelbuy.io/tls.crt"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(told)) < timedelta(minutes=5)
    for check in (True, False):
        assert actions(deploy(AUTHORITY, check=check)) == ["unchanged", "unchanged"]
    assert values(live("secrets/server")) == made


@pytest.mark.parametrize("reason", ["age", "names", "authority", "key", "content"])
def test_a_certificate_is_renewed_where_it_does_not_serve_any_more(
    deploy, live, cluster, namespace, monkeypatch, reason
):
    deploy(AUTHORITY)
    before, names = values(live("secrets/server")), "server.test.svc"
    if reason == "age":
        monkeypatch.setattr(certificates, "RENEWED_AFTER_DAYS", -1 / 24)
    elif reason == "names":
        names = "server.test.svc,other.test.svc"
    elif reason == "authority":
        overwrite(cluster, namespace, "authority", certificates.authority("another"))
    else:
        other = certificates.certificate(["server.test.svc"], values(live("secrets/authority")))
        overwrite(
            cluster,
            namespace,
            "server",
            {"tls.key": other["tls.key"]} if reason == "key" else {"tls.crt": "nothing of value"},
        )
        before = values(live("secrets/server"))
    assert actions(deploy(AUTHORITY, check=True, names=names))[1] == "changed"
    assert values(live("secrets/server")) == before, "check mode has changed it"
    assert actions(deploy(AUTHORITY, names=names))[1] == "changed"
    monkeypatch.undo()
    made = values(live("secrets/server"))
    trusted(made, values(live("secrets/authority")))
    assert made["tls.crt"] != before["tls.crt"]
    assert actions(deploy(AUTHORITY, names=names)) == ["unchanged", "unchanged"]


def test_two_runs_at_once_renew_a_certificate_once(deploy, live, monkeypatch):
    deploy(AUTHORITY)
    outcomes = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(deploy(AUTHORITY, names="server.test.svc,new")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.errors for outcome in outcomes] == [[]] * 4
    kept = values(live("secrets/server"))
    for outcome in outcomes:
        assert values(outcome.applied[1].after) == kept


def test_a_certificate_without_its_authority_is_refused(deploy):
    (error,) = deploy(AUTHORITY.partition("---")[2]).errors
    assert "Secret" in error
    assert "the authority that is to sign its certificate" in error


def test_a_copy_has_the_values_of_its_sources_and_follows_them(deploy, live):
    deploy(SECRET)
    deploy(CERTIFICATE)
    assert actions(deploy(COPY)) == ["created"]
    copied, keys = values(live("secrets/copy")), values(live("secrets/keys"))
    assert copied == {
        "password": keys["password"],
        "other": "first-secret-value",
        "tls.crt": values(live("secrets/server"))["tls.crt"],
    }
    assert actions(deploy(COPY)) == ["unchanged"]
    assert actions(deploy(COPY, check=True)) == ["unchanged"]
    assert actions(deploy(SECRET, check=True, other="second-secret-value")) == ["changed"]
    assert actions(deploy(COPY, check=True)) == ["changed"], "what the check has foreseen"
    deploy(SECRET, other="second-secret-value")
    assert actions(deploy(COPY)) == ["changed"]
    assert values(live("secrets/copy")) == copied | {"other": "second-secret-value"}


def test_a_copy_of_what_a_check_would_have_made_is_predicted(deploy):
    for template in (SECRET, CERTIFICATE, COPY):
        assert actions(deploy(template, check=True)) == ["created"]


def test_a_copy_of_what_is_not_there_is_refused_by_both_names(deploy, namespace):
    (error,) = deploy(COPY).errors
    wanted = f"Secret {namespace}/copy: it is to have the values of Secret {namespace}/keys, which does not exist"
    assert wanted in error
    deploy(SECRET, generate="token")
    deploy(CERTIFICATE)
    (error,) = deploy(COPY, check=True).errors
    assert f"Secret {namespace}/keys, which has no key password" in error


def test_a_fixed_value_is_never_changed(deploy, live):
    assert actions(deploy(FIXED, cipher="first-cipher-value")) == ["created"]
    (error,) = deploy(FIXED, cipher="other-cipher-value").errors
    assert "the inventory's value of cipher is not the one in use" in error
    assert "cipher-value" not in error
    assert values(live("secrets/cipher"))["cipher"] == "first-cipher-value"
    # Neither by leaving it out.
    assert "the inventory's value of cipher is not" in deploy(FIXED, cipher="").errors[0]


def test_a_diff_is_clean_and_masked(deploy):
    deploy(SECRET)
    (item,) = deploy(SECRET, check=True, other="second-secret-value").applied
    shown = diff.yaml_diff(item.before, item.after, "Secret keys")
    assert "other: '*****'" in shown["before"]
    assert "other: '***** (changed)'" in shown["after"]
    assert "password: '*****'" in shown["after"]
    for text in (shown["before"], shown["after"]):
        assert "secret-value" not in text
        assert base64.b64encode(b"second-secret-value").decode() not in text
        for noise in ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation:"):
            assert noise not in text


def test_a_refused_secret_does_not_show_its_value(deploy):
    template = SECRET.replace("{{ (other", "not base64 but-secret {{ (other")
    (error,) = deploy(template).errors
    assert "Secret" in error
    assert "but-secret" not in error


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CONFIG.replace("{{ ns }}", "absent"), "create the namespace absent first"),
        (DEPLOYMENT.replace("replicas: {{ replicas | default(2) }}", "replicas: 'two'"), "replicas"),
        (DEPLOYMENT.replace("selector:", "selectr: {}\n  selector:"), "selectr"),
        (CONFIG.replace("kind: ConfigMap", "kind: ConfigMop"), "does not know kind ConfigMop"),
        (CONFIG.replace('namespace: "{{ ns }}"', "labels: {}"), "no metadata.namespace"),
        (CONFIG.replace("name: settings", "name: Settings_"), "Invalid value"),
    ],
)
def test_a_refusal_is_one_line_that_names_object_and_template(deploy, template, expected):
    (error,) = deploy(template).errors
    assert expected in error
    assert "manifest.yaml.j2" in error
    assert "\n" not in error


def test_a_forbidden_apply_says_what_to_do(deploy, api_server):
    nobody = Cluster.from_kubeconfig("test", str(api_server.kubeconfig), "nobody")
    (error,) = deploy(CONFIG, cluster=nobody).errors
    assert 'User "nobody" cannot' in error
    assert "To do: grant this" in error


def test_a_failure_stops_before_the_next_rank(deploy, live):
    outcome = deploy(CONFIG.replace("settings", "Bad_") + "---" + DEPLOYMENT)
    assert len(outcome.errors) == 1
    with pytest.raises(Exception, match="not found"):
        live("apis/apps/v1:deployments/api")
