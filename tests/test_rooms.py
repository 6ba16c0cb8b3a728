"""The rooms of the code: which imports from which, that none is crowded, and that the picture of them is true."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import BUNDLE, CONFIGS, ROOT

# each room and those that it imports from, which stand above it here; `scripts` is what lies in the folder itself
ROOMS = {
    "runtime": "",
    "networks": "runtime",
    "transforms": "runtime",
    "autograd": "networks",
    "data": "runtime transforms",
    "dicom": "data runtime",
    "metrics": "data runtime",
    "planning": "data runtime transforms",
    "training": "autograd networks runtime",
    "visualize": "data runtime",
    "estimate": "autograd data networks runtime training",
    "handlers": "data runtime visualize",
    "phantoms": "metrics runtime",
    "audit": "data handlers runtime visualize",
    "experiments": "data handlers metrics phantoms runtime",
    "inference": "data dicom handlers networks runtime transforms",
    "bundles": "inference runtime",
    "report": "audit data estimate experiments handlers inference metrics runtime visualize",
    "auto3dseg": "bundles data estimate planning runtime training",
    "commands": "audit bundles data estimate experiments inference metrics phantoms planning report runtime",
    "guard": "data runtime",
    "stores": "data dicom guard handlers runtime",
    "monai_label": "bundles data dicom guard inference metrics runtime stores",
    "scripts": "auto3dseg bundles data handlers inference planning runtime",
}
ALLOWED = {room: set(below.split()) for room, below in ROOMS.items()}
MOST_FILES = dict.fromkeys(ALLOWED, 12) | {"training": 5}
BESIDE = BUNDLE / "monai_label"  # beside `scripts`, with rooms of its own
FOLDERS = sorted(
    path
    for home in (BUNDLE / "scripts", BESIDE)
    for path in home.iterdir()
    if path.is_dir() and path.name not in ("__pycache__", "stand_ins")
)
FILES = sorted(file for folder in (BUNDLE / "scripts", BESIDE, *FOLDERS) for file in folder.glob("*.py"))


class Import(NamedTuple):
    """An import of one of our modules by another, as paths without a suffix below the bundle."""

    importing: Path
    line: int
    imported: Path


def room_of(module: Path) -> str:
    return module.parts[1] if len(module.parts) > 2 else module.parts[0]


def imports_of(path: Path) -> Iterator[Import]:
    """Every relative import of a file, wherever it stands: in functions and under TYPE_CHECKING, too."""
    module = path.relative_to(BUNDLE).with_suffix("")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = Path(*module.parts[: len(module.parts) - node.level], *(node.module or "").split("."))
            for alias in node.names:
                is_folder = (BUNDLE / origin).is_dir()
                yield Import(module, node.lineno, origin / alias.name if is_folder else origin)


IMPORTS = [one for path in FILES for one in imports_of(path)]


def test_the_rooms_are_those_of_the_table() -> None:
    assert {folder.name for folder in FOLDERS} == ALLOWED.keys() - {"monai_label", "scripts"}


def test_a_room_imports_from_the_rooms_that_the_table_allows_it() -> None:
    wrong = [
        f"{one.importing}.py:{one.line} imports {one.imported}: {room_of(one.importing)} may not import from "
        f"{room_of(one.imported)}. Move what is needed to a lower room."
        for one in IMPORTS
        if room_of(one.imported) not in ALLOWED[room_of(one.importing)] | {room_of(one.importing)}
    ]
    assert wrong == []


def test_the_table_allows_nothing_that_no_room_needs() -> None:
    needed: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for one in IMPORTS:
        needed[room_of(one.importing)] |= {room_of(one.imported)} - {room_of(one.importing)}
    assert needed == ALLOWED


def test_the_table_has_no_cycle_as_each_room_stands_above_those_that_import_it() -> None:
    above: set[str] = set()
    for room, imported in ALLOWED.items():
        assert imported <= above, room
        above.add(room)


def test_the_modules_have_no_cycle() -> None:
    graph: dict[Path, set[Path]] = {}
    for one in IMPORTS:
        graph.setdefault(one.importing, set()).add(one.imported)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_each_import_within_the_package_is_of_a_module_that_exists() -> None:
    assert [one for one in IMPORTS if not (BUNDLE / one.imported).with_suffix(".py").is_file()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BUNDLE)))
def test_a_module_imports_its_own_package_relatively(path: Path) -> None:
    """A bundle may be copied, and then is `scripts`, or be installed, and then is `cyclic_committee`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & {"bundle", "cyclic_committee", "scripts"}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_is_not_crowded(room: str) -> None:
    files = [path.name for path in FILES if room_of(path.relative_to(BUNDLE)) == room and path.stem != "__init__"]
    assert len(files) <= MOST_FILES[room], files


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_rooms_init_says_in_one_line_what_the_room_is_and_does_nothing(folder: Path) -> None:
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1
    assert ast.get_docstring(ast.parse(text))


def test_a_folder_of_rooms_holds_no_folders() -> None:
    assert [path for folder in FOLDERS for path in folder.iterdir() if path.is_dir() and path.name[0] != "_"] == []


def names_in(path: Path) -> set[str]:
    """What a module defines by itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize(
    "path",
    [*sorted(CONFIGS.rglob("*.yaml")), *(path for path in FILES if "_target_" in path.read_text(encoding="utf-8"))],
    ids=lambda path: str(path.relative_to(BUNDLE)),
)
def test_a_target_is_a_class_or_function_of_todays(path: Path) -> None:
    for target in re.findall(r"_target_[\"']?: f?\"?scripts\.([\w.]+)\.(\w+|\{)", path.read_text(encoding="utf-8")):
        module, name = target
        place = (BUNDLE / "scripts" / module.replace(".", "/")).with_suffix(".py")
        assert place.is_file(), module
        assert name == "{" or name in names_in(place), target


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_from_here_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cyclic_committee"):
            module = importlib.import_module(node.module or "")
            assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module


def below(room: str) -> set[str]:
    """All rooms that a room imports from, and those that they import from."""
    return ALLOWED[room].union(*(below(other) for other in ALLOWED[room]))


def test_the_picture_in_contributing_has_each_arrow_that_does_not_follow_from_others() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [picture] = re.findall(r"^```mermaid\nflowchart TD\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    drawn = set()
    for line in picture.splitlines():
        room, arrow, others = line.partition(" --> ")
        assert arrow, line
        drawn |= {(room.strip(), other) for other in others.split(" & ")}
    expected = {
        (room, other)
        for room, others in ALLOWED.items()
        for other in others
        if not any(other in below(between) for between in others)
    }
    assert drawn == expected
