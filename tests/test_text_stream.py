"""The text of tokens as they come: never half a character, never more than a stop string allows."""

from __future__ import annotations

import random

import pytest

from scalebench.data.byte_pair import BytePairs
from scalebench.data.text import Text
from scalebench.running.serving.text_stream import TextStream

DATA = Text((b"nothing",))
WORDS = ("a", "é", "€", "😀", "\N{REPLACEMENT CHARACTER}", "\r\n", "e\u0301", "日本", "\x00")


def pieces(tokens: list[int], stops: tuple[str, ...] = (), data: object = DATA) -> tuple[list[str], bool]:
    """What each token adds, up to a stop string, and whether one came."""
    stream, added = TextStream(data, stops), []  # type: ignore[arg-type]
    for number, token in enumerate(tokens):
        added.append(stream.add(token, last=number == len(tokens) - 1))
        if stream.stopped:
            break
    return added, stream.stopped


@pytest.mark.parametrize("seed", range(20))
def test_pieces_together_are_the_text_of_all_tokens(seed: int) -> None:
    rng = random.Random(seed)
    valid = "".join(rng.choices(WORDS, k=30)).encode()
    mixed = bytes(rng.choice((valid[i], rng.randrange(256))) for i in range(len(valid)))  # also what is no UTF-8
    for content in (valid, mixed, rng.randbytes(60), valid[:-1], b"\xff" * 9, b"\xe2\x82", b"\xf0\x9f\x98"):
        added, stopped = pieces(list(content))
        assert "".join(added) == content.decode(errors="replace")
        assert not stopped


def test_a_character_comes_whole_with_its_last_byte() -> None:
    added, _ = pieces(list("é€😀.".encode()))
    assert added == ["", "é", "", "", "€", "", "", "", "😀", "."]


def test_tokens_of_several_bytes_are_cut_nowhere() -> None:
    text = Text(tuple(f"{i} é€😀 日本語 über naïve {i % 7}".encode() * 3 for i in range(60)))
    data = BytePairs(text, 300, 0.2)
    tokens = data.encode("das 😀 über日本 €é naïve")
    added, _ = pieces(tokens, data=data)
    assert "".join(added) == "das 😀 über日本 €é naïve"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in added)
    assert len(data.decode(tokens[:5]).encode()) > 0


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("four",), None),
        ("aab", ("ab",), "a"),
        ("aaab", ("aab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("end", ("end",), ""),
        ("an en", ("end",), None),  # held back until the end, which is not the whole of it
        ("x€y", ("€",), "x"),
    ],
)
def test_text_ends_before_a_stop_string(text: str, stops: tuple[str, ...], expected: str | None) -> None:
    added, stopped = pieces(list(text.encode()), stops)
    assert "".join(added) == (text if expected is None else expected)
    assert stopped == (expected is not None)


def test_nothing_is_held_back_that_begins_no_stop_string() -> None:
    added, _ = pieces(list(b"one ten"), ("tea",))
    assert added == ["o", "n", "e", " ", "", "", "ten"]
