"""A limit for the time that a model takes to be loaded and tried, because a model may compute without end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from batchverify.errors import PreflightError

Result = TypeVar("Result")
# A run scores thousands of pairs in that time; a model that needs it to be loaded, or for a dozen images, would never end.
_STEP_LIMIT_S = 600.0


def within_limit(name: str | None, load_and_try: Callable[[Callable[[], None]], Result]) -> Result:
    """Returns the result of a function that loads a model and may then try it, unless one of the two takes too long.

    The function runs in a thread of its own, because a thread that waits inside TensorFlow hears no signal. Where the time is
    over, the thread goes on until the process ends.

    Args:
        name: The model's path or URI, for messages; None means the embedded model.
        load_and_try: The function; it calls its argument once the model is loaded.

    Raises:
        PreflightError: If loading or trying the model takes longer than the limit.
    """
    is_loaded, outcome = threading.Event(), Future[Result]()
    threading.Thread(target=_run, args=(load_and_try, is_loaded, outcome), name="load-model", daemon=True).start()
    if not is_loaded.wait(_STEP_LIMIT_S):
        raise _too_long(name, "it has been loading", "loads")
    try:
        return outcome.result(_STEP_LIMIT_S)
    except TimeoutError:
        raise _too_long(name, "it has computed on a dozen generated images", "works") from None


def _run(load_and_try: Callable[[Callable[[], None]], Result], is_loaded: threading.Event, outcome: Future[Result]) -> None:
    try:
        outcome.set_result(load_and_try(is_loaded.set))
    except BaseException as error:  # `Future.result` raises it.
        outcome.set_exception(error)
    finally:
        is_loaded.set()


def _too_long(name: str | None, what: str, verb: str) -> PreflightError:
    return PreflightError(
        f"--model {name or 'embedded'}: {what} for {_STEP_LIMIT_S / 60:.3g} minutes without an end; check that it {verb} where "
        "it was trained."
    )
