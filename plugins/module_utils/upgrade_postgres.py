"""PostgreSQL's data upgraded to another major on its volume, as a restore exchanges it, and the way back.

The order, the stopped applications and the state of what is under way are those of a restore (restore.py). Here is
what differs: the data is not a backup's, but that of now, upgraded by a pod of the new image; and the StatefulSet has
another image afterwards.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from ansible_collections.citadelbuy.platform.plugins.module_utils import before_roll
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply_own import apply_own
from ansible_collections.citadelbuy.platform.plugins.module_utils.capacity import quantity
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster, EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.cronjob_run import cronjob_of, run_once
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore import Restore
from ansible_collections.citadelbuy.platform.plugins.module_utils.restore_stores import (
    MERGE,
    STATEFUL_SET,
    Postgres,
    Work,
    pods_of,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.stream import run_in_pod

Body = dict[str, Any]
REHEARSED = "citadelbuy.io/upgrade-rehearsed"  # annotation of the StatefulSet: what a rehearsal that passed has told
MANAGER = "citadelbuy-upgrade"  # of that annotation
VERSION = "app.kubernetes.io/version"
VERIFY = "postgres-verify"
SPARE = 1.1  # of the upgraded data's size: what the volume must have free
STOPPED = (
    "The platform is stopped. To do: mend that and run the same again; or go back, by the former image in the inventory"
    " and -e upgrade_postgres_back=true."
)


def major(image: str) -> int | None:
    """The major version that an image's tag begins with; None where it has none."""
    found = re.search(r":(\d+)[^:/]*$", image.partition("@")[0])
    return int(found[1]) if found else None


def image_of(workload: Body) -> str:
    """The image of a StatefulSet's server; empty where it has none."""
    containers = workload["spec"]["template"]["spec"]["containers"]
    return next((str(item["image"]) for item in containers if item["name"] == Postgres.name), "")


class Upgraded(Postgres):
    """PostgreSQL whose data becomes another major's."""

    image = ""  # of the inventory: what the members run afterwards
    programs = ""  # the newer one of the two, which has the programs of both majors

    def require_possible(self, undo: bool) -> None:
        """That the images name different majors.

        :raises EngineError: they do not.
        """
        live, wanted = major(image_of(self._set())), major(self.image)
        if live is None or wanted is None:
            unknown = self.image if wanted is None else image_of(self._set())
            raise EngineError(f"the tag of image {unknown} does not begin with PostgreSQL's major version, as in 17-1.")

    def exchange(self, work: Work, members: int) -> Body:
        """The first member leads; all stop, it last; its data is exchanged, the image changed, and all start."""
        found = self._set()
        if not work.undo and found["spec"]["replicas"] == members:
            said = before_roll.run(self.cluster, found)
            self._wait(self._first_leads, lambda: f"{self.name}-0 does not lead{f' ({said})' if said else ''}")
        if found["spec"]["replicas"] > 1:
            self._scale(1)
            self._wait(
                lambda: pods_of(self.cluster, found) == [f"{self.name}-0"],
                lambda: f"pods {', '.join(pods_of(self.cluster, found))} have not ended",
            )
        return super().exchange(work, members)

    def _words(self, work: Work) -> list[str]:
        return ["postgres-restore", *(["back", work.identity, work.of] if work.undo else ["upgrade", work.identity])]

    def _spec(self, found: Body, data: Body, words: list[str]) -> Body:
        spec = super()._spec(found, data, words)
        spec["containers"][0]["image"] = self.programs
        return spec

    def _run(self, name: str, spec: Body, otherwise: str = STOPPED) -> Body:
        return super()._run(name, spec, otherwise)

    def _start(self, members: int, told: Body) -> None:
        self._give_image()
        super()._start(members, told)
        self.say(f"{self.title} runs image {self.image}; a backup is made")
        self.say(back_up(self.cluster, self.namespace, self.timeout))

    def _give_image(self) -> None:
        """As the role would: the server's image, and the version that labels tell."""

        def change(body: Body, live: Body) -> None:
            version = re.sub(r"^.*[:/]", "", self.image.partition("@")[0])
            template = body["spec"]["template"]
            for item in template["spec"]["containers"]:
                if item["name"] == self.name:
                    item["image"] = self.image
            for metadata in (body["metadata"], template["metadata"]):
                metadata["labels"] = metadata["labels"] | {VERSION: version}

        apply_own(self.cluster, STATEFUL_SET, self.namespace, self.name, change)


class Upgrade(Restore):
    """One upgrade in one cluster, or its way back."""

    playbook = "upgrade_postgres"

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        restore_namespace: str,
        image: str,
        timeout: float,
        ready_timeout: float,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is sent.

        :param restore_namespace: where backups are verified.
        :param image: of PostgreSQL in the inventory.
        :param timeout: seconds for the work on a volume, for a backup, and for a rehearsal.
        :param ready_timeout: seconds until pods are ready, or gone.
        :param say: takes lines about what is done.
        """
        super().__init__(cluster, namespace, [], timeout, ready_timeout, say)
        self.store = Upgraded(cluster, namespace, timeout, ready_timeout, say)
        self.store.image = image
        self.stores = [self.store]
        self.image, self.restore_namespace, self.timeout = image, restore_namespace, timeout

    def rehearse(self) -> Body:
        """Restore the newest backup beside, upgrade it and compare it; returns what it told, and keeps that.

        :raises EngineError: it did not pass, or the image is no upgrade.
        """
        self._require_newer()
        cronjob = copy.deepcopy(cronjob_of(self.cluster, self.restore_namespace, VERIFY))
        pod = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        [container] = pod["containers"]
        container |= {"image": self.image, "args": ["postgres-backup", "rehearse"]}
        for volume in pod["volumes"]:
            if volume["name"] == "data" and "sizeLimit" in (limit := volume.get("emptyDir") or {}):
                limit["sizeLimit"] = str(int(2 * quantity(limit["sizeLimit"])))
        ran = run_once(self.cluster, cronjob, self.timeout)
        told = json.loads(ran.line) | {"image": self.image, "all": round(ran.seconds, 1)}
        body = {"metadata": {"annotations": {REHEARSED: json.dumps(told)}}}
        path = STATEFUL_SET.path(self.namespace, self.store.name)
        self.cluster.request("PATCH", path, body, {"fieldManager": MANAGER}, MERGE)
        return told

    def upgrade(self) -> Body:
        """Do it; returns what was told of it.

        :raises EngineError: it was not rehearsed, there is no room, or what is not done yet.
        """
        if not self.under_way():
            self._require_newer()
            told = self._rehearsed()
            self._require_room(told["size"])
            self.say("a backup is made")
            self.say(back_up(self.cluster, self.namespace, self.timeout))
        self.store.programs = self.image
        return self.run(self.image, "", undo=False)[self.store.name]

    def back(self) -> Body:
        """Go back to the data and the image from before.

        :raises EngineError: the inventory does not name it, or what is not done yet.
        """
        state = self.under_way()
        live = image_of(self.store._set())
        newer = state["target"] if state and state["playbook"] == self.playbook else live
        if (major(newer) or 0) <= (major(self.image) or 0):
            raise EngineError(
                f"postgres_image is {self.image}, and the way back is from {newer}: name the former image there."
            )
        self.store.programs = newer
        return self.run(newer, "", undo=True)[self.store.name]

    def _require_newer(self) -> None:
        self.store.require_possible(undo=False)
        live = image_of(self.store._set())
        if (major(self.image) or 0) <= (major(live) or 0):
            raise EngineError(
                f"postgres_image is {self.image}, and {live} runs: name the image of the new major in the inventory."
            )

    def _rehearsed(self) -> Body:
        found = (self.store._set()["metadata"].get("annotations") or {}).get(REHEARSED)
        told = json.loads(found) if found else {}
        if told.get("image") != self.image:
            raise EngineError(
                f"no rehearsal with image {self.image} has passed: run this without upgrade_postgres_confirm."
            )
        return told

    def _require_room(self, size: int) -> None:
        """Of the first member's volume, before anything is stopped."""
        pod = f"{self.store.name}-0"
        command = ["df", "--output=avail", "--block-size=1", "/var/lib/postgresql/data"]
        free = int(run_in_pod(self.cluster, self.namespace, pod, self.store.name, command, 60).split()[-1])
        if free < size * SPARE:
            raise EngineError(
                f"the volume of {pod} has {free / 1e6:.0f} MB left, and the upgraded copy needs"
                f" {size * SPARE / 1e6:.0f} MB: raise postgres_storage_size, or discard what is set aside"
                " (-e restore_discard=true of restore.yml)."
            )


def back_up(cluster: Cluster, namespace: str, timeout: float) -> str:
    """Have a backup made; returns what was said of it."""
    return run_once(cluster, cronjob_of(cluster, namespace, "postgres-backup"), timeout).line
