"""A client and a server that nobody here wrote work over peertalk.net: httpcore through a network
backend, and hypercorn on start_server(), in plain text and with TLS."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import httpcore
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from kit.certificates import make_authority, signs

import peertalk.net as net
from peertalk import errors
from peertalk.net import Stream, TlsStream

pytestmark = signs


class Backend(httpcore.AsyncNetworkBackend):
    """Connections of httpcore, by Stream."""

    async def connect_tcp(
        self, host: str, port: int, timeout=None, local_address=None, socket_options=None
    ) -> Connection:
        try:
            return Connection(await Stream.connect((host, port), timeout=timeout))
        except errors.NetworkError as error:
            raise httpcore.ConnectError(error) from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Connection(httpcore.AsyncNetworkStream):
    """One of them."""

    def __init__(self, stream: Stream | TlsStream) -> None:
        self.stream = stream

    async def read(self, max_bytes: int, timeout=None) -> bytes:
        return await self.stream.read(max_bytes, timeout=timeout)

    async def write(self, buffer: bytes, timeout=None) -> None:
        await self.stream.write_all(buffer, timeout=timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(self, ssl_context, server_hostname=None, timeout=None) -> Connection:
        assert isinstance(self.stream, Stream)
        secret = await self.stream.start_tls(
            ssl_context, server_hostname=server_hostname, timeout=timeout
        )
        return Connection(secret)

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self.stream, TlsStream):
            return self.stream.ssl_object
        return None


async def application(scope, receive, send) -> None:
    """ASGI: answers with the path, the size of what came, and as much of it."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    head = [(b"x-path", scope["path"].encode()), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for at in range(0, len(body), 50_000):
        await send(
            {"type": "http.response.body", "body": body[at : at + 50_000], "more_body": True}
        )
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def certificates(tmp_path):
    authority = make_authority()
    certificate = authority.issue_cert("127.0.0.1")
    for name, part in (
        ("key", certificate.private_key_pem),
        ("cert", certificate.cert_chain_pems[0]),
    ):
        part.write_to_path(tmp_path / name)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context, {"keyfile": str(tmp_path / "key"), "certfile": str(tmp_path / "cert")}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_httpcore_and_hypercorn_talk_over_it(scheme, certificates, free_port, monkeypatch):
    context, files = certificates
    config = Config()
    port = free_port()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    if scheme == "https":
        for name, path in files.items():
            setattr(config, name, path)
    served: list[net.Server] = []

    async def start_server(*arguments, **options) -> net.Server:
        served.append(await net.start_server(*arguments, **options))
        return served[-1]

    monkeypatch.setattr(asyncio, "start_server", start_server)
    over = asyncio.Event()
    serving = asyncio.create_task(serve(application, config, shutdown_trigger=over.wait))
    while not served:
        await asyncio.sleep(0.01)
    data = bytes(range(256)) * 2_000
    async with httpcore.AsyncConnectionPool(network_backend=Backend(), ssl_context=context) as pool:

        async def ask(number: int) -> None:
            answer = await pool.request(
                "POST", f"{scheme}://127.0.0.1:{port}/{number}", content=data[: number * 50_000]
            )
            assert answer.status == 200
            assert dict(answer.headers)[b"x-path"] == b"/%d" % number
            assert answer.content == data[: number * 50_000]

        await asyncio.gather(*map(ask, range(10)))
    over.set()
    await serving
