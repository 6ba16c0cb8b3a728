"""Compilation of C++ operators on the machine that needs them."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..runtime.atomic_files import temporary_folder

try:
    from torch.utils import cpp_extension
except ImportError:  # it imports setuptools, which not every installation has
    cpp_extension = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
ARCHITECTURES = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
LONGEST_BUILD_S = 600
CONSEQUENCE = "Training is right without it, but slower."


def load_native(source: Path, *, flags: Sequence[str] = ()) -> bool:
    """Compile a C++ source, once for a machine, and load the operators that it registers.

    The library is kept in PyTorch's folder for extensions (`TORCH_EXTENSIONS_DIR`, by default in the user's cache)
    under a name with the hash of all that it depends on. It is written under another name and then renamed: several
    processes may build at once, and one that is killed leaves nothing broken. `torch.utils.cpp_extension.load` isn't
    used, since its lock outlives a killed process and then stops all later ones. Only Linux on x86-64 was tried.

    Args:
        source: of one file, which includes nothing but the standard library's and PyTorch's headers.
        flags: for the compiler, in addition.

    Returns:
        Whether the operators are there. If not, one line in the log says why and what to do; nothing is raised.
    """
    try:
        problem = build_and_load(source, flags)
    except Exception as error:  # of whatever kind: the operator is a gain in speed, never a condition
        problem = f"{error}. Check the compiler and the cache folder"
    if problem:
        logger.info(" ".join(f"{source.name}: not loaded: {problem}. {CONSEQUENCE}".split()))
    return not problem


def build_and_load(source: Path, more_flags: Sequence[str]) -> str:
    """Build if necessary, and load; return what went wrong and what to do, or nothing."""
    compiler = find_compiler()
    if not compiler:
        return "there is no C++ compiler. Install one (Debian, Ubuntu: apt install g++)"
    if cpp_extension is None:
        return "there is no setuptools, which PyTorch needs for extensions. Install it (pip install setuptools)"
    flags = [*more_flags, *compiler_flags()]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = [source.read_bytes(), repr(flags).encode(), torch.__version__.encode(), version]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    folder = Path(root) / "cyclic_committee"
    library = folder / f"{source.stem}_{digest}.so"
    if library.is_file():
        return load(library)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as building:
            return compile_source(source, library, command=[*compiler, *flags], building=Path(building)) or load(
                library
            )
    except (PermissionError, FileExistsError, NotADirectoryError):
        pass
    except OSError as error:  # a file system that is full or may only be read
        logger.debug("%s: %s", folder, error)
    with temporary_folder() as building:  # once loaded, it isn't needed again
        library = Path(building) / library.name
        return compile_source(source, library, command=[*compiler, *flags], building=Path(building)) or load(library)


def compile_source(source: Path, library: Path, *, command: list[str], building: Path) -> str:
    """Compile in the folder `building`, then move the result to `library`; return what went wrong, or nothing."""
    logger.info("Compiling %s once for this machine; about 15 s.", source.name)
    unfinished = building / f"unfinished_{library.name}"
    done = subprocess.run(
        [*command[:1], str(source), "-o", str(unfinished), *command[1:]],
        capture_output=True,
        text=True,
        timeout=LONGEST_BUILD_S,
    )
    if done.returncode != 0 or not unfinished.is_file():
        lines = done.stderr.strip().splitlines()
        why = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {done.returncode}")
        return f"{command[0]} failed ({why[:300]}). Install g++ 11 or newer, or name a compiler in CXX"
    os.replace(unfinished, library)
    return ""


def load(library: Path) -> str:
    """Load the operators; return what went wrong, or nothing."""
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"{library} can't be loaded ({str(error)[:300]}). Delete it; it is then built anew"
    return ""


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: $CXX, else c++ or g++; empty if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named if shutil.which(named[0]) else []
    compiler = shutil.which("c++") or shutil.which("g++")
    return [compiler] if compiler else []


def compiler_flags() -> list[str]:
    """Return the flags: this processor's vectors, PyTorch's headers, libraries and thread pool.

    No -ffast-math: NaN and infinity have to stay what they are, and results have to be the same everywhere.
    """
    flags = ["-O3", "-fPIC", "-shared", "-std=c++20", "-fno-math-errno", "-fno-trapping-math"]
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() in ("x86_64", "amd64") and capability in ARCHITECTURES:
        flags.append(f"-march={ARCHITECTURES[capability]}")
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = cpp_extension.library_paths()
    flags += [f"-L{path}" for path in libraries]
    if sys.platform == "darwin":  # Apple's compiler has no OpenMP: one thread
        flags += ["-undefined", "dynamic_lookup"]
    else:  # PyTorch's own OpenMP, which is in the same folder as PyTorch's libraries, is found first
        flags.append("-fopenmp")
    return [*flags, "-ltorch", "-ltorch_cpu", "-lc10"]
