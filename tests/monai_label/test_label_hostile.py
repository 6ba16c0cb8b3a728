"""Hostile requests to a whole label server: from anywhere, and from a foreign page in a real browser."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from conftest import BUNDLE, TINY
from hostile_requests import Hostile, hostile_requests
from label_servers import LabelServer, label_client, label_server, why_no_server

from cyclic_committee.scripts.bundles.fold_bundle import copy_template, write_fold
from cyclic_committee.scripts.bundles.server_folder import MODEL
from cyclic_committee.scripts.phantoms.data_set import write_phantoms

pytestmark = pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
SECRET = b"nobody's business"
TOKEN = "a-token-of-sixteen-and-more"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@dataclass(frozen=True)
class Target:
    """The server, a folder that holds all that it may touch, and the file that code would make."""

    server: LabelServer
    folder: Path
    mark: Path
    image_id: str

    def send(self, one: Hostile) -> requests.Response:
        """Send a hostile request."""

        def filled(text: str) -> str:
            names = {"MARK": str(self.mark), "MODEL": MODEL, "OUTSIDE": str(self.folder)}
            text = self.image_id if text == "ID" else text
            for name, value in names.items():
                text = text.replace(name, value)
            return text

        form: Any = {key: (None, filled(value)) for key, value in one.form.items()} | one.files
        return requests.request(
            one.method,
            self.server.url + filled(one.path),
            params={key: filled(value) for key, value in one.query.items()},
            data=None if one.body is None else filled(one.body).encode(),
            files=form or None,
            headers=one.headers,
            timeout=20,
        )

    def tree(self) -> dict[Path, int]:
        """Return the files that requests might add to or change, without the server's own records and logs."""
        own = ("logs", "scores.json", "datastore_v2.json", "label_server.log", ".lock")
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        kept = [
            path for path in files if not any(name in str(path) for name in own) and "__pycache__" not in path.parts
        ]
        return {path: path.stat().st_size for path in kept}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    write_phantoms(folder / "phantoms", cases=1, seed=11)
    bundle, studies = folder / "bundle", folder / "studies"
    copy_template(BUNDLE, bundle)
    write_fold(bundle, yaml_of({key: value for key, value in TINY.items() if key != "device"}))
    shutil.copy(model, bundle / "models" / "model.pt")
    studies.mkdir()
    [image] = (folder / "phantoms" / "TrainingImg").iterdir()
    shutil.copy(image, studies / "ct.nii.gz")
    (folder / "secret.nii.gz").write_bytes(SECRET)
    with label_server(studies, bundle, folder) as server:
        server.wait_for("scoring")
        yield Target(server, folder, folder / "executed", "ct")


def yaml_of(values: dict[str, Any]) -> str:
    return str(yaml.safe_dump(values))


def test_there_are_two_hundred_and_more() -> None:
    assert len({str(one) + str(one.query) + str(one.files) + str(one.headers) for one in hostile_requests()}) >= 200


def test_every_hostile_request_is_refused_and_leaves_nothing(target: Target) -> None:
    """All are sent before anything is said, so that one look tells all that got through."""
    before, through = target.tree(), []
    for one in hostile_requests():
        try:
            answer = target.send(one)
        except requests.RequestException as error:
            through.append(f"{one}: {error}")
            continue
        places = (str(target.server.work), str(target.folder / "studies"), SECRET.decode(), "root:", "Traceback (most")
        if not 400 <= answer.status_code < 500 or any(place in answer.text for place in places):
            through.append(f"{one}: {answer.status_code} {answer.text[:200]}")
    assert not through, "\n".join(through)
    assert not target.mark.exists()
    assert target.tree() == before
    assert requests.get(f"{target.server.url}/train/", timeout=60).status_code == 404  # none was started
    assert not list((target.folder / "temporary").glob("**/*.nii*"))
    assert target.server.infer("ct").status_code == 200  # the server goes on


@pytest.mark.parametrize(
    "path",
    ["/info/", "/datastore/?output=all", "/datastore/?output=train", "/logs/?text=true", "/scoring/", "/model/info/x"],
)
def test_no_answer_tells_an_absolute_path(target: Target, path: str) -> None:
    answer = requests.get(target.server.url + path, timeout=60)
    for place in (
        target.server.work,
        target.folder / "studies",
        Path.home(),
        Path(os.environ["LABEL_PYTHON"]).parents[1] / "lib",
    ):
        assert str(place) not in answer.text, answer.text


PAGE = """<!doctype html><title>elsewhere</title><iframe id=shown></iframe><script>
const server = 'SERVER', told = {};
const attempt = async (name, make) => {
  try { const answer = await make(); told[name] = `${answer.type} ${answer.status} ${await answer.text()}`; }
  catch (error) { told[name] = 'refused'; }
};
const evil = JSON.stringify({max_epochs: "$open('MARK', 'w')", device: "$open('MARK', 'w')"});
const text = {method: 'POST', body: evil, headers: {'Content-Type': 'text/plain'}};
const json = {...text, headers: {'Content-Type': 'application/json'}};
const blind = {...text, mode: 'no-cors'};
window.told = (async () => {
  const train = server + '/train/MODEL';
  await attempt('read', () => fetch(server + '/info/'));
  await attempt('read blindly', () => fetch(server + '/info/', {mode: 'no-cors'}));
  await attempt('train', () => fetch(train, text));
  await attempt('train blindly', () => fetch(train, blind));
  await attempt('train well', () => fetch(train, {...blind, body: '{"max_epochs": 1}'}));
  await attempt('with a preflight', () => fetch(train, json));
  navigator.sendBeacon(train, evil);
  await new Promise(done => {
    const image = new Image();
    image.onload = image.onerror = done;
    image.src = server + '/datastore/image?image=ct';
  });
  document.getElementById('shown').src = server + '/ohif/';
  const form = document.createElement('form'), field = document.createElement('input');
  Object.assign(form, {action: train, method: 'POST', enctype: 'text/plain', target: 'shown'});
  Object.assign(field, {name: '{"max_epochs": 1, "a": "', value: '"}'});
  form.append(field);
  document.body.append(form);
  form.submit();
  await new Promise(done => setTimeout(done, 1500));
  return told;
})();
</script>"""


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium isn't installed: apt-get install chromium chromium-driver"
)
def test_a_foreign_page_in_a_browser_can_neither_start_nor_read_anything(target: Target) -> None:
    from selenium import webdriver

    port = target.server.url.rsplit(":", 1)[1]
    page = PAGE.replace("SERVER", target.server.url).replace("MARK", str(target.mark)).replace("MODEL", MODEL)

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ):
        options.add_argument(flag)
    for flag in ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP rebound.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    before = target.tree()
    try:
        browser.set_script_timeout(60)
        for host in ("127.0.0.1", "rebound.example"):
            browser.get(f"http://{host}:{site.server_port}/")
            told = browser.execute_async_script("const done = arguments[0]; window.told.then(done);")
            assert told["read"] == told["train"] == told["with a preflight"] == "refused"
            assert {told["read blindly"], told["train blindly"], told["train well"]} <= {"refused", "opaque 0 "}
        browser.get(f"http://rebound.example:{port}/datastore/?output=all")  # the name now leads to the server
        assert "isn't known by that name" in browser.page_source
        assert "ct" not in browser.find_element("tag name", "body").text.split()
    finally:
        browser.quit()
        site.shutdown()
        site.server_close()
    time.sleep(1)
    assert not target.mark.exists()
    assert requests.get(f"{target.server.url}/train/", timeout=60).status_code == 404
    assert target.tree() == before


def test_a_client_logs_in_with_the_token(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI Label's own, as 3D Slicer's module does: any name, and the token as the password."""
    monkeypatch.setenv("LABEL_SERVER_TOKEN", TOKEN)
    with label_server(
        target.folder / "studies", target.folder / "bundle", tmp_path, "--hosts", "labels.example.org"
    ) as server:
        assert requests.get(f"{server.url}/info/", timeout=60).status_code == 401
        named = {"Host": "labels.example.org", "Authorization": f"Bearer {TOKEN}"}
        assert requests.get(f"{server.url}/info/", headers=named, timeout=60).status_code == 200
        assert f"/ohif/?token={TOKEN}" in (tmp_path / "label_server.log").read_text()
        with label_client(server, tmp_path) as client:
            assert client("auth_enabled") is True
            assert client("auth_token", "reader", "wrong")["status"] == 401
            client("update_auth", client("auth_token", "reader", TOKEN))
            assert MODEL in client("info")["models"]
            file, _ = client("infer", MODEL, "ct", {})
            assert Path(file).is_file()
