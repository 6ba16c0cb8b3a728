"""Fold bundles: a copy of the bundle whose configurations have an overlay merged in.

A fold is a copy of the bundle in which one file is new: configs/overlay.yaml. As many tools read train.yaml or
inference.yaml alone, the overlay is merged into the copies of both, as text, so that their comments stay. What it
replaces stays, too, in comments: so another overlay can be merged into a fold that was moved, or is of another version.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from ..runtime.atomic_files import write_whole
from ..runtime.bundle_paths import copy_without_use
from ..runtime.config_files import read_object
from ..runtime.errors import BadInput
from ..runtime.workflow import require_known_keys
from .fold_metadata import fit_metadata
from .release import forget_weights

OVERLAY = "overlay.yaml"
HEADER = """\
# This fold's {name}: the template's, with overlay.yaml merged in. There is said why; the template has what is after #~.
#
"""
ADDED = "# ---- Not in the template"
GIVEN = "# ---- Given for this training, over the lines after #~ above. The next training's values take their place."
PLANNED = "#~ "
TRAINING_ONLY = {"data_list", "dataset_dir", "layout", "data_root", "output_dir", "cache_dir", "device"}
KEY = re.compile(r"([\w+][\w+#]*):(?:\s|$)")
CONFIG_NAMES = ("train.yaml", "inference.yaml")


class Plain(yaml.SafeDumper):
    """A dumper that writes the same list twice where it stands twice: MONAI's users needn't know `&id001`."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is abbreviated."""
        return True


@dataclass
class Block:
    """A top-level key of a YAML text, with the lines of comments before it and its own."""

    key: str
    lead: list[str]
    body: list[str]


def blocks_of(text: str) -> tuple[list[Block], list[str]]:
    """Return the top-level keys of a YAML text, and the lines after the last one."""
    blocks: list[Block] = []
    lead: list[str] = []
    for line in text.splitlines():
        key = KEY.match(line)
        if key:
            blocks.append(Block(key[1], lead, [line]))
            lead = []
        elif blocks and line[:1] in (" ", "-") and line.strip():
            blocks[-1].body += [*lead, line]
            lead = []
        else:
            lead.append(line)
    return blocks, lead


def text_of(blocks: list[Block], tail: list[str]) -> str:
    """Return the text of `blocks_of`."""
    return "\n".join([line for block in blocks for line in (*block.lead, *block.body)] + tail) + "\n"


def entry_text(key: str, value: Any) -> str:
    """Return the YAML of one key, without comments."""
    flow = None if isinstance(value, dict | list) else False  # None: lists and dicts of numbers and words in one line
    text: str = yaml.dump({key: value}, Dumper=Plain, sort_keys=False, default_flow_style=flow, width=160).rstrip("\n")
    return text


def merged(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with an overlay over it, as MONAI merges files; `a#b` and `+a` as it understands them.

    Raises:
        BadInput: a key that leads nowhere.
    """
    parser = ConfigParser(copy.deepcopy(dict(config)))
    for key, value in overlay.items():
        try:
            merge_kv(parser, key, copy.deepcopy(value))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise BadInput(f"{key}: no such key in the configuration ({error}). Look for the right one.") from error
    return {key: value for key, value in parser.get().items() if key != ConfigParser.meta_key}


def merged_text(template: str, overlay: Mapping[str, Any]) -> str:
    """Return a configuration's text with an overlay merged in: it parses to the same as the two files, in this order.

    A top-level key whose value changes is written anew in its place, after what the template has, in comments; new ones
    come last. An earlier overlay is taken out first.

    Raises:
        BadInput: a key that leads nowhere.
    """
    template = template_text(template)
    before = yaml.safe_load(template) or {}
    after = merged(before, overlay)
    blocks, tail = blocks_of(template)
    for block in blocks:
        new = entry_text(block.key, after[block.key])
        if new != entry_text(block.key, before[block.key]):
            block.lead += [PLANNED + line for line in block.body]
            block.body = new.splitlines()
    added = [entry_text(key, value) for key, value in after.items() if key not in before]
    return text_of(blocks, [*tail, *([ADDED, *added] if added else [])])


def template_text(text: str) -> str:
    """Return a configuration's text as it was before `write_fold` or `merged_text` put an overlay into it."""
    for name in CONFIG_NAMES:
        text = text.removeprefix(HEADER.format(name=name))
    blocks, tail = blocks_of(text.split(f"\n{ADDED}\n")[0])
    for block in blocks:
        replaced = [line.removeprefix(PLANNED) for line in block.lead if line.startswith(PLANNED)]
        if replaced:
            block.lead = [line for line in block.lead if not line.startswith(PLANNED)]
            block.body = replaced
    return text_of(blocks, tail)


def with_given(overlay: str, given: Mapping[str, Any]) -> str:
    """Return an overlay's text with a training's own values over what is planned, which stays to be read.

    `given` takes the place of an earlier training's. An entry of a key hides what is planned for it or within it.
    """
    text = as_planned(overlay)
    if not given:
        return text
    blocks, tail = blocks_of(text)
    for block in blocks:
        if any(block.key == key or block.key.startswith(f"{key}#") for key in given):
            block.body = [PLANNED + line for line in block.body]
    return text_of(blocks, [*tail, "", GIVEN, *(entry_text(key, value) for key, value in given.items())])


def settled(overlay: str, given: Mapping[str, Any], *, why: str = "Given when the fold was made.") -> str:
    """Return an overlay's text with values in the place of what was planned, for all trainings to come."""
    blocks, tail = blocks_of(overlay)
    kept = [block for block in blocks if not any(block.key.startswith(f"{key}#") for key in given)]
    reason = ["", f"# {why}"] if why else []
    for block in kept:
        if block.key in given:
            block.lead = reason if why else block.lead
            block.body = entry_text(block.key, given[block.key]).splitlines()
    present = {block.key for block in kept}
    added = [Block(key, reason, entry_text(key, value).splitlines()) for key, value in given.items()]
    return text_of([*kept, *(block for block in added if block.key not in present)], tail)


def as_planned(overlay: str) -> str:
    """Return an overlay's text without any training's own values."""
    lines = overlay.split(f"\n{GIVEN}")[0].splitlines()
    return "\n".join(line.removeprefix(PLANNED) for line in lines).rstrip("\n") + "\n"


def copy_template(template: Path, folder: Path) -> None:
    """Copy a bundle to a new folder, without what was made by using it, and without the address of its weights."""
    copy_without_use(template, folder)
    forget_weights(folder)


def write_fold(
    folder: Path, overlay: str, *, channel_names: list[str] | None = None, source: str | None = None
) -> None:
    """Write overlay.yaml into a fold's configs, and train.yaml, inference.yaml and metadata.json as it changes them.

    Args:
        folder: a copy of the template, or a fold, whose earlier overlay gives way.
        overlay: the text of the overlay.
        channel_names: of the image; None: as metadata.json has them.
        source: what metadata.json says about the data; None: what it says already.

    Raises:
        BadInput: a key that nothing uses.
    """
    values = yaml.safe_load(overlay)
    texts = {name: template_text((folder / "configs" / name).read_text(encoding="utf-8")) for name in CONFIG_NAMES}
    own_keys = {name: set(yaml.safe_load(text)) for name, text in texts.items()}
    checked = {key: value for key, value in values.items() if key != "data_list"}
    training = merged(yaml.safe_load(texts["train.yaml"]), only(checked, *own_keys.values(), for_training=True))
    require_known_keys(training, known=set().union(*own_keys.values()))
    for name, text in texts.items():
        mine = name == "train.yaml"
        others = own_keys["inference.yaml" if mine else "train.yaml"]
        chosen = only(values, own_keys[name], others, for_training=mine)
        write_whole(folder / "configs" / name, HEADER.format(name=name) + merged_text(text, chosen))
    write_whole(folder / "configs" / OVERLAY, overlay)
    path = folder / "configs" / "metadata.json"
    metadata = fit_metadata(read_object(path), training, channel_names=channel_names, source=source)
    write_whole(path, json.dumps(metadata, indent=4, ensure_ascii=False) + "\n")


def training_config(fold: Path, overlay: str) -> dict[str, Any]:
    """Return the template's train.yaml with an overlay merged in."""
    template = template_text((fold / "configs" / "train.yaml").read_text(encoding="utf-8"))
    return merged(yaml.safe_load(template), yaml.safe_load(overlay))


def only(values: Mapping[str, Any], own: set[str], others: set[str], *, for_training: bool) -> dict[str, Any]:
    """Return what of an overlay goes into a file: the keys it knows, and those that neither file knows."""
    chosen = {}
    for key, value in values.items():
        root = re.split("#", key.removeprefix("+"))[0]
        if (root in own or root not in others) and (for_training or root not in TRAINING_ONLY):
            chosen[key] = value
    return chosen
