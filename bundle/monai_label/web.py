"""The label server's routes: MONAI Label's application, with some replaced and some closed.

The first that fits is taken. What a request says goes through `guard/parameters.py`, the files that it sends through
`guard/uploads.py`.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
from fastapi import HTTPException
from monailabel.app import app
from monailabel.config import settings
from monailabel.endpoints import activelearning, datastore
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ..scripts.bundles.server_folder import served_bundle
from ..scripts.bundles.server_settings import HOSTS, NO_ACCOUNTS, TOKEN
from ..scripts.data.volumes import case_name
from ..scripts.runtime.errors import BadInput
from .app import labels_of, one_of
from .dicomweb_proxy import refuse, serve_archive
from .guard.access import Access
from .guard.parameters import (
    BatchOptions,
    InferenceOptions,
    Options,
    ScoringOptions,
    TrainingOptions,
    json_object,
    parse,
)
from .guard.uploads import received, require_image
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
    "/datastore/updatelabelinfo": EVERY,
}
TASKS: dict[str, tuple[str, str, type[Options]]] = {  # what is started: the app's table, the key of its name, options
    "train": ("_trainers", "model", TrainingOptions),
    "scoring": ("_scoring_methods", "method", ScoringOptions),
    "batch/infer": ("_infers", "model", BatchOptions),
}
CHECKSUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9a-fA-F]{32,128}")


async def infer(request: Request) -> Response:
    """POST /infer/MODEL?image=ID: label an image of the studies, or the file that is sent along."""
    instance, query = app_instance(), request.query_params
    model = request.path_params["name"]
    one_of(instance._infers, model, "model")
    output = query.get("output") or ResultType.all.value
    one_of(ResultType.__members__, output, "output")
    async with request.form() as form:
        params = json_object(form.get("params") or "{}")
        parse(InferenceOptions, params)
        wanted = {**params, "model": model, "image": query.get("image", "")}
        if form.get("file"):
            async with received(form.get("file")) as upload:
                await run_in_threadpool(require_image, upload)
                return await run_in_threadpool(labelled, instance, {**wanted, "upload": str(upload)}, output)
    if not wanted["image"]:
        raise HTTPException(400, "Give an image's id, or send a file.")
    return await run_in_threadpool(labelled, instance, {**wanted, "upload": None}, output)


def labelled(instance: Any, request: dict[str, Any], output: str) -> Response:
    """Return an inference's answer, as MONAI Label's clients expect it."""
    result, tasks = instance.infer(request), BackgroundTasks()
    store = instance.datastore()
    if output == ResultType.dicom_seg:
        return segmentation_answer(store, request["image"], Path(result["file"]))
    sent = send_response(store, result, output, tasks)
    answer: Response = sent if isinstance(sent, Response) else JSONResponse(sent)
    answer.background = tasks
    return answer


async def start(request: Request) -> Response:
    """POST /train/MODEL, /scoring/METHOD, /batch/infer/MODEL: start it, or with run_sync=true do it."""
    kind, name = request.path_params["kind"], request.path_params.get("name") or ""
    instance = app_instance()
    table, key, options = TASKS[kind]
    given = json_object(await text_of(request))
    if not name:  # all, of which there is one; options go under its name
        [name] = getattr(instance, table)
        given = given.get(name, given)
    one_of(getattr(instance, table), name, key)
    chosen = parse(options, given).model_dump(exclude_none=True) | {key: name}
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


async def text_of(request: Request) -> str:
    """Return a request's body, or answer 400 where it is no text."""
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise HTTPException(400, "The parameters are no JSON object.") from None


async def next_sample(request: Request) -> Response:
    """POST /activelearning/STRATEGY: the image to label next."""
    options = parse(Options, json_object(await text_of(request)))
    strategy = (
        one_of(app_instance()._strategies, request.path_params["name"], "strategy") and request.path_params["name"]
    )
    sample = await run_in_threadpool(activelearning.sample, strategy, options.model_dump())
    return JSONResponse({key: value for key, value in sample.items() if key != "path"})


async def add_image(request: Request) -> Response:
    """PUT /datastore/image?image=ID: add an image to the studies."""
    async with request.form() as form:
        info, upload = json_object(form.get("params") or "{}"), form.get("file")
        async with received(upload) as file:
            image_id = request.query_params.get("image") or case_name(str(upload.filename))  # type: ignore[union-attr]
            image_id = await run_in_threadpool(app_instance().datastore().add_image, image_id, str(file), info)
    return JSONResponse({"image": image_id})


async def save_label(request: Request) -> Response:
    """PUT /datastore/label?image=ID&tag=TAG: keep an image's label."""
    instance, image_id = app_instance(), request.query_params.get("image", "")
    tag = request.query_params.get("tag") or "final"
    async with request.form() as form:
        info = json_object(form.get("params") or "{}")
        async with received(form.get("label")) as file:
            label_id = await run_in_threadpool(instance.datastore().save_label, image_id, str(file), tag, info)
    more = instance.on_save_label(image_id, label_id) or {}
    return JSONResponse({**more, "image": image_id, "label": label_id})


async def update_image_info(request: Request) -> Response:
    """PUT /datastore/image/info?image=ID: add to what is known of an image."""
    async with request.form() as form:
        info = json_object(form.get("info") or "{}")
    query = request.query_params
    await run_in_threadpool(app_instance().datastore().update_image_info, query.get("image", ""), info)
    return JSONResponse(None)


async def update_label_info(request: Request) -> Response:
    """PUT /datastore/label/info?label=ID&tag=TAG: add to what is known of a label."""
    async with request.form() as form:
        info = json_object(form.get("info") or "{}")
    label, tag = request.query_params.get("label", ""), request.query_params.get("tag", "")
    await run_in_threadpool(app_instance().datastore().update_label_info, label, tag, info)
    return JSONResponse(None)


async def has_image(request: Request) -> Response:
    """HEAD /datastore/image?image=ID&check_sum=SUM: whether an image is there, and is that one."""
    image_id, checksum = request.query_params.get("image", ""), request.query_params.get("check_sum")
    if checksum and not CHECKSUM.fullmatch(checksum):
        raise HTTPException(400, "check_sum is none: SHA256:, SHA512: or MD5: and digits.")
    await run_in_threadpool(datastore.download_image, image_id, True, checksum)
    return JSONResponse({})


async def data_set(request: Request) -> Response:
    """GET /datastore/dataset?limit_cases=N: the images with final labels, zipped."""
    limit, store = request.query_params.get("limit_cases", "0"), app_instance().datastore()
    if not (limit.isdecimal() and len(limit) < 10):
        raise HTTPException(400, "limit_cases must be a whole number.")
    if not await run_in_threadpool(store.datalist):
        raise HTTPException(404, "There are no finished labels.")
    path = await run_in_threadpool(store.get_dataset_archive, int(limit))
    remove = BackgroundTask(Path(path).unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=remove)


async def asks_for_token(request: Request) -> Response:
    """GET /auth/: whether MONAI Label's clients must log in: any name, and the access token as the password."""
    return JSONResponse({"enabled": TOKEN in os.environ, "client_id": "", "realm": ""})


async def log_in(request: Request) -> Response:
    """POST /auth/token: the access token, for who gives it as the password."""
    async with request.form() as form:
        password = str(form.get("password", ""))
    if not secrets.compare_digest(password.encode(), os.environ.get(TOKEN, "").encode()):
        raise HTTPException(401, "That isn't the access token.")
    return JSONResponse({"access_token": password, "token_type": "Bearer"})


async def logged_in(request: Request) -> Response:
    """GET /auth/token/valid: for who has come this far."""
    return JSONResponse({"username": "reader"})


ROUTES = [  # method, path, what answers
    ("POST", "/infer/{name}", infer),
    ("POST", "/activelearning/{name}", next_sample),
    ("PUT", "/datastore/", add_image),
    ("PUT", "/datastore/image", add_image),
    ("PUT", "/datastore/label", save_label),
    ("PUT", "/datastore/image/info", update_image_info),
    ("PUT", "/datastore/label/info", update_label_info),
    ("HEAD", "/datastore/image", has_image),
    ("GET", "/datastore/dataset", data_set),
    ("GET", "/auth/", asks_for_token),
    ("POST", "/auth/token", log_in),
    ("GET", "/auth/token/valid", logged_in),
]


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
    work, studies = Path(settings.MONAI_LABEL_APP_DIR), settings.MONAI_LABEL_STUDIES
    hosts = os.environ.get(HOSTS, "").split(",")
    app.add_middleware(Access, hosts=filter(None, hosts), token=os.environ.get(TOKEN), folders=folders(work, studies))
    routes = app.router.routes
    for path, methods in CLOSED.items():
        routes.insert(0, Route(path, refuse, methods=methods))
    for method, path, endpoint in ROUTES:
        routes.insert(0, only(method, Route(path, endpoint, methods=[method])))
    for kind in TASKS:
        path = f"/{kind}" + "/{name}"
        routes.insert(0, Route(path, starting(kind), methods=["POST"]))
        routes.insert(0, Route(f"/{kind}/", starting(kind), methods=["POST"]))
    for kind in (ImageNotFoundException, LabelNotFoundException):
        app.add_exception_handler(kind, not_there)
    app.add_exception_handler(BadInput, bad_input)
    serve_viewer_settings(app, labels_of(served_bundle(work)).values())
    if studies.startswith(("http://", "https://")):
        name, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        prefixes = {
            "qido": settings.MONAI_LABEL_QIDO_PREFIX or "",
            "wado": settings.MONAI_LABEL_WADO_PREFIX or "",
            "stow": settings.MONAI_LABEL_STOW_PREFIX or "",
        }
        serve_archive(app, studies, prefixes=prefixes, auth=(name, password) if name and password else None)


def only(method: str, route: Route) -> Route:
    """Return a route for one method alone: Starlette adds HEAD to GET, which MONAI Label answers otherwise."""
    route.methods = {method}
    return route


def folders(work: Path, studies: str) -> Mapping[str, str]:
    """Return which folders' paths answers don't tell, and the word for each."""
    is_url = studies.startswith(("http://", "https://"))
    named = [(work, "WORK"), (Path(tempfile.gettempdir()), "TEMPORARY"), (Path.home(), "HOME")]
    named += [(Path(monai.__file__).parents[1], "PYTHON"), (Path(__file__).parents[1], "BUNDLE")]
    named += [] if is_url else [(Path(studies), "STUDIES")]
    return {str(one): word for path, word in named for one in (path.absolute(), path.resolve()) if one != Path("/")}


def starting(kind: str) -> Any:
    """Return `start` for one kind of task."""

    async def endpoint(request: Request) -> Response:
        request.path_params["kind"] = kind
        return await start(request)

    return endpoint


set_up()
