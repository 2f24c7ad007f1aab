"""The key of this installation of Triton, worked out once for it and not by every process that compiles a kernel.

It is a hash of Triton's sources and of its library, of hundreds of megabytes, for half a second.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from triton import _C
from triton.runtime import cache


def keep_key(kept: pytest.Cache) -> None:
    """Have the cache of pytest keep the key for as long as the library is the same file."""
    work_out = cache.triton_key

    @functools.cache
    def triton_key() -> str:
        libraries = [(path, path.stat()) for path in sorted(Path(_C.__path__[0]).glob("libtriton*"))]
        stamp = [[str(path), status.st_size, status.st_mtime_ns] for path, status in libraries]
        known = kept.get("scalebench/triton_key", None)
        if known is None or known["of"] != stamp:
            known = {"of": stamp, "key": work_out()}
            kept.set("scalebench/triton_key", known)
        return str(known["key"])

    cache.triton_key = triton_key
