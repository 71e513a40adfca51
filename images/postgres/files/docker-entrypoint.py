#!/usr/bin/python3
"""Start PostgreSQL: under Patroni when PATRONI_SCOPE is set, else alone, with the environment of the official image.

docker-entrypoint.py postgres [-c NAME=VALUE ...]   the server
docker-entrypoint.py primary [...]                  what Patroni calls to make a primary what it should be
docker-entrypoint.py reload                         let Patroni use the passwords that the files hold now
docker-entrypoint.py cluster                        the members as Patroni's API has them, in JSON
docker-entrypoint.py COMMAND ...                    anything else is run as it is
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from socketserver import BaseServer
from typing import Any, NoReturn

CONFIGURATION = Path(os.environ.get("PATRONICTL_CONFIG_FILE", "/tmp/patroni.json"))
MAJOR = os.environ.get("PG_MAJOR", "")
SOCKETS = "/var/run/postgresql"
SUPERUSER = "postgres"
REPLICATOR = "replicator"
EXPORTER = "exporter"
API_PORT = 8008
API_TIMEOUT = 30
"""Seconds that a new primary may take to have its settings in the cluster's store."""

CERTIFICATE_PAUSE = 10
"""Seconds between looks at the certificate's files; at the first one Patroni has long learnt to take a signal."""

CYCLE = 30
"""Seconds that a cycle of Patroni's may last; what takes longer, it does beside its cycles."""

STOP_PAUSE = 0.1
"""Seconds between Patroni's looks at whether its API and its server have stopped. With its own, half a second and a
second, a primary whose pod has a second to end is killed before it has given away its hold."""

STAY = 2
"""Seconds that a pod stays after its server: clients who are still led to it are refused at once, and ask again.
kube-proxy changes its rules at most once a second, and of a pod that is gone they would hear nothing."""

NAMED_AND_GONE = (
    "SELECT current_setting('synchronous_standby_names') <> ''"
    " AND NOT EXISTS (SELECT FROM pg_stat_replication WHERE sync_priority > 0)"
)

PGBACKREST = "timeout 30 pgbackrest"
"""It goes on trying for 80 s where it is refused, and as long nobody learns that the archiver fails."""

ARCHIVE_COMMAND = f"{PGBACKREST} archive-push %p || {{ {PGBACKREST} stanza-create && {PGBACKREST} archive-push %p; }}"
"""The first segment of a new platform finds no stanza. One of another database is refused by pgBackRest, and stays."""

DEFAULT_PARAMETERS = {
    "shared_preload_libraries": "pg_stat_statements",
    "password_encryption": "scram-sha-256",
    # A new leader makes the replicas' slots a moment after they first ask: with 5 s, it has no replica for as long.
    "wal_retrieve_retry_interval": "1s",
}
INITDB = {"encoding": "UTF8", "locale": "C.UTF-8", "auth-local": "peer", "auth-host": "scram-sha-256"}

# Passwords are kept out of the log and of pg_stat_statements; nothing here waits for a replica.
SESSION = {
    "client_min_messages": "warning",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_error_statement": "panic",
    "pg_stat_statements.track_utility": "off",
    "synchronous_commit": "local",
}
SETUP_SQL = """
\\set ON_ERROR_STOP on
\\getenv password ROLE_PASSWORD
"""
ROLE_SQL = """
SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \\gexec
SELECT format('ALTER ROLE %I LOGIN', :'role') \\gexec
"""
PASSWORD_SQL = "SELECT format('ALTER ROLE %I PASSWORD %L', :'role', :'password') \\gexec\n"
REPLICATION_SQL = "SELECT format('ALTER ROLE %I REPLICATION', :'role') \\gexec\n"
# It logs in over the socket alone: the server asks the kernel who it is, and there is no password to keep.
EXPORTER_SQL = "SELECT format('GRANT pg_monitor TO %I', :'role') \\gexec\n"
# A login beside the owner, which is the owner in all that it does: so a new password never replaces one in use.
LOGIN_SQL = """
SELECT format('GRANT %I TO %I', :'owner', :'role') \\gexec
SELECT format('ALTER ROLE %I SET role TO %L', :'role', :'owner') \\gexec
"""
DATABASE_SQL = """
SELECT format('CREATE DATABASE %I OWNER %I', :'database', :'role')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \\gexec
\\connect :"database"
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
"""


def fail(message: str) -> NoReturn:
    """End with a message about what to change."""
    sys.exit(f"postgres image: {message}")


def required(name: str) -> str:
    """Return a variable of the environment that may not be empty."""
    value = setting(name)
    if not value:
        fail(f"the environment variable {name} is not set or empty; set it on the container")
    return value


def setting(name: str) -> str:
    """Return a variable of the environment, or what the file holds that NAME_FILE names; empty where there is none."""
    file = os.environ.get(f"{name}_FILE")
    try:
        return Path(file).read_text().rstrip("\n") if file else os.environ.get(name, "")
    except FileNotFoundError:
        return ""
    except OSError as error:
        fail(f"cannot read {file}, which {name}_FILE names: {error.strerror}")


def identifier(name: str, default: str) -> str:
    """Return a variable that names a role or a database."""
    value = setting(name) or default
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value):
        fail(f"{name} must be lower-case letters, digits and underscores, got {value!r}")
    return value


def check_major(data: Path) -> None:
    """Refuse data that another major has made, before anything is made of it."""
    version = data / "PG_VERSION"
    if version.exists() and (found := version.read_text().strip()) != MAJOR:
        fail(
            f"the data in {data} is PostgreSQL {found}'s, and this image is PostgreSQL {MAJOR}; nothing was changed."
            f" To do: playbooks/upgrade_postgres.yml upgrades it, or give the StatefulSet an image of {found} again"
        )


def parameters(arguments: list[str]) -> dict[str, Any]:
    """Return the server's parameters: the defaults, then POSTGRES_PARAMETERS (a JSON object), then `-c NAME=VALUE`."""
    try:
        given = json.loads(os.environ.get("POSTGRES_PARAMETERS") or "{}")
    except ValueError as error:
        fail(f"POSTGRES_PARAMETERS is not JSON: {error}")
    if not isinstance(given, dict):
        fail("POSTGRES_PARAMETERS must be a JSON object of parameter names and values")
    found = DEFAULT_PARAMETERS | given
    words = iter(arguments)
    for word in words:
        name, separator, value = (next(words, "") if word == "-c" else word.removeprefix("--")).partition("=")
        if not separator:
            fail(f"cannot read the argument {word!r}; give parameters as -c NAME=VALUE")
        found[name] = value
    return found


def certificate() -> Path | None:
    """Return the folder with the server's tls.crt and tls.key and its authority's ca.crt; None where there is none."""
    folder = os.environ.get("POSTGRES_CERTIFICATE")
    return Path(folder) if folder else None


def encryption() -> dict[str, str]:
    """Return the parameters by which the server shows its certificate."""
    folder = certificate()
    if folder is None:
        return {}
    files = {"ssl_cert_file": f"{folder}/tls.crt", "ssl_key_file": f"{folder}/tls.key"}
    return {"ssl": "on", "ssl_min_protocol_version": "TLSv1.2"} | files


def watch_certificate() -> None:
    """Have a process beside the server tell it, by SIGHUP, of each new certificate, which it then shows."""
    folder = certificate()
    if folder is None or os.fork():
        return
    file = folder / "tls.crt"
    known = file.read_bytes()
    while True:
        time.sleep(CERTIFICATE_PAUSE)
        with suppress(OSError):
            if (now := file.read_bytes()) != known:
                known = now
                print("the certificate is a new one: it is read again", flush=True)
                os.kill(os.getppid(), signal.SIGHUP)


def access_rules() -> list[str]:
    """Return pg_hba: by password over the network, by user id over the socket, which only this pod reaches.

    With a certificate the network is let in by TLS alone.
    """
    network = "hostssl" if certificate() else "host"
    return [
        "local all all peer map=pod",
        f"local replication {REPLICATOR} peer map=pod",
        f"{network} all all all scram-sha-256",
        f"{network} replication {REPLICATOR} all scram-sha-256",
    ]


def socket_users(*roles: str) -> list[str]:
    """Return pg_ident: what this container's user, and the exporter's (nobody), may call itself over the socket."""
    return [*(f"pod postgres {role}" for role in dict.fromkeys(roles)), f"pod nobody {EXPORTER}"]


def psql(superuser: str, sql: str, password: str = "", **variables: str) -> None:
    """Run SQL over the socket as the superuser; the password is psql's variable of this name."""
    command = ["psql", "--no-psqlrc", "--quiet", f"--host={SOCKETS}", f"--username={superuser}", "--dbname=postgres"]
    settings = [f"--variable={name}={value}" for name, value in variables.items()]
    session = {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in SESSION.items())}
    session["ROLE_PASSWORD"] = password
    subprocess.run([*command, *settings], input=SETUP_SQL + sql, env=os.environ | session, text=True, check=True)


# Under Patroni


def passwords() -> tuple[str, str]:
    """Return those of the superuser (and of Patroni's API) and of replication: without their own, the application's."""
    given = setting("POSTGRES_PASSWORD")
    superuser = setting("POSTGRES_SUPERUSER_PASSWORD") or given or required("POSTGRES_PASSWORD")
    return superuser, setting("POSTGRES_REPLICATION_PASSWORD") or superuser


def archiving() -> dict[str, Any]:
    """Return the parameters that archive the WAL; each member's own, so that they are in force when it starts."""
    if not os.environ.get("PGBACKREST_STANZA"):
        return {}
    if os.environ.get("POSTGRES_BACKUP_READ_ONLY"):
        return {"archive_mode": "off"}
    timeout = os.environ.get("POSTGRES_ARCHIVE_TIMEOUT", "60")
    return {"archive_mode": "on", "archive_command": ARCHIVE_COMMAND, "archive_timeout": timeout}


def verification() -> dict[str, str]:
    """Return how a member knows another: by the authority, and by the password, which is bound to the connection.

    They call one another by addresses, which no certificate has.
    """
    folder = certificate()
    if folder is None:
        return {}
    return {"sslmode": "verify-ca", "sslrootcert": f"{folder}/ca.crt", "channel_binding": "require"}


def api_files() -> dict[str, str]:
    """Return the files by which Patroni's API is spoken to by TLS."""
    folder = certificate()
    if folder is None:
        return {}
    return {"certfile": f"{folder}/tls.crt", "keyfile": f"{folder}/tls.key", "cafile": f"{folder}/ca.crt"}


def patroni_configuration(arguments: list[str]) -> dict[str, Any]:
    """Return Patroni's configuration; what PATRONI_* variables say overrides it."""
    superuser, replicator = passwords()
    address = os.environ.get("PATRONI_KUBERNETES_POD_IP") or "127.0.0.1"
    host = f"[{address}]" if ":" in address else address
    me = str(Path(__file__).resolve())
    return {
        "restapi": {
            "listen": f"0.0.0.0:{API_PORT}",
            "connect_address": f"{host}:{API_PORT}",
            # Reading is open to probes; a switchover or a changed setting needs this.
            "authentication": {"username": "patroni", "password": superuser},
            **api_files(),
        },
        # Who is called by address need not have it in the certificate. With files as above, the authority is asked for.
        "ctl": {"insecure": True},
        "bootstrap": {
            "dcs": {
                "ttl": int(os.environ.get("POSTGRES_TTL", "20")),
                "loop_wait": int(os.environ.get("POSTGRES_LOOP_WAIT", "3")),
                "retry_timeout": int(os.environ.get("POSTGRES_RETRY_TIMEOUT", "5")),
                "maximum_lag_on_failover": 16 * 1024 * 1024,
                # Without the API server, the primary goes on for as long as all members answer it.
                "failsafe_mode": True,
                "synchronous_mode": os.environ.get("POSTGRES_SYNCHRONOUS_MODE", "false").lower() == "true",
                # What postgres-lead has raised is this again, even where it was killed.
                "synchronous_node_count": 1,
                "postgresql": {
                    "use_pg_rewind": True,
                    "use_slots": True,
                    "parameters": {"wal_keep_size": "128MB"} | parameters(arguments),
                },
            },
            "initdb": [*({name: value} for name, value in INITDB.items()), "data-checksums"],
            "post_init": f"{me} primary post_init",
        },
        "postgresql": {
            "listen": "0.0.0.0:5432",
            "connect_address": f"{host}:5432",
            "data_dir": required("PGDATA"),
            "bin_dir": f"/usr/lib/postgresql/{MAJOR}/bin",
            "pgpass": "/tmp/pgpass",
            "use_unix_socket": True,
            # What other members are asked for, the socket does not have.
            "use_unix_socket_repl": certificate() is None,
            "authentication": {
                "superuser": {"username": SUPERUSER, "password": superuser},
                "replication": {"username": REPLICATOR, "password": replicator} | verification(),
                "rewind": {"username": SUPERUSER, "password": superuser} | verification(),
            },
            # In force when it starts. Of max_connections and a few more, Patroni heeds the cluster's settings alone.
            "parameters": parameters(arguments) | {"unix_socket_directories": SOCKETS} | encryption() | archiving(),
            "pg_hba": access_rules(),
            "pg_ident": socket_users(SUPERUSER, REPLICATOR, identifier("POSTGRES_USER", SUPERUSER)),
            "basebackup": [{"checkpoint": "fast"}],
            "callbacks": dict.fromkeys(("on_start", "on_role_change"), f"{me} primary"),
        },
    }


def wait_for_nobody_gone(patroni: Any) -> None:
    """Have Patroni's class `Ha` see that no commit waits for a replica that is not there.

    The last replica that goes, in the 2 s after it was named synchronous, stays named by Patroni before 4.1 (#3370) and
    every commit waits until another one comes. As nobody but the primary may lead then, none need wait.
    """
    process = patroni.process_sync_replication

    def process_sync_replication(self: Any) -> None:
        if self.is_synchronous_mode() and not self.cluster.sync.sync_standby:
            [[gone]] = self.state_handler.query(NAMED_AND_GONE)
            if gone and not self.dcs.get_cluster().sync.sync_standby:
                print("the synchronous replica is gone: commits wait for none", flush=True)
                self.state_handler.sync_handler.set_synchronous_standby_names([])
        process(self)

    patroni.process_sync_replication = process_sync_replication


def end_where_it_stands(patroni: Any) -> None:
    """Have Patroni's class `Ha` end where a cycle of it does not, and tell where each thread was.

    One that has taken the lead and stands serves nobody and lets nobody else lead; seen once, and the cause not found.
    The kubelet's probe takes a minute and a half to see it.
    """
    run_cycle = patroni.run_cycle

    def watched(self: Any, *given: Any) -> Any:
        faulthandler.dump_traceback_later(CYCLE, exit=True)
        try:
            return run_cycle(self, *given)
        finally:
            faulthandler.cancel_dump_traceback_later()

    patroni.run_cycle = watched


def run_patroni(arguments: list[str]) -> NoReturn:
    """Become Patroni."""
    CONFIGURATION.touch(mode=0o600)
    CONFIGURATION.write_text(json.dumps(patroni_configuration(arguments), indent=2))
    Path(required("PGDATA")).parent.mkdir(parents=True, exist_ok=True)
    watch_certificate()
    from patroni import api, ha, postgresql
    from patroni.__main__ import main as patroni

    wait_for_nobody_gone(ha.Ha)
    end_where_it_stands(ha.Ha)
    postgresql.STOP_POLLING_INTERVAL = STOP_PAUSE
    api.RestApiServer.serve_forever = partialmethod(BaseServer.serve_forever, STOP_PAUSE)
    sys.argv = ["patroni", str(CONFIGURATION)]
    patroni()
    time.sleep(STAY)
    sys.exit()


def reload() -> None:
    """Give the running Patroni the passwords that the files hold now; its replicas connect anew by themselves."""
    configuration = json.loads(CONFIGURATION.read_text())
    superuser, replicator = passwords()
    configuration["restapi"]["authentication"]["password"] = superuser
    users = configuration["postgresql"]["authentication"]
    users["superuser"]["password"] = users["rewind"]["password"] = superuser
    users["replication"]["password"] = replicator
    new = CONFIGURATION.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(configuration, indent=2))
    new.rename(CONFIGURATION)
    os.kill(1, signal.SIGHUP)


def changes(live: dict[str, Any], wanted: dict[str, Any], owned: bool = False) -> dict[str, Any]:
    """Return the patch that makes the live settings the wanted ones; `owned` drops what is not wanted."""
    patch: dict[str, Any] = {}
    for name, value in wanted.items():
        if isinstance(value, dict):
            below = live.get(name) if isinstance(live.get(name), dict) else {}
            if found := changes(below, value, owned=name == "parameters"):
                patch[name] = found
        elif live.get(name) != value:
            patch[name] = value
    return patch | ({name: None for name in live if name not in wanted} if owned else {})


def call_api(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call Patroni's API in this container."""
    api = json.loads(CONFIGURATION.read_text())["restapi"]
    login = api["authentication"]
    token = b64encode(f"{login['username']}:{login['password']}".encode()).decode()
    request = urllib.request.Request(
        f"{'https' if 'cafile' in api else 'http'}://localhost:{API_PORT}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
    )
    trusted = ssl.create_default_context(cafile=api["cafile"]) if "cafile" in api else None
    with urllib.request.urlopen(request, timeout=5, context=trusted) as answer:
        return json.load(answer)


def converge_primary(arguments: list[str]) -> None:
    """On the primary, make roles, database and the cluster's settings what the environment says."""
    event = arguments[0] if arguments else ""
    if event != "post_init" and (len(arguments) < 2 or arguments[1] not in {"master", "primary"}):
        return
    superuser, replicator = passwords()
    owner = identifier("POSTGRES_USER", SUPERUSER)
    login = identifier("POSTGRES_LOGIN", owner)
    psql(SUPERUSER, ROLE_SQL + PASSWORD_SQL, superuser, role=SUPERUSER)
    psql(SUPERUSER, ROLE_SQL + PASSWORD_SQL + REPLICATION_SQL, replicator, role=REPLICATOR)
    psql(SUPERUSER, ROLE_SQL + EXPORTER_SQL, role=EXPORTER)
    psql(SUPERUSER, ROLE_SQL, role=owner)
    if login != owner:
        psql(SUPERUSER, ROLE_SQL + LOGIN_SQL, role=login, owner=owner)
    if login != SUPERUSER:
        psql(SUPERUSER, PASSWORD_SQL, required("POSTGRES_PASSWORD"), role=login)
    psql(SUPERUSER, DATABASE_SQL, role=owner, database=identifier("POSTGRES_DB", owner))
    if event == "post_init":
        return
    wanted = json.loads(CONFIGURATION.read_text())["bootstrap"]["dcs"]
    deadline = time.monotonic() + API_TIMEOUT
    while True:
        try:
            patch = changes(call_api("GET", "/config"), wanted)
            if patch:
                call_api("PATCH", "/config", patch)
                print(f"the cluster's settings were changed: {json.dumps(patch)}", flush=True)
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                fail(f"Patroni on localhost:{API_PORT} does not take the cluster's settings: {error}")
            time.sleep(1)


# Alone


def make_data(data: Path) -> None:
    """Make the data folder beside its place, and move it there when it is complete."""
    superuser = identifier("POSTGRES_USER", SUPERUSER)
    password = required("POSTGRES_PASSWORD")
    if data.is_mount():
        fail(f"PGDATA={data} is a mount point; name a folder below it")
    new = data.with_name(f"{data.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    secret = Path("/tmp/initdb-password")
    secret.touch(mode=0o600)
    secret.write_text(password + "\n")
    options = [f"--{name}={value}" for name, value in INITDB.items()]
    command = ["initdb", "--data-checksums", f"--pgdata={new}", f"--username={superuser}", f"--pwfile={secret}"]
    subprocess.run([*command, *options], check=True)
    secret.unlink()
    (new / "pg_hba.conf").write_text("\n".join(access_rules()) + "\n")
    (new / "pg_ident.conf").write_text("\n".join(socket_users(SUPERUSER, superuser)) + "\n")
    preload = f"-c listen_addresses='' -c unix_socket_directories={SOCKETS}"
    subprocess.run(["pg_ctl", f"--pgdata={new}", f"--options={preload}", "--wait", "--silent", "start"], check=True)
    psql(superuser, DATABASE_SQL, role=superuser, database=identifier("POSTGRES_DB", superuser))
    subprocess.run(["pg_ctl", f"--pgdata={new}", "--mode=fast", "--wait", "--silent", "stop"], check=True)
    new.rename(data)


def run_alone(arguments: list[str]) -> NoReturn:
    """Run the server as a child; a SIGTERM stops it without waiting for its clients to leave."""
    data = Path(required("PGDATA"))
    if not (data / "PG_VERSION").exists():
        make_data(data)
    settings = {"listen_addresses": "*", "unix_socket_directories": SOCKETS} | parameters(arguments) | encryption()
    watch_certificate()
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server = subprocess.Popen(["postgres", "-D", str(data), *words])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: server.send_signal(signal.SIGINT))
    signal.signal(signal.SIGHUP, lambda _number, _frame: server.send_signal(signal.SIGHUP))
    sys.exit(server.wait())


def main() -> None:
    """Run what the arguments name."""
    command, *arguments = sys.argv[1:] or ["postgres"]
    if command.startswith("-"):
        command, arguments = "postgres", sys.argv[1:]
    if command == "primary":
        converge_primary(arguments)
    elif command == "reload":
        reload()
    elif command == "cluster":
        print(json.dumps(call_api("GET", "/cluster")))
    elif command != "postgres":
        os.execvp(command, [command, *arguments])
    else:
        check_major(Path(required("PGDATA")))
        (run_patroni if os.environ.get("PATRONI_SCOPE") else run_alone)(arguments)


if __name__ == "__main__":
    main()
