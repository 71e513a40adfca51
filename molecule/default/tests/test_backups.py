"""A backup is made, restored beside the platform and found complete, and Prometheus knows."""

from __future__ import annotations

import json
import time
import urllib.request

from conftest import forwarded

RECENT = 'time() - max(citadelbuy_backup_last_verified_timestamp_seconds{store="postgres"}) < 600'
SECONDS = 150  # the exporter's answers are a minute old at most, and are scraped twice a minute


def test_a_backup_is_verified_and_prometheus_knows(play):
    for playbook in ("backup", "verify_backup"):
        done = play(playbook, "-e", "backup_stores=postgres")
        assert done.rc == 0, done.stdout + done.stderr
    assert " verified: " in done.stdout, done.stdout
    with forwarded("prometheus", 9090) as url:
        deadline = time.monotonic() + SECONDS
        query = f"{url}/api/v1/query?query={urllib.request.quote(RECENT)}"
        while not json.load(urllib.request.urlopen(query))["data"]["result"]:
            assert time.monotonic() < deadline, "Prometheus does not know of the verification"
            time.sleep(1)
