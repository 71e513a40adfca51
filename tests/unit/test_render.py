"""Rendering and parsing, without a cluster."""

from __future__ import annotations

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.citadelbuy.platform.plugins.module_utils import diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import find_templates, render

HEAD = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: here}\n"


def render_files(folder, variables=None, **files):
    """Write <name>.yaml.j2 (or .j2) files and render those of the folder."""
    for name, text in files.items():
        suffix = ".j2" if name.startswith("part") else ".yaml.j2"
        (folder / f"{name}{suffix}").write_text(text)
    trusted = {k: trust_as_template(v) if isinstance(v, str) else v for k, v in (variables or {}).items()}
    return render(Templar(loader=DataLoader()), find_templates([str(folder)], [folder]), trusted)


def test_includes_macros_nested_variables_and_several_documents(tmp_path):
    text = (
        "{% from 'part_macros.j2' import port %}\n---\n" + HEAD + "data:\n"
        "  {% if big %}\n  size: '{{ size }}'\n  {% endif %}\n  {% include 'part_more.j2' %}\n"
        "---\n" + HEAD.replace("settings", "two") + "data: { {{ port(80) }} }\n---\n"
    )
    macros = "{% macro port(n) %}port: '{{ n }}'{% endmacro %}"
    manifests = render_files(
        tmp_path,
        {"big": True, "size": "{{ gib }}Gi", "gib": 2},
        a=text,
        part_macros=macros,
        part_more="  more: '{{ gib }}'\n",
    )
    assert [manifest.body["data"] for manifest in manifests] == [{"size": "2Gi", "more": "2"}, {"port": "80"}]


def test_templates_come_in_name_order_and_lists_are_unpacked(tmp_path):
    both = "kind: List\napiVersion: v1\nitems:\n" + "".join(
        f"- apiVersion: v1\n  kind: ConfigMap\n  metadata: {{name: {name}, namespace: n}}\n" for name in ("b", "c")
    )
    manifests = render_files(tmp_path, **{"20-b": both, "10-a": HEAD, "30-none": "{% if false %}\n{% endif %}\n"})
    assert [manifest.name for manifest in manifests] == ["settings", "b", "c"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "data:\n  a: {{ redis_sise }}\n", ["a.yaml.j2:5", "'redis_sise' is undefined"]),
        (HEAD + "data:\n  a: {{ sizes.tiny }}\n", ["a.yaml.j2:5", "tiny"]),
        (HEAD + "data:\n  a: {{ 'x' + 1 }}\n", ["a.yaml.j2:5", "concatenate"]),
        (HEAD + "{% if true %}\n", ["a.yaml.j2", "endif"]),
        (HEAD + "data:\n  a: {{ 'x' | b64encod }}\n", ["a.yaml.j2:5", "b64encod"]),
        (HEAD + "data:\n  a: 'top-secret\n  b: 1\n", ["a.yaml.j2", "not valid YAML"]),
        (HEAD + "data:\n  a: top-secret: x\n", ["a.yaml.j2", "not valid YAML", "line 5", "(`a: ...`)"]),
        (HEAD + "data:\n  a: '1'\n  a: '2'\n", ["key 'a' is given twice"]),
        (HEAD + "---\n" + HEAD, ["ConfigMap here/settings is rendered twice"]),
        ("- a\n", ["a document is a list, not an object"]),
        ("kind: ConfigMap\nmetadata: {name: a}\n", ["apiVersion is missing in ConfigMap"]),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: 1}\n", ["metadata.name must be a string, not int"]),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata:\n", ["metadata.name is missing"]),
    ],
)
def test_an_error_names_file_line_and_variable(tmp_path, text, expected):
    with pytest.raises(EngineError) as caught:
        render_files(tmp_path, {"sizes": {}}, a=text)
    for part in expected:
        assert part in str(caught.value)
    assert "top-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_is_read_as_kubernetes_reads_it(tmp_path):
    text = HEAD + "data: {time: 12:30:45, day: 2026-01-01, mode: 0440, on_off: yes, big: 1e3, num: 12, float: 1.5}\n"
    (manifest,) = render_files(tmp_path, a=text)
    assert manifest.body["data"] == {
        "time": "12:30:45",
        "day": "2026-01-01",
        "mode": 0o440,
        "on_off": True,
        "big": 1000.0,
        "num": 12,
        "float": 1.5,
    }


def test_templates_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(EngineError, match="nowhere does not exist"):
        find_templates(["nowhere"], [tmp_path])
    with pytest.raises(EngineError, match=r"holds no \*.yaml.j2 file"):
        find_templates(["."], [tmp_path])


def test_values_are_masked_longest_first():
    body = {"data": {"long": "c2VjcmV0LXZhbHVlLWxvbmc=", "base": "c2VjcmV0LXZhbHVl"}}
    text = "got secret-value-long, c2VjcmV0LXZhbHVl and secret-value"
    assert diff.mask(text, diff.secret_values(body)) == "got *****, ***** and *****"


def test_a_template_can_refuse(tmp_path):
    text = "{{ (members == 1) | citadelbuy.platform.require('members is ' ~ members ~ ': set it to 1.') }}\n" + HEAD
    assert len(render_files(tmp_path, {"members": 1}, a=text)) == 1
    with pytest.raises(EngineError, match=r"a\.yaml\.j2(:1)?: members is 2: set it to 1\.$"):
        render_files(tmp_path, {"members": 2}, a=text)
