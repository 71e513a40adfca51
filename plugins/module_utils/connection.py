"""HTTPS to one cluster's API: kubeconfig, pooled requests, discovery of kinds, and watches.

The standard library's client is used on purpose: importing the `kubernetes` package costs half a second in every run,
and the engine needs five verbs only. Credentials never appear in a message or a repr.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import yaml

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 60.0  # seconds; also how long a watch may stay silent before it is opened anew
LOG_TIMEOUT = 5.0  # seconds; a log goes through a kubelet that may be gone
RETRY_FOR = 15.0  # seconds an API server that answered before may be away while applying
BROKEN = (OSError, http.client.HTTPException)


class EngineError(Exception):
    """A failure that is told to the user as it is: one message, no stack trace."""


class Unreachable(EngineError):
    """The API server does not answer."""


class ApiError(EngineError):
    """The API server answered with an error; `body` is its Status object."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(body.get("message") or f"HTTP {status}")
        self.status = status
        self.body = body

    @property
    def reason(self) -> str:
        """The Status reason, such as NotFound or Conflict."""
        return str(self.body.get("reason", ""))

    @property
    def causes(self) -> list[dict[str, str]]:
        """The Status causes: dicts with reason, message and field."""
        return (self.body.get("details") or {}).get("causes") or []


@dataclass(frozen=True)
class Resource:
    """A kind as the API server serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The URL path of the collection (no name) or of one object; no namespace means all of them."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        if self.namespaced and namespace:
            root += f"/namespaces/{quote(namespace)}"
        return f"{root}/{self.plural}" + (f"/{quote(name)}" if name else "")


SECRET = Resource("v1", "Secret", "secrets", True)


@dataclass(repr=False)
class Credentials:
    """What one kubeconfig context says: where the server is and how to log in."""

    server: str
    tls: ssl.SSLContext | None = None
    tls_server_name: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    proxy: str | None = None


def load_kubeconfig(path: str | None, context: str | None, cluster: str) -> Credentials:
    """Read a context of a kubeconfig file.

    Certificates, keys, tokens, token files, basic auth and exec plugins are understood.
    :raises EngineError: one line that names the file, and the contexts it has, when something is missing.
    """
    if not path:
        raise EngineError(f"cluster {cluster}: no kubeconfig: set the variable cluster_kubeconfig to its path.")
    file = Path(path).expanduser()
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise EngineError(
            f"cluster {cluster}: kubeconfig {file} does not exist (variable cluster_kubeconfig)."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise EngineError(f"cluster {cluster}: cannot read kubeconfig {file}: {reason}.") from None
    except yaml.YAMLError:  # its text would quote the file, credentials included
        raise EngineError(f"cluster {cluster}: kubeconfig {file} is not valid YAML.") from None
    if not isinstance(config, dict) or not config.get("contexts"):
        raise EngineError(f"cluster {cluster}: {file} is no kubeconfig: it has no contexts.")

    def entry(section: str, name: str | None) -> dict[str, Any]:
        for item in config.get(section) or []:
            if item.get("name") == name:
                return item.get(section.rstrip("s")) or {}
        known = ", ".join(sorted(str(item.get("name")) for item in config.get(section) or [])) or "none"
        hint = " (variable cluster_context)" if section == "contexts" else ""
        raise EngineError(
            f"cluster {cluster}: kubeconfig {file} has no {section.rstrip('s')} {name!r}{hint}; it has: {known}."
        )

    chosen = entry("contexts", context or config.get("current-context"))
    target, user = entry("clusters", chosen.get("cluster")), entry("users", chosen.get("user"))
    if "exec" in user:
        user = user | _run_exec_plugin(user["exec"], file, cluster)
    if "auth-provider" in user:
        raise EngineError(
            f"cluster {cluster}: kubeconfig {file}: auth-provider logins are not supported, use an exec plugin."
        )
    credentials = Credentials(str(target.get("server", "")).rstrip("/"), proxy=target.get("proxy-url"))
    if not credentials.server.startswith(("https://", "http://")):
        raise EngineError(
            f"cluster {cluster}: kubeconfig {file} has no server URL for cluster {chosen.get('cluster')}."
        )
    if user.get("tokenFile"):
        user = user | {"token": (file.parent / user["tokenFile"]).read_text(encoding="utf-8").strip()}
    if user.get("token"):
        credentials.headers["Authorization"] = f"Bearer {user['token']}"
    elif user.get("username"):
        pair = f"{user['username']}:{user.get('password', '')}".encode()
        credentials.headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
    if credentials.server.startswith("https://"):
        credentials.tls_server_name = target.get("tls-server-name")
        try:
            credentials.tls = _tls_context(target, user, file.parent)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise EngineError(
                f"cluster {cluster}: certificates of kubeconfig {file} cannot be used: {reason}."
            ) from None
    return credentials


def _tls_context(target: dict[str, Any], user: dict[str, Any], folder: Path) -> ssl.SSLContext:
    """A TLS context from the kubeconfig's cluster and user entries; inline data is on disk for a moment, mode 0600."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if target.get("insecure-skip-tls-verify"):
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    elif target.get("certificate-authority-data"):
        tls.load_verify_locations(cadata=base64.b64decode(target["certificate-authority-data"]).decode())
    elif target.get("certificate-authority"):
        tls.load_verify_locations(folder / target["certificate-authority"])
    else:
        tls.load_default_certs()

    def pem(key: str) -> bytes | None:
        if user.get(f"{key}-data"):
            return base64.b64decode(user[f"{key}-data"])
        return (folder / user[key]).read_bytes() if user.get(key) else None

    certificate, key = pem("client-certificate"), pem("client-key")
    if certificate:
        with tempfile.NamedTemporaryFile() as handle:
            handle.write(certificate + b"\n" + (key or b""))
            handle.flush()
            tls.load_cert_chain(handle.name)
    return tls


def _run_exec_plugin(spec: dict[str, Any], file: Path, cluster: str) -> dict[str, Any]:
    """Run a kubeconfig's credential plugin and return the user fields that it answers with."""
    info = {"apiVersion": spec.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": False}}
    env = os.environ | {item["name"]: item["value"] for item in spec.get("env") or []}
    command = str(spec.get("command", ""))
    if os.sep in command:
        command = str(file.parent / command)
    try:
        done = subprocess.run(
            [command, *(spec.get("args") or [])],
            env=env | {"KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        )
        status = json.loads(done.stdout)["status"]
    except FileNotFoundError:
        hint = spec.get("installHint") or "install it on the control node"
        raise EngineError(
            f"cluster {cluster}: login plugin {command} of kubeconfig {file} is missing: {hint}"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()[-300:]
        raise EngineError(f"cluster {cluster}: login plugin {command} of kubeconfig {file} failed: {reason}") from None
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        raise EngineError(
            f"cluster {cluster}: login plugin {command} of kubeconfig {file} gave no credentials."
        ) from None
    inline = {"client-certificate": "clientCertificateData", "client-key": "clientKeyData"}
    fields = {
        f"{key}-data": base64.b64encode(status[name].encode()).decode()
        for key, name in inline.items()
        if status.get(name)
    }
    return fields | ({"token": status["token"]} if status.get("token") else {})


class _TLSConnection(http.client.HTTPSConnection):
    """HTTPS that resumes a TLS session, and can check the certificate against another name (tls-server-name)."""

    server_name: str | None = None
    session: ssl.SSLSession | None = None

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        name = self.server_name or getattr(self, "_tunnel_host", None) or self.host
        self.sock = self._context.wrap_socket(self.sock, server_hostname=name, session=self.session)


class Cluster:
    """One cluster's API. Thread-safe: every thread has its own kept-alive connection.

    `name` is the inventory host, used in messages only.
    """

    def __init__(self, name: str, credentials: Credentials) -> None:
        self.name = name
        self.server = credentials.server
        self.clock_offset = 0.0  # seconds the server's clock is ahead of ours
        self._credentials = credentials
        self._local = threading.local()
        self._answered = False
        self._session: ssl.SSLSession | None = None
        self._kinds: dict[str, dict[str, Resource]] = {}
        self._kinds_lock = threading.Lock()

    @classmethod
    def from_kubeconfig(cls, name: str, path: str | None, context: str | None = None) -> Cluster:
        """Open the cluster of a kubeconfig's context (default: its current one). Nothing is sent yet."""
        return cls(name, load_kubeconfig(path, context, name))

    def _connect(self, read_timeout: float) -> tuple[http.client.HTTPConnection, str]:
        """A new connection and the path prefix of the server's URL."""
        url = urlsplit(self._credentials.server)
        host, secure = url.hostname or "", url.scheme == "https"
        port = url.port or (443 if secure else 80)
        proxy = self._credentials.proxy
        if not proxy and not host.startswith("127.") and host != "localhost" and not urllib.request.proxy_bypass(host):
            proxy = urllib.request.getproxies().get(url.scheme)
        via = urlsplit(proxy) if proxy else None
        dial = (via.hostname or "", via.port or 3128) if via else (host, port)
        connection: http.client.HTTPConnection
        if secure:
            connection = _TLSConnection(*dial, timeout=CONNECT_TIMEOUT, context=self._credentials.tls)
            connection.server_name = self._credentials.tls_server_name
            connection.session = self._session
        else:
            connection = http.client.HTTPConnection(*dial, timeout=CONNECT_TIMEOUT)
        if via:
            connection.set_tunnel(host, port)
        connection.connect()
        connection.sock.settimeout(read_timeout)
        return connection, url.path

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        content: str = "application/json",
        text: bool = False,
    ) -> tuple[int, Any]:
        """Send one request and return its status code and decoded JSON (or text).

        Lost connections, overload and a restarting server are retried for RETRY_FOR seconds, once the server has
        answered at all; every request this engine sends may be sent twice.
        :raises ApiError: for a status of 400 and above.
        :raises Unreachable: when the server cannot be reached.
        """
        target = path + ("?" + urlencode(query) if query else "")
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = self._credentials.headers | {"Accept": "*/*" if text else "application/json"}
        if data is not None:
            headers["Content-Type"] = content
        give_up = time.monotonic() + (0 if text else RETRY_FOR)
        while True:
            fresh = getattr(self._local, "connection", None) is None
            try:
                if fresh:
                    self._local.connection = self._connect(READ_TIMEOUT)
                connection, prefix = self._local.connection
                if text and connection.sock:
                    connection.sock.settimeout(LOG_TIMEOUT)
                connection.request(method, prefix + target, body=data, headers=headers)
                response = connection.getresponse()
                raw = response.read()
                if text and connection.sock:
                    connection.sock.settimeout(READ_TIMEOUT)
            except ssl.SSLCertVerificationError as error:
                raise Unreachable(
                    f"cluster {self.name}: {self.server} is not trusted: {error.verify_message}."
                ) from None
            except BROKEN as error:
                self.close()
                if fresh and (not self._answered or time.monotonic() > give_up):
                    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise Unreachable(f"cluster {self.name}: cannot reach {self.server}: {reason}.") from None
                if fresh:
                    time.sleep(0.3)
                continue
            if not self._answered:
                self._answered, self._session = True, getattr(connection.sock, "session", None)
            if response.status in (429, 503, 504) and time.monotonic() < give_up:
                time.sleep(min(float(response.getheader("Retry-After") or 1), 5))
                continue
            if response.status == 401:
                message = f"cluster {self.name}: {self.server} does not accept the kubeconfig's login: renew it (401)"
                raise ApiError(401, {"message": message})
            if response.status >= 400:
                raise ApiError(response.status, _status(raw))
            if text:
                return response.status, raw.decode(errors="replace")
            self._note_clock(response.getheader("Date"))
            return response.status, json.loads(raw)

    def _note_clock(self, date: str | None) -> None:
        if date and not self.clock_offset:
            self.clock_offset = parsedate_to_datetime(date).timestamp() - time.time() or 1e-6

    def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any] | None:
        """The live object, or None when it (or its namespace) does not exist."""
        try:
            return self.request("GET", resource.path(namespace, name))[1]
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, resource: Resource, namespace: str | None = None, **query: str) -> dict[str, Any]:
        """The List object of a collection; items get the kind and apiVersion that lists leave out."""
        answer = self.request("GET", resource.path(namespace), query=query)[1]
        answer["items"] = answer.get("items") or []
        for item in answer["items"]:
            item.setdefault("kind", resource.kind)
            item.setdefault("apiVersion", resource.api_version)
        return answer

    def resource(self, api_version: str, kind: str) -> Resource | None:
        """How the server serves a kind; None when it does not. Asked once a group version."""
        with self._kinds_lock:
            if api_version not in self._kinds:
                root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
                try:
                    served = self.request("GET", root)[1].get("resources") or []
                except ApiError as error:
                    if error.status != 404:
                        raise
                    served = []
                self._kinds[api_version] = {
                    item["kind"]: Resource(api_version, item["kind"], item["name"], item["namespaced"])
                    for item in served
                    if "/" not in item["name"]
                }
            return self._kinds[api_version].get(kind)

    def preferred_version(self, group: str) -> str | None:
        """The apiVersion in which the server prefers to serve a group; None when it does not serve it."""
        if not group:
            return "v1"
        try:
            return self.request("GET", f"/apis/{quote(group)}")[1]["preferredVersion"]["groupVersion"]
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def forget_kinds(self) -> None:
        """Discover anew from now on: a CRD has just been established."""
        with self._kinds_lock:
            self._kinds.clear()

    def watch(
        self, resource: Resource, namespace: str | None, version: str, stop: threading.Event, **query: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (event type, object) from a watch until it ends; the caller lists again and watches on.

        Returns on `stop`, on a closed or silent connection and on an expired resourceVersion.
        """
        query = query | {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(int(READ_TIMEOUT - 5))}
        try:
            connection, prefix = self._connect(READ_TIMEOUT)
        except BROKEN:
            return
        try:
            target = f"{prefix}{resource.path(namespace)}?{urlencode(query)}"
            connection.request("GET", target, headers=self._credentials.headers | {"Accept": "application/json"})
            response = connection.getresponse()
            while response.status == 200 and not stop.is_set():
                line = response.readline()
                if not line:
                    return
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]
        except (*BROKEN, ValueError):
            return
        finally:
            connection.close()

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection:
            connection[0].close()
            self._local.connection = None


def _status(raw: bytes) -> dict[str, Any]:
    """An error answer as a Status object, whatever sent it (a proxy answers with text)."""
    try:
        body = json.loads(raw)
        return body if isinstance(body, dict) else {"message": str(body)}
    except ValueError:
        return {"message": raw[:300].decode(errors="replace")}
