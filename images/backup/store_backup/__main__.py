"""Backups of Redis, of Elasticsearch, and of the cluster's own objects; snapshots of volumes.

store_backup take STORE                make one
store_backup verify STORE              restore the newest one beside, and compare it
store_backup plan STORE TARGET         what would be restored, as JSON
store_backup replace STORE ID TARGET   the data is set aside for that of a backup
store_backup set-aside redis ID        on another member's volume, which copies the first one when it starts
store_backup undo STORE ID OF          what was set aside last is the data again
store_backup discard elasticsearch     what was set aside is deleted
store_backup secrets TARGET            the Secrets of a backup, as JSON
store_backup snapshot                  VolumeSnapshots of the datastores' volumes
store_backup metrics                   tell Prometheus what the repositories hold, on port 9854

STORE is redis, elasticsearch or kubernetes. TARGET is a backup's label, a time with its zone, or empty for the newest.
OF is the ID of a restore that has not ended, or empty for the last one. BACKUP_KEEP backups are kept; BACKUP_WORK is a
folder for what is on its way, BACKUP_DATA a member's volume of Redis. Elasticsearch's data is exchanged while it runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from store_backup import elasticsearch_store, kubernetes_store, metrics, redis_store, snapshots
from store_backup.elasticsearch_restore import Indices
from store_backup.repository import Problem, Repository, new_label, warn
from store_backup.volume import Volume

STORES = {"redis": redis_store, "elasticsearch": elasticsearch_store, "kubernetes": kubernetes_store}


def work(name: str) -> Path:
    """An empty folder."""
    folder = Path(os.environ["BACKUP_WORK"], name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def take(store: str) -> None:
    """Make a backup; it counts from the moment at which all of it is in the repository."""
    begun, label, repository = time.time(), new_label(), Repository(store)
    folder = work(store)
    said = STORES[store].take(folder)
    size = repository.add(folder, label)
    shutil.rmtree(folder)
    seconds = round(time.time() - begun)
    repository.note(label, seconds=seconds, bytes=size)
    if told := repository.expire(int(os.environ["BACKUP_KEEP"])):
        warn(told)
    print(f"backup {label}: {seconds} s, {size / 1e6:.1f} MB, {said}")


def verify(store: str) -> None:
    """Restore the newest backup and compare it; what comes of it is written beside it."""
    repository = Repository(store)
    backup = repository.choose("")
    begun = time.time()
    repository.note(backup.label, begun=int(begun))
    try:
        folder = work(store)
        repository.fetch(backup, folder)
        restored = time.time()
        said = STORES[store].verify(folder)
        shutil.rmtree(folder)
    except Exception as error:  # of any kind: it has to be known where the next look goes
        why = str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
        try:
            repository.note(backup.label, failed=int(time.time()))
        except Problem as problem:
            warn(f"the failure could not be written beside the backup: {problem}")
        raise Problem(f"backup {backup.label} of {store} is not verified: {' '.join(why.split())}") from error
    now = time.time()
    repository.note(backup.label, verified=int(now), took=round(now - begun))
    times = f"restored in {restored - begun:.0f} s, checked in {now - restored:.0f} s"
    print(f"{store} backup {backup.label} verified: {said}, {times}")


def plan(store: str, target: str) -> None:
    """Print what a restore would bring."""
    backup = Repository(store).choose(target)
    made = time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime(backup.time))
    found = {"target": target, "label": backup.label, "made": made, "lost_from": made, "size": backup.number("bytes")}
    print(json.dumps(found))


def replace_volume(identity: str, target: str) -> None:
    """Put a backup of Redis in the place of a member's data."""
    repository = Repository("redis")

    def fetch(folder: Path) -> dict[str, Any]:
        backup = repository.choose(target)
        repository.fetch(backup, folder)
        return {"label": backup.label, "said": redis_store.verify(folder)}

    Volume(Path(os.environ["BACKUP_DATA"])).replace(identity, fetch, redis_store.put)


def replace_indices(identity: str, target: str) -> None:
    """Put a backup of Elasticsearch in the place of its indices."""
    repository = Repository("elasticsearch")

    def fetch() -> tuple[str, Path]:
        folder, backup = work("elasticsearch"), repository.choose(target)
        repository.fetch(backup, folder)
        return backup.label, folder

    Indices(elasticsearch_store.source()).replace(identity, fetch)


def secrets(target: str) -> None:
    """Print the Secrets of a backup."""
    repository, folder = Repository("kubernetes"), work("kubernetes")
    repository.fetch(repository.choose(target), folder)
    kubernetes_store.verify(folder)
    print(json.dumps(kubernetes_store.secrets(folder)))
    shutil.rmtree(folder)


def main() -> None:
    """Run what the arguments name."""
    match sys.argv[1:]:
        case ["take", store]:
            take(store)
        case ["verify", store]:
            verify(store)
        case ["plan", store, target]:
            plan(store, target)
        case ["replace", "redis", identity, target]:
            replace_volume(identity, target)
        case ["set-aside", "redis", identity]:
            Volume(Path(os.environ["BACKUP_DATA"])).set_aside(identity)
        case ["undo", "redis", identity, of]:
            Volume(Path(os.environ["BACKUP_DATA"])).undo(identity, of)
        case ["replace", "elasticsearch", identity, target]:
            replace_indices(identity, target)
        case ["undo", "elasticsearch", identity, of]:
            Indices(elasticsearch_store.source()).undo(identity, of)
        case ["discard", "elasticsearch"]:
            Indices(elasticsearch_store.source()).discard()
        case ["secrets", target]:
            secrets(target)
        case ["snapshot"]:
            snapshots.take()
        case ["metrics"]:
            metrics.serve()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except Problem as error:
        sys.exit(f"store_backup: {error}")
