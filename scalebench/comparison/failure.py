"""How a provider failed, as columns of its row."""

from __future__ import annotations

import traceback
from typing import Any

from scalekernels.providers import Unsupported

from scalebench.running.limits import allocation_failed


def failure(error: BaseException) -> dict[str, Any]:
    """Return the columns that say how a provider failed; ``Unsupported`` is a state, not a failure."""
    status = "unavailable" if isinstance(error, Unsupported) else "failed"
    if allocation_failed(error):
        status = "oom"
    if status == "failed":
        traceback.print_exception(error)
    message = str(error).strip()[:2000] or "no message"
    return {"status": status, "error_class": type(error).__name__, "error_message": message}
