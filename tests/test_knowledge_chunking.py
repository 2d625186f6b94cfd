"""Texts to chunks: whole, in order, of the wanted size, and always the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlft.errors import OptionError
from sqlft.knowledge.chunking import Chunk, ChunkOptions, split_text
from sqlft.knowledge.definition import read_chunk_options

TEXTS = st.text(st.sampled_from("ab .!?\n\t日。é😀"), max_size=400)


def contents(text: str, **options: object) -> list[str]:
    """The texts of the chunks."""
    return [chunk.content for chunk in split_text(text, ChunkOptions(**options))]  # type: ignore[arg-type]


@given(TEXTS, st.integers(1, 60), st.integers(0, 59))
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_and_no_chunk_is_too_long(text: str, size: int, overlap: int) -> None:
    chunks = split_text(text, ChunkOptions(size=size, overlap=min(overlap, size - 1)))
    end = start = 0
    for chunk in chunks:
        assert chunk.content == text[chunk.start : chunk.end] == chunk.content.strip()
        assert 0 < len(chunk.content) <= size
        assert chunk.start >= start
        assert not text[end : chunk.start].strip()
        assert chunk.end > end
        start, end = chunk.start, chunk.end
    assert not text[end:].strip()


def test_it_cuts_between_paragraphs_lines_sentences_and_words() -> None:
    assert contents("One two.\n\nThree four. Five", size=20, overlap=0) == ["One two.", "Three four. Five"]
    assert contents("One two three\nfour five six seven", size=21, overlap=0) == [
        "One two three",
        "four five six seven",
    ]
    assert contents("One two three. Four five six", size=22, overlap=0) == ["One two three.", "Four five six"]
    assert contents("今日は良い天気です。明日は雨です。", size=12, overlap=0) == [
        "今日は良い天気です。",
        "明日は雨です。",
    ]
    assert contents("aaaa bbbb cccc", size=9, overlap=0) == ["aaaa bbbb", "cccc"]
    assert contents("x" * 25, size=10, overlap=0) == ["x" * 10, "x" * 10, "x" * 5]
    assert contents("a|b|c|d", size=4, overlap=0, separators=("|",)) == ["a|b|", "c|d"]


def test_space_alone_is_no_chunk() -> None:
    assert contents("???  ", size=3, overlap=2) == ["???"]
    assert contents("aaa" + " " * 50 + "b", size=4, overlap=3) == ["aaa", "b"]


def test_chunks_overlap_by_whole_words() -> None:
    found = contents("one two three four five six seven eight nine ten", size=20, overlap=8)
    assert found[0] == "one two three four"
    assert found[1].startswith("four ")
    assert all(len(chunk) <= 20 for chunk in found)


def test_empty_texts_have_no_chunks() -> None:
    for text in ("", " \n\t ", "\u3000"):
        assert contents(text) == [] == contents(text, kind="markdown") == contents(text, kind="json")


def test_a_text_of_ten_megabytes() -> None:
    chance = random.Random(1)
    text = " ".join("".join(chance.choices("abcdef", k=7)) for _ in range(1_250_000))
    chunks = split_text(text, ChunkOptions())
    assert len(text) == 9_999_999
    assert 12_000 < len(chunks) < 13_500
    assert chunks[-1].end == len(text)


def test_markdown_is_cut_at_its_headings() -> None:
    text = "Intro\n# A\none\n## B\ntwo\n```\n# no heading\n```\n### C ###\nthree\nTitle\n=====\nfour"
    assert contents(text, kind="markdown") == [
        "Intro",
        "# A\none",
        "A\n## B\ntwo\n```\n# no heading\n```",
        "A > B\n### C ###\nthree",
        "Title\n=====\nfour",
    ]
    long = contents("# Heading\n## Sub\n" + "word " * 40, kind="markdown", size=60, overlap=0)
    assert all(chunk.startswith("Heading\n") and len(chunk) <= 60 for chunk in long[1:])


def test_json_is_cut_into_objects_or_fields() -> None:
    text = '[{"a": 1, "b": {"c": [1, 2], "d": [{"e": "x"}]}}, {"a": null}, "plain"]'
    assert contents(text, kind="json") == ["a: 1\nb.c: 1, 2\nb.d[0].e: x", "plain"]
    assert contents(text, kind="json", exclude_fields=("b.d",)) == ["a: 1\nb.c: 1, 2", "plain"]
    assert contents('{"a": 1, "b": "two"}', kind="json", chunk_by_object=False) == ["a: 1", "b: two"]
    assert contents('{"a": {"b": 1}}', kind="json", flatten_nested=False) == ['a: {"b": 1}']
    assert contents("no JSON at all", kind="json") == ["no JSON at all"]


def test_tokens_are_those_of_the_model() -> None:
    """Here a token is a letter that is no space."""

    def count(texts: list[str]) -> list[int]:
        return [len(text.replace(" ", "")) for text in texts]

    text = "aa " * 50 + "bbbbbbbbbb " * 10
    chunks = split_text(text, ChunkOptions("tokens", 20, 4), lambda texts: count(list(texts)))
    assert max(count([chunk.content for chunk in chunks])) <= 20 + 4
    assert split_text("short", ChunkOptions("tokens", 20, 4), None) == [Chunk("short", 0, 5)]


def test_options_in_mindsdbs_form_and_in_ours() -> None:
    assert read_chunk_options({}) == ChunkOptions()
    assert read_chunk_options({"chunk_size": 100}) == ChunkOptions(size=100, overlap=20)
    mindsdb = {
        "preprocessing": {"type": "text_chunking", "text_chunking_config": {"chunk_size": 50, "chunk_overlap": 5}}
    }
    assert read_chunk_options(mindsdb) == ChunkOptions(size=50, overlap=5)
    fields = {"preprocessing": {"json_chunking_config": {"include_fields": ["a"], "chunk_by_object": False}}}
    assert read_chunk_options(fields) == ChunkOptions("json", include_fields=("a",), chunk_by_object=False)
    assert read_chunk_options({"chunking": "tokens"}) == ChunkOptions("tokens", 256, 32)
    with pytest.raises(OptionError, match="less than chunk_size"):
        read_chunk_options({"chunk_size": 10, "chunk_overlap": 12})
