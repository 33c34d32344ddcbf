"""Whatever the pieces that come, and whatever is asked for, the bytes are the same."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk.net.reading import Reading


class Pieces(Reading):
    """Reads these, one after the other, as if each had come alone; None: nothing comes in time."""

    def __init__(self, pieces: list[bytes | None]) -> None:
        self._left = bytearray()
        self._pieces = list(pieces)

    def _begin_read(self) -> None:
        pass

    async def _some(self, most: int, timeout: float | None) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        if piece is None:
            raise errors.Timeout("nothing came")
        if len(piece) > most:
            self._pieces.insert(0, piece[most:])
        self._left += piece[:most]
        return len(piece[:most])

    def _until(self, timeout: float | None) -> float | None:
        return timeout

    def _rest(self, until: float | None) -> float | None:
        return until


piece = st.one_of(st.none(), st.binary(min_size=1, max_size=40), st.just(b"x" * 20_000))
call = st.tuples(st.sampled_from("read readinto exactly until".split()), st.integers(0, 50))


@given(st.lists(piece, max_size=20), st.lists(call, min_size=1))
def test_the_bytes_are_those_that_came_whatever_is_asked_for(pieces, calls):
    whole = b"".join(each for each in pieces if each is not None)
    source, read = Pieces(pieces), bytearray()

    async def ask(kind: str, size: int) -> bytes:
        if kind == "read":
            return await source.read(size)
        if kind == "readinto":
            room = bytearray(size)
            return bytes(room[: await source.readinto(room)])
        if kind == "exactly":
            got = await source.readexactly(size)
            assert len(got) == size
            return got
        got = await source.readuntil(b"x", limit=size + 1)
        assert got.endswith(b"x") and got.count(b"x") == 1
        return got

    async def run() -> None:
        for kind, size in calls * 20:
            try:
                read.extend(await ask(kind, size))
            except errors.Timeout:
                pass  # and nothing is lost
            except errors.MessageTooLarge:
                assert len(source._left) > size
                assert b"x" not in source._left[: size + 1]
            except errors.EndOfStream as error:
                read.extend(error.partial)
                assert not source._left
        try:
            while more := await source.read():
                read.extend(more)
        except errors.Timeout:
            read.extend(source._left)
            read.extend(b"".join(each for each in source._pieces if each is not None))

    asyncio.run(run())
    assert read == whole


async def test_all_of_it_is_iterated():
    assert [each async for each in Pieces([b"a", b"bc"])] == [b"a", b"bc"]


async def test_what_cannot_be_read_is_refused():
    source = Pieces([b"abc"])
    for wrong in (source.read(-1), source.readexactly(-1), source.readuntil(b"")):
        with pytest.raises(errors.InvalidArgument):
            await wrong
    with pytest.raises(errors.WrongType, match="written to"):
        await source.readinto(b"abc")
    assert await source.read() == b"abc"
