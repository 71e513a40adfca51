"""Secret values that nobody chooses: generated once, kept in the cluster."""

from __future__ import annotations

import base64
import secrets
import string

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import ApiError, Cluster, Resource
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

GENERATE = "citadelbuy.io/generate"
ALPHABET = string.ascii_letters + string.digits
LENGTH = 32
PREDICTED = "generated-by-the-run"


def generate(cluster: Cluster, manifest: Manifest, resource: Resource, live: Body | None, dry: bool) -> Body | None:
    """Fill the keys that `citadelbuy.io/generate` names: from the live Secret, else random.

    New values are first applied alone by a field manager that exists once: of two runs at the same time one conflicts,
    and takes the other's values. Returns the Secret as it is then.
    """
    names = (manifest.body["metadata"].get("annotations") or {}).get(GENERATE, "")
    keys = [key.strip() for key in names.split(",") if key.strip()]
    if not keys:
        return live
    data = manifest.body["data"] = dict(manifest.body.get("data") or {})
    missing = [key for key in keys if key not in ((live or {}).get("data") or {})]
    if missing and dry:
        encoded = dict.fromkeys(missing, base64.b64encode(PREDICTED.encode()).decode())
        live = (live or {}) | {"data": ((live or {}).get("data") or {}) | encoded}
    elif missing:
        live = _store(cluster, manifest, resource, missing)
    data |= {key: live["data"][key] for key in keys if live and key in (live.get("data") or {})}
    return live


def _store(cluster: Cluster, manifest: Manifest, resource: Resource, keys: list[str]) -> Body | None:
    """Put random values under these keys, if nobody else has; returns the Secret with those that won."""
    values = {key: "".join(secrets.choice(ALPHABET) for _ in range(LENGTH)) for key in keys}
    body = {part: manifest.body[part] for part in ("apiVersion", "kind", "type") if part in manifest.body}
    body |= {
        "metadata": {"name": manifest.name, "namespace": manifest.namespace},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
    query = {"fieldManager": f"{MANAGER}-generate-{secrets.token_hex(4)}", "force": "false"}
    path = resource.path(manifest.namespace, manifest.name)
    try:
        return cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]
    except ApiError as error:
        if error.status != 409:
            raise
        return cluster.get(resource, manifest.namespace, manifest.name)
