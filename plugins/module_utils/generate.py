"""Secret values over time: generated once and kept in the cluster, copied, changed by rotations, and dated."""

from __future__ import annotations

import base64
import datetime
import secrets
import string
import time

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

# Annotations of a Secret, each a list of keys.
GENERATE = "citadelbuy.io/generate"  # generated where they are missing, then kept
ROTATE = "citadelbuy.io/rotate"  # who uses these must be told first, so only a rotation changes them
FIXED = "citadelbuy.io/fixed"  # what was encrypted with these is read with no others, so nothing changes them
CERTIFICATE = "citadelbuy.io/certificate"  # names of a server, whose Secret's certificate and key are made once
SAME_AS = (
    "citadelbuy.io/same-as"  # `namespace/name:KEY,KEY ...`: these have the values of other Secrets, of earlier tasks
)
ROTATED = "rotated.citadelbuy.io/"  # + key: when its value was changed last, for each key of a Secret that has ROTATE

ALPHABET = string.ascii_letters + string.digits
LENGTH = 32
PREDICTED = "generated-by-the-run"
CERTIFICATE_DAYS = 3650


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
    if not annotations.keys() & {GENERATE, KEEP, ROTATE, FIXED, CERTIFICATE}:
        return live
    before = (live or {}).get("data") or {}
    names = _keys(manifest, CERTIFICATE)
    keys = [*_keys(manifest, GENERATE), *(("tls.crt", "tls.key") if names else ())]
    data = manifest.body["data"] = dict(manifest.body.get("data") or {})
    missing = [key for key in keys if key not in before]
    if missing and dry:
        encoded = dict.fromkeys(missing, base64.b64encode(PREDICTED.encode()).decode())
        live = (live or {}) | {"data": before | encoded}
    elif missing:
        new = {key: random_value() for key in missing} | (certificate(names) if names else {})
        live = _store(cluster, manifest, resource, new)
    now = (live or {}).get("data") or {}
    data |= {key: now[key] for key in [*keys, *_keys(manifest, KEEP)] if key in now}
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
    known, now = metadata.get("annotations") or {}, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    made = metadata.get("creationTimestamp") or now
    return {
        ROTATED + key: known.get(ROTATED + key, made) if before.get(key) == value else now
        for key, value in data.items()
    }


def certificate(names: list[str]) -> dict[str, str]:
    """A server's certificate, which is its own authority, and its key; as the keys of a Secret of type TLS."""
    # Most runs make none.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of a cluster differ.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(item) for item in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return {
        "tls.crt": made.public_bytes(pem).decode(),
        "tls.key": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode(),
    }


def _keys(manifest: Manifest, annotation: str) -> list[str]:
    names = str((manifest.body["metadata"].get("annotations") or {}).get(annotation) or "")
    return [key.strip() for key in names.split(",") if key.strip()]


def _store(cluster: Cluster, manifest: Manifest, resource: Resource, values: dict[str, str]) -> Body | None:
    """Put values under keys, if nobody else has; returns the Secret with those that won."""
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
