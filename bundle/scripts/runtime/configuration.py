"""Configurations, opened in one way for every command, workflow, fold and server.

A configuration is a bundle's train.yaml or inference.yaml, overlays over it in their order, and values over these.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .bundle_paths import bundle_root
from .config_files import bundled_keys, require_config, require_known_keys, require_mapping
from .errors import BadInput


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
    files = require_config(kind, overlays, bundle=bundle, values=values)
    parser = ConfigParser()
    try:
        parser.read_config(files)
        parser.update({**({} if bundle is None else {"bundle_root": root}), **(values or {})})
    except (KeyError, IndexError, ValueError, TypeError) as error:  # a#b where there is no a
        raise BadInput(f"{', '.join(files)}: can't be merged ({error}). Look for the right key.") from error
    require_known_keys(parser.get(), known=bundled_keys(root) | require_mapping(files[0]).keys())
    return parser
