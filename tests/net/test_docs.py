"""The blocks of docs/streams.md run as they stand."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from conftest import HANG_GUARD

from peertalk.net import Datagrams, Listener, Worker

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streams.md"
pytestmark = pytest.mark.source


def blocks(ports: dict[str, int]) -> list[str]:
    text = PAGE.read_text()
    for written, port in ports.items():
        text = text.replace(written, str(port))
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def test_each_block_runs(free_port, capsys):
    ports = {"7000": free_port(), "7001": free_port()}
    first, datagrams, tls, workers, orders = blocks(ports)
    names: dict[str, object] = {"__name__": "block"}
    exec(first, names)
    exec(datagrams, names)
    exec(tls, names)
    with Worker() as server:
        serving = [server.submit(names[name]) for name in ("serve", "answer")]

        async def ask() -> bytes:
            async with await Datagrams.connect(("127.0.0.1", ports["7001"])) as ours:
                while True:  # until the other one is there
                    try:
                        await ours.send(b"louder")
                        return (await ours.receive(timeout=HANG_GUARD))[0]
                    except ConnectionError:
                        await asyncio.sleep(0.01)

        assert server.run(ask, timeout=HANG_GUARD) == b"LOUDER"
        server.run(names["call"], timeout=HANG_GUARD)
        exec(workers, names)
        exec(orders, names)
        assert not any(each.done() for each in serving)
    assert capsys.readouterr().out.splitlines() == [
        *(f"b'{word}\\n'" for word in ("hello", "hello", "hello again")),
        "b'hello'",
    ]


def test_the_names_of_the_page_are_there():
    import peertalk.net as net

    page = PAGE.read_text()
    named = {name for name in net.__all__ if name in page}
    assert named == set(net.__all__)
    for kind in (Listener, Datagrams, net.Stream, Worker):
        for name in re.findall(rf"`{kind.__name__.lower()}\.(\w+)\(", page):
            assert hasattr(kind, name), f"{kind.__name__}.{name}"
