"""Parameters of requests: each value is parsed to its type and bounds before anything uses it.

MONAI's configurations run strings that begin with `$` as Python, look up those with `@`, and read those with `%` from
files. So no string from outside may begin with one of them, wherever it stands and whether or not it is used.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from fastapi import HTTPException
from monailabel.utils.others.generic import device_list, name_to_device
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ...scripts.runtime.config_files import CODE
from .names import require_tag

DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]+)?")
MOST_CHARACTERS = 2**20
DEEPEST = 20  # lists and objects within each other
Parsed = TypeVar("Parsed", bound="Options")


def first_of(value: Any) -> Any:
    """Return the first of a list, as viewers send what they were offered; anything else as it is."""
    return value[0] if isinstance(value, list) and value else value


def known_device(name: str) -> str:
    """Return PyTorch's name of a device, which may be a GPU's own or empty for the default; or raise `ValueError`."""
    if name and name not in device_list() and not DEVICE.fullmatch(name):
        raise ValueError(f"there is no device {name[:50]!r}")
    return str(name_to_device(name))


Device = Annotated[str, BeforeValidator(first_of), AfterValidator(known_device)]
Tag = Annotated[str, AfterValidator(require_tag)]
Name = Annotated[str, Field(max_length=200)]


class Options(BaseModel):
    """What every request may say. Other keys, which viewers send to any server, are dropped."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    client_id: Name | None = None


class ScoringOptions(Options):
    """What a request for scores may say."""


class TrainingOptions(Options):
    """What a request to train may say."""

    device: Device = Field("", validate_default=True)
    max_epochs: int = Field(10, ge=1, le=10_000)
    val_split: float = Field(0.2, gt=0, lt=1)


class InferenceOptions(Options):
    """What a request for a label map may say."""

    device: Device = Field("", validate_default=True)
    result_extension: Literal[".nii.gz", ".nii", ".nrrd"] | None = None
    result_dtype: Literal["uint8", "uint16", "int16", "int32", "float32"] | None = None
    result_compress: bool | None = None
    save_label: bool = False
    label_tag: Tag | None = None


class BatchOptions(InferenceOptions):
    """What a request for many label maps may say."""

    multi_gpu: bool = True
    max_workers: int = Field(1, ge=0, le=64)
    max_batch_size: int = Field(0, ge=0, le=1_000_000)


def parse(options: type[Parsed], given: Any) -> Parsed:
    """Return a request's options, or answer 400 with what is wrong in one line."""
    try:
        return options.model_validate(given)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
        raise HTTPException(400, "; ".join(faults)[:500]) from None


def json_object(text: Any) -> dict[str, Any]:
    """Return a JSON object, empty for null or nothing; or answer 400, also where a string in it could be code."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise HTTPException(400, f"The parameters are no JSON object of at most {MOST_CHARACTERS} characters.")
    try:
        given = json.loads(text or "{}")
        require_plain(given)
    except (ValueError, RecursionError):
        given = text
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise HTTPException(400, "The parameters are no JSON object.")
    return given


def require_plain(value: Any, *, depth: int = 0) -> None:
    """Answer 400 where a string, a key's too, begins as code does, or where lists and objects lie too deep."""
    if depth > DEEPEST:
        raise HTTPException(400, f"Lists and objects lie in each other more than {DEEPEST} deep.")
    if isinstance(value, str):
        if value.startswith(CODE):
            raise HTTPException(400, f"{value[:50]!r} begins with {value[0]}: no name or value here does.")
    elif isinstance(value, dict):
        for key, one in value.items():
            require_plain(key, depth=depth + 1)
            require_plain(one, depth=depth + 1)
    elif isinstance(value, list):
        for one in value:
            require_plain(one, depth=depth + 1)
