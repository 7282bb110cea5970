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


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, for what it does next; whether that could be had (glibc on Linux only)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
