"""Files of configurations, as they stand there: found, read and put over each other, with nothing evaluated."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .bundle_paths import bundle_root
from .errors import BadInput
from .old_names import refuse_old_keys

CODE = ("$", "@", "%")  # what MONAI's configurations run, look up or read from files begins so
RUN = ("$", "%")
PLAN = "plan.yaml"
PLANNED = {  # the classes that `prepare` names in a plan, and their arguments
    "scripts.transforms.normalisation.ClipAndStandardise": {"clip", "mean", "sd"},
    "scripts.transforms.normalisation.StandardiseImage": {"nonzero"},
}
MOST_VALUES = 1_000_000  # of a configuration file, with what its aliases repeat


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
    files = [file for file in files if require_mapping(file)]  # MONAI can't read one of comments alone
    given = [*map(require_mapping, files), values or {}]
    merged = {key.split("#")[0].lstrip("+"): None for part in given for key in part}
    known = bundled_keys(bundle) | given[0].keys()
    require_known_keys({**merged, "_given_": given}, known=known)
    return files


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, with or without a byte order mark.

    Raises:
        BadInput: missing, unreadable, damaged (with the line), a key that is there twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=different_keys)
        json.dumps(content, ensure_ascii=False).encode()
        return content
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: damaged JSON in line {error.lineno} ({error.msg}). Correct it there.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not written in UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise BadInput(f"{path}: holds {half!a}, half of a character. Write the whole one.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise BadInput(f"{path}: can't be read as JSON ({error}). Correct it.") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror}). Check the path.") from error


def different_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raises ValueError if a key is there twice: which one is meant can't be known."""
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)[:80]} is there twice")
    return held


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        BadInput: see `read_json`; or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no JSON object. Replace it.")
    return content


class DifferentKeysLoader(yaml.SafeLoader):
    """PyYAML's, but a key that is there twice is an error: which one is meant can't be known."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} is there twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[arg-type]
        return mapping


def require_mapping(file: str | Path) -> dict[str, Any]:
    """Return a configuration file's keys and values, as they stand there.

    Raises:
        BadInput: it is no YAML, or no keys with values; a key that is there twice.
    """
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), DifferentKeysLoader)
        require_tree(content)
    except MemoryError:
        raise
    except Exception as error:  # besides YAMLError: numbers and dates that make no sense, lists in lists in lists
        raise BadInput(f"{file}: can't be read as YAML ({error}). Mend it.") from error
    if not isinstance(content, dict | None) or not all(isinstance(key, str) for key in content or {}):
        raise BadInput(f"{file}: holds no keys with values. Give a configuration.")
    return content or {}


def require_tree(content: Any) -> None:
    """Raise ValueError if aliases make a content endless, or too large to look at."""
    waiting, values = [content], 0
    while waiting:
        held = waiting.pop()
        values += 1
        if values > MOST_VALUES:
            raise ValueError("its aliases repeat too much, or lead in a circle")
        if isinstance(held, Mapping):
            waiting += [*held.keys(), *held.values()]
        elif isinstance(held, list | tuple | set):
            waiting += held


def require_no_code(name: str, where: str) -> None:
    """Raise `BadInput` for a name from outside that a configuration would run, look up or read from a file.

    Args:
        name: such as a label's. A line's end, or another control character, would end the comment that it stands in.
        where: it stands, such as a file and a key.
    """
    if name.lstrip().startswith(CODE):
        raise BadInput(f"{where}: {json.dumps(name)[:80]} begins with {name.lstrip()[0]}, as code does. Rename it.")
    if not is_name(name):
        raise BadInput(f"{where}: {json.dumps(name)[:80]} holds characters that can't be shown. Rename it.")


def is_name(name: Any) -> bool:
    """Return whether something can be written down as a name, in one line, and is no code."""
    if not isinstance(name, str) or name.lstrip().startswith(CODE):
        return False
    return re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", name) is None


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
    """Raise `BadInput` unless a plan is what `prepare` writes: plans are passed on, and changed by hand.

    It must hold no code, and of each of its keys a value that can be.
    """
    plan = require_mapping(file)
    for expression in expressions(plan):
        if expression not in PLANNED:
            raise BadInput(
                f"{file}: holds {json.dumps(expression)[:80]}, which is code, and no plan of `prepare` does. "
                "Take it out; what is to be run goes into a configuration with another name."
            )
    for key, (is_right, meant) in PLAN_VALUES.items():
        if key not in plan:
            raise BadInput(f"{file}: has no {key}, as each plan has. Copy the whole plan, or have `prepare` make it.")
        if not is_right(plan[key]):
            raise BadInput(f"{file}: {key} is {json.dumps(plan[key], default=str)[:80]}. Give {meant}.")
    stages = len(plan["member#features"])
    if len(plan["member#strides"]) != stages - 1:
        raise BadInput(f"{file}: member#strides isn't one less than the {stages} of member#features. Correct one.")
    if len(plan["normalise"]) != plan["channels"]:
        raise BadInput(f"{file}: normalise isn't one entry a channel, as channels says. Correct one.")


def is_number(value: Any, low: float, high: float) -> bool:
    """Return whether something is a number within a range."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_whole(value: Any, low: int, high: int) -> bool:
    """Return whether something is a whole number within a range."""
    return isinstance(value, int) and is_number(value, low, high)


def is_pair(value: Any, is_right: Callable[..., bool], low: float, high: float) -> bool:
    """Return whether something is a list of two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(is_right(one, low, high) for one in value)


def are_labels(value: Any) -> bool:
    """Return whether something is label id -> name."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(str(key).isdecimal() and 1 <= int(key) <= 255 and is_name(name) for key, name in value.items())


def is_orientation(value: Any) -> bool:
    """Return whether something is three axis codes."""
    return isinstance(value, str) and sorted("RLAPSI".find(code) // 2 for code in value) == [0, 1, 2]


def is_normalisation(value: Any) -> bool:
    """Return whether something is a normalisation that `prepare` writes."""
    if not isinstance(value, Mapping) or value.keys() - {"_target_"} != PLANNED.get(str(value.get("_target_"))):
        return False
    if "nonzero" in value:
        return isinstance(value["nonzero"], bool)
    numbers = is_pair(value["clip"], is_number, *FINITE) and is_number(value["mean"], *FINITE)
    return numbers and value["clip"][0] < value["clip"][1] and is_number(value["sd"], SMALLEST, FINITE[1])


def are_all(value: Any, is_right: Callable[..., bool], *limits: Any) -> bool:
    """Return whether something is a list of what is right."""
    return isinstance(value, list) and all(is_right(one, *limits) for one in value)


FINITE, SMALLEST = (-1e30, 1e30), 1e-30
PLAN_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {  # the keys of each plan, and what each may be
    "labels": (are_labels, 'ids from 1 to 255 and their names, as {"1": "liver"}'),
    "channels": (lambda value: is_whole(value, 1, 1000), "how many channels an image has"),
    "orientation": (is_orientation, "three axis codes such as RAS"),
    "spacing_mm": (lambda value: is_pair(value, is_number, 1e-3, 100), "two numbers from 0.001 to 100"),
    "normalise": (lambda value: are_all(value, is_normalisation), "a normalisation a channel, as `prepare` does"),
    "patch_size": (lambda value: is_pair(value, is_whole, 1, 2**14), "two whole numbers from 1"),
    "crop_size": (lambda value: is_pair(value, is_whole, 1, 2**14), "two whole numbers from 1"),
    "rotation_degrees": (lambda value: is_number(value, 0, 360), "degrees from 0"),
    "member#features": (lambda value: are_all(value, is_whole, 1, 2**14) and len(value) > 0, "whole numbers from 1"),
    "member#strides": (lambda value: are_all(value, is_pair, is_whole, 1, 16), "two whole numbers a stage"),
    "batch_size": (lambda value: is_whole(value, 1, 2**16), "a whole number from 1"),
}


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
