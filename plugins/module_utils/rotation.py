"""Rotation of secrets: a new value into the store, into the Secret, into every pod; then the old one off.

Everything that a run must know to go on stands in Secret `citadelbuy-secrets-rotation` before a store is touched, and
every step may be done again. So a run that was killed is completed by the next one, which takes all steps anew. A run
holds a Lease of that name, so that no two overlap.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from ansible_collections.citadelbuy.platform.plugins.module_utils import applyset, diff
from ansible_collections.citadelbuy.platform.plugins.module_utils.apply_own import apply_own
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    SECRET,
    Cluster,
    EngineError,
    Resource,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.generate import ROTATED, random_value
from ansible_collections.citadelbuy.platform.plugins.module_utils.lease import Lease
from ansible_collections.citadelbuy.platform.plugins.module_utils.parent import MANAGER
from ansible_collections.citadelbuy.platform.plugins.module_utils.render import Manifest
from ansible_collections.citadelbuy.platform.plugins.module_utils.rotation_stores import (
    PAUSE,
    POD,
    STORES,
    Body,
    Store,
    Turn,
)
from ansible_collections.citadelbuy.platform.plugins.module_utils.wait import KINDS, Waiter, targets_of

MAIN, MEMBERS, STATE = "citadelbuy-secrets", "citadelbuy-postgres", "citadelbuy-secrets-rotation"
ROTATION_MANAGER = f"{MANAGER}-rotation"
OWN = {
    "DATABASE_PASSWORD": MAIN,
    "REDIS_PASSWORD": MAIN,
    "ELASTICSEARCH_PASSWORD": MAIN,
    "JWT_SECRET": MAIN,
    "SESSION_SECRET": MAIN,
    "DATABASE_SUPERUSER_PASSWORD": MEMBERS,
    "DATABASE_REPLICATION_PASSWORD": MEMBERS,
}
USER_KEYS = {"DATABASE_PASSWORD": "DATABASE_USER", "ELASTICSEARCH_PASSWORD": "ELASTICSEARCH_USERNAME"}
SIGNING = ("JWT_SECRET", "SESSION_SECRET")
ALSO_ACCEPTED = "_ALSO_ACCEPTED"  # + key: values beside JWT_SECRET that a token may be signed with, one a line
ACCEPTED = ".accepted"  # + key, in the state: what a member of a store that starts anew has to take


class Rotation:
    """One run of the playbook on one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        given: Mapping[str, str],
        timeout: float,
        lifetime: float = 3600,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Prepare; nothing is sent.

        :param given: the inventory's values by key; empty or absent ones are generated.
        :param timeout: seconds that the pods may take, each time.
        :param lifetime: seconds that what was signed with an old key stays valid.
        :param say: told of each step, never with a value.
        """
        self.cluster, self.namespace, self.given = cluster, namespace, given
        self.timeout, self.lifetime, self._say = timeout, lifetime, say
        self.lease = Lease(cluster, namespace, STATE, "A rotation of the secrets")
        self.told: dict[str, str] = {}  # by name of a secret

    def run(self, names: list[str], check: bool = False) -> dict[str, str]:
        """Rotate secrets, after what an earlier run has left half done.

        :param names: keys, or `all`.
        :returns: by key, what was done (in check mode: would be).
        """
        if check:
            turns, fresh = self._to_do(names)
            for name in turns:
                self.told[name] = "is half done and would be completed"
            for name, turn in fresh.items():
                self.told[name] = _plan(turn, self.given.get(name))
            return self.told
        with self.lease:
            turns, fresh = self._to_do(names)
            turns = turns | fresh
            try:
                if turns:
                    # Of those that are half done too: the run that was killed may have had it on its way out.
                    self._write_state(turns)
                    self._turn_over(turns)
            except EngineError as error:
                values = {value for turn in turns.values() for value in turn.values}
                raise EngineError(diff.mask(str(error), values)) from None
        return self.told

    def say(self, line: str) -> None:
        """Begin a step: tell it, while no other run is at work."""
        self.lease.check()
        self._say(line)

    def _to_do(self, names: list[str]) -> tuple[dict[str, Turn], dict[str, Turn]]:
        """The rotations that are half done, and those to begin."""
        turns = self._begun()
        fresh = self._choose(names, turns)
        for name in [*turns, *fresh]:
            if store := self._store(name):
                store.check_deployed()
        return turns, fresh

    def _choose(self, names: list[str], begun: Mapping[str, Turn]) -> dict[str, Turn]:
        """The rotations to begin: those asked for that are not under way."""
        values = {secret: self._values(secret) for secret in (MAIN, MEMBERS)}
        third = [key for key in values[MAIN] if key not in OWN and key not in USER_KEYS.values()]
        known = [*(key for key, secret in OWN.items() if key in values[secret])]
        known += [key for key in third if not key.endswith(ALSO_ACCEPTED)]
        everything = "all" in names
        if unknown := sorted(set(names) - {"all"} - set(known)):
            raise EngineError(
                f"rotate_secrets_names: {', '.join(unknown)}: no such secret. There are: {', '.join(sorted(known))}."
            )
        found: dict[str, Turn] = {}
        for name in known if everything else dict.fromkeys(names):
            if name in begun:
                continue
            data = values[OWN.get(name, MAIN)]
            value = self.given.get(name) or ("" if name in third else random_value())
            if not value or value == data[name]:
                if everything:
                    self.told[name] = "left: the inventory gives the value that is in use; change it there first"
                    continue
                raise EngineError(
                    f"{name} comes from the inventory, which gives the value that is in use: change it there first "
                    f"(ansible-vault edit), then run this again."
                )
            store, user_key = self._store(name), USER_KEYS.get(name)
            previous, following = store.users(data.get(user_key, "") if user_key else "") if store else ("", "")
            found[name] = Turn(name, value, data[name], following, previous, time.time())
        return found

    def _turn_over(self, turns: dict[str, Turn]) -> None:
        stores = {name: store for name in turns if (store := self._store(name))}
        for name, store in stores.items():
            self.say(f"{name}: the store takes the new value beside the old one")
            self._timed(turns[name], lambda store=store, name=name: store.accept(turns[name]))
        signing = [name for name in turns if name in SIGNING]
        if signing:
            self.say(f"{', '.join(signing)}: every pod accepts the new key beside the old one")
            self._accept_also(turns)
            self._roll_out()
        for name, store in stores.items():
            store.prove(turns[name], retired=False)
        self.say("Secrets get the new values")
        self._switch(turns)
        self.say("every pod gets the new values")
        self._roll_out()
        for turn in turns.values():
            turn.switched = turn.switched or time.time()
        self._write_state(turns, accepted=False)
        for name, store in stores.items():
            self.say(f"{name}: the old value off")
            self._timed(turns[name], lambda store=store, name=name: store.retire(turns[name]))
            store.prove(turns[name], retired=True)
        waiting = {name: turns[name] for name in signing if time.time() < turns[name].switched + self.lifetime}
        if ended := [name for name in signing if name not in waiting]:
            self.say(f"{', '.join(ended)}: no pod accepts the old key any more")
        self._accept_also(waiting)
        self._roll_out()
        self.say("what was needed to go on is removed")
        self._write_state(waiting)
        for name, turn in turns.items():
            total = f"{time.time() - turn.begun:.0f} s"
            own = f", {turn.seconds:.1f} s of them with its store" if name in stores else ""
            if name in waiting:
                until = time.strftime("%H:%M:%S UTC", time.gmtime(turn.switched + self.lifetime))
                self.told[name] = f"in use after {total}; run this again after {until}: then the old key is refused"
            else:
                proof = "; the store refuses the old one" if name in stores else ""
                self.told[name] = f"rotated in {total}{own}{proof}{_who(turn)}"

    @staticmethod
    def _timed(turn: Turn, step: Callable[[], None]) -> None:
        started = time.monotonic()
        step()
        turn.seconds += time.monotonic() - started

    def _store(self, name: str) -> Store | None:
        return STORES[name](self.cluster, self.namespace, self.timeout) if name in STORES else None

    # Secrets

    def _values(self, secret: str) -> dict[str, str]:
        body = self.cluster.get(SECRET, self.namespace, secret)
        if body is None and secret == MAIN:
            raise EngineError(f"Secret {self.namespace}/{MAIN} does not exist: deploy with playbooks/site.yml first.")
        return {key: base64.b64decode(value).decode() for key, value in ((body or {}).get("data") or {}).items()}

    def _begun(self) -> dict[str, Turn]:
        values = self._values(STATE)
        return {name: Turn(**json.loads(text)) for name, text in values.items() if not name.endswith(ACCEPTED)}

    def _write_state(self, turns: Mapping[str, Turn], accepted: bool = True) -> None:
        data = {name: json.dumps(asdict(turn) | {"seconds": 0.0}) for name, turn in turns.items()}
        if accepted:
            data |= {
                name + ACCEPTED: f"{turn.next}\n{turn.previous}\n"
                for name, turn in turns.items()
                if name == "REDIS_PASSWORD"
            }
        self._apply(STATE, data, ROTATION_MANAGER)

    def _accept_also(self, turns: Mapping[str, Turn]) -> None:
        """Have the API accept these signing keys beside the one it signs with; of others, no more."""
        data = {
            name + ALSO_ACCEPTED: f"{turns[name].next}\n{turns[name].previous}" for name in SIGNING if name in turns
        }
        self._apply(MAIN, data, ROTATION_MANAGER)

    def _apply(self, secret: str, data: Mapping[str, str], manager: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret, "namespace": self.namespace},
            "data": {key: _encoded(value) for key, value in data.items()},
        }
        path = SECRET.path(self.namespace, secret)
        query = {"fieldManager": manager, "force": "true"}
        self.cluster.request("PATCH", path, body, query, "application/apply-patch+yaml")

    def _switch(self, turns: Mapping[str, Turn]) -> None:
        """Put the new values, their users and the time of change into the Secrets, each in one write."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for secret in (MAIN, MEMBERS):
            mine = [turn for name, turn in turns.items() if OWN.get(name, MAIN) == secret]
            wanted = {turn.name: turn.next for turn in mine}
            wanted |= {USER_KEYS[turn.name]: turn.next_user for turn in mine if turn.name in USER_KEYS}
            encoded = {key: _encoded(value) for key, value in wanted.items()}

            def change(body: Body, live: Body, encoded: dict[str, str] = encoded) -> None:
                known = live.get("data") or {}
                body["data"] = (body.get("data") or {}) | encoded
                changed = [key for key, value in encoded.items() if key in turns and known.get(key) != value]
                annotations = body["metadata"].get("annotations") or {}
                body["metadata"]["annotations"] = annotations | {ROTATED + key: now for key in changed}

            if encoded:
                apply_own(self.cluster, SECRET, self.namespace, secret, change)

    # Pods

    def _hashes(self, kind: str, namespace: str | None, name: str) -> dict[str, str] | None:
        live = self.cluster.get(Resource("v1", kind, f"{kind.lower()}s", True), namespace, name)
        return applyset.hash_keys(live) if live else None

    def _roll_out(self) -> None:
        """Roll the workloads whose configuration has changed, as site.yml would; wait until no older pod is left."""
        rolled, current = [], {}
        for kind in applyset.ROLLED_BY_CHECKSUM:
            selector = "app.kubernetes.io/part-of=citadelbuy"
            for body in self.cluster.list(KINDS[kind], self.namespace, labelSelector=selector)["items"]:
                wanted = _checksum(body, self._hashes)
                if not wanted or not _uses(body, (MAIN, MEMBERS)):
                    continue
                if (body["spec"]["template"]["metadata"].get("annotations") or {}).get(applyset.CHECKSUM) != wanted:

                    def change(applied: Body, live: Body) -> None:
                        checksum = _checksum(live, self._hashes)
                        metadata = applied["spec"]["template"].setdefault("metadata", {})
                        metadata["annotations"] = (metadata.get("annotations") or {}) | {applyset.CHECKSUM: checksum}

                    body = apply_own(self.cluster, KINDS[kind], self.namespace, body["metadata"]["name"], change)
                rolled.append(body)
                current[body["metadata"]["name"]] = (body["spec"]["selector"]["matchLabels"], wanted)
        Waiter(self.cluster, self.timeout).wait(targets_of(rolled))
        self._wait_for_older(current)

    def _wait_for_older(self, current: Mapping[str, tuple[dict[str, str], str]]) -> None:
        """Until no pod of an older configuration runs: not one that is going, nor one of a Job begun before."""
        running = None
        end = time.monotonic() + self.timeout
        while True:
            older = []
            for labels, checksum in current.values():
                selector = ",".join(f"{key}={value}" for key, value in labels.items())
                for pod in self.cluster.list(POD, self.namespace, labelSelector=selector)["items"]:
                    found = (pod["metadata"].get("annotations") or {}).get(applyset.CHECKSUM)
                    if found != checksum and _runs(pod):
                        older.append(pod["metadata"]["name"])
            jobs = {
                pod["metadata"]["name"]
                for pod in self.cluster.list(POD, self.namespace, labelSelector="batch.kubernetes.io/job-name")["items"]
                if _runs(pod) and _uses({"spec": {"template": pod}}, (MAIN,))
            }
            running = jobs if running is None else running & jobs
            if not older and not running:
                return
            if time.monotonic() > end:
                names = ", ".join(sorted([*older, *running]))
                raise EngineError(f"pods that have the old values still run: {names}. Run again when they are gone.")
            time.sleep(PAUSE)


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _checksum(body: Body, hashes: applyset.KeyHashes) -> str:
    """The configuration checksum of a live workload, as the engine computes it of its manifest."""
    template = body["spec"]["template"]
    copy = body | {"spec": body["spec"] | {"template": template | {"metadata": dict(template["metadata"])}}}
    copy["spec"]["template"]["metadata"]["annotations"] = {
        key: value for key, value in (template["metadata"].get("annotations") or {}).items() if key != applyset.CHECKSUM
    }
    applyset.add_checksum(Manifest(copy, "live"), hashes)
    return str(copy["spec"]["template"]["metadata"]["annotations"].get(applyset.CHECKSUM) or "")


def _uses(body: Body, secrets: tuple[str, ...]) -> bool:
    pod = body["spec"]["template"].get("spec") or {}
    return any(kind == "Secret" and name in secrets for kind, name, _keys in applyset.references(pod))


def _runs(pod: Body) -> bool:
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def _plan(turn: Turn, given: str | None) -> str:
    source = "the inventory's value" if given else "a new value, generated"
    return f"would get {source}{_who(turn)}"


def _who(turn: Turn) -> str:
    if not turn.next_user or turn.next_user == turn.previous_user:
        return ""
    return f"; user {turn.next_user} after {turn.previous_user}"
