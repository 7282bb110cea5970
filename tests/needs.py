"""Programs beside Python that tests run: a missing one fails them in CI, and skips them elsewhere, with a hint."""

import os
import shutil

import pytest

# Program -> the Debian package that has it.
PACKAGES = {"promtool": "prometheus", "chromium": "chromium", "chromedriver": "chromium-driver"}


def needs_programs(*programs: str) -> pytest.MarkDecorator:
    """Marks a test that runs these."""
    missing = sorted({PACKAGES[program] for program in programs if shutil.which(program) is None})
    is_skipped = bool(missing) and "CI" not in os.environ
    return pytest.mark.skipif(is_skipped, reason=f"not installed: apt-get install {' '.join(missing)}")
