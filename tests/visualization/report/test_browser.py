"""The report in a real browser: every section arrives there, and no request leaves the page."""
from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SECTIONS = ["warnings", "configuration", "events", "curves", "prototypes", "rank", "embedding", "results", "order"]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser that tests/browser.sh finds; without one these tests fail (`-m "not browser"` leaves them out)."""
    found = subprocess.run(["bash", "tests/browser.sh"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def open_page(browser: str, page: Path, folder: Path) -> tuple[str, list[str]]:
    """(the document's HTML after `page` was loaded, the addresses that it asked for, whether they answered or not).

    The browser's log says who asked: what it asks for by itself, such as the time, has no origin. Everything is sent
    to a proxy that does not exist, so that no test depends on what is out there.
    """
    log = folder / "network.json"
    command = [browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
               "--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>", f"--log-net-log={log}",
               "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # Chromium's sandbox does not work as root
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    events = json.loads(log.read_text())
    start = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in events["events"]
               if event["type"] == start and "url" in event.get("params", {})]
    return done.stdout, [params["url"] for params in started if params["initiator"] != "not an origin"]


def test_all_sections_arrive_and_nothing_is_asked_for(browser, full_report, tmp_path):
    document, asked_for = open_page(browser, full_report, tmp_path)
    assert re.findall('<section id="([a-z]+)"', document) == SECTIONS
    assert document.count("<video") >= 2 and document.count("<img") > 12
    assert asked_for == []


@pytest.mark.parametrize("address", ["http://reports.invalid/image.png", "http://127.0.0.1:8000/image.png"])
def test_a_request_would_be_seen_and_is_stopped_by_the_pages_policy(browser, full_report, tmp_path, address):
    """The control: a image from elsewhere on the same page, with its policy and without."""
    leaking = full_report.read_text().replace("<main>", f'<main><img src="{address}" alt="">')
    for name, text, expected in (("guarded", leaking, []),
                                 ("open", re.sub("<meta http-equiv[^>]*>", "", leaking), [address])):
        (tmp_path / name).mkdir()
        page = tmp_path / name / "page.html"
        page.write_text(text)
        document, asked_for = open_page(browser, page, tmp_path / name)
        assert address in document and asked_for == expected, name
