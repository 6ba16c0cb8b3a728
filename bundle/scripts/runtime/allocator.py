"""glibc's allocator, told to keep freed memory."""

from __future__ import annotations

import ctypes
import platform

# malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
TOP_PAD_BYTES = 256 * 2**20
NEVER = -1  # a number would be an int, and 2 GiB at most


def keep_freed_memory() -> bool:
    """Let the process keep memory that tensors on the CPU have freed, for the next ones; return whether it could.

    glibc hands every large tensor's memory back to the system, and pays a page fault for each 4 KiB of the next one:
    up to half of the time of a training step. It is told not to, for this process and those that it forks; a few GB
    more stay in use until the end. Elsewhere (macOS, musl) nothing is changed. GPUs aren't concerned: PyTorch keeps
    their memory anyway.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: TOP_PAD_BYTES, M_ARENA_MAX: 1}
    return all(mallopt(option, value) for option, value in settings.items())
