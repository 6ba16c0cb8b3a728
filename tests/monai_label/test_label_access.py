"""Who is let in to the label server, asked of the wall alone; `test_label_hostile.py` asks a whole server."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from cyclic_committee.monai_label.guard.access import COOKIE, Access
from cyclic_committee.scripts.bundles.server_settings import TOKEN
from cyclic_committee.scripts.commands.label_server import access_token, host_names
from cyclic_committee.scripts.runtime.errors import BadInput

SECRET = "a-token-of-sixteen-and-more"


async def answer(request: Any) -> Response:
    return PlainTextResponse("let in")


async def telling(request: Any) -> Response:
    return JSONResponse({"file": '/srv/a "b"/kept/x', "other": "/srv/x/y", "log": "/srv/studies/one.nii.gz"})


def client(token: str | None = None) -> TestClient:
    every = ["GET", "POST", "OPTIONS"]
    app = Starlette(routes=[Route("/tell", telling), Route("/{rest:path}", answer, methods=every)])
    folders = {'/srv/a "b"/kept': "WORK", "/srv/studies": "STUDIES", "/srv": "SERVER"}
    wall = Access(app, hosts=["labels.example.org"], token=token, folders=folders)
    return TestClient(wall, base_url="http://127.0.0.1:8000", follow_redirects=False)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("127.0.0.1:9000", 200),  # a tunnel's end
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("labels.example.org", 200),
        ("evil.example", 421),
        ("labels.example.org.evil.example", 421),
        ("evil.example:127.0.0.1", 421),
        ("user@evil.example", 421),
        ("127.0.0.1@evil.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
        ("[", 421),
    ],
)
def test_a_request_must_name_this_server(host: str, status: int) -> None:
    assert client().get("/info/", headers={"Host": host}).status_code == status


def test_the_address_that_was_reached_is_a_name() -> None:
    """As where it listens on all of a machine's addresses."""
    reached = TestClient(client().app, base_url="http://192.0.2.7:8000")
    assert reached.get("/info/").status_code == 200
    assert reached.get("/info/", headers={"Host": "192.0.2.8"}).status_code == 421


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/train/x", {"Origin": "http://127.0.0.1:8000"}, 200),
        ("POST", "/train/x", {}, 200),  # no browser
        ("POST", "/train/x", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", "/info/", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ("POST", "/train/x", {"Origin": "http://127.0.0.1:3000"}, 403),
        ("POST", "/train/x", {"Origin": "null"}, 403),
        ("OPTIONS", "/train/x", {"Origin": "http://evil.example"}, 403),
        ("GET", "/info/", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ("GET", "/info/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("GET", "/ohif/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ],
)
def test_another_sites_page_is_not_served(method: str, path: str, headers: dict[str, str], status: int) -> None:
    assert client().request(method, path, headers=headers).status_code == status


@pytest.mark.parametrize(("dest", "status"), [("document", 200), ("iframe", 403)])
def test_another_sites_page_may_link_to_the_viewer_but_not_show_it(dest: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": dest}
    assert client().get("/ohif/viewer?x=1", headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/a/$x", "/a?b=$x", "/a?$b=x", "/a?b=@x", "/a?b=%25x"])
def test_what_a_configuration_would_run_is_refused_wherever_it_stands(path: str) -> None:
    assert client().get(path).status_code == 400


@pytest.mark.parametrize("path", ["/ohif/%2e%2e", "/a/%2e%2e/b", "/a%5cb", "/a%00b"])
def test_no_path_goes_astray(path: str) -> None:
    assert client().get(path).status_code == 404


def test_answers_tell_no_folders() -> None:
    said = client().get("/tell").json()
    assert said == {"file": "WORK/x", "other": "SERVER/x/y", "log": "STUDIES/one.nii.gz"}


def test_without_the_token_nobody_gets_in() -> None:
    asking = client(SECRET)
    assert asking.get("/info/").status_code == 401
    assert asking.get("/info/", headers={"Authorization": f"Bearer {SECRET}x"}).status_code == 401
    assert asking.get("/info/", headers={"Authorization": "Bearer "}).status_code == 401
    assert asking.get("/ohif/?token=wrong").status_code == 401
    assert asking.get("/auth/").status_code == 200  # where a client learns that it is asked for


def test_clients_send_the_token_along() -> None:
    assert client(SECRET).get("/info/", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200


def test_a_browser_gets_a_cookie_and_an_address_without_the_token() -> None:
    browser = client(SECRET)
    first = browser.get(f"/ohif/viewer?a=1&token={SECRET}")
    assert (first.status_code, first.headers["location"]) == (303, "/ohif/viewer?a=1")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert browser.cookies[COOKIE] == SECRET
    assert browser.get("/ohif/viewer?a=1").status_code == 200
    assert browser.get("/ohif/", headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    ("wanted", "host", "given", "asked"),
    [
        (None, "127.0.0.1", "", False),
        (None, "localhost", "", False),
        (None, "0.0.0.0", "", True),
        (None, "192.0.2.7", "", True),
        (False, "192.0.2.7", SECRET, False),
        (True, "127.0.0.1", "", True),
        (None, "127.0.0.1", SECRET, True),
    ],
)
def test_who_can_reach_a_server_from_elsewhere_is_asked_for_a_token(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None, host: str, given: str, asked: bool
) -> None:
    monkeypatch.setenv(TOKEN, given)
    token = access_token(wanted, host)
    assert (token is not None) == asked
    if asked:
        assert token == given or len(str(token)) >= 32
    assert token is None or given or token != access_token(wanted, host)


def test_a_short_token_and_a_strange_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(BadInput, match="LABEL_SERVER_TOKEN: give 16"):
        access_token(None, "127.0.0.1")
    with pytest.raises(BadInput, match="must be true or false, got 'abc'"):
        access_token("abc", "127.0.0.1")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no machine's name"):
        host_names(["http://x"])
