#!/usr/bin/env python3
"""What an Alertmanager's webhook tells, one line an alert: time, status, name, labels. receiver.py ADDRESS PORT FILE"""

from __future__ import annotations

import http.server
import json
import sys
import time
from pathlib import Path


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes every notification."""

    file: Path

    def do_POST(self) -> None:
        """Note its alerts."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.file.open("a") as file:
            for alert in body["alerts"]:
                line = {"time": time.time(), "status": alert["status"], "labels": alert["labels"]}
                file.write(json.dumps(line) + "\n")
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Nothing: the file is the log."""


if __name__ == "__main__":
    Receiver.file = Path(sys.argv[3])
    http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Receiver).serve_forever()
