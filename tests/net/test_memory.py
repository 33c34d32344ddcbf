"""What streams take of the memory: nothing of the system's allocator while bytes go there and back,
and for each socket what the guide says."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.programs import COMPILER, ROOT
from kit.streams import connected
from kit.waiting import GUARD

from peertalk._core import load
from peertalk.runtime import reactor

SOURCE = ROOT / "tests/c/allocations.c"
TRIPS = """
import asyncio, ctypes, gc, sys
from peertalk.net import Listener, Stream

count = ctypes.CDLL(None).pt_allocations
count.restype = ctypes.c_ulonglong

def counted(work):
    before = count()
    work()
    return count() - before

async def main(size):
    async with await Listener.bind("127.0.0.1:0") as listener:
        ours, theirs = await asyncio.gather(Stream.connect(listener.local_addr), listener.accept())

    async def echo_bytes():
        while data := await theirs.read():
            await theirs.write_all(data)

    async def echo_memory():
        place = memoryview(bytearray(65_536))
        while count := await theirs.readinto(place):
            await theirs.write_all(place[:count])

    sent, place = bytes(size), bytearray(size)

    async def trips(number):
        for _ in range(number):
            await ours.write_all(sent)
            if size > 512:  # longer bytes objects are the allocator's, whoever makes them
                got = 0
                while got < size:
                    got += await ours.readinto(memoryview(place)[got:])
            else:
                await ours.readexactly(size)

    async with ours, theirs:
        echo = asyncio.create_task(echo_bytes() if size <= 512 else echo_memory())
        await trips(300)
        gc.collect()
        gc.freeze()
        before = count()
        await trips(500)
        print(count() - before)
        echo.cancel()

assert counted(lambda: bytearray(100_000)) == 1  # else it counts nothing
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main(int(sys.argv[1])))
else:
    asyncio.run(main(int(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Path:
    """A library that counts allocations in the process that it is loaded into."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("did not run: the allocator of this system is not glibc's")
    if COMPILER is None:
        pytest.skip("did not run: there is no C compiler on PATH")
    made = tmp_path_factory.mktemp("counter") / "counter.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", SOURCE, "-o", made], check=True)
    return made


@pytest.mark.source
@pytest.mark.unsanitized("a sanitizer has the allocator")
@pytest.mark.parametrize("size", [64, 65_536])
@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.uvloop)])
def test_bytes_go_there_and_back_without_the_allocator(start_python, counter, size, loop):
    """Bytes objects of up to 512 bytes are Python's own, which gives out memory that it has; longer
    ones cost a call each, so that whoever minds reads into memory of his own."""
    if load().name == "reference":
        pytest.skip("did not run: the reference core is written in Python")
    started = start_python("-c", TRIPS, str(size), loop, env={"LD_PRELOAD": str(counter)})
    output, error = started.communicate(timeout=GUARD)
    assert started.returncode == 0, error
    assert int(output) <= 5, "500 trips there and back: Python's own arenas, at most"


async def test_a_socket_costs_what_the_guide_says(c_core):
    """In memory of 64 bits. What a worker knows of its loop is one reference, 8 bytes."""
    if sys.maxsize < 2**32:
        pytest.skip("did not run: a reference has 4 bytes here")
    said = " ".join((ROOT / "docs/streams.md").read_text().split())
    named = "a stream takes %s bytes of the core, %s for its state and %s for its native half"
    (costs,) = re.findall(named % ((r"(\d+)",) * 3), said)
    async with connected() as (ours, _):
        here = reactor.here()
        if not here.channels:
            pytest.skip("did not run: streams have no native half here")
        watch = here.loop._ffi.sizeof("pt_watch")
        state = sys.getsizeof(here.find(ours.token).handler.state)
        channel = sys.getsizeof(next(iter(here.channels.values())))
    assert tuple(map(int, costs)) == (watch, state, channel)
    assert watch <= 100
