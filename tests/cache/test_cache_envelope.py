"""Values come back as they were, types and all; damaged bytes never come back as a value."""

from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.tiers.envelope import DamagedError, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)
ARRAYS = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        hnp.complex_number_dtypes(sizes=(64,)),
        hnp.unicode_string_dtypes(max_len=4),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def same(a: object, b: object) -> bool:
    """Equal in value and type, all the way down (1, 1.0 and True are three things)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def nested(leaves: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.text(alphabet="a\0", max_size=2)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    )


@given(nested(st.binary(max_size=9) | st.integers() | st.none()))
def test_tuples_and_bytes_inside_lists_and_dicts_come_back(value: object) -> None:
    assert same(decode(encode(value)), value)


def test_arrays_inside_a_result_come_back_as_copies() -> None:
    scores = np.arange(3, dtype=np.float32)
    back = decode(encode({"ids": ("a", "b"), "scores": scores, "raw": b"\0"}))
    np.testing.assert_array_equal(back["scores"], scores)
    assert back["scores"].flags.writeable
    assert (back["ids"], back["raw"]) == (("a", "b"), b"\0")


def test_half_precision_rounds_vectors_and_spares_what_it_would_spoil() -> None:
    vector = np.array([0.1, -0.5, 1.0], dtype=np.float32)
    back = decode(encode(vector, half=True))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, vector.astype(np.float16).astype(np.float32))
    large = np.zeros(1000, dtype=np.float32)
    assert len(encode(large, half=True)) < 0.6 * len(encode(large))
    for spoiled in (np.array([1e6], dtype=np.float32), np.array([0.1], dtype=np.float64)):
        np.testing.assert_array_equal(decode(encode(spoiled, half=True)), spoiled)


def test_a_value_inside_itself_is_refused() -> None:
    value: list = []
    value.append(value)
    with pytest.raises(TypeError, match="in itself"):
        encode(value)


def test_what_could_not_be_read_or_written_again_is_refused() -> None:
    deep: object = 1
    for _ in range(100):
        deep = [deep]
    assert same(decode(encode(deep)), deep)
    for wrong, message in (
        ([deep], "over 100 levels deep"),
        ({"a": [deep]}, "over 100 levels deep"),
        (10**5000, "too many digits"),
        ({"n": [np.arange(2), 10**5000]}, "too many digits"),
    ):
        with pytest.raises(TypeError, match=message):
            encode(wrong)


@given(st.binary() | st.text(st.characters()) | JSON)
def test_plain_values_come_back(value: object) -> None:
    assert same(decode(encode(value)), value)


def test_not_a_number_and_lone_surrogates_come_back() -> None:
    assert math.isnan(decode(encode([math.nan]))[0])
    assert decode(encode("\ud800")) == "\ud800"


@given(ARRAYS)
def test_arrays_come_back(array: np.ndarray) -> None:
    back = decode(encode(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_a_transposed_view_comes_back_by_value() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(decode(encode(array)), array)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"a": {1, 2}}, "set"),
        ({1: "a"}, "int"),
        (np.float32(1), "numpy.float32"),
        (np.array([object()]), "object"),
        (np.zeros(1, dtype=[("a", "i4")]), r"\('a'"),
        (bytearray(b"x"), "bytearray"),
        ([set()], "set"),
        (namedtuple("Point", "x")(1), "Point"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_by_name(
    value: object, name: str
) -> None:
    with pytest.raises(TypeError, match=name):
        encode(value)


@pytest.mark.parametrize("value", [b"bytes", "text", {"a": [1, None]}, np.arange(4.0)])
def test_no_flipped_bit_and_no_cut_record_is_a_value(value: object) -> None:
    record = encode(value)
    for position in range(len(record) * 8):
        flipped = bytearray(record)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(DamagedError):
            decode(bytes(flipped))
    for length in range(len(record)):
        with pytest.raises(DamagedError):
            decode(record[:length])


PARTS = st.lists(st.text(alphabet="ab\0", max_size=4), max_size=4)


@settings(max_examples=300)
@given(PARTS, PARTS, st.sampled_from(CacheType), st.sampled_from(CacheType))
def test_different_parts_never_share_a_key(a: list, b: list, kind_a: CacheType, kind_b: CacheType):
    key = cache_key(kind_a, *a)
    assert len(key) == 16
    assert (key == cache_key(kind_b, *b)) == ((kind_a, a) == (kind_b, b))


def test_parts_that_join_to_the_same_text_differ() -> None:
    keys = {
        cache_key(CacheType.EMBEDDING, *parts)
        for parts in (("ab",), ("a", "b"), ("", "ab"), ("ab", ""), ("b", "a"))
    }
    assert len(keys) == 5


def test_a_part_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="int"):
        cache_key(CacheType.EMBEDDING, 1)  # type: ignore[arg-type]
