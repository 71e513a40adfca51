"""Secret values over time: generated once and kept in the cluster, copied, changed by rotations, and dated."""

from __future__ import annotations

import base64
import secrets
import string
import time

from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates
from ansible_collections.citadelbuy.platform.plugins.module_utils.applyset import hash_keys
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.diff import KEEP
from ansible_collections.citadelbuy.platform.plugins.module_utils.foresee import Foreseen
from ansible_collections.citadelbuy.platform.plugins.module_utils.outcome import Body
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest

# Annotations of a Secret, each a list of keys where nothing else is said.
GENERATE = "citadelbuy.io/generate"  # generated where they are missing, then kept
ROTATE = "citadelbuy.io/rotate"  # who uses these must be told first, so only a rotation changes them
FIXED = "citadelbuy.io/fixed"  # what was encrypted with these is read with no others, so nothing changes them
AUTHORITY = "citadelbuy.io/authority"  # not of keys: the name of an authority, whose certificate and key are made once
CERTIFICATE = "citadelbuy.io/certificate"  # names of a server, whose certificate and key are made once, or by an issuer
ISSUER = "citadelbuy.io/issuer"  # with CERTIFICATE: the Secret of the authority that signs it; it is renewed then
SAME_AS = "citadelbuy.io/same-as"  # `namespace/name:KEY,KEY ...`: these have the values of Secrets of earlier tasks
ROTATED = "rotated.citadelbuy.io/"  # + key: when its value was changed last, for each key of a Secret that has ROTATE

ALPHABET = string.ascii_letters + string.digits
LENGTH = 32
PREDICTED = "generated-by-the-run"


def random_value() -> str:
    """A new value: 190 bits, of characters that need no quoting anywhere."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))


def generate(
    cluster: Cluster, manifest: Manifest, resource: Resource, live: Body | None, dry: bool, foreseen: Foreseen
) -> Body | None:
    """Fill in what the cluster knows better than the template: generated and kept values, and times of change.

    New values are first applied alone by a field manager that exists once: of two runs at the same time one conflicts,
    and takes the other's values. Returns the Secret as it is then.

    :param foreseen: what earlier tasks of the same check-mode run would have applied.
    :raises EngineError: where the template would change a value that only a rotation changes.
    """
    annotations = manifest.body["metadata"].get("annotations") or {}
    if SAME_AS in annotations:
        copied = copies(cluster, manifest, resource, str(annotations[SAME_AS]), foreseen)
        manifest.body["data"] = (manifest.body.get("data") or {}) | copied
    if not annotations.keys() & {GENERATE, KEEP, ROTATE, FIXED, AUTHORITY, CERTIFICATE}:
        return live
    before = (live or {}).get("data") or {}
    keys, new = _made_and_kept(cluster, manifest, resource, live, dry, foreseen)
    # A new certificate is not made by two runs: the second one finds the Secret changed, and looks again.
    manifest.forced = bool(new.keys() & before.keys())
    data = manifest.body["data"] = dict(manifest.body.get("data") or {})
    if new and dry:
        live = (live or {}) | {"data": before | _encoded(new)}
    elif new and not manifest.forced:
        live = _store(cluster, manifest, resource, new)
    now = ((live or {}).get("data") or {}) | (_encoded(new) if manifest.forced else {})
    data |= {key: now[key] for key in [*keys, *_keys(manifest, KEEP)] if key in now}
    if ISSUER in annotations:
        annotations[ROTATED + "tls.crt"] = _now() if new and dry else certificates.time_made(_decoded(data)["tls.crt"])
    changed = [key for key in _keys(manifest, ROTATE) if key in before and key in data and data[key] != before[key]]
    if changed:
        names = ",".join(changed)
        raise EngineError(
            f"{manifest}: the inventory's value of {names} is not the one in use, and its store would not know it. To "
            f"do: `ansible-playbook playbooks/rotate_secrets.yml -e rotate_secrets_names={names}`, then run again."
        )
    if fixed := [key for key in _keys(manifest, FIXED) if key in before and data.get(key) != before[key]]:
        raise EngineError(
            f"{manifest}: the inventory's value of {','.join(fixed)} is not the one in use, and what was encrypted "
            "with that one could not be read any more. To do: put the one in use back into the inventory."
        )
    if ROTATE in annotations:
        kept = _keys(manifest, KEEP)
        annotations |= ages(live, before, {key: value for key, value in data.items() if key not in kept})
    return live


def copies(
    cluster: Cluster, manifest: Manifest, resource: Resource, sources: str, foreseen: Foreseen
) -> dict[str, str]:
    """The values that other Secrets have now or, in check mode, would have had.

    :raises EngineError: where one does not exist, or has no such key.
    """
    values = {}
    for source in sources.split():
        place, _, keys = source.partition(":")
        namespace, _, name = place.partition("/")
        live = cluster.get(resource, namespace, name)
        planned = foreseen.get("Secret", namespace, name)
        expected = f"{manifest}: it is to have the values of Secret {place}, which"
        if live is None and planned is None:
            raise EngineError(f"{expected} does not exist. To do: make that one first.")
        hashes = hash_keys(live or {})
        for key in keys.split(","):
            if key not in (hashes if planned is None else planned):
                raise EngineError(f"{expected} has no key {key}. To do: put it there first.")
            known = live and (planned is None or hashes.get(key) == planned[key])
            values[key] = live["data"][key] if live and known else base64.b64encode(PREDICTED.encode()).decode()
    return values


def ages(live: Body | None, before: dict[str, str], data: dict[str, str]) -> dict[str, str]:
    """Annotations that tell when each value was changed last.

    :param live: the Secret as it is; a value without a time has at least the Secret's age.
    :param before: its values as they were at first.
    :param data: its values as they shall be.
    """
    metadata = (live or {}).get("metadata") or {}
    known, now = metadata.get("annotations") or {}, _now()
    made = metadata.get("creationTimestamp") or now
    return {
        ROTATED + key: known.get(ROTATED + key, made) if before.get(key) == value else now
        for key, value in data.items()
    }


def _made_and_kept(
    cluster: Cluster, manifest: Manifest, resource: Resource, live: Body | None, dry: bool, foreseen: Foreseen
) -> tuple[list[str], dict[str, str]]:
    """What the cluster keeps for a Secret: its keys, and values of those that are to be new now, in plain text.

    In a rehearsal new values are predicted.
    """
    before = (live or {}).get("data") or {}
    keys = _keys(manifest, GENERATE)
    new = {key: random_value() for key in keys if key not in before}
    annotations = manifest.body["metadata"]["annotations"]
    if AUTHORITY in annotations:
        keys += ["ca.crt", "ca.key"]
        if not before.keys() >= {"ca.crt", "ca.key"}:
            new |= certificates.authority(annotations[AUTHORITY])
    if names := _keys(manifest, CERTIFICATE):
        keys += ["tls.crt", "tls.key"]
        if ISSUER in annotations:
            keys.append("ca.crt")
            issuer = _issuer(cluster, manifest, resource, dry, foreseen)
            if issuer is None:
                new |= dict.fromkeys(keys, PREDICTED)
            elif certificates.why_renewed(_decoded(before), names, issuer["ca.crt"]):
                new |= certificates.certificate(names, issuer)
        elif not before.keys() >= {"tls.crt", "tls.key"}:
            new |= certificates.certificate(names)
    return keys, dict.fromkeys(new, PREDICTED) if dry else new


def _issuer(
    cluster: Cluster, manifest: Manifest, resource: Resource, dry: bool, foreseen: Foreseen
) -> dict[str, str] | None:
    """The authority that signs a certificate; None where it is to be made in the run that is rehearsed.

    :raises EngineError: where there is none.
    """
    name = str(manifest.body["metadata"]["annotations"][ISSUER])
    data = (cluster.get(resource, manifest.namespace, name) or {}).get("data") or {}
    if data.keys() >= {"ca.crt", "ca.key"}:
        return _decoded(data)
    if dry and foreseen.get("Secret", manifest.namespace, name) is not None:
        return None
    raise EngineError(
        f"{manifest}: Secret {manifest.namespace}/{name}, the authority that is to sign its certificate, has no ca.crt "
        "and ca.key. To do: run `ansible-playbook playbooks/site.yml --tags secrets`, which makes it."
    )


def _keys(manifest: Manifest, annotation: str) -> list[str]:
    names = str((manifest.body["metadata"].get("annotations") or {}).get(annotation) or "")
    return [key.strip() for key in names.split(",") if key.strip()]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _decoded(data: Body) -> dict[str, str]:
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}


def _encoded(values: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def _store(cluster: Cluster, manifest: Manifest, resource: Resource, values: dict[str, str]) -> Body | None:
    """Put values under keys, if nobody else has; returns the Secret with those that won."""
    body = {part: manifest.body[part] for part in ("apiVersion", "kind", "type") if part in manifest.body}
    body |= {
        "metadata": {"name": manifest.name, "namespace": manifest.namespace},
        "data": _encoded(values),
    }
    query = {"fieldManager": f"{MANAGER}-generate-{secrets.token_hex(4)}", "force": "false"}
    path = resource.path(manifest.namespace, manifest.name)
    try:
        return cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")[1]
    except ApiError as error:
        if error.status != 409:
            raise
        return cluster.get(resource, manifest.namespace, manifest.name)
