"""What can be asked of the label server over HTTP?

MONAI Label's application, with some of its routes replaced and some closed. The first route that fits is taken.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.app import app
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from starlette.background import BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..scripts.bundles.server_folder import NO_ACCOUNTS, served_bundle
from ..scripts.runtime.errors import BadInput
from .app import INFERENCE, labels_of, one_of
from .dicomweb_proxy import refuse, serve_archive
from .names import require_ending
from .segmentation_answer import segmentation_answer
from .viewer_settings import serve_viewer_settings

EVERY = ["GET", "HEAD", "POST", "PUT", "DELETE"]
CLOSED = {  # those that read any file, unpack or run something, or replace the weights by whatever is sent
    "/infer/{rest:path}": EVERY,
    "/session/{rest:path}": EVERY,
    "/proxy/{rest:path}": EVERY,
    "/reload": EVERY,
    "/logs/gpu": EVERY,
    "/model/{rest:path}": ["PUT", "DELETE"],
}
TASKS = {  # what is started: the app's table of it, the request's key for its name, and what may be chosen
    "train": ("_trainers", "model", ("device", "max_epochs", "val_split", "client_id")),
    "scoring": ("_scoring_methods", "method", ("client_id",)),
    "batch/infer": ("_infers", "model", (*INFERENCE, "multi_gpu", "max_workers", "max_batch_size")),
}


async def infer(request: Request) -> Response:
    """POST /infer/MODEL?image=ID: label an image of the studies, or the file that is sent along."""
    instance, query = app_instance(), request.query_params
    one_of(instance._infers, request.path_params["name"], "model")
    output = query.get("output") or ResultType.all.value
    one_of(ResultType.__members__, output, "output")
    async with request.form() as form:
        params = as_object(form.get("params") or "{}")
        wanted = {key: params[key] for key in (*INFERENCE, "label_info") if key in params}
        wanted |= {"model": request.path_params["name"], "image": query.get("image", "")}
        file: Any = form.get("file")
        if not file and not wanted["image"]:
            raise HTTPException(400, "Give an image's id, or send a file.")
        if not file:
            return await run_in_threadpool(labelled, instance, wanted, output)
        with tempfile.NamedTemporaryFile(suffix=require_ending(str(file.filename))) as upload:
            while block := await file.read(1 << 20):
                upload.write(block)
            upload.flush()
            return await run_in_threadpool(labelled, instance, {**wanted, "upload": upload.name}, output)


def labelled(instance: Any, request: dict[str, Any], output: str) -> Response:
    """Return an inference's answer, as MONAI Label's clients expect it."""
    result, tasks = instance.infer(request), BackgroundTasks()
    store = instance.datastore()
    if output == ResultType.dicom_seg:
        return segmentation_answer(store, request["image"], Path(result["file"]))
    answer = send_response(store, result, output, tasks)
    if not isinstance(answer, Response):
        answer = JSONResponse(answer)
    answer.background = tasks
    found: Response = answer
    return found


async def start(request: Request) -> Response:
    """POST /train/MODEL, /scoring/METHOD, /batch/infer/MODEL: start it, or with run_sync=true do it."""
    kind, name = request.path_params["kind"], request.path_params.get("name") or ""
    instance = app_instance()
    table, key, allowed = TASKS[kind]
    given = as_object((await request.body()).decode() or "{}")
    if not name:  # all, of which there is one; options go under its name
        [name] = getattr(instance, table)
        given = as_object(json.dumps(given.get(name, given)))
    one_of(getattr(instance, table), name, key)
    chosen = {key: given[key] for key in allowed if key in given} | {key: name}
    images = request.query_params.get("images", "all")
    if kind == "batch/infer":
        chosen["images"] = one_of({one: one for one in ("all", "labeled", "unlabeled")}, images, "kind of images")
    method = kind.replace("/", "_")
    if request.query_params.get("run_sync", "").lower() in ("1", "true"):
        return JSONResponse(await run_in_threadpool(getattr(instance, method), chosen))
    enqueue = request.query_params.get("enqueue", "").lower() in ("1", "true")
    started, why_not = AsyncTask.run(method, request=chosen, enqueue=enqueue)
    if started is None:
        raise HTTPException(429, why_not)
    return JSONResponse({key: value for key, value in started.items() if key != "details"})


def as_object(text: Any) -> dict[str, Any]:
    """Return a JSON object, empty for null, or answer 400."""
    try:
        found: Any = json.loads(text) or {}
    except (TypeError, ValueError):
        found = text
    if isinstance(found, dict):
        return found
    raise HTTPException(400, "The parameters are no JSON object.")


async def not_there(request: Request, error: Exception) -> Response:
    """Answer that something isn't among the studies."""
    return JSONResponse({"detail": getattr(error, "msg", "not there")}, status_code=404)


async def bad_input(request: Request, error: Exception) -> Response:
    """Answer what is wrong with what was given."""
    return JSONResponse({"detail": str(error)}, status_code=400)


def set_up() -> None:
    """Change MONAI Label's application.

    Raises:
        BadInput: MONAI Label is told to ask for accounts, which the routes here don't.
    """
    if settings.MONAI_LABEL_AUTH_ENABLE:  # in a file .env, which it reads, too
        raise BadInput(f"MONAI_LABEL_AUTH_ENABLE: {NO_ACCOUNTS}")
    app.user_middleware.clear()  # CORS for any site's page; the viewer comes from this very server
    routes = app.router.routes
    for path, methods in CLOSED.items():
        routes.insert(0, Route(path, refuse, methods=methods))
    routes.insert(0, Route("/infer/{name}", infer, methods=["POST"]))
    for kind in TASKS:
        path = f"/{kind}" + "/{name}"
        routes.insert(0, Route(path, starting(kind), methods=["POST"]))
        routes.insert(0, Route(f"/{kind}/", starting(kind), methods=["POST"]))
    for kind in (ImageNotFoundException, LabelNotFoundException):
        app.add_exception_handler(kind, not_there)
    app.add_exception_handler(BadInput, bad_input)
    work, studies = Path(settings.MONAI_LABEL_APP_DIR), settings.MONAI_LABEL_STUDIES
    serve_viewer_settings(app, labels_of(served_bundle(work)).values())
    if studies.startswith(("http://", "https://")):
        name, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        prefixes = {
            "qido": settings.MONAI_LABEL_QIDO_PREFIX or "",
            "wado": settings.MONAI_LABEL_WADO_PREFIX or "",
            "stow": settings.MONAI_LABEL_STOW_PREFIX or "",
        }
        serve_archive(app, studies, prefixes=prefixes, auth=(name, password) if name and password else None)


def starting(kind: str) -> Any:
    """Return `start` for one kind of task."""

    async def endpoint(request: Request) -> Response:
        request.path_params["kind"] = kind
        return await start(request)

    return endpoint


set_up()
