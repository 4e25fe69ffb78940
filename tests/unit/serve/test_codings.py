"""Content codings, unpacked within a bound."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_letta.serve.codings import CodingError, TooLongError, UnknownCodingError, unpack

MOST = 10_000
PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("coding", PACK)
def test_what_was_packed_is_unpacked_however_many_parts_it_has(coding: str) -> None:
    pack = PACK[coding]
    assert unpack(pack(b"one" * 99), coding, MOST) == b"one" * 99
    assert unpack(pack(b""), coding.upper(), MOST) == b""
    assert unpack(pack(b"one") + pack(b"two"), coding, MOST) == b"onetwo"
    assert unpack(pack(pack(b"one")), f"{coding}, {coding}", MOST) == b"one"


def test_a_frame_without_a_size_is_as_good_as_any() -> None:
    packer = zstandard.ZstdCompressor(write_content_size=False)
    assert unpack(packer.compress(b"one" * 99), "zstd", MOST) == b"one" * 99


def test_padding_behind_a_gzip_member_is_allowed() -> None:
    assert unpack(gzip.compress(b"one") + bytes(20), "gzip", MOST) == b"one"


@pytest.mark.parametrize("coding", PACK)
def test_a_bomb_goes_off_within_the_bound(coding: str) -> None:
    body = PACK[coding](bytes(50_000_000))
    assert len(body) < 60_000
    with pytest.raises(TooLongError):
        unpack(body, coding, MOST)
    with pytest.raises(TooLongError):
        unpack(PACK[coding](bytes(6_000)) * 2, coding, MOST)


@pytest.mark.parametrize("coding", PACK)
def test_what_is_cut_off_or_something_else_is_refused(coding: str) -> None:
    whole = PACK[coding](b"one" * 999)
    for body in (whole[:-1], whole[: len(whole) // 2], whole[:3], b"{}", whole + b"more"):
        with pytest.raises(CodingError):
            unpack(body, coding, MOST)


def test_a_window_larger_than_anybody_may_ask_for_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=25)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(CodingError):
        unpack(packer.compress(b"one") + packer.flush(), "zstd", MOST)


@pytest.mark.parametrize("coding", ["br", "gzip, br", "snappy", "x"])
def test_other_codings_are_named_as_unknown(coding: str) -> None:
    with pytest.raises(UnknownCodingError):
        unpack(b"", coding, MOST)


def test_no_coding_is_a_coding() -> None:
    assert unpack(b"one", "", MOST) == unpack(b"one", "identity", MOST) == b"one"
    with pytest.raises(TooLongError):
        unpack(bytes(MOST + 1), "", MOST)


@settings(max_examples=200)
@given(st.sampled_from(sorted(PACK)), st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_damage_is_refused_or_read(coding: str, content: bytes, at: int, byte: int) -> None:
    body = bytearray(PACK[coding](content))
    body[at % len(body)] = byte
    with contextlib.suppress(CodingError, TooLongError):
        unpack(bytes(body), coding, MOST)
