"""Kubeconfigs, and a server that cannot be reached."""

from __future__ import annotations

import stat

import pytest
import yaml
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Unreachable,
)
from conftest import free_port


def write(folder, user=None, **cluster):
    """A kubeconfig with the context here (current)."""
    path = folder / "kubeconfig"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"} | cluster}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_missing_kubeconfig_is_named(tmp_path):
    with pytest.raises(EngineError, match=rf"cluster east: kubeconfig {tmp_path}/none does not exist"):
        Cluster.from_kubeconfig("east", str(tmp_path / "none"))
    with pytest.raises(EngineError, match="set the variable cluster_kubeconfig"):
        Cluster.from_kubeconfig("east", None)


def test_a_missing_context_lists_the_others(tmp_path):
    with pytest.raises(EngineError, match=r"no context 'there' \(variable cluster_context\); it has: here"):
        Cluster.from_kubeconfig("east", write(tmp_path), "there")


@pytest.mark.parametrize("text", ["", "a: [", "just text", "token: abc\n", "contexts: []"])
def test_what_is_no_kubeconfig_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(EngineError) as caught:
        Cluster.from_kubeconfig("east", str(tmp_path / "kubeconfig"))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_an_unreachable_server_is_one_line(tmp_path):
    port = free_port()
    cluster = Cluster.from_kubeconfig("east", write(tmp_path, server=f"https://127.0.0.1:{port}"))
    with pytest.raises(Unreachable) as caught:
        cluster.request("GET", "/version")
    assert str(caught.value) == f"cluster east: cannot reach https://127.0.0.1:{port}: Connection refused."


def test_an_untrusted_server_is_one_line(tmp_path, api_server):
    cluster = Cluster.from_kubeconfig("east", write(tmp_path, server=f"https://127.0.0.1:{api_server.port}"))
    with pytest.raises(Unreachable, match="is not trusted: self-signed certificate"):
        cluster.request("GET", "/version")


def test_a_wrong_token_is_told_without_the_token(tmp_path, api_server):
    path = write(
        tmp_path,
        {"token": "wrong-token"},
        **{"server": f"https://127.0.0.1:{api_server.port}", "insecure-skip-tls-verify": True},
    )
    cluster = Cluster.from_kubeconfig("east", path)
    with pytest.raises(ApiError, match=r"cluster east: .* does not accept the kubeconfig's login"):
        cluster.request("GET", "/api/v1/nodes")
    assert "wrong-token" not in repr(vars(cluster))


def test_an_exec_plugin_and_a_token_file_log_in(tmp_path, api_server):
    where = {"server": f"https://127.0.0.1:{api_server.port}", "insecure-skip-tls-verify": True}
    plugin = tmp_path / "login"
    plugin.write_text('#!/bin/sh\nprintf \'{"status": {"token": "%s"}}\' "$TOKEN"\n')
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    env = [{"name": "TOKEN", "value": "test-admin-token"}]
    (tmp_path / "token").write_text("test-admin-token\n")
    for user in ({"exec": {"command": "./login", "env": env}}, {"tokenFile": "token"}):
        cluster = Cluster.from_kubeconfig("east", write(tmp_path, user, **where))
        assert cluster.request("GET", "/api/v1/nodes")[0] == 200
    missing = write(tmp_path, {"exec": {"command": "no-such-login", "installHint": "apt install it"}}, **where)
    with pytest.raises(EngineError, match=r"no-such-login .* is missing: apt install it"):
        Cluster.from_kubeconfig("east", missing)


def test_requests_survive_a_restarted_server(api_server, cluster):
    cluster.request("GET", "/version")
    api_server.stop_api()
    api_server.start_api()
    assert cluster.request("GET", "/version")[0] == 200
