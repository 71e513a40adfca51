"""Every inventory rendered once, and the API server of the unit tests with the platform's namespaces in it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import rendering
import schemas
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply import Applier, Policy
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import Parent

_spec = importlib.util.spec_from_file_location("unit_conftest", rendering.CHECKOUT / "tests/unit/conftest.py")
unit = importlib.util.module_from_spec(_spec)
sys.modules["unit_conftest"] = unit
with warnings.catch_warnings():  # it prepares the collections again
    warnings.simplefilter("ignore")
    _spec.loader.exec_module(unit)

EVERYTHING = {
    "platform_logs": True,
    "platform_traces": True,
    "platform_firewall": True,
    "platform_ingress": "traefik",
    "platform_backups": True,
    "platform_snapshot_class": "snapshots",
    "platform_canary_api_image": "citadelbuy.local/api:2.0.0",
    "platform_canary_web_image": "citadelbuy.local/web:2.0.0",
    "platform_canary_weight": 20,
}
KUBECONFORM = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"


@pytest.fixture(scope="session", params=[*rendering.INVENTORIES, "local, with all"])
def inventory(request: pytest.FixtureRequest) -> list[rendering.Rendered]:
    """All sets of an inventory, rendered; of one also with what it has off."""
    name, _, everything = request.param.partition(",")
    return list(rendering.render_inventory(name, **(EVERYTHING if everything else {})))


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The login of a real API server."""
    server = unit.ApiServer(tmp_path_factory.mktemp("control-plane"))
    try:
        server.start()
        yield server.kubeconfig
    finally:
        server.stop()


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path) -> Cluster:
    """It, with the namespaces, service accounts and priorities of the platform."""
    cluster = Cluster.from_kubeconfig("test", str(kubeconfig))
    for rendered in rendering.render_inventory("local", **EVERYTHING):
        first = [item for item in rendered.manifests if item.kind in ("Namespace", "ServiceAccount", "PriorityClass")]
        parent = Parent(cluster, rendered.set_name, "citadelbuy")
        assert Applier(cluster, parent, Policy(prune=False)).apply(first).errors == []
    return cluster


@pytest.fixture(scope="session")
def schema_folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Schemas of exactly the version of Kubernetes that is tested with."""
    folder = tmp_path_factory.mktemp("schemas")
    text = cluster.request("GET", "/openapi/v2", text=True)[1]
    assert schemas.write_schemas(json.loads(text), folder) > 50
    return folder


@pytest.fixture(scope="session")
def kubeconform() -> str:
    """The program: from PATH, else from the cache, where Go puts it the first time."""
    cache = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
    place = cache / "tools" / KUBECONFORM.rpartition("@")[2]
    found = shutil.which("kubeconform") or shutil.which("kubeconform", path=str(place))
    if found:
        return found
    # Role local_cluster puts a Go into the cache where the machine has none that is new enough.
    go = next(iter(sorted(cache.glob("go-*/bin/go"))), None) or shutil.which("go")
    assert go, "kubeconform is not there, nor is a Go to build it: run `make test`, or put one of them on the PATH"
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(go), "install", KUBECONFORM], env=os.environ | {"GOBIN": str(place)}, check=True)
    return str(place / "kubeconform")
