"""Freed memory stays with the process, or goes back at once."""

import platform
import subprocess
import sys

import pytest

# 48 MB in pieces that glibc hands back once they are all free, so that each round touches every page anew.
_PROGRAM = """
import resource, sys
import numpy as np
from finephys.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for round_ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [np.ones(3 * 2**20, np.uint8) for _ in range(16)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del pieces
print(faults)
"""

# 45 MB below a piece that is still held, once a large piece that was freed has taught glibc to take such from its heap.
_HOLES = """
import sys
import numpy as np
import psutil
from finephys.memory import return_freed_memory

if sys.argv[1] == "return":
    assert return_freed_memory()
np.ones(24 * 2**20, np.uint8)
before = psutil.Process().memory_info().rss
pieces = [np.ones(3 * 2**20, np.uint8) for _ in range(16)]
del pieces[:-1]
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")
def test_memory_that_was_freed_is_not_paid_for_again() -> None:
    assert _printed(_PROGRAM, "keep") < 200 < 2000 < _printed(_PROGRAM, "leave")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")
def test_memory_that_was_freed_goes_back() -> None:
    assert _printed(_HOLES, "return") < 8 * 2**20 < 40 * 2**20 < _printed(_HOLES, "leave")


def _printed(program: str, mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", program, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)
