"""What the clients of all object stores share: their time limits and the errors that they report."""

from __future__ import annotations

import http.client

from batchverify.errors import StoreError, short_reason

CONNECT_S, ANSWER_S = 10.0, 30.0


def store_error(code: int | None, error: BaseException) -> StoreError:
    """Returns the error for a request that failed, without the many lines and addresses that clients write.

    Args:
        code: The HTTP status of the answer; None if there was no answer.
        error: The exception of the client.
    """
    if code in http.client.responses:
        return StoreError(code, f"{code} {http.client.responses[code]}")
    return StoreError(code, f"{type(error).__name__}: {short_reason(error)}")
