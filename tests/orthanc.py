"""How do tests get a DICOM archive of their own, and what lies in it?"""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")  # where Debian's package puts it
TIMEOUT_S = 300  # on a busy machine


@dataclass(frozen=True)
class Archive:
    """An Orthanc on loopback; `url` is its DICOMweb service."""

    url: str

    def store(self, files: Sequence[Path]) -> None:
        """Store DICOM files by STOW-RS."""
        border = uuid.uuid4().hex
        parts = b"".join(
            f"--{border}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file.read_bytes() + b"\r\n"
            for file in files
        )
        kind = f'multipart/related; type="application/dicom"; boundary={border}'
        answer = requests.post(
            f"{self.url}/studies",
            data=parts + f"--{border}--\r\n".encode(),
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
            timeout=TIMEOUT_S,
        )
        answer.raise_for_status()
        stored = pydicom.Dataset.from_json(answer.json())
        assert len(stored.ReferencedSOPSequence) == len(files)

    def series(self, **filters: str) -> list[pydicom.Dataset]:
        """Find series by QIDO-RS, such as those with `Modality="SEG"`."""
        headers = {"Accept": "application/dicom+json"}
        answer = requests.get(f"{self.url}/series", params=filters, headers=headers, timeout=TIMEOUT_S)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return [pydicom.Dataset.from_json(one) for one in found]

    def instances(self, series: pydicom.Dataset) -> list[pydicom.FileDataset]:
        """Retrieve a series' files by WADO-RS."""
        answer = requests.get(
            f"{self.url}/studies/{series.StudyInstanceUID}/series/{series.SeriesInstanceUID}",
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
            timeout=TIMEOUT_S,
        )
        answer.raise_for_status()
        border = answer.headers["Content-Type"].split("boundary=")[1].split(";")[0].strip('"').encode()
        parts = answer.content.split(b"--" + border)[1:-1]
        return [pydicom.dcmread(io.BytesIO(part.split(b"\r\n\r\n", 1)[1][:-2])) for part in parts]


def missing_parts() -> str | None:
    """Return why there can't be an archive here, if there can't."""
    if orthanc_program() is None:
        return "Orthanc isn't installed: apt-get install orthanc orthanc-dicomweb"
    if not PLUGIN.exists():
        return "Orthanc's DICOMweb plugin isn't installed: apt-get install orthanc-dicomweb"
    return None


def orthanc_program() -> str | None:
    return shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def child(command: list[str], log: Path, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that ends with this block, and where setpriv is, with this process, however it ends."""
    bound = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    with log.open("wb") as output:
        process = subprocess.Popen([*bound, *command], stdout=output, stderr=subprocess.STDOUT, **settings)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, **settings: Any) -> None:
    """Return as soon as a server answers; a server that ends or keeps silent is an error, with what it had to say."""
    patience_s = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < patience_s:
        try:
            requests.get(url, timeout=5, **settings).raise_for_status()
            return
        except requests.ConnectionError:
            time.sleep(0.05)
    raise RuntimeError(f"no server at {url}:\n{log.read_text(errors='replace')}")


@contextmanager
def orthanc(folder: Path) -> Iterator[Archive]:
    """Run Orthanc with its files in a folder, on a free port of loopback, without authentication."""
    program, port = orthanc_program(), free_port()
    assert program is not None
    config = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = folder / "orthanc.log"
    with child([program, str(folder / "orthanc.json")], log, cwd=folder) as process:
        wait_until_ready(f"http://127.0.0.1:{port}/system", process, log)
        yield Archive(f"http://127.0.0.1:{port}/dicom-web")
