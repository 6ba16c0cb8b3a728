"""The command that starts MONAI Label with the committee's application."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..bundles.server_settings import HOSTS, NO_ACCOUNTS, TOKEN
from ..runtime.bundle_paths import bundle_root
from ..runtime.config_files import require_config
from ..runtime.errors import BadInput
from .arguments import channel_list, require_there

NEEDED = ("monailabel", "pydicom", "highdicom")
SHORTEST_TOKEN = 16
FRESH_S = 10  # how long what an archive holds is remembered


def label_server(
    studies: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    work: str = "label_server",
    bundle: str | None = None,
    config: str | Sequence[str] | None = None,
    ckpt_path: str | None = None,
    hosts: str | Sequence[str] | None = None,
    token: bool | None = None,
) -> None:
    """Serve the committee to OHIF and 3D Slicer with MONAI Label, until Ctrl+C.

    Args:
        studies: a folder of NIfTI files, or the url of an archive's DICOMweb service, http:// or https://.
        host: the address to listen on; by default this machine alone can reach it.
        port: to listen on.
        work: the server's own folder: a copy of the bundle, the weights that it trains, and of an archive's studies
            what was looked at. Made when it isn't there; else the server goes on with what lies in it.
        bundle: the folder of a bundle, such as a fold of Auto3DSeg; by default the installed one.
        config: overlays that the networks were trained with, commas between them, such as variants/small.yaml.
        ckpt_path: the weights; by default models/model.pt of the bundle.
        hosts: further names under which readers reach the server, commas between them, such as labels.example.org;
            requests that name another server are refused.
        token: whether an access token is asked for, printed at the start; by default where other machines can reach
            the server. LABEL_SERVER_TOKEN in the environment is the token; else a new one is made at each start.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"label-server: {', '.join(missing)} isn't installed. In an environment of its own: "
            "pip install 'cyclic-committee[label]'"
        )
    if os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes", "on"):
        raise BadInput(f"MONAI_LABEL_AUTH_ENABLE: {NO_ACCOUNTS}")
    is_url = str(studies).startswith(("http://", "https://"))
    if not is_url and not Path(studies).is_dir():
        raise BadInput(f"{studies}: no such folder. Give a folder of NIfTI files, or a DICOMweb url.")
    names, secret = host_names(channel_list(hosts)), access_token(token, str(host))
    require_there(bundle, ckpt_path)
    require_config("inference.yaml", channel_list(config), bundle=bundle)
    from ..bundles.server_folder import make_work_folder

    folder = Path(work).resolve()
    make_work_folder(folder, bundle=bundle, overlays=channel_list(config), ckpt_path=ckpt_path)
    where = str(studies) if is_url else str(Path(studies).resolve())
    command = server_command(folder, where, host=str(host), port=int(port))
    page, query = f"http://{f'[{host}]' if ':' in str(host) else host}:{port}", f"?token={secret}" if secret else ""
    print(f"MONAI Label: {page}/{query}, the viewer: {page}/ohif/{query}, stopped by Ctrl+C", flush=True)
    environment = {**os.environ, **server_environment(), HOSTS: ",".join({*names, str(host)} - {"0.0.0.0", "::"})}
    environment.pop(TOKEN, None)
    os.execve(command[0], command, {**environment, TOKEN: secret} if secret else environment)


def host_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names as they are.

    Raises:
        BadInput: one that is no name of a machine.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9.-]+|\[?[0-9A-Fa-f:]+\]?", name):
            raise BadInput(f"--hosts: {name!r} is no machine's name. Give it without http:// and port.")
    return names


def access_token(wanted: bool | None, host: str) -> str | None:
    """Return the access token that is asked for, None for none.

    Args:
        wanted: as the command's option.
        host: the address that is listened on.

    Raises:
        BadInput: neither true nor false; one in the environment that is too short.
    """
    if wanted not in (None, True, False):
        raise BadInput(
            f"--token must be true or false, got {wanted!r}. Its value comes from {TOKEN}, if not by chance."
        )
    given = os.environ.get(TOKEN, "")
    if wanted is False or (wanted is None and not given and host in ("127.0.0.1", "localhost", "::1")):
        return None
    if given and not re.fullmatch(rf"[A-Za-z0-9._~-]{{{SHORTEST_TOKEN},}}", given):
        raise BadInput(f"{TOKEN}: give {SHORTEST_TOKEN} or more letters, digits, ., _, ~ and -.")
    return given or secrets.token_urlsafe(24)


def server_command(work: Path, studies: str, *, host: str, port: int) -> list[str]:
    """Return the command that starts MONAI Label on a work folder."""
    return [
        *(sys.executable, "-m", "monailabel.main", "start_server"),
        *("--app", str(work), "--studies", studies, "--host", host, "--port", str(port)),
        *("--uvicorn_app", "cyclic_committee.monai_label.web:app"),
    ]


def stand_ins() -> list[str]:
    """Return the folders of modules that MONAI Label imports, doesn't need here, and that may not work."""
    from monai.utils import optional_import

    folder = Path(bundle_root(), "monai_label", "stand_ins")
    _, works = optional_import("torchvision.utils")
    return [str(folder / name) for name in ("pydicom_seg", *(() if works else ("torchvision",)))]


def server_environment() -> Mapping[str, str]:
    """Return what MONAI Label and the processes that it starts are told."""
    path = [*stand_ins(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",  # what lies where the server is started is none of its modules
        "MONAI_LABEL_SESSIONS": "false",  # they unpack archives that they are sent
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": str(FRESH_S),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1)),
    }
