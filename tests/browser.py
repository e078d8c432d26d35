"""Chromium, and the dashboards that it looks at, started on this machine and stopped."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

from trackers import wait_for_port

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NO_CHROMIUM = "chromium is not installed (Debian: apt-get install chromium)"
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
TRACKIO = "import sys, trackio; trackio.show(open_browser=False, host='127.0.0.1', server_port=int(sys.argv[1]))"


@contextmanager
def chromium():
    """A function that opens a page, ``open_page(address, viewport=..., color_scheme=...)``, in one browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)

        def open_page(address, **options):
            page = browser.new_page(**options)
            page.set_default_timeout(120_000)  # all that waits for a page is patient: machines may be busy
            page.goto(address)
            return page

        yield open_page
        browser.close()


@contextmanager
def trackio_dashboard(folder, log):
    """The address of Trackio's dashboard for the data in a folder."""
    with _serving([sys.executable, "-c", TRACKIO], log, None, TRACKIO_DIR=str(folder)) as address:
        yield address


@contextmanager
def tensorboard(folder, log):
    """The address of TensorBoard for the runs in a folder, with all texts."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name, "--samples_per_plugin", "text=1000"]
    with _serving([*command, "--port"], log, folder.parent) as address:  # its page shows the path as it is given
        yield address


@contextmanager
def _serving(command, log, cwd, **environment):
    """The address at which a program answers whose last argument is its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as file:
        environment = {**os.environ, **environment}
        server = subprocess.Popen([*command, str(port)], cwd=cwd, env=environment, stdout=file, stderr=file)
        try:
            wait_for_port(port, server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)
