"""Prometheus' configuration of every inventory, checked by the promtool that is in its image, and what it keeps."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rendering
import yaml

CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
IMAGE = rendering.CHECKOUT / "images/prometheus"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
# What the jobs that keep only some metrics are asked for.
CHOSEN = {
    "kubelet": r"kubelet_\w+",
    "cadvisor": r"(?:container|machine)_\w+",
    "apiserver": r"apiserver_\w+",
}


@pytest.fixture(scope="session")
def promtool() -> Path:
    """The program as its image has it, built once: Debian's knows no Kubernetes service discovery."""
    files = [IMAGE / name for name in ("go.mod", "go.sum", "prepare")]
    folder = CACHE / "tools" / f"prometheus-{hashlib.sha256(b''.join(map(Path.read_bytes, files))).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "promtool").exists():
            build = folder / "build"
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir(parents=True)
            for file in files:
                shutil.copy2(file, build)
            subprocess.run([build / "prepare", build], check=True)
            (build / "bin/promtool").rename(folder / "promtool")
            shutil.rmtree(build)
    return folder / "promtool"


def data(sets: list[rendering.Rendered], name: str) -> dict[str, str]:
    """The data of a ConfigMap."""
    return next(
        item.body["data"] for each in sets for item in each.manifests if (item.kind, item.name) == ("ConfigMap", name)
    )


def config(sets: list[rendering.Rendered]) -> dict[str, Any]:
    """Prometheus' configuration."""
    return yaml.safe_load(data(sets, "prometheus")["prometheus.yml"])


def job(sets: list[rendering.Rendered], name: str) -> dict[str, Any]:
    """One scrape job."""
    return next(item for item in config(sets)["scrape_configs"] if item["job_name"] == name)


def check(promtool: Path, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What promtool says of a configuration, whose token and certificate are made up."""
    for name in ("token", "ca.crt"):
        (folder / name).write_text("")
    file = folder / "prometheus.yml"
    file.write_text(text.replace(TOKEN, str(folder)).replace("/etc/prometheus", str(folder)))
    command = [str(promtool), "check", "config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_promtool_takes_the_configuration(inventory: list[rendering.Rendered], promtool: Path, tmp_path: Path) -> None:
    done = check(promtool, data(inventory, "prometheus")["prometheus.yml"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_refuses_a_broken_one(promtool: Path, tmp_path: Path) -> None:
    text = data(list(rendering.render_inventory("local")), "prometheus")["prometheus.yml"]
    for right, wrong in (("role: endpointslice", "role: endpointslices"), ("keepequal", "keepequals")):
        assert right in text
        assert check(promtool, text.replace(right, wrong), tmp_path).returncode == 1, wrong


def test_certificates_are_looked_at(inventory: list[rendering.Rendered]) -> None:
    local = inventory[0].inventory == "local"
    for name in ("kubelet", "cadvisor", "apiserver"):
        tls = job(inventory, name)["tls_config"]
        assert tls["ca_file"] == f"{TOKEN}/ca.crt"
        assert tls.get("insecure_skip_verify", False) is (local and name != "apiserver"), name


def test_alerts_name_their_cluster_and_replicas_are_one(inventory: list[rendering.Rendered]) -> None:
    whole = config(inventory)
    assert whole["global"]["external_labels"] == {"cluster": inventory[0].cluster, "replica": "${POD_NAME}"}
    assert whole["alerting"]["alert_relabel_configs"] == [{"action": "labeldrop", "regex": "replica"}]


def test_a_canary_s_pods_are_the_application_s_and_told_apart(promtool: Path, tmp_path: Path) -> None:
    sets = list(rendering.render_inventory("local", ["applications", "prometheus"], platform_canary_web_image="web:2"))
    templates = {
        item.name: item.body["spec"]["template"]["metadata"]
        for each in sets
        for item in each.manifests
        if item.kind == "Deployment"
    }
    meta = "__meta_kubernetes_pod_"

    def scraped(name: str) -> dict[str, str]:
        """The labels of a pod's target, of which the API server tells this."""
        labels = {f"{meta}name": f"{name}-1", f"{meta}container_port_number": "3000", "__address__": "127.0.0.1:3000"}
        for kind in ("label", "annotation"):
            for key, value in templates[name][f"{kind}s"].items():
                labels[f"{meta}{kind}_{re.sub(r'[^a-z_]', '_', key)}"] = str(value)
        pods = job(sets, "pods")
        del pods["kubernetes_sd_configs"]
        pods["static_configs"] = [{"targets": ["127.0.0.1:3000"], "labels": labels}]
        file = tmp_path / "prometheus.yml"
        file.write_text(yaml.safe_dump({"scrape_configs": [pods]}))
        command = [str(promtool), "check", "service-discovery", "--timeout=5s", str(file), "pods"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (target,) = json.loads(done.stdout)
        return target["labels"]

    canary, main = scraped("citadelbuy-web-canary"), scraped("citadelbuy-web")
    assert (canary["job"], canary["track"], canary["pod"]) == ("citadelbuy-web", "canary", "citadelbuy-web-canary-1")
    assert (main["job"], main.get("track")) == ("citadelbuy-web", None)
    assert canary["component"] == main["component"] == "web"


@pytest.mark.parametrize("name", CHOSEN)
def test_what_a_rule_asks_for_is_kept(inventory: list[rendering.Rendered], name: str) -> None:
    rules = [
        rule["expr"]
        for text in data(inventory, "prometheus-rules").values()
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
    ]
    # `a_(b|c)_d` asks for two metrics.
    several = re.compile(r"(\w+)\((\w+)\|(\w+)\)(\w+)")
    rules = [several.sub(r"\1\2\4 \1\3\4", expression) for expression in rules]
    asked = {metric for expression in rules for metric in re.findall(rf"(?<![\w:]){CHOSEN[name]}(?![\w:])", expression)}
    keep = next(
        item["regex"]
        for item in job(inventory, name)["metric_relabel_configs"]
        if item["source_labels"] == ["__name__"]
    )
    labels = {"container_name", "container_state"}
    assert sorted(metric for metric in asked - labels if not re.fullmatch(keep, metric)) == []


@pytest.mark.parametrize(
    ("size", "retention"), [("50Gi", 40960), ("1Gi", 819), ("2Ti", 1677721), ("50G", 40960), ("1073741824", 819)]
)
def test_series_leave_room_on_the_volume(size: str, retention: int) -> None:
    sets = list(rendering.render_inventory("local", prometheus_storage_size=size))
    server = next(
        item.body for each in sets for item in each.manifests if (item.kind, item.name) == ("StatefulSet", "prometheus")
    )
    arguments = server["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--storage.tsdb.retention.size={retention}MB" in arguments
