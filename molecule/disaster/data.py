#!/usr/bin/env python3
"""What is written to every store before the cluster is lost, and looked for after.

data.py before      before the backups
data.py after       after them: rows that only the archive of the WAL has
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from object_store import kubectl

STATE = Path(__file__).resolve().parents[2] / ".cache/tests/disaster-data.json"
ROWS, LETTERS = 1000, 50
SECONDS = 120
SECRETS = {
    "citadelbuy": ("citadelbuy-secrets", "citadelbuy-postgres"),
    "citadelbuy-monitoring": ("citadelbuy-monitoring",),
}
ACCOUNT = {"email": "customer@example.com", "password": "a password of a customer"}


def sql(text: str) -> str:
    """Of the application's database."""
    command = ["psql", "-X", "-qAt", "-U", "postgres", "-d", "citadelbuy", "-c", text]
    return kubectl("--namespace=citadelbuy", "exec", "postgres-0", "--container=postgres", "--", *command).strip()


def redis(command: str) -> str:
    """An answer of Redis."""
    login = f"REDISCLI_AUTH=$(cat /etc/citadelbuy/secrets/REDIS_PASSWORD) redis-cli -s /run/redis/redis.sock {command}"
    where = ["--namespace=citadelbuy", "exec", "redis-0", "--container=redis", "--"]
    return kubectl(*where, "sh", "-c", login).strip()


def node(program: str) -> Any:
    """What a program prints that runs beside the API, with its login to the stores."""
    where = ["--namespace=citadelbuy", "exec", "deployment/citadelbuy-api", "--", "node", "--input-type=module", "-e"]
    return json.loads(kubectl(*where, program))


def api(method: str, path: str, body: Any = None, token: str = "") -> Any:
    """A request to the API: status and what it answers."""
    request = {"method": method, "headers": {"content-type": "application/json", "authorization": f"Bearer {token}"}}
    if body is not None:
        request["body"] = json.dumps(body)
    return node(
        f"const answer = await fetch('http://127.0.0.1:3000{path}', {json.dumps(request)});"
        "console.log(JSON.stringify([answer.status, await answer.json().catch(() => null)]));"
    )


def letters(program: str) -> Any:
    """What Elasticsearch answers a request about an index of letters, which PostgreSQL knows nothing of."""
    return node(
        "const { ELASTICSEARCH_USERNAME: user = 'elastic', ELASTICSEARCH_PASSWORD: password } = process.env;"
        "const authorization = `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;"
        "const headers = { authorization, 'content-type': 'application/x-ndjson' };"
        "const ask = async (path, rest) =>"
        " (await fetch(`${process.env.ELASTICSEARCH_URL}/letters/${path}`, { headers, ...rest })).json();"
        f"console.log(JSON.stringify(await {program}));"
    )


def secrets() -> dict[str, dict[str, str]]:
    """The values that the applications and the stores know each other by."""
    found = {}
    for namespace, names in SECRETS.items():
        for name in names:
            secret = kubectl(f"--namespace={namespace}", "get", "secret", name, "--output=json")
            found[name] = json.loads(secret)["data"]
    return found


def before() -> None:
    """Write to every store, and remember what."""
    status, account = api("POST", "/api/auth/register", ACCOUNT)
    assert status == 201, account
    products = []
    for number in range(20):
        product = {
            "name": f"Lost and found {number}",
            "description": "written before the cluster is lost",
            "price": number,
        }
        status, made = api("POST", "/api/products", product)
        assert status == 201, made
        products.append(made["id"])
    sql(f"CREATE TABLE disaster AS SELECT number, md5(number::text) AS text FROM generate_series(1, {ROWS}) AS number")
    redis(f'EVAL \'for i = 1, {ROWS} do redis.call("SET", "cart:" .. i, "item" .. i) end\' 0')
    lines = "".join(f'{{"index":{{"_id":"{number}"}}}}\n{{"text":"letter {number}"}}\n' for number in range(LETTERS))
    written = letters(f"ask('_bulk', {{ method: 'POST', body: {json.dumps(lines)} }})")
    assert not written["errors"], written
    state = {"account": account, "products": products, "secrets": secrets()}
    STATE.parent.mkdir(parents=True, exist_ok=True)
    STATE.write_text(json.dumps(state))


def after() -> None:
    """Write rows, and wait until they have left the cluster by themselves, as all do within a minute."""
    sql(f"INSERT INTO disaster SELECT number, md5(number::text) FROM generate_series({ROWS + 1}, {2 * ROWS}) AS number")
    written = sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    deadline = time.monotonic() + SECONDS
    while sql("SELECT last_archived_wal FROM pg_stat_archiver") < written:
        if time.monotonic() > deadline:
            sys.exit(f"data.py: segment {written} has not left the cluster in {SECONDS} s")
        time.sleep(1)


if __name__ == "__main__":
    try:
        {"before": before, "after": after}[sys.argv[1]]()
    except (IndexError, KeyError):
        sys.exit(__doc__)
    except subprocess.CalledProcessError as error:
        sys.exit(f"data.py: {error}")
