"""The manifests of prod as files, and what the graders say about them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "render"))

import grading
import programs as grader_programs
import rendering
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import pod_template

# Prod refuses an image without digest, so its inventory is to name them; until it does, this one stands in.
DIGEST = "@sha256:" + "0" * 64


@pytest.fixture(scope="session")
def programs() -> grader_programs.Programs:
    """The graders."""
    return grader_programs.installed()


@pytest.fixture(scope="session")
def prod() -> list[rendering.Rendered]:
    """All sets of prod as they are deployed."""
    sets = list(rendering.render_inventory("prod"))
    for manifest in (manifest for rendered in sets for manifest in rendered.manifests):
        spec = (pod_template(manifest.body) or {}).get("spec") or {}
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
            if "@" not in container["image"]:
                container["image"] += DIGEST
    return sets


@pytest.fixture(scope="session")
def manifests(prod: list[rendering.Rendered], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with prod's manifests."""
    folder = tmp_path_factory.mktemp("prod")
    for rendered in prod:
        rendering.write(rendered, folder)
    return folder


@pytest.fixture(scope="session")
def reports(programs: grader_programs.Programs, manifests: Path) -> dict[str, grading.Report]:
    """What each grader says about prod."""
    return {grade.__name__: grade(programs, manifests) for grade in (grading.kube_score, grading.checkov)}


@pytest.fixture(params=["kube_score", "checkov"])
def report(request: pytest.FixtureRequest, reports: dict[str, grading.Report]) -> grading.Report:
    """What one of them says."""
    return reports[request.param]
