"""Requests that a label server must refuse, each with an answer from 400 to 499, whoever sends them.

`MARK` stands for a file that code would make if it were run, `ID` for an image that is there, `MODEL` for the model,
`OUTSIDE` for a folder beside the studies, with a secret in it.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
from dataclasses import dataclass, field
from typing import Any

RUN = [
    "$__import__('os').system('touch MARK')",
    "$open('MARK', 'w')",
    "$__import__('pathlib').Path('MARK').touch()",
    "@bundle_root",
    "%OUTSIDE/secret.yaml::x",
]
PATHS = ["../secret", "../../etc/passwd", "/etc/passwd", "..\\secret", "x\x00y", "OUTSIDE/secret"]
NOISE = random.Random(0).randbytes(2000)
DEEP = "[" * 100_000 + "]" * 100_000
DEEP_OBJECT = '{"a":' * 100_000 + "1" + "}" * 100_000


def header(*, shape: tuple[int, ...] = (4, 4, 4), kind: int = 4, bits: int = 16, pixel_mm: float = 1.0) -> bytes:
    """Return the header of a NIfTI file and nothing after it."""
    dimensions = [len(shape), *shape, *[1] * (7 - len(shape))]
    made = bytearray(352)
    struct.pack_into("<i", made, 0, 348)
    struct.pack_into("<8h", made, 40, *dimensions)
    struct.pack_into("<hh", made, 70, kind, bits)
    struct.pack_into("<8f", made, 76, 1, pixel_mm, pixel_mm, pixel_mm, 1, 1, 1, 1)
    struct.pack_into("<f", made, 108, 352)
    made[344:348] = b"n+1\0"
    return bytes(made)


FILES = {  # what is neither an image nor a label
    "noise.nii": NOISE,
    "noise.nii.gz": NOISE,
    "packed_noise.nii.gz": gzip.compress(NOISE),
    "empty.nii": b"",
    "empty.nii.gz": b"",
    "header_alone.nii": header(),
    "claims_20_gb.nii.gz": gzip.compress(header(shape=(3000, 3000, 1200))),
    "no_voxels.nii": header(shape=(0, 4, 4)) + bytes(128),
    "two_dimensions.nii": header(shape=(8, 8)) + bytes(128),
    "five_dimensions.nii": header(shape=(2, 2, 2, 2, 4)) + bytes(128),
    "colours.nii": header(kind=128, bits=24) + bytes(192),
    "no_size.nii": header(pixel_mm=float("nan")) + bytes(128),
    "page.nii.gz": b"<html><script>alert(1)</script></html>",
    "cut.nii.gz": gzip.compress(header() + bytes(128))[:-20],
}
NAMES = ["x.py", "x.sh", "x", "x.nrrd", "x.dcm", "x.nii.gz.exe", ".nii.gz.py"]


@dataclass(frozen=True)
class Hostile:
    """One request; `why` says what it is after."""

    why: str
    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    form: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.why}"[:80]


def as_json(**values: Any) -> str:
    return json.dumps(values)


def hostile_requests() -> list[Hostile]:
    """Return all of them."""
    made = [*code(), *types(), *elsewhere(), *paths(), *uploads(), *shapes()]
    return made


def code() -> list[Hostile]:
    """What a configuration would run, as a value and as a key, wherever one may stand."""
    made = []
    for text in RUN:
        for key in ("max_epochs", "device", "val_split", "client_id", "unheard_of"):
            made.append(Hostile(f"runs {key}={text}", "POST", "/train/MODEL", body=as_json(**{key: text})))
        made += [
            Hostile(f"runs {text}", "POST", "/train/", body=as_json(MODEL={"max_epochs": text})),
            Hostile(f"runs a list's {text}", "POST", "/train/MODEL", body=as_json(device=["cpu", text])),
            Hostile(f"runs the key {text}", "POST", "/train/MODEL", body=as_json(**{text: 1})),
            Hostile(f"runs deep down {text}", "POST", "/train/MODEL", body=as_json(a=[{"b": [{"c": text}]}])),
            Hostile(f"runs {text}", "POST", "/scoring/disagreement", body=as_json(client_id=text)),
            Hostile(f"runs {text}", "POST", "/batch/infer/MODEL", body=as_json(device=text)),
            Hostile(f"runs {text}", "POST", "/activelearning/random", body=as_json(client_id=text)),
            Hostile(f"runs {text}", "POST", "/infer/MODEL", {"image": "ID"}, form={"params": as_json(device=text)}),
            Hostile(f"runs the image {text}", "POST", "/infer/MODEL", {"image": text}, form={"params": "{}"}),
            Hostile(f"runs the tag {text}", "GET", "/datastore/label", {"label": "ID", "tag": text}),
            Hostile(
                f"runs what is known {text}",
                "PUT",
                "/datastore/image/info",
                {"image": "ID"},
                form={"info": as_json(a=text)},
            ),
        ]
    return made


def types() -> list[Hostile]:
    """Values of other types, or out of bounds."""
    wrong = [
        *({"max_epochs": one} for one in (0, -1, 1e9, "many", None, [], {}, 1.5)),
        *({"val_split": one} for one in (0, 1, -0.5, 7, "half", [], {})),
        *({"device": one} for one in ("cuda;rm", "../cpu", "cpu\n", {"a": 1}, 7, "nonsense")),
        *({"client_id": one} for one in ("x" * 10_000, ["a"], {"a": 1}, 7)),
    ]
    made = [Hostile(f"says {str(one)[:40]}", "POST", "/train/MODEL", body=json.dumps(one)) for one in wrong]
    made += [
        Hostile(f"says {one}", "POST", "/infer/MODEL", {"image": "ID"}, form={"params": json.dumps(one)})
        for one in (
            {"result_extension": ".py"},
            {"result_extension": "/../../x.nii.gz"},
            {"result_dtype": "object"},
            {"result_dtype": "$x"},
            {"result_compress": "maybe"},
            {"save_label": "perhaps"},
            {"label_tag": "../../x"},
            {"label_tag": ""},
        )
    ]
    made += [
        Hostile(f"says {one}", "POST", "/batch/infer/MODEL", body=json.dumps(one))
        for one in ({"max_workers": 10**9}, {"max_workers": -1}, {"max_batch_size": "all"}, {"multi_gpu": "maybe"})
    ]
    return made


def elsewhere() -> list[Hostile]:
    """Sent by another site's page, or to another name than the server's."""
    start = {"method": "POST", "path": "/train/MODEL", "body": as_json(max_epochs=1)}
    read = {"method": "GET", "path": "/datastore/image", "query": {"image": "ID"}}
    made = []
    for origin in ("https://elsewhere.example", "http://127.0.0.1:1", "http://localhost:3000", "null", "file://", ""):
        made.append(Hostile(f"comes from {origin}", **start, headers={"Origin": origin, "Content-Type": "text/plain"}))  # type: ignore[arg-type]
        made.append(Hostile(f"comes from {origin}", **read, headers={"Origin": origin}))  # type: ignore[arg-type]
    for site in ("cross-site", "same-site"):
        for mode in ("no-cors", "cors", "navigate"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": "document"}
            made.append(Hostile(f"is {site}, {mode}", **start, headers=headers))  # type: ignore[arg-type]
            made.append(Hostile(f"is {site}, {mode}", **read, headers=headers))  # type: ignore[arg-type]
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[",
        "a b",
        "0",
    ):
        made.append(Hostile(f"asks {host}", **read, headers={"Host": host}))  # type: ignore[arg-type]
        made.append(Hostile(f"asks {host}", **start, headers={"Host": host}))  # type: ignore[arg-type]
    preflight = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    made.append(Hostile("asks whether it may", "OPTIONS", "/train/MODEL", headers=preflight))
    return made


def paths() -> list[Hostile]:
    """Names that lead out of the studies."""
    made = []
    for path in PATHS:
        made += [
            Hostile(f"reads {path}", "GET", "/datastore/image", {"image": path}),
            Hostile(f"reads {path}", "GET", "/datastore/label", {"label": path, "tag": "final"}),
            Hostile(f"labels {path}", "POST", "/infer/MODEL", {"image": path}, form={"params": "{}"}),
            Hostile(f"removes {path}", "DELETE", "/datastore/image", {"id": path}),
            Hostile(
                f"writes {path}",
                "PUT",
                "/datastore/image",
                {"image": path},
                files={"file": ("x.nii", header() + bytes(128))},
            ),
            Hostile(
                f"writes the tag {path}",
                "PUT",
                "/datastore/label",
                {"image": "ID", "tag": path},
                files={"label": ("x.nii", header())},
            ),
        ]
    made += [
        Hostile("leaves the viewer", "GET", one)
        for one in (
            "/ohif/%2e%2e/%2e%2e/app.py",
            "/static/%2e%2e/app.py",
            "/ohif/..%2f..%2fapp.py",
            "/ohif/%2e%2e",
            "/proxy/dicom/..%2fx",
        )
    ]
    return made


def uploads() -> list[Hostile]:
    """Files that are no images and no labels, and names that are no volumes'."""
    made = []
    for name, content in FILES.items():
        made += [
            Hostile(f"sends {name}", "PUT", "/datastore/image", {"image": "new"}, files={"file": (name, content)}),
            Hostile(
                f"sends {name}",
                "PUT",
                "/datastore/label",
                {"image": "ID", "tag": "final"},
                files={"label": (name, content)},
            ),
            Hostile(f"sends {name}", "POST", "/infer/MODEL", files={"file": (name, content)}),
        ]
    made += [
        Hostile(
            f"sends {name}", "PUT", "/datastore/image", {"image": "new"}, files={"file": (name, header() + bytes(128))}
        )
        for name in NAMES
    ]
    small = ("x.nii", header() + bytes(128))
    made.append(
        Hostile("sends another grid's label", "PUT", "/datastore/label", {"image": "ID"}, files={"label": small})
    )
    made.append(Hostile("sends no file", "PUT", "/datastore/image", {"image": "new"}))
    made.append(Hostile("sends no file", "PUT", "/datastore/label", {"image": "ID"}))
    made.append(Hostile("sends a text", "PUT", "/datastore/label", {"image": "ID"}, form={"label": "x"}))
    return made


def shapes() -> list[Hostile]:
    """JSON that is none, or too deep."""
    made = []
    for what, text in {
        "no JSON": "[1, 2",
        "a list": "[]x",
        "deep": DEEP,
        "a deep object": DEEP_OBJECT,
        "a number": "7",
    }.items():
        made += [
            Hostile(f"sends {what}", "POST", "/train/MODEL", body=text),
            Hostile(f"sends {what}", "POST", "/train/", body=text),
            Hostile(f"sends {what}", "POST", "/scoring/disagreement", body=text),
            Hostile(f"sends {what}", "POST", "/activelearning/random", body=text),
            Hostile(f"sends {what}", "POST", "/infer/MODEL", {"image": "ID"}, form={"params": text}),
            Hostile(f"sends {what}", "PUT", "/datastore/image/info", {"image": "ID"}, form={"info": text}),
        ]
    made.append(Hostile("asks for a strange sum", "HEAD", "/datastore/image", {"image": "ID", "check_sum": "x:y"}))
    made.append(Hostile("asks for a strange number", "GET", "/datastore/dataset", {"limit_cases": "-1"}))
    return made
