"""Memory of a process that handles clip after clip.

Path:    beside it: called once, before the first clip
Units:   bytes

A clip takes and frees the same megabytes each time. glibc gives large pieces back to the system when they are freed,
and the next clip pays for every page again: a quarter of the time of decoding, 2.5 % of that of generating (18,000 page
faults a clip, with six steps of the demo's pipeline). Each thread has a heap of its own: clips should stay in one.
"""

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest threshold that glibc takes: half of the heap of a thread.
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1
_MEGABYTE = 2**20


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
