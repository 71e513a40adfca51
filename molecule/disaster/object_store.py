#!/usr/bin/env python3
"""An S3 endpoint that outlives the cluster: a folder of this machine, served in its network, outside of its nodes.

object_store.py start|stop|remove
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import yaml

CACHE = Path(os.environ.get("CITADELBUY_CACHE") or Path.home() / ".cache/citadelbuy")
SETTINGS = yaml.safe_load((Path(__file__).parents[1] / "shared/host_vars/disaster.yml").read_text())
CLUSTER = SETTINGS["local_cluster_name"]
KUBECONFIG = f"/var/lib/citadelbuy/{CLUSTER}/admin.conf"
ADDRESS, PORT = SETTINGS["platform_backups_endpoint"].split(":")
FOLDER = Path("/var/lib/citadelbuy-object-store") / CLUSTER
NODE, PODS = "10.89.0.11", "10.244.1.0/24"
SECONDS = 30


def kubectl(*words: str, given: str | None = None) -> str:
    """What kubectl says."""
    program = max(CACHE.glob("binaries/*/kubectl"), key=lambda file: file.stat().st_mtime)
    command = [str(program), f"--kubeconfig={KUBECONFIG}", *words]
    return subprocess.run(command, input=given, text=True, check=True, stdout=subprocess.PIPE).stdout


def extract(program: Path) -> None:
    """Take the server out of its image's archive."""
    archive = max(CACHE.glob("images/versitygw-*.tar"), key=lambda file: file.stat().st_mtime)
    with tarfile.open(archive) as image:
        manifest = json.load(image.extractfile("manifest.json"))
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=io.BytesIO(image.extractfile(layer).read())) as files:
                for member in files:
                    if member.isfile() and Path(member.name).name == "versitygw":
                        program.write_bytes(files.extractfile(member).read())
    program.chmod(0o755)


def certificate(folder: Path) -> None:
    """One that the server proves its address with; pgBackRest looks for a name alone."""
    names = ["-subj", f"/CN={ADDRESS}", "-addext", f"subjectAltName=IP:{ADDRESS},DNS:{ADDRESS}"]
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
    ]
    subprocess.run([*command, *names, *files], check=True, stderr=subprocess.DEVNULL)


def start() -> None:
    """Serve the folder, and give the cluster the certificate that it is known by."""
    stop()
    (FOLDER / "data" / "backups").mkdir(parents=True, exist_ok=True)
    if not (FOLDER / "tls.crt").exists():
        certificate(FOLDER)
        extract(FOLDER / "versitygw")
    inside = ["ip", "netns", "exec", f"{CLUSTER}.fabric"]
    subprocess.run([*inside, "ip", "route", "replace", PODS, "via", NODE], check=True)
    keys = {
        "ROOT_ACCESS_KEY": SETTINGS["secrets_backup_s3_access_key"],
        "ROOT_SECRET_KEY": SETTINGS["secrets_backup_s3_secret_key"],
    }
    tls = [f"--cert={FOLDER / 'tls.crt'}", f"--key={FOLDER / 'tls.key'}"]
    server = [str(FOLDER / "versitygw"), "--port", f"{ADDRESS}:{PORT}", *tls, "--health", "/health", "--quiet"]
    with (FOLDER / "log").open("w") as log:
        process = subprocess.Popen(
            [*inside, *server, "posix", str(FOLDER / "data")],
            env=os.environ | keys,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (FOLDER / "pid").write_text(str(process.pid))
    ask = [*inside, "curl", "-sS", "--cacert", str(FOLDER / "tls.crt"), f"https://{ADDRESS}:{PORT}/health"]
    deadline = time.monotonic() + SECONDS
    while subprocess.run(ask, capture_output=True, check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"object_store.py: the server does not answer: {(FOLDER / 'log').read_text()[-500:]}")
        time.sleep(0.1)
    namespace = kubectl("create", "namespace", "citadelbuy", "--dry-run=client", "--output=yaml")
    kubectl("apply", "--filename=-", given=namespace)
    secret = [
        "create",
        "secret",
        "generic",
        "backups-ca",
        "--namespace=citadelbuy",
        f"--from-file={FOLDER / 'tls.crt'}",
    ]
    kubectl("apply", "--filename=-", given=kubectl(*secret, "--dry-run=client", "--output=yaml"))


def stop() -> None:
    """End the server, where one was started."""
    file = FOLDER / "pid"
    if not file.exists():
        return
    pid = int(file.read_text())
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"versitygw" in command.read_bytes():
        os.kill(pid, signal.SIGTERM)
        while command.exists() and command.read_bytes():
            time.sleep(0.05)
    file.unlink()


def main() -> None:
    """Do what the argument says."""
    match sys.argv[1:]:
        case ["start"]:
            start()
        case ["stop"]:
            stop()
        case ["remove"]:
            stop()
            shutil.rmtree(FOLDER, ignore_errors=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
