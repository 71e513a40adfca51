"""The Traefik of its image with what role ingress renders, on loopback, before applications that tell what they got."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import rendering
import unit_conftest
from ansible_collections.citadelbuy.platform.plugins.module_utils import certificates, senders
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import Cluster
from unit_conftest import die_with_parent, free_port

CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
HOST = "shop.example.com"
DRAIN = 3


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traefik, out of the newest archive of its image."""
    archives = sorted((CACHE / "images").glob("traefik-????????????.tar"), key=lambda file: file.stat().st_mtime)
    if not archives:
        pytest.skip("its image is built where an inventory has platform_ingress: traefik, in a quarter of an hour")
    target = tmp_path_factory.mktemp("traefik") / "traefik"
    with tarfile.open(archives[-1]) as image:
        (manifest,) = json.load(image.extractfile("manifest.json"))
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=image.extractfile(layer)) as files:
                for name in files.getnames():
                    if name.endswith("usr/bin/traefik"):
                        target.write_bytes(files.extractfile(name).read())
    target.chmod(0o755)
    return target


@dataclass
class Application:
    """A server that answers with what it was asked, and remembers it."""

    name: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)  # /slow is answered once it is set
    slow: threading.Event = field(default_factory=threading.Event)  # and has been asked for

    def __post_init__(self) -> None:
        """Listen."""
        application = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                told = {"by": application.name, "path": self.path, "headers": dict(self.headers), "size": len(body)}
                application.asked.append(told)
                if self.path.endswith("/dies"):
                    self.close_connection = True
                    return
                if self.path.endswith("/nothing"):
                    self.send_response(303)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"0\r\n\r\n")
                    return
                if self.path.endswith("/slow"):
                    application.slow.set()
                    application.hold.wait(60)
                text = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_port}"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    text: bytes

    @property
    def told(self) -> dict[str, Any]:
        """What the application got."""
        return json.loads(self.text)


class Traefik:
    """One process, its files laid out as a kubelet does it."""

    def __init__(self, program: Path, folder: Path, applications: dict[str, Application], **given: Any) -> None:
        """Render the role's files, with addresses of this machine, and start."""
        self.folder, self.https, self.http, self.metrics = folder, free_port(), free_port(), free_port()
        variables = {
            "platform_ingress": "traefik",
            "ingress_hosts": [HOST],
            "ingress_traefik_https_port": self.https,
            "ingress_traefik_drain_time": DRAIN,
        }
        self.variables = variables
        self.authority = certificates.authority("test")
        static, self.routes = self.render(applications, **given)
        for old, new in (
            ('":8080"', f'"127.0.0.1:{self.http}"'),
            ('":8443"', f'"127.0.0.1:{self.https}"'),
            ('":9100"', f'"127.0.0.1:{self.metrics}"'),
            ("/etc/traefik", str(folder)),
        ):
            assert old in static
            static = static.replace(old, new)
        (folder / "dynamic").mkdir()
        (folder / "traefik.yml").write_text(static)
        self.serial = self.put_certificate()
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, f"--configFile={folder}/traefik.yml"], stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self.until(lambda: self.ask("/", timeout=2).status == 200)

    def render(self, applications: dict[str, Application], **given: Any) -> tuple[str, str]:
        """The role's two files; routes lead to this machine."""
        (rendered,) = rendering.render_inventory("local", ["ingress"], **self.variables | given)
        (data,) = [item.body["data"] for item in rendered.manifests if item.kind == "ConfigMap"]
        routes = data["shop.yml"]
        for name, application in applications.items():
            assert name.endswith("-canary") or f"http://citadelbuy-{name}:3000" in routes
            routes = routes.replace(f"http://citadelbuy-{name}:3000", application.url)
        return data["traefik.yml"], routes.replace("/etc/traefik", str(self.folder))

    def change(self, applications: dict[str, Application], **given: Any) -> None:
        """Other routes; a pod is rolled instead."""
        self.routes = self.render(applications, **given)[1]
        self.put_certificate()

    def put_certificate(self) -> int:
        """A new certificate, and its number: all files of the volume are replaced at once, by a link."""
        made = certificates.certificate([HOST], self.authority)
        volume = self.folder / "dynamic"
        version = volume / f"..{time.time_ns()}"
        (version / "routes").mkdir(parents=True)
        (version / "routes/shop.yml").write_text(self.routes)
        for name in ("tls.crt", "tls.key"):
            (version / name).write_text(made[name])
        before = (volume / "..data").resolve() if (volume / "..data").exists() else None
        (volume / "..new").symlink_to(version.name)
        (volume / "..new").rename(volume / "..data")
        for name in ("routes", "tls.crt", "tls.key"):
            if not (volume / name).is_symlink():
                (volume / name).symlink_to(f"..data/{name}")
        if before:
            for file in (*before.glob("routes/*"), *before.glob("tls.*")):
                file.unlink()
            (before / "routes").rmdir()
            before.rmdir()
        from cryptography import x509

        return x509.load_pem_x509_certificate(made["tls.crt"].encode()).serial_number

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-3000:])

    def connect(self) -> ssl.SSLSocket:
        """A connection, its certificate verified."""
        context = ssl.create_default_context(cadata=self.authority["ca.crt"])
        plain = socket.create_connection(("127.0.0.1", self.https), 30)
        return context.wrap_socket(plain, server_hostname=HOST)

    def ask(self, path: str, method: str = "GET", host: str = HOST, timeout: float = 60, **more: Any) -> Answer:
        """Ask by HTTPS, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.https, timeout=timeout)
        connection.sock = self.connect()
        headers = {"Host": host} | more.pop("headers", {})
        connection.request(method, path, headers=headers, **more)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    def serial_now(self) -> int:
        """The number of the certificate that is served."""
        from cryptography import x509

        with self.connect() as held:
            return x509.load_der_x509_certificate(held.getpeercert(binary_form=True)).serial_number

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def applications() -> Iterator[dict[str, Application]]:
    """API and web, and their canaries."""
    made = {name: Application(name) for name in ("api", "web", "api-canary", "web-canary")}
    yield made
    for application in made.values():
        application.hold.set()
        application.server.shutdown()
        application.server.server_close()


Start = Callable[..., Traefik]


@pytest.fixture
def start(program: Path, applications: dict[str, Application], tmp_path: Path) -> Iterator[Start]:
    """Start Traefik before them, with variables of the role."""
    started: list[Traefik] = []

    def run(**given: Any) -> Traefik:
        started.append(Traefik(program, tmp_path, applications, **given))
        for application in applications.values():
            application.asked.clear()
        return started[-1]

    yield run
    for traefik in started:
        traefik.stop()


def test_where_requests_go(start: Start) -> None:
    traefik = start()
    for path, name in (
        ("/", "web"),
        ("/api", "api"),
        ("/api/products?q=a%20b", "api"),
        ("/apis", "web"),
        ("/search?q=/metrics", "web"),
        ("/metricsandmore", "web"),
    ):
        for method in ("GET", "POST"):
            answer = traefik.ask(path, method)
            assert (answer.status, answer.told["by"], answer.told["path"]) == (200, name, path)
            assert answer.told["headers"]["Host"] == HOST
    for path in ("/metrics", "/metrics/", "//metrics", "/x/../metrics", "/%6detrics", "/api/../metrics"):
        for method in ("GET", "POST"):
            assert traefik.ask(path, method).status == 404, path
    assert traefik.ask("/", host="elsewhere.example.com").status == 404


def test_plain_requests_are_sent_to_https_and_answers_have_their_headers(start: Start) -> None:
    traefik = start(ingress_response_headers={"Strict-Transport-Security": "max-age=5", "X-Frame-Options": "DENY"})
    plain = http.client.HTTPConnection("127.0.0.1", traefik.http, timeout=30)
    plain.request("GET", "/products?id=1", headers={"Host": HOST})
    response = plain.getresponse()
    assert (response.status, response.headers["Location"]) == (301, f"https://{HOST}:{traefik.https}/products?id=1")
    for path in ("/", "/api/products"):
        headers = traefik.ask(path).headers
        assert (headers["Strict-Transport-Security"], headers["X-Frame-Options"]) == ("max-age=5", "DENY")


@pytest.mark.parametrize(("trusted", "seen"), [([], "127.0.0.1"), (["127.0.0.0/8"], "203.0.113.7, 127.0.0.1")])
def test_whose_word_on_the_customer_is_taken(start: Start, trusted: list[str], seen: str) -> None:
    traefik = start(ingress_traefik_trusted_cidrs=trusted)
    told = traefik.ask("/api/", headers={"X-Forwarded-For": "203.0.113.7"}).told
    assert told["headers"]["X-Forwarded-For"] == seen
    assert told["headers"]["X-Forwarded-Proto"] == "https"


def test_a_body_arrives_and_an_answer_may_have_none(start: Start) -> None:
    traefik = start()
    assert traefik.ask("/api/orders", "POST", body=b"x" * 2**21).told["size"] == 2**21
    assert traefik.ask("/api/orders/nothing", "POST", body=b"{}").status == 303


def test_nothing_is_ordered_twice(start: Start, applications: dict[str, Application]) -> None:
    traefik = start()
    assert traefik.ask("/api/orders/dies", "POST", body=b"{}").status == 502
    assert len(applications["api"].asked) == 1


def test_each_request_finds_a_pod_of_its_own(start: Start, applications: dict[str, Application]) -> None:
    traefik = start()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", traefik.https, timeout=30)) as connection:
        connection.sock = traefik.connect()  # one of the customer's
        server, accepted = applications["api"].server, []
        real = server.process_request
        server.process_request = lambda request, address: (accepted.append(address), real(request, address))
        for _ in range(3):
            connection.request("GET", "/api/", headers={"Host": HOST})
            assert connection.getresponse().read()
    assert len(accepted) == 3


def test_a_new_certificate_is_served_without_a_restart(start: Start) -> None:
    traefik = start()
    assert traefik.serial_now() == traefik.serial
    assert "already configured" not in traefik.log.read_text(), "the routes are read once"
    for _ in range(2):  # the first time is not the last
        serial = traefik.put_certificate()
        traefik.until(lambda wanted=serial: traefik.serial_now() == wanted)
        assert traefik.ask("/").status == 200


def test_a_pod_that_is_to_end_ends_what_it_has_and_takes_more_for_a_while(
    start: Start, applications: dict[str, Application]
) -> None:
    traefik = start()
    slow: list[Answer] = []
    asking = threading.Thread(target=lambda: slow.append(traefik.ask("/api/slow")))
    asking.start()
    assert applications["api"].slow.wait(30)
    traefik.process.send_signal(signal.SIGTERM)
    traefik.until(lambda: "Waiting" in traefik.log.read_text())
    assert traefik.ask("/").status == 200
    probe = http.client.HTTPConnection("127.0.0.1", traefik.metrics, timeout=30)
    probe.request("GET", "/ping")
    assert probe.getresponse().status == 200

    def refused() -> bool:
        try:
            traefik.ask("/", timeout=5)
        except ConnectionRefusedError:
            return True
        return False

    traefik.until(refused)
    assert traefik.process.poll() is None, "it has a request yet"
    applications["api"].hold.set()
    asking.join(60)
    assert [answer.status for answer in slow] == [200]
    assert traefik.process.wait(60) == 0


def test_metrics_tell_of_each_application(start: Start) -> None:
    traefik = start()
    traefik.ask("/api/")
    asked = http.client.HTTPConnection("127.0.0.1", traefik.metrics, timeout=30)
    asked.request("GET", "/metrics")
    text = asked.getresponse().read().decode()
    assert 'traefik_service_requests_total{code="200",method="GET",protocol="http",service="api@file"}' in text


CANARY = {"platform_canary_api_image": "api:2", "platform_canary_web_image": "web:2"}


def who(traefik: Traefik, path: str, times: int, **headers: str) -> Counter[str]:
    """Who answers, how often."""
    answers = [traefik.ask(path, headers=headers) for _ in range(times)]
    assert {answer.status for answer in answers} == {200}
    return Counter(answer.told["by"] for answer in answers)


def test_a_canary_has_its_share_of_the_customers(start: Start) -> None:
    traefik = start(**CANARY, platform_canary_weight=20)
    for path, name in (("/", "web"), ("/api/products", "api")):
        found = who(traefik, path, 100)
        assert abs(found[f"{name}-canary"] - 20) <= 1
        assert found.total() == found[name] + found[f"{name}-canary"]


def test_a_customer_stays_at_one_version(start: Start) -> None:
    traefik = start(**CANARY, platform_canary_weight=50)
    for path, cookie, seen in (("/", "citadelbuy_web", "/"), ("/api/products", "citadelbuy_api", "/api")):
        for _ in range(4):
            answer = traefik.ask(path)
            value, *settings = answer.headers["Set-Cookie"].split("; ")
            assert value.startswith(f"{cookie}=")
            assert set(settings) == {f"Path={seen}", "HttpOnly", "Secure", "SameSite=Lax"}
            assert set(who(traefik, path, 5, Cookie=value)) == {answer.told["by"]}
            again = traefik.ask(path, "POST", body=b"{}", headers={"Cookie": value})
            assert (again.told["by"], again.headers["Set-Cookie"]) == (answer.told["by"], None)


def test_at_the_ends_all_customers_have_one_version(start: Start, applications: dict[str, Application]) -> None:
    traefik = start(**CANARY, platform_canary_weight=50)
    answers = [traefik.ask("/") for _ in range(2)]
    cookies = {answer.told["by"]: answer.headers["Set-Cookie"].partition(";")[0] for answer in answers}
    assert set(cookies) == {"web", "web-canary"}
    traefik.change(applications, **CANARY, platform_canary_weight=100)
    traefik.until(lambda: set(who(traefik, "/", 1, Cookie=cookies["web"])) == {"web-canary"})
    for cookie in ("", *cookies.values()):
        assert set(who(traefik, "/", 5, Cookie=cookie)) == {"web-canary"}
    traefik.change(applications, **CANARY, platform_canary_weight=0)
    traefik.until(lambda: set(who(traefik, "/", 1, Cookie=cookies["web-canary"])) == {"web"})
    for cookie in ("", *cookies.values()):
        assert set(who(traefik, "/", 5, Cookie=cookie)) == {"web"}
    assert traefik.ask("/").headers["Set-Cookie"] is None


def test_a_canary_of_one_leaves_the_other_as_it_is(start: Start) -> None:
    traefik = start(platform_canary_web_image="web:2", platform_canary_weight=100)
    assert who(traefik, "/", 3) == {"web-canary": 3}
    answer = traefik.ask("/api/products")
    assert (answer.told["by"], answer.headers["Set-Cookie"]) == ("api", None)


def address() -> str:
    """One of this machine that is not loopback, which an EndpointSlice does not take."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


class Controller(Traefik):
    """Traefik as the controller of a cluster, which reads what role ingress makes for one."""

    def __init__(self, program: Path, folder: Path, kubeconfig: Path, *arguments: str) -> None:
        """Start."""
        self.https, self.http, self.log = free_port(), free_port(), folder / "log"
        command = [str(program), *arguments, "--entrypoints.websecure.http.tls=true"]
        command += [f"--entrypoints.web.address=:{self.http}", f"--entrypoints.websecure.address=:{self.https}"]
        with self.log.open("ab") as log:
            environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=die_with_parent
            )


@pytest.fixture
def served(
    cluster: Cluster, applications: dict[str, Application], program: Path, tmp_path: Path
) -> Iterator[Callable[..., Controller]]:
    """Start a controller, and put what role ingress makes of a kind into a namespace with both applications."""
    namespace, started = f"way-in-{time.time_ns() % 10**6}", []
    authority = certificates.authority("test")
    place = f"/api/v1/namespaces/{namespace}"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    secret = {"metadata": {"name": "shop"}, "type": "kubernetes.io/tls"}
    secret["stringData"] = certificates.certificate([HOST], authority)
    cluster.request("POST", f"{place}/secrets", secret)
    for name, application in applications.items():
        service = {"metadata": {"name": f"citadelbuy-{name}"}, "spec": {"ports": [{"name": "http", "port": 3000}]}}
        cluster.request("POST", f"{place}/services", service)
        labels = {"kubernetes.io/service-name": f"citadelbuy-{name}"}
        endpoints = {"metadata": {"name": name, "labels": labels}, "addressType": "IPv4"}
        endpoints["endpoints"] = [{"addresses": [address()], "conditions": {"ready": True}}]
        endpoints["ports"] = [{"name": "http", "port": application.server.server_port}]
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        cluster.request("POST", path, endpoints)

    def serve(kind: str, kubeconfig: Path, *arguments: str, **given: Any) -> Controller:
        controller = Controller(program, tmp_path, kubeconfig, *arguments)
        started.append(controller)
        controller.authority, controller.namespace = authority, namespace
        variables = {"platform_ingress": kind, "platform_namespace": namespace, "ingress_hosts": [HOST]}
        variables |= {"ingress_tls_secret": "shop"} | given
        (rendered,) = rendering.render_inventory("local", ["ingress"], **variables)
        for manifest in rendered.manifests:
            resource = cluster.resource(manifest.api_version, manifest.kind)
            cluster.request("POST", resource.path(namespace), manifest.body, {"fieldValidation": "Strict"})
        return controller

    yield serve
    for controller in started:
        controller.stop()
    cluster.request("DELETE", f"/api/v1/namespaces/{namespace}")


def leads(controller: Controller) -> None:
    """Both applications are asked, by HTTPS."""
    controller.until(lambda: controller.ask("/api/products", timeout=5).status == 200)
    for path, name in (("/api/products", "api"), ("/apis", "web"), ("/", "web")):
        answer = controller.ask(path)
        assert (answer.status, answer.told["by"].removesuffix("-canary"), answer.told["path"]) == (200, name, path)
    assert controller.ask("/", host="elsewhere.example.com").status == 404


def test_a_controller_serves_the_ingress(served: Callable[..., Controller], cluster: Cluster, kubeconfig: Path) -> None:
    classes = "/apis/networking.k8s.io/v1/ingressclasses"
    ours = {"metadata": {"name": "theirs"}, "spec": {"controller": "traefik.io/ingress-controller"}}
    cluster.request("POST", classes, ours)
    try:
        # As the API defines Prefix, which Traefik does when told to: else /apis goes where /api does.
        arguments = ["--providers.kubernetesingress=true", "--providers.kubernetesingress.strictprefixmatching=true"]
        leads(served("ingress", kubeconfig, *arguments, ingress_class="theirs"))
    finally:
        cluster.request("DELETE", f"{classes}/theirs")


def test_a_controller_serves_the_routes_of_a_gateway(
    served: Callable[..., Controller], cluster: Cluster, kubeconfig: Path
) -> None:
    gateways = "/apis/gateway.networking.k8s.io/v1"
    unit_conftest.serve_gateways(cluster)
    try:
        body = {"apiVersion": gateways[6:], "kind": "GatewayClass", "metadata": {"name": "theirs"}}
        body["spec"] = {"controllerName": "traefik.io/gateway-controller"}
        cluster.request("POST", f"{gateways}/gatewayclasses", body)
        given = {"ingress_gateway_name": "public", "platform_canary_api_image": "api:2", "platform_canary_weight": 25}
        controller = served("gateway", kubeconfig, "--providers.kubernetesgateway=true", **given)
        certificate = {"certificateRefs": [{"name": "shop"}]}
        listeners = [
            {"name": "http", "port": controller.http, "protocol": "HTTP"},
            {"name": "https", "port": controller.https, "protocol": "HTTPS", "tls": certificate},
        ]
        body = {"apiVersion": gateways[6:], "kind": "Gateway", "metadata": {"name": "public"}}
        body["spec"] = {"gatewayClassName": "theirs", "listeners": listeners}
        cluster.request("POST", f"{gateways}/namespaces/{controller.namespace}/gateways", body)
        leads(controller)
        found = who(controller, "/api/products", 40)
        assert found.total() == found["api"] + found["api-canary"]
        assert abs(found["api-canary"] - 10) <= 1
        assert who(controller, "/", 8) == {"web": 8}
        routes = cluster.request("GET", f"{gateways}/namespaces/{controller.namespace}/httproutes")[1]["items"]
        assert senders.wait_until_quiet(cluster, routes, 30) == "", "the controller says that it has seen them"
        assert controller.ask("/").headers["X-Frame-Options"] == "DENY"
        plain = http.client.HTTPConnection("127.0.0.1", controller.http, timeout=30)
        plain.request("GET", "/products?id=1", headers={"Host": HOST})
        response = plain.getresponse()
        assert response.status == 301
        assert response.headers["Location"].startswith(f"https://{HOST}")
    finally:
        unit_conftest.withdraw_gateways(cluster)
