from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from orthanc import free_port

from cyclic_committee.monai_label.dicomweb_proxy import serve_archive

pytest.importorskip("httpx", reason="httpx isn't installed: pip install httpx")
applications = pytest.importorskip("starlette.applications", reason="starlette isn't installed: pip install starlette")
testing = pytest.importorskip("starlette.testclient", reason="starlette isn't installed: pip install starlette")


class Archive(BaseHTTPRequestHandler):
    """Says what it was asked."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        said = {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body}
        self.send_response(418 if "teapot" in self.path else 200)
        self.send_header("Content-Type", "application/dicom+json")
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def archive() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web/"
    server.shutdown()
    server.server_close()


def proxied(url: str, **settings: Any) -> Any:
    app = applications.Starlette()
    serve_archive(app, url, **settings)
    return testing.TestClient(app)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("qido/studies?00100020=A%20B&limit=1", "studies?00100020=A%20B&limit=1"),
        ("wado/studies/1.2/series/3.4/instances/5.6/frames/1,2", "studies/1.2/series/3.4/instances/5.6/frames/1,2?"),
        ("qido/series", "series?"),
    ],
)
def test_what_is_asked_goes_to_the_archive_with_its_query(archive: str, asked: str, there: str) -> None:
    said = proxied(archive).get(f"/proxy/dicom/{asked}", headers={"Accept": "application/dicom+json"}).json()
    assert said["method"] == "GET"
    assert said["path"] == f"/dicom-web/{there}"
    assert said["headers"]["accept"] == "application/dicom+json"


def test_files_are_stored_and_the_readers_password_stays_here(archive: str) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    headers = {"Content-Type": kind, "Authorization": "Basic secret", "Cookie": "secret"}
    answer = proxied(archive, auth=("its", "own")).post("/proxy/dicom/wado/studies", content="--b", headers=headers)
    said = answer.json()
    assert (said["method"], said["path"], said["body"]) == ("POST", "/dicom-web/studies?", "--b")
    assert {key.lower(): value for key, value in said["headers"].items()}["content-type"] == kind
    assert "secret" not in str(said)
    assert "Basic aXRzOm93bg==" in str(said)


def test_services_may_lie_apart(archive: str) -> None:
    client = proxied(archive, prefixes={"qido": "rs", "wado": "/wado-rs/"})
    assert client.get("/proxy/dicom/qido/studies").json()["path"] == "/dicom-web/rs/studies?"
    assert client.get("/proxy/dicom/qido/studies/1/metadata").json()["path"] == "/dicom-web/wado-rs/studies/1/metadata?"
    assert client.get("/proxy/dicom/stow/studies").json()["path"] == "/dicom-web/studies?"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "wado/",
        "wado/..%2fstudies",
        "wado/studies/..",
        "wado/studies/%2e%2e/x",
        "qido/tools",
        "other/studies",
        "studies",
    ],
)
def test_all_else_is_not_there(archive: str, path: str) -> None:
    assert proxied(archive).get(f"/proxy/dicom/{path}").status_code == 404


@pytest.mark.parametrize("path", ["qido/series", "wado/studies/1/series/2", "wado/studies/x"])
def test_files_are_stored_in_studies_only(archive: str, path: str) -> None:
    assert proxied(archive).post(f"/proxy/dicom/{path}").status_code == 404


def test_the_archives_own_answer_comes_back(archive: str) -> None:
    answer = proxied(archive).get("/proxy/dicom/wado/studies/teapot")
    assert answer.status_code == 418
    assert answer.headers["Content-Type"] == "application/dicom+json"


def test_a_silent_archive_is_named() -> None:
    answer = proxied(f"http://127.0.0.1:{free_port()}").get("/proxy/dicom/qido/studies")
    assert answer.status_code == 502
    assert "127.0.0.1" in answer.text
