"""Texts of the Hugging Face ``datasets`` library: a name on its hub, or a folder written by ``save_to_disk``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalebench.data.text import Text


def open_hub(argument: str) -> Text:
    """Open ``NAME``, ``PATH`` or either with ``#COLUMN``: every row of a text column of the train split is a document.

    Raises ``ValueError`` when the library is absent, the set is not there, or the column is not one of text.
    """
    name, _, column = argument.partition("#")
    try:
        import datasets
    except ImportError as error:
        raise ValueError("hf: needs the datasets library: pip install datasets") from error
    found = datasets.load_from_disk(name) if Path(name).expanduser().is_dir() else _from_hub(name)
    rows = found["train"] if isinstance(found, datasets.DatasetDict) and "train" in found else found
    if isinstance(rows, datasets.DatasetDict):
        raise ValueError(f"hf:{name}: has no train split; it has {', '.join(rows)}")
    texts = [
        key for key, feature in rows.features.items() if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    column = column or ("text" if "text" in texts else next(iter(texts), ""))
    if column not in texts:
        raise ValueError(f"hf:{name}: no text column {column!r}; those of text are: {', '.join(texts) or 'none'}")
    documents = dict.fromkeys(text.encode() for text in rows[column] if text and text.strip())
    if not documents:
        raise ValueError(f"hf:{name}: column {column!r} holds no text")
    return Text(tuple(documents))


def _from_hub(name: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name)
    # The hub's client raises what its transport raises, of many kinds; whatever it is, the source cannot be opened.
    except Exception as error:
        raise ValueError(
            f"hf:{name}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
