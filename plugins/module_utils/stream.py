"""Exec and port-forward through the API server, over WebSocket: what proving a deployment from inside needs."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import (
    BROKEN,
    ApiError,
    Cluster,
    EngineError,
    Unreachable,
)

PROTOCOL = "v4.channel.k8s.io"
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
STDIN, STDOUT, STDERR, STATUS = 0, 1, 2, 3  # channels of exec
DATA, PROBLEM = 0, 1  # channels of a forwarded port


class WebSocket:
    """A client of RFC 6455, as far as the API server speaks it: every message is a channel's number and its bytes."""

    def __init__(self, cluster: Cluster, path: str, query: list[tuple[str, str]], timeout: float) -> None:
        self._end = time.monotonic() + timeout
        try:
            self._connection, prefix = cluster._connect(timeout)
        except BROKEN as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreachable(f"cluster {cluster.name}: cannot reach {cluster.server}: {reason}.") from None
        try:
            self._upgrade(f"{prefix}{path}?{urlencode(query)}", cluster._credentials.headers)
        except BaseException:
            self._connection.close()
            raise

    def _upgrade(self, target: str, headers: dict[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        names = {"Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": PROTOCOL}
        self._connection.request("GET", target, headers=headers | upgrade | names)
        self._socket: socket.socket = self._connection.sock
        # http.client would close the socket after a 101, so the head is read by hand.
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self._socket.recv(1)
            if not byte:
                raise EngineError("the API server closed the connection instead of upgrading it.")
            head += byte
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            response = http.client.HTTPResponse(_Replay(head + self._rest(head)))  # type: ignore[arg-type]
            response.begin()
            raw = response.read()
            try:
                body = json.loads(raw)
            except ValueError:
                body = {"message": raw[:300].decode(errors="replace")}
            raise ApiError(status, body)

    def _rest(self, head: bytes) -> bytes:
        """The body of an answer that is no upgrade."""
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return self._exactly(int(value))
        return b""

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            left = self._end - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left)
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ConnectionError("connection lost")
            data += chunk
        return data

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes on a channel."""
        self._frame(BINARY, bytes([channel]) + data)

    def _frame(self, opcode: int, data: bytes) -> None:
        length = len(data)
        head = bytes([0x80 | opcode])
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 65536:
            head += bytes([0x80 | 126]) + struct.pack(">H", length)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", length)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        self._socket.sendall(head + mask + masked)

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Channel and bytes of each message until the server closes."""
        message = b""
        while True:
            try:
                first, second = self._exactly(2)
            except ConnectionError:
                return
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self._exactly(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._exactly(8))
            data = self._exactly(length)
            opcode = first & 0x0F
            if opcode == CLOSE:
                return
            if opcode == PING:
                self._frame(PONG, data)
                continue
            message += data
            if first & 0x80 and message:
                yield message[0], message[1:]
                message = b""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Replay:
    """Bytes that were read, in the shape that http.client.HTTPResponse reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The decoded body; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def run_in_pod(
    cluster: Cluster,
    namespace: str,
    pod: str,
    container: str,
    command: list[str],
    timeout: float = 15,
    stdin: bytes = b"",
) -> str:
    """Run a command in a container and return its standard output.

    :param stdin: what it may read, so that no secret stands in its arguments. Its end is not told (the protocol that
        every server speaks has no word for it): the command has to know how much it reads, as `head -c` does.
    :raises EngineError: names the pod and the reason, when the command cannot run or fails.
    """
    path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/exec"
    query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", word) for word in command)]
    query += [("stdin", "true")] if stdin else []
    where = f"exec in pod {namespace}/{pod}, container {container}"
    output = {STDOUT: b"", STDERR: b"", STATUS: b""}
    try:
        stream = WebSocket(cluster, path, query, timeout)
        try:
            if stdin:
                stream.send(STDIN, stdin)
            for channel, data in stream.messages():
                output[channel] = output.get(channel, b"") + data
        finally:
            stream.close()
    except ApiError as error:
        raise EngineError(f"{where}: {error}") from None
    except BROKEN as error:
        raise EngineError(f"{where}: {error}") from None
    status = json.loads(output[STATUS] or b"{}")
    if status.get("status") != "Success":
        reason = output[STDERR].decode(errors="replace").strip()[-300:] or status.get("message") or "connection lost"
        raise EngineError(f"{where}: {reason}")
    return output[STDOUT].decode(errors="replace")


def http_through_pod(
    cluster: Cluster,
    namespace: str,
    pod: str,
    port: int,
    method: str,
    path: str,
    body: Any = None,
    timeout: float = 15,
    headers: dict[str, str] | None = None,
    tls: tuple[ssl.SSLContext, str] | None = None,
) -> Reply:
    """One HTTP request to a pod's port, forwarded by its kubelet: no Service, Ingress or network policy is in the way.

    :param tls: whom to trust, and the name that the pod's certificate is to have; without it, there is no TLS.
    :raises EngineError: names the pod and the reason, when there is no answer.
    """
    data = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: localhost:{port}",
        "Connection: close",
        "Accept: */*",
        f"Content-Length: {len(data)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    if body is not None:
        lines.append("Content-Type: application/json")
    request = "\r\n".join([*lines, "", ""]).encode() + data
    where = f"{method} {path} on pod {namespace}/{pod}, port {port}"
    try:
        target = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/portforward"
        stream = WebSocket(cluster, target, [("ports", str(port))], timeout)
        try:
            raw = _converse(stream, request, _Tls(*tls) if tls else _Plain())
        finally:
            stream.close()
        response = http.client.HTTPResponse(_Replay(raw), method=method)  # type: ignore[arg-type]
        response.begin()
        return Reply(response.status, response.msg, response.read())
    except (ApiError, *BROKEN) as error:
        raise EngineError(f"{where}: {error}") from None


class _Plain:
    """What goes over a forwarded port, as it is."""

    def begin(self, request: bytes) -> bytes:
        """What is to be sent first."""
        return request

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """What bytes that came mean, and what is to be sent for them."""
        return data, b""


class _Tls(_Plain):
    """The same by TLS: the request is not sent before the other side has shown who it is."""

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._request = b""

    def begin(self, request: bytes) -> bytes:
        self._request = request
        return self.receive(b"")[1]

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        self._incoming.write(data)
        plain = b""
        try:
            if self._request:
                self._object.do_handshake()
                self._object.write(self._request)
                self._request = b""
            while part := self._object.read(65536):
                plain += part
        except ssl.SSLWantReadError:
            pass
        return plain, self._outgoing.read()


def _converse(stream: WebSocket, request: bytes, layer: _Plain) -> bytes:
    """Send a request once the ports are open; returns what comes back until the end of the answer.

    :raises OSError: there is no answer, or the other side is not who it should be.
    """
    greeted: set[int] = set()
    raw = b""
    for channel, data in stream.messages():
        if channel not in greeted:  # a channel's first message is its port number
            greeted.add(channel)
            data = data[2:]
            if greeted == {DATA, PROBLEM}:
                stream.send(DATA, layer.begin(request))
        if channel == PROBLEM and data:
            raise ConnectionError(data.decode(errors="replace").strip())
        if channel == DATA and data:
            plain, reply = layer.receive(data)
            if reply:
                stream.send(DATA, reply)
            raw += plain
            if _is_complete(raw):
                break
    if not raw:
        raise ConnectionError("no answer")
    return raw


def _is_complete(raw: bytes) -> bool:
    """Whether an HTTP answer is all there; one of unknown length ends with its connection."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        return False
    lines = [line.lower().replace(b" ", b"") for line in head.split(b"\r\n")]
    if lines[0].split(b"1.1", 1)[-1][:3] in (b"204", b"304"):
        return True
    if b"transfer-encoding:chunked" in lines:
        return body.endswith(b"0\r\n\r\n")
    length = next((line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")), None)
    return length is not None and len(body) >= int(length)
