"""What the repositories hold, for Prometheus, on port 9854."""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from store_backup.repository import Backup, Problem, Repository, warn

PORT = 9854
FRESH = 120
"""Seconds for which an answer of the repositories serves every scrape: each costs a second of work on its key."""

METRICS = {
    "last_success_timestamp_seconds": "When the last good backup was made.",
    "duration_seconds": "How long the last good backup took.",
    "size_bytes": "What the last good backup restores.",
    "last_verified_timestamp_seconds": "When a backup was last restored and found complete.",
    "last_verification_duration_seconds": "How long that took.",
    "verification_failed": "Whether the newest verification failed.",
}


class Metrics(BaseHTTPRequestHandler):
    """GET /metrics, an error instead of old figures where a repository cannot be read."""

    lock = threading.Lock()
    read_at = float("-inf")
    status, text = 500, ""

    def do_GET(self) -> None:
        """Answer one scrape."""
        status, body = 200, b""
        if self.path == "/metrics":
            with Metrics.lock:
                if time.monotonic() > Metrics.read_at + FRESH:
                    self.read()
                status, body = Metrics.status, Metrics.text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @staticmethod
    def read() -> None:
        """Ask the repositories."""
        try:
            known = {store: Repository(store).backups() for store in os.environ["BACKUP_STORES"].split()}
            Metrics.status, Metrics.text = 200, exposition(known, time.time())
        except Problem as error:
            Metrics.status, Metrics.text = 500, f"{error}\n"
            warn(str(error))
        Metrics.read_at = time.monotonic()

    def log_message(self, *_arguments: Any) -> None:
        """Scrapes are no news."""


def exposition(known: dict[str, list[Backup]], now: float) -> str:
    """The newest backup of each store as metrics; nothing of a store that has none."""
    lines = []
    found = {store: values(backups, now) for store, backups in known.items() if backups}
    for name, text in METRICS.items():
        lines += [f"# HELP citadelbuy_backup_{name} {text}", f"# TYPE citadelbuy_backup_{name} gauge"]
        lines += [
            f'citadelbuy_backup_{name}{{store="{store}"}} {figures[name]}'
            for store, figures in found.items()
            if name in figures
        ]
    return "\n".join(lines) + "\n"


def values(backups: list[Backup], now: float) -> dict[str, object]:
    """By metric, of one store. A verification that was begun and has not ended in its time has failed."""
    last = backups[-1]
    figures: dict[str, object] = {"last_success_timestamp_seconds": int(last.time)}
    if "seconds" in last.notes:
        figures |= {"duration_seconds": last.notes["seconds"], "size_bytes": last.notes["bytes"]}
    verified = max(backups, key=lambda backup: backup.number("verified"))
    if verified.number("verified"):
        figures["last_verified_timestamp_seconds"] = verified.notes["verified"]
        figures["last_verification_duration_seconds"] = verified.notes["took"]
    failed = max(backup.number("failed") for backup in backups)
    begun = max(backup.number("begun") for backup in backups)
    ended = max(verified.number("verified"), failed)
    if begun:
        lost = begun > ended and begun + int(os.environ["BACKUP_VERIFY_DEADLINE"]) < now
        figures["verification_failed"] = int(lost or failed > verified.number("verified"))
    return figures


def serve() -> None:
    """Answer for ever."""
    ThreadingHTTPServer(("", PORT), Metrics).serve_forever()
