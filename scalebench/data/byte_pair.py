"""Byte-pair encoding of text: a vocabulary of any size, trained by the ``tokenizers`` library on the training text."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Corpus, Tokens, Windows, spread_windows, uniform_windows
from scalebench.data.text import SEPARATOR, Text, split
from scalebench.measure.environment import package_version
from scalebench.store.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|end|>"  # token 0, at the end of each document
SMALLEST, LARGEST = 257, 1 << 16  # 256 bytes and END; the range of uint16


@dataclass(frozen=True, eq=False)
class BytePairs(Corpus):
    """A text encoded by byte-pair merges (Sennrich et al. 2016) over bytes, as GPT-2 does.

    Merges are chosen on the training documents only. Bytes that are not UTF-8 become the replacement character. Raises
    ``ValueError`` for a vocabulary size out of range.
    """

    text: Text
    vocab_size: int
    validation_fraction: float

    def __post_init__(self) -> None:
        if not SMALLEST <= self.vocab_size <= LARGEST:
            raise ValueError(f"vocab_size = {self.vocab_size}: byte pairs need {SMALLEST} to {LARGEST:,} tokens")

    @property
    def sha256(self) -> str:
        """SHA-256 of the text's SHA-256 and the encoding."""
        version = package_version("tokenizers")
        settings = f"byte pairs v1 {self.text.sha256} {self.vocab_size} {self.validation_fraction} {version}"
        return hashlib.sha256(settings.encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The trained tokenizer. Raises ``ValueError`` if the text is too short for the vocabulary size."""
        from tokenizers import Tokenizer

        cached = _cache_folder() / f"byte-pairs-{self.sha256[:32]}.json"
        if cached.exists():
            return Tokenizer.from_str(cached.read_text(encoding="utf-8"))
        trained = _train([document.tobytes()[:-1] for document in self._sides[0]], self.vocab_size)
        if trained.get_vocab_size() < self.vocab_size:
            size = trained.get_vocab_size()
            raise ValueError(f"vocab_size = {self.vocab_size}: the training text yields only {size:,} tokens")
        _store(cached, trained.to_str().encode())
        return trained

    @property
    def _sides(self) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        joined, held_out = split(self.text, self.validation_fraction)
        ends = np.flatnonzero(joined == SEPARATOR[0]) + 1
        return np.split(joined, ends[:-1]), held_out

    @cached_property
    def _encoded(self) -> tuple[NDArray[np.uint16], list[NDArray[np.uint16]]]:
        """Training tokens (n,) and the validation documents."""
        cached = _cache_folder() / f"byte-pairs-{self.sha256[:32]}.npz"
        if not cached.exists():
            training, held_out = (self._encode_all(side) for side in self._sides)
            buffer = io.BytesIO()
            lengths = np.array([document.size for document in held_out])
            np.savez(buffer, training=np.concatenate(training), held_out=np.concatenate(held_out), lengths=lengths)
            _store(cached, buffer.getvalue())
        with np.load(cached) as file:
            return file["training"], np.split(file["held_out"], np.cumsum(file["lengths"])[:-1])

    def _encode_all(self, documents: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint16]]:
        texts = [document.tobytes()[:-1].decode("utf-8", "replace") for document in documents]
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*encoding.ids, 0], dtype=np.uint16) for encoding in encodings]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(list(tokens))

    def training_tokens(self, validation_fraction: float) -> int:
        """Return the number of training tokens."""
        assert validation_fraction == self.validation_fraction
        return self._encoded[0].size

    def draw(self, rng: np.random.Generator, validation_fraction: float, count: int, span: int) -> Tokens:
        """Draw windows whose starts are uniform over the training tokens."""
        assert validation_fraction == self.validation_fraction
        return uniform_windows(rng, self._encoded[0], count, span)

    def validation(self, validation_fraction: float, samples: int, span: int) -> Windows:
        """Return held-out windows; a cluster is a document."""
        assert validation_fraction == self.validation_fraction
        return spread_windows(list(self._encoded[1]), samples, span)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the number of bytes each token encodes; the end of a document counts as one."""
        pieces = (self.tokenizer.id_to_token(token) or "" for token in range(1, self.vocab_size))
        return np.array([1, *(len(piece) for piece in pieces)])  # one character of a piece is one byte


def _train(documents: Sequence[bytes], vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.decode("utf-8", "replace") for document in documents), trainer)
    return tokenizer


def _cache_folder() -> Path:
    """Return the folder for trained tokenizers and encoded text, which take seconds and are used by every trial."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalebench"


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
