"""One run at a time on a cluster: a Lease that its holder renews.

The rule is that of client-go's leader election: whoever sees a lease unrenewed for its duration, by his own clock, may
take it. Here the one who asks does not wait for a living holder, but is told who it is.
"""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    ApiError,
    Cluster,
    EngineError,
    Resource,
    Unreachable,
)

LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases", True)
DURATION = 15  # seconds without a renewal after which a holder counts as gone; LeaseDuration of Kubernetes' controllers
RENEWALS = 5  # in that time
PAUSE = 0.2  # seconds between looks at a lease that another holds


class Lease:
    """Held within a `with` block, and gone after it. Lost by a run that was stopped for longer than the duration."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, work: str, duration: int = DURATION) -> None:
        """Prepare; nothing is sent.

        :param name: of the Lease; the same for all runs that must not overlap.
        :param work: what its holder does, as `a rotation of secrets`, for messages.
        :param duration: seconds.
        """
        self.cluster, self.namespace, self.name, self.work = cluster, namespace, name, work
        self.duration = duration
        self.holder = f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
        self._path = LEASE.path(namespace, name)
        self._held: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        """Take the lease.

        :raises EngineError: when another run holds it and is alive.
        """
        while not self._create():
            self._wait_until_abandoned()
        threading.Thread(target=self._keep, args=(os.getppid(),), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back; one that is lost, or cannot be reached, ends by itself."""
        self._ended.set()
        with self._lock:
            self._delete(self._held)

    def check(self) -> None:
        """Make sure that the lease is still ours, before something that must not be done twice at a time.

        :raises EngineError: when another run has taken it.
        """
        with self._lock:
            self._renew()

    def _create(self) -> bool:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": self.duration,
                "acquireTime": now,
                "renewTime": now,
            },
        }
        try:
            self._held = self.cluster.request("POST", LEASE.path(self.namespace), body)[1]
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            found = self.cluster.get(LEASE, self.namespace, self.name) or {}
            if (found.get("spec") or {}).get("holderIdentity") != self.holder:  # else our request was sent twice
                return False
            self._held = found
        return True

    def _wait_until_abandoned(self) -> None:
        """Until nobody holds the lease, or its holder has not renewed it for as long as it lasts."""
        first = self.cluster.get(LEASE, self.namespace, self.name)
        if first is None:
            return
        spec = first.get("spec") or {}
        end = time.monotonic() + (spec.get("leaseDurationSeconds") or self.duration)
        while time.monotonic() < end:
            time.sleep(PAUSE)
            now = self.cluster.get(LEASE, self.namespace, self.name)
            if now is None:
                return
            if now["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]:
                spec = now.get("spec") or {}
                raise EngineError(
                    f"{self.work} of {self.namespace} is under way: by {spec.get('holderIdentity')}, since"
                    f" {spec.get('acquireTime')}. Nothing was changed. Wait for its end, then run this again."
                )
        self._delete(first)

    def _delete(self, body: dict[str, Any]) -> None:
        """Delete the lease as it was seen; one that has changed since stays."""
        seen = {key: body["metadata"][key] for key in ("uid", "resourceVersion")}
        try:
            self.cluster.request("DELETE", self._path, {"preconditions": seen})
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        except Unreachable:
            pass  # it ends by itself

    def _renew(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        body = self._held | {"spec": self._held["spec"] | {"renewTime": now}}
        try:
            self._held = self.cluster.request("PUT", self._path, body)[1]
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            found = self.cluster.get(LEASE, self.namespace, self.name) or {"spec": {}}
            if found["spec"].get("holderIdentity") == self.holder:  # our request was sent twice
                self._held = found
                return
            raise EngineError(
                f"{self.work} of {self.namespace}: this run stood still for so long that another took its place"
                f" ({found['spec'].get('holderIdentity', 'it has ended')}). This one does nothing more."
            ) from None

    def _keep(self, parent: int) -> None:
        """Renew until the end. A worker of Ansible outlives a killed `ansible-playbook`: it ends itself here."""
        while not self._ended.wait(self.duration / RENEWALS):
            if os.getppid() != parent:
                os._exit(1)
            try:
                with self._lock:
                    if not self._ended.is_set():
                        self._renew()
            except EngineError:
                continue  # the next check tells
