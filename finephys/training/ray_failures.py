"""Which failures of a run are retried: lost processes and machines are; what the user or the data got wrong is not.

Path:    exception on a rank -> Ray Train's controller -> one line from the job
Letters: none
Units:   none

Ray Train retries whatever a rank raises, up to max_failures times. A loss that is not a number or a clip of the wrong
size comes again each time, so a rank names it `Refused`, and the controller gives up at the first one: an exception of
a callback is none of the errors that Ray Train retries (ray/train/v2/_internal/execution/failure_handling/default.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from finephys.command_line import JobFailed, is_user_error


class Refused(Exception):
    """What no retry puts right.  is_mistake: whether it is the user's to put right, else the run itself went wrong."""

    def __init__(self, message: str, is_mistake: bool) -> None:
        super().__init__(message, is_mistake)
        self.message = message
        self.is_mistake = is_mistake


@contextmanager
def refusing() -> Iterator[None]:
    """On a rank: name the errors that would come again. An OSError may be the storage's bad moment and is not one."""
    try:
        yield
    except FloatingPointError as error:
        raise Refused(str(error), is_mistake=False) from error
    except ValueError as error:
        if not is_user_error(error):
            raise
        raise Refused(str(error), is_mistake=True) from error


class NoRetryOfRefused(UserCallback):
    """In the controller: ends the run at the first Refused of any rank."""

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train before it decides whether to retry."""
        del run_context
        for _, error in sorted(worker_exceptions.items()):
            # Ray Train wraps what a rank raised.
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, Refused):
                raise cause


@contextmanager
def told_in_one_line(max_failures: int) -> Iterator[None]:
    """On the driver: ValueError for the user's mistakes, JobFailed for the rest, with what the ranks said."""
    try:
        yield
    except ControllerError as error:
        cause = error.controller_failure
        if not isinstance(cause, Refused):
            raise
        if cause.is_mistake:
            raise ValueError(cause.message) from None
        raise JobFailed(cause.message) from None
    except WorkerGroupError as error:
        rank, last = min(error.worker_failures.items())
        said = str(last).strip().splitlines()[-1]
        raise JobFailed(
            f"ranks failed {max_failures + 1} times, the last time rank {rank}: {said}; the same command continues"
        ) from error
    except TrainingFailedError as error:
        raise JobFailed(str(error).splitlines()[-1]) from error
