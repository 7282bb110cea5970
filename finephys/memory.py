"""Memory of a process that handles clip after clip.

Path:    beside it: called once, before the first clip
Units:   bytes

A clip takes and frees the same megabytes each time. glibc gives large pieces back to the system when they are freed,
and the next clip pays for every page again: a quarter of the time of decoding, 2.5 % of that of generating (18,000 page
faults a clip, with six steps of the demo's pipeline). Each thread has a heap of its own: clips should stay in one.

A rank of Ray Train works in a thread that is not the process's first. Heaps of such threads come in pieces of 64 MB,
which go back whole whatever glibc is told: only a process that was started with ONE_KEPT_HEAP keeps what was freed.
"""

import ctypes
import os
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest threshold that glibc takes: half of the heap of a thread.
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1
_MEGABYTE = 2**20

# Variables for the start of a process whose threads share one heap that keeps what is freed, in pages of 2 MB where
# Linux has them. What the user tells glibc comes after it and so counts.
ONE_KEPT_HEAP = {
    "GLIBC_TUNABLES": ":".join(
        [
            "glibc.malloc.arena_max=1",
            "glibc.malloc.mmap_max=0",
            f"glibc.malloc.trim_threshold={2**40}",
            "glibc.malloc.hugetlb=1",
            *filter(None, [os.environ.get("GLIBC_TUNABLES")]),
        ]
    )
}


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, for what it does next; whether that could be had (glibc on Linux only)."""
    return _told(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and _told(_M_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> bool:
    """Give pieces of a megabyte and more back as soon as they are freed, so that resident memory is what is held.

    glibc otherwise keeps one now and then. Returns whether that could be had (glibc on Linux only).
    """
    return _told(_M_MMAP_THRESHOLD, _MEGABYTE)


def _told(parameter: int, value: int) -> bool:
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(parameter, value))
