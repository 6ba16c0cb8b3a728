"""The nginx configuration in the documentation, run as it stands there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import requests
from documented_nginx import READER, WHY_NOT, documented_nginx

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


class Echo(BaseHTTPRequestHandler):
    """Says which headers and how many bytes came through."""

    def answer(self) -> None:
        length = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        body = json.dumps({"headers": dict(self.headers), "length": length}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, backend: int) -> Iterator[tuple[str, str]]:
    """The address of the documented nginx, and the certificate to trust."""
    with documented_nginx(tmp_path_factory.mktemp("nginx"), f"http://127.0.0.1:{backend}") as running:
        yield running


@pytest.mark.parametrize("reader", [None, ("reader", "wrong"), ("nobody", "a password")])
@pytest.mark.parametrize("path", ["/", "/info/", "/ohif/", "/proxy/dicom/qido/studies", "/datastore/?output=all"])
def test_nobody_gets_in_without_a_password(proxy: tuple[str, str], reader: tuple[str, str] | None, path: str) -> None:
    url, certificate = proxy
    assert requests.get(url + path, auth=reader, verify=certificate, timeout=20).status_code == 401


def test_a_volume_goes_through_and_the_password_does_not(proxy: tuple[str, str]) -> None:
    url, certificate = proxy
    volume = bytes(20_000_000)
    answer = requests.put(
        f"{url}/datastore/label",
        data=volume,
        auth=READER,
        headers={"Origin": "https://elsewhere.example"},
        verify=certificate,
        timeout=60,
    )
    answer.raise_for_status()
    said = answer.json()
    assert said["length"] == len(volume)
    assert not {"Authorization", "Origin"} & said["headers"].keys()


@pytest.mark.parametrize(
    ("method", "site", "mode", "status"),
    [
        ("GET", "cross-site", "navigate", 200),  # a link
        ("GET", "same-origin", "cors", 200),
        ("POST", "same-origin", "cors", 200),
        ("GET", "none", "navigate", 200),  # typed
        ("GET", "cross-site", "no-cors", 403),
        ("POST", "cross-site", "navigate", 403),  # a form
        ("POST", "cross-site", "no-cors", 403),
        ("GET", "same-site", "cors", 403),
    ],
)
def test_other_sites_pages_cannot_use_a_readers_password(
    proxy: tuple[str, str], method: str, site: str, mode: str, status: int
) -> None:
    url, certificate = proxy
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    answer = requests.request(method, url, auth=READER, headers=headers, verify=certificate, timeout=20)
    assert answer.status_code == status
