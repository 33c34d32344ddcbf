"""Who listens: addresses, those that are taken or left behind, callers who leave, scarcity, and
handlers on this loop or on workers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading

import pytest
from conftest import HANG_GUARD
from kit.streams import cancelled, waits

from peertalk import errors
from peertalk.net import Listener, Stream, Worker
from peertalk.runtime.reactor import Reactor


async def echo(stream: Stream) -> None:
    async for data in stream:
        await stream.write_all(data)


async def echoes(address, lines: int = 20) -> None:
    """Call, and have so many lines come back."""
    async with await Stream.connect(address) as stream:
        for number in range(lines):
            await stream.write_all(b"%d\n" % number)
            assert await stream.readuntil() == b"%d\n" % number


async def test_callers_are_accepted_in_turn_and_each_has_its_stream():
    async with await Listener.bind(":0") as listener:
        port = listener.local_addr[1]
        callers = [await Stream.connect(("127.0.0.1", port)) for _ in range(40)]
        for number, caller in enumerate(callers):
            await caller.write_all(b"%d" % number)
        said = set()
        for _ in callers:
            async with await listener.accept() as stream:
                said.add(int(await stream.read()))
        assert said == set(range(40))
        for caller in callers:
            assert await caller.read() == b""
            await caller.aclose()


async def test_an_address_that_is_taken_or_nobodys_is_told():
    async with await Listener.bind("127.0.0.1:0") as listener:
        with pytest.raises(errors.AddressInUse, match="taken by another"):
            await Listener.bind(listener.local_addr)
    with pytest.raises(errors.NoNetwork, match="no address of this machine"):
        await Listener.bind("192.0.2.1:0")


async def test_several_may_share_a_port_that_say_so():
    async with await Listener.bind("127.0.0.1:0", reuse_port=True) as one:
        async with await Listener.bind(one.local_addr, reuse_port=True) as other:
            assert other.local_addr == one.local_addr


async def test_a_socket_that_was_left_behind_is_replaced_and_no_other(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with await Listener.bind(path) as listener:
        with pytest.raises(errors.AddressInUse):
            await Listener.bind(path)
        async with await Stream.connect(path), await listener.accept():
            pass
        assert path.exists()
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(errors.AddressInUse):
        await Listener.bind(path)
    assert path.read_text() == "mine"


async def test_a_path_that_is_another_ones_by_now_stays(tmp_path):
    path = tmp_path / "socket"
    async with await Listener.bind(path):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


async def test_who_waits_for_a_caller_is_told_of_time_and_end():
    listener = await Listener.bind("127.0.0.1:0")
    with pytest.raises(errors.Timeout, match="nothing came"):
        await listener.accept(timeout=0.01)
    accepting = await waits(listener.accept())
    with pytest.raises(errors.InvalidState, match="another task accepts"):
        await listener.accept()
    listener.close_now()
    with pytest.raises(errors.InvalidState, match="closed"):
        await accepting
    assert [stream async for stream in listener] == []


async def test_an_accept_that_is_cancelled_loses_no_caller():
    async with await Listener.bind("127.0.0.1:0") as listener:
        for _ in range(20):
            await cancelled(await waits(listener.accept()))
            async with await Stream.connect(listener.local_addr) as caller:
                async with await listener.accept() as stream:
                    await caller.write_all(b"x")
                    assert await stream.read() == b"x"


class Scarce:
    """A listening socket of a system that has no descriptor left for so many times."""

    def __init__(self, listening: socket.socket, failures: list[int]) -> None:
        self._listening = listening
        self._failures = failures

    def accept(self):
        if self._failures:
            number = self._failures.pop()
            raise OSError(number, os.strerror(number))
        return self._listening.accept()

    def __getattr__(self, name):
        return getattr(self._listening, name)


async def test_without_descriptors_callers_wait_and_the_log_says_so_once():
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with await Listener.bind("127.0.0.1:0") as listener:
        failures = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE, errno.EMFILE]
        listener._socket = Scarce(listener._socket, failures)
        async with await Stream.connect(listener.local_addr):
            async with await listener.accept(timeout=HANG_GUARD):
                pass
        assert not failures
        assert [each["message"] for each in told] == [
            "a listener leaves callers waiting: Too many open files; close some, or allow this "
            "program more (ulimit -n)"
        ]
        listener._socket = Scarce(listener._socket, [errno.EPERM])
        async with await Stream.connect(listener.local_addr):
            with pytest.raises(errors.PlatformError, match="cannot accept"):
                await listener.accept()


async def test_without_memory_one_caller_is_lost_and_no_listener(monkeypatch):
    told, refused = [], [errors.PlatformError("not watched"), errors.OutOfMemory("no memory")]
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    register = Reactor.register

    def scarce(self, fd, interest, handler):
        if refused and isinstance(handler, Stream):
            raise refused.pop()
        return register(self, fd, interest, handler)

    listener = await Listener.bind("127.0.0.1:0")
    serving = await waits(listener.serve(echo))
    with (
        socket.create_connection(listener.local_addr),
        socket.create_connection(listener.local_addr),
    ):
        monkeypatch.setattr(Reactor, "register", scarce)
        while refused:
            await asyncio.sleep(0.001)
        await echoes(listener.local_addr)
    listener.close_now()
    await serving
    assert [each["message"] for each in told] == ["a listener leaves callers waiting: no memory"]


async def test_without_descriptors_a_time_out_is_kept():
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with await Listener.bind("127.0.0.1:0") as listener:
        listening, failures = listener._socket, [errno.EMFILE] * 10_000
        listener._socket = Scarce(listening, failures)
        async with await Stream.connect(listener.local_addr):
            with pytest.raises(errors.Timeout):
                await listener.accept(timeout=0.05)
            assert len(failures) > 9_900  # a try in each pause, and not in each turn
            listener._socket = listening
            async with await listener.accept():
                pass


async def test_each_caller_has_a_task_and_one_that_fails_ends_alone():
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def fussy(stream: Stream) -> None:
        async for data in stream:
            if b"bad" in data:
                raise ValueError("bad words")
            await stream.write_all(data)

    listener = await Listener.bind("127.0.0.1:0")
    serving = asyncio.create_task(listener.serve(fussy))
    async with await Stream.connect(listener.local_addr) as rude:
        await rude.write_all(b"bad")
        assert await rude.read() == b""
    await asyncio.gather(*(echoes(listener.local_addr) for _ in range(10)))
    listener.close_now()
    await serving
    assert [str(each["exception"]) for each in told] == ["bad words"]


async def test_serving_that_is_cancelled_ends_all_streams():
    async with await Listener.bind("127.0.0.1:0") as listener:
        serving = asyncio.create_task(listener.serve(echo))
        async with await Stream.connect(listener.local_addr) as caller:
            await caller.write_all(b"x")
            assert await caller.read() == b"x"
            await cancelled(serving)
            with contextlib.suppress(errors.ConnectionClosed):
                assert await caller.read() == b""


async def test_callers_are_spread_over_workers():
    names = set()

    async def noting(stream: Stream) -> None:
        names.add(threading.current_thread().name)
        await echo(stream)

    listener = await Listener.bind("127.0.0.1:0")
    serving = asyncio.create_task(listener.serve(noting, workers=2))
    await asyncio.gather(*(echoes(listener.local_addr) for _ in range(12)))
    listener.close_now()
    await serving
    assert len(names) == 2
    assert threading.current_thread().name not in names


async def test_callers_go_to_workers_that_are_there():
    with Worker("one") as worker:
        listener = await Listener.bind("127.0.0.1:0")
        serving = asyncio.create_task(listener.serve(echo, workers=[worker]))
        await asyncio.gather(*(echoes(listener.local_addr) for _ in range(5)))
        listener.close_now()
        await serving
        assert worker.statistics().sockets == 0


async def test_workers_that_were_started_end_though_serving_is_cancelled_twice():
    async with await Listener.bind("127.0.0.1:0") as listener:
        before = set(threading.enumerate())
        serving = await waits(listener.serve(echo, workers=3))
        made = [each for each in threading.enumerate() if each.name.startswith("peertalk worker")]
        assert len(set(made) - before) == 3
        serving.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await cancelled(serving)
        for thread in made:
            await asyncio.to_thread(thread.join, HANG_GUARD)
            assert not thread.is_alive()
        with pytest.raises(errors.InvalidArgument, match="workers -1"):
            await listener.serve(echo, workers=-1)


async def test_a_caller_whose_task_has_not_begun_is_let_go():
    """Serving is cancelled in the very tick in which a caller is accepted."""
    begun = []
    with Worker() as worker:
        async with await Listener.bind("127.0.0.1:0") as listener:
            serving = await waits(listener.serve(begun.append, workers=[worker]))
            listener._socket = Accepting(listener._socket, serving.cancel)
            async with await Stream.connect(listener.local_addr) as caller:
                assert await caller.read(timeout=HANG_GUARD) == b""
                await cancelled(serving)
        assert worker.run(worker.statistics).sockets == 0
    assert not begun


class Accepting:
    """A listening socket that calls something for each caller."""

    def __init__(self, listening: socket.socket, call) -> None:
        self._listening = listening
        self._call = call

    def accept(self):
        accepted = self._listening.accept()
        self._call()
        return accepted

    def __getattr__(self, name):
        return getattr(self._listening, name)


async def test_a_caller_is_let_go_whose_worker_has_ended_or_is_too_busy(monkeypatch):
    told, moving = [], []
    move_to = Stream.move_to
    monkeypatch.setattr(Stream, "move_to", lambda *given: moving.append(given) or move_to(*given))
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    listener = await Listener.bind("127.0.0.1:0")
    with Worker() as worker:
        busy = threading.Event()
        worker.submit(busy.wait)
        serving = await waits(listener.serve(echo, workers=[worker]))
        async with await Stream.connect(listener.local_addr) as caller:
            while not moving:
                await asyncio.sleep(0)
            await cancelled(serving)  # while the stream is on its way
            busy.set()
            assert await caller.read(timeout=HANG_GUARD) == b""
        assert worker.run(worker.statistics).sockets == 0
        serving = await waits(listener.serve(echo, workers=[worker]))
    async with await Stream.connect(listener.local_addr) as caller:
        assert await caller.read(timeout=HANG_GUARD) == b""
    assert [str(each["exception"]) for each in told] == [f"worker {worker.name!r} is closed"]
    listener.close_now()
    await serving


async def test_workers_that_go_on_take_the_callers_of_one_that_has_ended():
    listener = await Listener.bind("127.0.0.1:0")
    with Worker() as one, Worker() as other:
        serving = await waits(listener.serve(echo, workers=[one, other]))
        one.close()
        await asyncio.gather(*(echoes(listener.local_addr) for _ in range(5)))
        listener.close_now()
        await serving
    with pytest.raises(errors.InvalidState, match="is closed"):
        await listener.serve(echo, workers=[one])


async def test_what_ends_serving_is_raised_as_it_is():
    """And not in a group."""
    async with await Listener.bind("127.0.0.1:0") as listener:
        serving = await waits(listener.serve(echo))
        with pytest.raises(errors.InvalidState, match="another task accepts"):
            await listener.serve(echo)
        listener._socket = Scarce(listener._socket, [errno.EPERM])
        async with await Stream.connect(listener.local_addr):
            with pytest.raises(errors.PlatformError, match="cannot accept"):
                await serving
