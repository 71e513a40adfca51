"""A dozen attacks by every way into a request: SQL, scripts, paths, commands and others of the core rule set."""

from __future__ import annotations

import json
from typing import Any

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def _get(path: str, **headers: str) -> dict[str, Any]:
    return {"method": "GET", "path": path, "headers": {name.replace("_", "-"): text for name, text in headers.items()}}


def _post(path: str, kind: dict[str, str], body: str) -> dict[str, Any]:
    return {"method": "POST", "path": path, "headers": kind, "body": body}


ATTACKS = {
    "SQL in a page's query": _get("/search?q=1'%20OR%20'1'='1"),
    "SQL in the API's query": _get("/api/search?q=1%20UNION%20SELECT%20email,password_hash%20FROM%20users--"),
    "SQL in JSON": _post("/api/auth/login", JSON, json.dumps({"email": "x' OR 1=1-- -", "password": "12345678"})),
    "SQL in a form": _post("/products", FORM, "name=x%27%3B+DROP+TABLE+users%3B--&price=1"),
    "a script in a query": _get("/search?q=%3Cscript%3Ealert(document.cookie)%3C/script%3E"),
    "a script in JSON": _post("/api/products", JSON, json.dumps({"name": "<img src=x onerror=alert(1)>", "price": 1})),
    "a script in a header": _get("/", Referer="<script>alert(1)</script>"),
    "a script in a cookie": _get("/", Cookie="theme=<script>alert(1)</script>"),
    "a path upwards": _get("/?file=../../../../etc/passwd"),
    "a path upwards, encoded twice": _get("/search?q=..%252f..%252f..%252fetc%252fpasswd"),
    "a command": _get("/api/search?q=lamp%3Bcat%20/etc/passwd"),
    "code of Java": _get("/", User_Agent="java.lang.Runtime.getRuntime().exec('id')"),
    "a file of PHP": _get("/?page=php://filter/convert.base64-encode/resource=index"),
    "a scanner": _get("/", User_Agent="sqlmap/1.7.2#stable (https://sqlmap.org)"),
}
