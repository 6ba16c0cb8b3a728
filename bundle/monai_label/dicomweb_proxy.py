"""What of a DICOM archive does the label server hand on to the viewer in the browser?

DICOMweb, and nothing else. MONAI Label's own proxy (0.8.5) forgets the query, so that the viewer lists all patients'
studies beside each one's, and follows `..` out of DICOMweb into the archive's other services.
"""

from __future__ import annotations

import re
from typing import Any

from monai.utils import optional_import

httpx, _ = optional_import("httpx")
Response, _ = optional_import("starlette.responses", name="Response")
Route, _ = optional_import("starlette.routing", name="Route")

RESOURCE = re.compile(r"(studies|series|instances)(/(?!\.\.?(/|$))[\w.,-]+)*", re.ASCII)  # studies/UID/series/UID/...
STORING = re.compile(r"studies(/[0-9.]+)?")
TIMEOUT_S = 600
HANDED_ON = ("accept", "content-type")


def serve_archive(app: Any, url: str, *, prefixes: dict[str, str] | None = None, auth: Any = None) -> None:
    """Let a web application answer /proxy/dicom/{qido,wado,stow}/... from an archive.

    Reading by GET, storing by POST to studies; other paths are answered with 404, and with 502 if the archive
    is silent. The reader's own password and cookies stay here.

    Args:
        app: a Starlette application, such as `monailabel.app.app`; what answers there already gives way.
        url: of the archive's DICOMweb service.
        prefixes: "qido", "wado" or "stow" -> where under the url that service is, if it isn't at the url itself.
        auth: name and password for the archive, if it wants one.
    """
    root, under = url.rstrip("/"), prefixes or {}

    async def answer(request: Any) -> Any:
        service, path = request.path_params["service"], request.path_params["path"].rstrip("/")
        wanted = STORING if request.method == "POST" else RESOURCE
        if service not in ("qido", "wado", "stow") or not wanted.fullmatch(path):
            return Response("no such resource", status_code=404)
        service = "wado" if service == "qido" and path.endswith("metadata") else service  # as OHIF asks
        there = "/".join(part.strip("/") for part in (root, under.get(service) or "", path) if part)
        headers = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
        try:
            async with httpx.AsyncClient(auth=auth, timeout=TIMEOUT_S) as client:
                body = await request.body()
                there = f"{there}?{request.url.query}"
                found = await client.request(request.method, there, headers=headers, content=body)
        except httpx.HTTPError as error:
            return Response(f"the archive at {root} doesn't answer ({type(error).__name__})", status_code=502)
        kind = found.headers.get("content-type", "application/octet-stream")
        return Response(found.content, status_code=found.status_code, headers={"content-type": kind})

    routes = app.router.routes
    routes.insert(0, Route("/proxy/dicom/{rest:path}", refuse, methods=["GET", "POST"]))
    routes.insert(0, Route("/proxy/dicom/{service}/{path:path}", answer, methods=["GET", "POST"]))


async def refuse(request: Any) -> Any:
    """Answer that there is nothing here."""
    return Response("no such resource", status_code=404)
