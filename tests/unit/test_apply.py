"""Apply, check mode and diff, against a real API server."""

from __future__ import annotations

from conftest import actions

CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
  namespace: {{ ns }}
data:
  a: "{{ a | default('1') }}"
{% if b is defined %}
  b: "{{ b }}"
{% endif %}
"""


def test_create_unchanged_changed(deploy, live):
    assert actions(deploy(CONFIG)) == ["created"]
    assert actions(deploy(CONFIG)) == ["unchanged"]
    assert actions(deploy(CONFIG, a="2")) == ["changed"]
    assert live("configmaps/settings")["data"] == {"a": "2"}
