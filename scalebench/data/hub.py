"""Text from the Hugging Face ``datasets`` library: a dataset on the hub, or a folder written by ``save_to_disk``."""

from __future__ import annotations

from typing import Any

from scalebench.data.text import Text
from scalebench.store import expanded


def open_hub(argument: str) -> Text:
    """Open ``NAME``, ``PATH`` or either with ``#COLUMN``: each row of a text column of the train split is a document.

    Raises ``ValueError`` if the library, the dataset or the text column is missing.
    """
    name, _, column = argument.partition("#")
    try:
        import datasets
    except ImportError as error:
        raise ValueError("hf: needs the datasets library: pip install datasets") from error
    folder = expanded(name)
    dataset = datasets.load_from_disk(str(folder)) if folder.is_dir() else _from_hub(name)
    rows = dataset["train"] if isinstance(dataset, datasets.DatasetDict) and "train" in dataset else dataset
    if isinstance(rows, datasets.DatasetDict):
        raise ValueError(f"hf:{name}: has no train split; it has {', '.join(rows)}")
    texts = [
        key for key, feature in rows.features.items() if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    column = column or ("text" if "text" in texts else next(iter(texts), ""))
    if column not in texts:
        raise ValueError(f"hf:{name}: no text column {column!r} (text columns: {', '.join(texts) or 'none'})")
    documents = dict.fromkeys(text.encode() for text in rows[column] if text and text.strip())
    if not documents:
        raise ValueError(f"hf:{name}: column {column!r} has no text")
    return Text(tuple(documents))


def _from_hub(name: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name)
    # The hub client passes on exceptions of its transport, of many types; all mean that the source cannot be opened.
    except Exception as error:
        raise ValueError(
            f"hf:{name}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
