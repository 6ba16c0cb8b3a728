"""Files of configurations, as they stand there: found, read and put over each other, with nothing evaluated."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .bundle_paths import bundle_root
from .errors import BadInput
from .old_names import refuse_old_keys

CODE = ("$", "@", "%")  # what MONAI's configurations run, look up or read from files begins so
RUN = ("$", "%")
PLAN = "plan.yaml"
PLANNED = {  # the classes that `prepare` names in a plan; their module could lead anywhere, as by `.torch.hub.load`
    "scripts.transforms.normalisation.ClipAndStandardise",
    "scripts.transforms.normalisation.StandardiseImage",
}


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


def require_config(
    kind: str,
    overlays: Sequence[str | Path] = (),
    *,
    bundle: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the files of a configuration, if they can be read and nothing but keys of theirs is given a value.

    Args:
        kind: "train.yaml" or "inference.yaml".
        overlays: see `config_files`.
        bundle: its folder; by default the installed one.
        values: keys with other values.

    Raises:
        BadInput: a file that is nowhere or no YAML; a key that nothing uses.
    """
    files = config_files(kind, overlays, bundle=bundle)
    for file in files:
        if Path(file).name == PLAN:
            require_plan(file)
    given = [*map(require_mapping, files), values or {}]
    merged = {key.split("#")[0].lstrip("+"): None for part in given for key in part}
    known = bundled_keys(bundle) | given[0].keys()
    require_known_keys({**merged, "_given_": given}, known=known)
    return files


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, with or without a byte order mark.

    Raises:
        BadInput: missing, unreadable, damaged (with the line).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: damaged JSON in line {error.lineno} ({error.msg}). Correct it there.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not written in UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror}). Check the path.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        BadInput: see `read_json`; or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no JSON object. Replace it.")
    return content


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


def require_no_code(name: str, where: str) -> None:
    """Raise `BadInput` for a name from outside that a configuration would run, look up or read from a file.

    Args:
        name: such as a label's.
        where: it stands, such as a file and a key.
    """
    if name.lstrip().startswith(CODE):
        raise BadInput(f"{where}: {json.dumps(name)[:80]} begins with {name.lstrip()[0]}, as code does. Rename it.")


def expressions(content: Any) -> Iterator[str]:
    """Yield all in a configuration that is run when it is evaluated, or names what is: also as `a#_target_`."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if re.split("#|::", str(key).lstrip("+"))[-1] == "_target_":
                yield str(value)
            yield from expressions(key)
            yield from expressions(value)
    elif isinstance(content, list | tuple | set):
        for value in content:
            yield from expressions(value)
    elif isinstance(content, str) and content.lstrip().startswith(RUN):
        yield content


def reachable(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the part of a configuration that some of its top-level keys refer to, themselves included."""
    found: dict[str, Any] = {}
    wanted = list(keys)
    while wanted:
        key = wanted.pop()
        if key in config and key not in found:
            found[key] = config[key]
            wanted += re.findall(r"[@%](\w+)", json.dumps(config[key], default=str))
    return found


def require_plan(file: str | Path) -> None:
    """Raise `BadInput` for a plan with code in it: plans are passed on, and `prepare` writes numbers and names."""
    for expression in expressions(require_mapping(file)):
        if expression not in PLANNED:
            raise BadInput(
                f"{file}: holds {json.dumps(expression)[:80]}, which is code, and no plan of `prepare` does. "
                "Take it out; what is to be run goes into a configuration with another name."
            )


def require_own_expressions(config: Mapping[str, Any], *, where: str | Path) -> None:
    """Raise `BadInput` for code in a configuration from elsewhere that the installed bundle's own don't hold, too."""
    files = Path(bundle_root(), "configs").rglob("*.yaml")
    own = {text for path in files for text in expressions(require_mapping(path))}
    for expression in expressions(config):
        if expression not in own and expression not in PLANNED:
            raise BadInput(
                f"{where}: holds {json.dumps(expression)[:80]}, which none of the installed bundle's configurations "
                "does, and what others wrote isn't run here."
            )


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


def require_known_keys(config: dict[str, Any], *, known: set[str]) -> None:
    """Raise `BadInput` for a top-level key that the bundle doesn't know and no other key refers to, or an old name."""
    text = json.dumps(config, default=str)
    refuse_old_keys(config, known=known)
    for key in config:
        if key in known or key.startswith("_") or re.search(rf"[@%]{re.escape(key)}\b", text):
            continue
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Look for the right key in configs."
        raise BadInput(f"{key}: no such key, nothing in the configuration uses it. {hint}")


def bundled_keys(bundle: str | Path | None = None) -> set[str]:
    """Return the top-level keys of all configurations of a bundle, by default this one."""
    keys: set[str] = set()
    for path in Path(bundle or bundle_root(), "configs").rglob("*.yaml"):
        keys.update(yaml.safe_load(path.read_text()) or {})
    return keys
