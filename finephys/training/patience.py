"""Wait for a storage that fails for a while, instead of losing the steps since the last checkpoint.

Path:    loop, checkpoint -> storage
Letters: none
Units:   seconds
"""

import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


def patiently(action: Callable[[], ResultT], patience_s: float) -> ResultT:
    """The result of `action`, called again after an OSError until patience_s are over; then the last error is raised.

    Pauses double from a second to half a minute, each a random part shorter, so that ranks do not ask all at once.
    """
    deadline, pause_s = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            if time.monotonic() + pause_s > deadline:
                raise
            print(f"finephys: storage failed, again in {pause_s:.0f} s: {error}", file=sys.stderr)
        time.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
