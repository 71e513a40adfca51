"""VolumeSnapshots of the datastores' volumes, which the cluster's storage system makes and keeps.

BACKUP_SNAPSHOT_CLASS is their VolumeSnapshotClass; BACKUP_SNAPSHOT_KEEP of each volume are kept, and
BACKUP_SNAPSHOT_TIMEOUT is the seconds in which all are to be ready. BACKUP_NAMESPACE has the volumes,
BACKUP_STATEFUL_SETS are theirs. Nothing but what has this program's label is waited for, or deleted.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from store_backup.kubernetes_store import asked
from store_backup.repository import Problem, new_label, wait, warn

Body = dict[str, Any]
GROUP = "snapshot.storage.k8s.io/v1"
OWN = {"app.kubernetes.io/name": "volumes-backup"}
VOLUME = "citadelbuy.io/volume"
"""Label of a snapshot: the name of its PersistentVolumeClaim."""
PAUSE = 1
"""Seconds between two looks."""


def take() -> None:
    """Make one of each volume, wait until all are ready, and let the oldest go."""
    begun, label, seconds = time.time(), new_label(), int(os.environ["BACKUP_SNAPSHOT_TIMEOUT"])
    # All at once: they are to be of about the same moment.
    made = {create(volume, label): volume for volume in volumes()}
    late = dict(made)

    def all_ready() -> bool:
        try:
            ready = {name_of(snapshot) for snapshot in snapshots() if is_ready(snapshot)}
        except Problem as error:
            warn(str(error))  # the next look may be answered
            return False
        for name in ready & late.keys():
            del late[name]
        return not late

    wait(all_ready, seconds, PAUSE)
    known = snapshots()
    gone = sum(expire(known, volume) for name, volume in made.items() if name not in late)
    if late:
        found = {name_of(snapshot): snapshot for snapshot in known}
        told = [f"{name} of {volume}: {reason(found.get(name))}" for name, volume in late.items()]
        raise Problem(f"{len(late)} of {len(made)} VolumeSnapshots are not ready in {seconds} s: {'; '.join(told)}")
    used = os.environ["BACKUP_SNAPSHOT_CLASS"]
    print(f"snapshots {label}: {len(made)} volumes by {used}, {time.time() - begun:.0f} s, {gone} expired")


def volumes() -> list[str]:
    """The names of the claims the StatefulSets' members have, PostgreSQL's first: its checkpoint is new."""
    space, sets = os.environ["BACKUP_NAMESPACE"], os.environ["BACKUP_STATEFUL_SETS"].split()
    names = [name_of(item) for item in asked(f"api/v1/namespaces/{space}/persistentvolumeclaims")["items"]]
    found = [name for one in sets for name in sorted(names) if re.fullmatch(rf"data-{re.escape(one)}-\d+", name)]
    if not found:
        wanted = ", ".join(f"data-{one}-N" for one in sets)
        raise Problem(f"there is no PersistentVolumeClaim {wanted} in {space}: are the datastores elsewhere?")
    return found


def create(volume: str, label: str) -> str:
    """Ask for a snapshot of a claim; returns its name."""
    name = f"{volume}-{label.lower()}"
    body = {
        "apiVersion": GROUP,
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "labels": OWN | {VOLUME: volume}},
        "spec": {
            "volumeSnapshotClassName": os.environ["BACKUP_SNAPSHOT_CLASS"],
            "source": {"persistentVolumeClaimName": volume},
        },
    }
    asked(place(), "POST", body)
    return name


def snapshots() -> list[Body]:
    """All that this program has made, the oldest first: their names end with their time."""
    labels = ",".join(f"{key}={value}" for key, value in OWN.items())
    return sorted(asked(f"{place()}?labelSelector={labels}")["items"], key=name_of)


def expire(known: list[Body], volume: str) -> int:
    """Delete all but the newest good ones of a volume, and what never became one; returns how many.

    The newest good one is never deleted, nor what is newer than that.
    """
    keep = int(os.environ["BACKUP_SNAPSHOT_KEEP"])
    own = [snapshot for snapshot in known if snapshot["metadata"]["labels"].get(VOLUME) == volume]
    good = [name_of(snapshot) for snapshot in own if is_ready(snapshot)]
    newest, kept = max(good), set(good[-keep:])
    expired = [name for name in map(name_of, own) if name < newest and name not in kept]
    for name in expired:
        asked(f"{place()}/{name}", "DELETE")
    return len(expired)


def is_ready(snapshot: Body) -> bool:
    """Whether a volume can be made of it."""
    return bool((snapshot.get("status") or {}).get("readyToUse"))


def reason(snapshot: Body | None) -> str:
    """Why a snapshot is not ready, as its controller or its driver says."""
    if snapshot is None:
        return "somebody has deleted it"
    status = snapshot.get("status")
    if not status:
        return "no snapshot controller has taken it up: does one run in this cluster?"
    return (status.get("error") or {}).get("message") or "its driver still works on it: raise backups_snapshot_timeout"


def place() -> str:
    """Where the API server has them."""
    return f"apis/{GROUP}/namespaces/{os.environ['BACKUP_NAMESPACE']}/volumesnapshots"


def name_of(item: Body) -> str:
    """Of any object."""
    return str(item["metadata"]["name"])
