"""Configurations: the files that one is made of, and their merging, for every command, workflow, fold and server.

A configuration is a bundle's train.yaml or inference.yaml, overlays over it in their order, and values over these.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from .bundle_paths import bundle_root
from .errors import BadInput
from .workflow import bundled_keys, require_known_keys


def find_config(name: str | Path, *, bundle: str | Path | None = None) -> Path:
    """Return a configuration's file by its path, or else by its name in the configs of a bundle.

    Args:
        name: such as PREPARED/plan.yaml, or variants/small.yaml.
        bundle: its folder; by default the installed one.

    Raises:
        BadInput: there is none.
    """
    configs = Path(bundle or bundle_root(), "configs")
    for path in (Path(name), configs / name):
        if path.is_file():
            return path
    raise BadInput(f"{name}: no such configuration file, neither here nor in {configs}. Check the path.")


def config_files(kind: str, overlays: Sequence[str | Path] = (), *, bundle: str | Path | None = None) -> list[str]:
    """Return the files of a configuration, in the order in which they are merged.

    Args:
        kind: "train.yaml" or "inference.yaml".
        overlays: paths, or names in the bundle's configs. If the first is a file called `kind`, it is that one.
        bundle: its folder; by default the installed one.

    Raises:
        BadInput: one of them is nowhere.
    """
    found = [str(find_config(name, bundle=bundle).resolve()) for name in overlays]
    if found and Path(found[0]).name == kind:
        return found
    base = Path(bundle or bundle_root(), "configs", kind).resolve()
    if not base.is_file():
        raise BadInput(f"{base.parents[1]}: holds no configs/{kind}. Give a bundle's folder with --bundle.")
    return [str(base), *found]


def open_config(
    kind: str,
    overlays: Sequence[str | Path] = (),
    *,
    bundle: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
) -> ConfigParser:
    """Return a configuration, merged, with nothing in it evaluated yet. Its own `scripts` are those of the bundle.

    Args:
        kind: "train.yaml" or "inference.yaml".
        overlays: see `config_files`.
        bundle: its folder; by default the installed one.
        values: keys with other values; "member#features" is the key `features` of `member`.

    Raises:
        BadInput: a file that is nowhere or no YAML, a key that nothing uses.
    """
    root = str(Path(bundle or bundle_root()).resolve())
    if root not in sys.path:
        sys.path.insert(1, root)  # as `monai.bundle run` does, for the configuration's own scripts
    files = config_files(kind, overlays, bundle=bundle)
    for file in files:
        require_mapping(file)
    parser = ConfigParser()
    try:
        parser.read_config(files)
        parser.update({**({} if bundle is None else {"bundle_root": root}), **(values or {})})
    except (KeyError, IndexError, ValueError, TypeError) as error:  # a#b where there is no a
        raise BadInput(f"{', '.join(files)}: can't be merged ({error}). Look for the right key.") from error
    require_known_keys(parser.get(), known=bundled_keys(root) | require_mapping(files[0]).keys())
    return parser


def require_mapping(file: str | Path) -> dict[str, Any]:
    """Return a configuration file's keys and values, as they stand there.

    Raises:
        BadInput: it is no YAML, or no keys with values.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{file}: can't be read as YAML ({error}). Mend it.") from error
    if not isinstance(content, dict | None):
        raise BadInput(f"{file}: holds no keys with values. Give a configuration.")
    return content or {}


def merged_overlays(files: Sequence[str | Path]) -> dict[str, Any]:
    """Return several overlays as one, the last one's keys over the others'; a file that isn't there has none.

    Raises:
        BadInput: see `require_mapping`.
    """
    merged: dict[str, Any] = {}
    for file in files:
        for key, value in (require_mapping(file) if Path(file).is_file() else {}).items():
            put(merged, key, value)
    return merged


def put(given: dict[str, Any], key: str, value: Any) -> None:
    """Set a key as the last one, over what an earlier overlay has for it or within it."""
    for hidden in [one for one in given if one == key or one.startswith(f"{key}#")]:
        del given[hidden]
    given[key] = value
