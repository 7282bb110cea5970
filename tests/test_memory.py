"""Freed memory stays with the process."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")
def test_memory_that_was_freed_is_not_paid_for_again() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 200 < 2000 < faults("leave")
