"""Who may ask the label server, and what its answers keep to themselves.

A browser lets any web page send requests to any address, this machine's too. So a request must name this server
(`Host`: otherwise another site's name may lead here, "DNS rebinding"), and must not come from another site's page
(`Origin`, `Sec-Fetch-Site`: such a page may link to the viewer, and nothing else). With a token, only those who have it
get in: as `Authorization: Bearer TOKEN`, which MONAI Label's client sends, or as the cookie that the address with
`?token=TOKEN` leaves in a browser.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...scripts.runtime.config_files import CODE

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "cyclic_committee_token"
PAGES = re.compile(r"/(ohif(/.*)?)?")  # where a link from elsewhere may lead
LOGIN = ("/auth/", "/auth/token")
ASTRAY = re.compile(r"(^|[/\\])\.\.([/\\]|$)|[\\\x00]")
TEXT = ("application/json", "text/plain")
ANSWER_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Access:
    """A wall around a web application.

    Args:
        app: the application.
        hosts: the names, without ports, under which the server is known beside loopback's.
        token: that is asked for; None: none is.
        folders: path -> the word that stands for it in answers, so that none tells an absolute path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] = (),
        token: str | None = None,
        folders: Mapping[str, str],
    ) -> None:
        self.app, self.token = app, token
        self.hosts = {*LOOPBACK, *(host.lower().strip("[]") for host in hosts)}
        longest_first = sorted(folders.items(), key=lambda item: -len(item[0]))
        self.folders = {spelt.encode(): word.encode() for path, word in longest_first for spelt in spellings(path)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page here needs a web socket
            return
        request = Request(scope, receive)
        refusal = self.refusal(request)
        await (refusal or self.app)(scope, receive, Discreet(send, self.folders, has_body=request.method != "HEAD"))

    def refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that isn't let in, or None."""
        headers, path = request.headers, str(request.scope["path"])  # decoded
        if not self.names_this_server(request):
            what = "This server isn't known by that name. Start it with --hosts NAME if it should be."
            return PlainTextResponse(what, status_code=421)
        if from_elsewhere(request):
            return PlainTextResponse("Another site's page may not ask this server.", status_code=403)
        if ASTRAY.search(path):
            return PlainTextResponse("There is no such resource.", status_code=404)
        values = [*path.split("/"), *(part for item in request.query_params.multi_items() for part in item)]
        if any(value.startswith(CODE) for value in values):
            return PlainTextResponse(f"No name or value here begins with {', '.join(CODE)}.", status_code=400)
        if self.token is None or path in LOGIN:
            return None
        if request.method == "GET" and self.is_token(request.query_params.get("token", "")):
            return with_cookie(request, str(self.token))
        bearer, cookie = headers.get("authorization", "").removeprefix("Bearer "), request.cookies.get(COOKIE, "")
        if not (self.is_token(bearer) or self.is_token(cookie)):
            what = "This server asks for its access token: open the address that it printed when it was started."
            return PlainTextResponse(what, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        return None

    def names_this_server(self, request: Request) -> bool:
        """Return whether `Host` is one of this server's names, or the address at which it was reached."""
        named = request.headers.getlist("host")
        if len(named) != 1:
            return False
        try:
            host = urlsplit(f"//{named[0]}").hostname
        except ValueError:
            return False
        reached = (request.scope.get("server") or ("",))[0]
        return host is not None and (host in self.hosts or host == reached)

    def is_token(self, given: str) -> bool:
        """Return whether that is the token; the time it takes tells nothing of it."""
        return self.token is not None and secrets.compare_digest(given.encode(), self.token.encode())


def from_elsewhere(request: Request) -> bool:
    """Return whether another site's page has sent a request; a link from there to the viewer is let through."""
    headers = request.headers
    if "origin" in headers and urlsplit(headers["origin"]).netloc.lower() != headers["host"].lower():
        return True
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    is_link = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return not (is_link and headers.get("sec-fetch-dest") == "document" and PAGES.fullmatch(request.url.path))


def with_cookie(request: Request, token: str) -> Response:
    """Return the way to the same page without the token in its address, which the browser now has as a cookie."""
    answer = RedirectResponse(request.url.remove_query_params("token").replace(scheme="", netloc=""), status_code=303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, token, httponly=True, samesite="lax", secure=secure)
    return answer


def spellings(path: str) -> list[str]:
    """Return how a path may stand in an answer: as it is, and as JSON writes it."""
    return sorted({path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1]})


class Discreet:
    """Sends answers with folders' words in place of their paths, and with what browsers are told of all of them."""

    def __init__(self, send: Send, folders: Mapping[bytes, bytes], *, has_body: bool) -> None:
        self.send, self.folders, self.has_body = send, folders, has_body
        self.start: Message | None = None
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Send a part of an answer; a text goes out when it is whole."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in ANSWER_HEADERS.items():
                headers.setdefault(name, value)
            if self.has_body and Headers(raw=message["headers"]).get("content-type", "").startswith(TEXT):
                self.start = message
                return
        if self.start is None or message["type"] != "http.response.body":
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if not message.get("more_body", False):
            text = bytes(self.body)
            for path, word in self.folders.items():
                text = text.replace(path, word)
            MutableHeaders(raw=self.start["headers"])["content-length"] = str(len(text))
            await self.send(self.start)
            await self.send({**message, "body": text})
