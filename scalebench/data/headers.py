"""C++ that is on every machine with scalebench: the headers of the installed PyTorch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from scalebench.data.text import Text, read_documents

FOLDERS = ("c10", "torch/csrc")  # written by hand; those of ATen are mostly generated


def open_headers(_argument: str = "") -> Text:
    """Open the C++ headers of PyTorch. Raises ``ValueError`` where it was installed without them."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ValueError("cpp: torch is not installed as a folder of files")
    root = Path(spec.origin).parent / "include"
    files = [file for folder in FOLDERS for file in (root / folder).rglob("*.h")]
    return read_documents(files, f"cpp ({root})")
