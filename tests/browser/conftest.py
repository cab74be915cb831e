"""One Jupyter server (JupyterLab, and Voila as its extension) and one Chromium for all browser tests.

Everything that a server or browser writes goes to temporary folders. Screenshots are kept in `screenshots/`, which git
ignores, for whoever wants to see what a test saw.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDIO = ROOT / "notebooks" / "03_studio.ipynb"
SCREENSHOTS = ROOT / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without the later ones a browser on a closed network looks for its maker's hosts all the time.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
PATIENCE_MS = 120_000
"""A cold kernel on a busy machine takes its time."""
HERE = re.compile(r"(?:https?|wss?)://127\.0\.0\.1[:/]|data:|blob:")
NOT_OURS = re.compile(r"ResizeObserver loop")
"""Errors of the page that say nothing about it."""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Base URL of a server, and the folder that it serves."""
    place = tmp_path_factory.mktemp("served")
    homes = {f"JUPYTER_{kind}_DIR": place / kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
    homes |= {"IPYTHONDIR": place / "ipython", "HOME": place / "home"}
    for folder in homes.values():
        folder.mkdir()
    quiet = homes["JUPYTER_CONFIG_DIR"] / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    # As an installation has it, whether or not this tree is installed.
    shutil.copytree(ROOT / "notebooks" / "voila", homes["JUPYTER_DATA_DIR"] / "voila" / "templates" / "arrowquant")
    served = place / "root"
    served.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={served}",
        "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
        "--ServerApp.jpserver_extensions={'voila.server_extension': True, 'jupyterlab': True}",
    ]  # fmt: skip
    environment = os.environ | {name: str(folder) for name, folder in homes.items()}
    log = place / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=served, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", process, log)
        yield f"http://127.0.0.1:{port}", served
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(url, process, log):
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A headless Chromium, the one that the machine has."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        words = "no Chromium on this machine: install it, for example with `apt-get install chromium`"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(words)
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def studio_notebook(server, request):
    """Path below the server's root of a fresh copy of the studio's notebook, in a folder of its own."""
    _, served = server
    folder = served / re.sub(r"\W+", "-", request.node.name)
    folder.mkdir()
    shutil.copy(STUDIO, folder / "studio.ipynb")
    return folder / "studio.ipynb"


@pytest.fixture
def page(chromium, request):
    """A page that fails its test on any error of a script in it or request to another host; leaves a screenshot."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    elsewhere: list[str] = []
    page.on("request", lambda request: HERE.match(request.url) or elsewhere.append(request.url))
    yield page
    _shoot(page, re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-"))
    context.close()
    found = [error for error in errors if not NOT_OURS.search(error)]
    assert not found, f"errors in the page: {found}"
    assert not elsewhere, f"the page asks other hosts: {elsewhere}"


@pytest.fixture
def shoot(page):
    """Call with a name to keep a screenshot."""
    return lambda name: _shoot(page, name)


def _shoot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)
