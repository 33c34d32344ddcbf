"""A classic peer without sockets: bytes, the clock and calls go in, actions and events come out."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from classic.formats import (
    ACK,
    ANNOUNCE,
    ANNOUNCE_EVERY,
    CAPABILITY,
    CRITICAL,
    DATA,
    DATAGRAM_MAX,
    DISCONNECT,
    DISCOVERY_PORT,
    FIRST,
    FORGET_AFTER,
    FRAGMENT,
    FRAME_MAX,
    GOODBYE,
    HIGH,
    LAST,
    LOW,
    NORMAL,
    PIECE,
    PING,
    PONG,
    QUERY,
    QUEUE_SLOTS,
    REJECT,
    SLOT_SIZE,
    STREAM_MAX,
    TCP_PORT,
    UDP_PORT,
    Address,
    Capabilities,
    Frame,
    Misbehaved,
    Packet,
    Piece,
    Reassembly,
    Refused,
    decode_capabilities,
    decode_datagram,
    decode_discovery,
    decode_entries,
    decode_frame,
    decode_header,
    decode_piece,
    encode_capabilities,
    encode_datagram,
    encode_discovery,
    encode_entries,
    encode_frame,
    fragments,
)


@dataclass(eq=False)
class Known:
    """A peer in the table. port: 0 for none; for one that called, the port that it called from."""

    number: int
    name: bytes
    host: str
    port: int
    last_seen: float
    state: str = "discovered"
    link: Link | None = None


@dataclass(eq=False)
class Link:
    """One TCP connection and what came over it. offers: the largest messages that were announced
    here."""

    known: Known
    dialled: bool
    up: bool = False
    closed: bool = False
    writable: bool = True
    sequence: int = 0
    theirs: Capabilities | None = None
    offers: list[int] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    latency: float = 0.0
    stamp: float | None = None
    received: bytearray = field(default_factory=bytearray)
    reassembly: Reassembly = field(default_factory=Reassembly)
    queued: list[deque[list[Any]]] = field(default_factory=lambda: [deque() for _ in range(4)])
    direct: bytes | None = None
    stream: bytes = b""
    streaming: bool = False
    cancelled: bool = False
    level: int = 0
    piece: Piece | None = None
    expected: int = 0

    @property
    def messages(self) -> list[Frame]:
        """DATA frames, in order."""
        return [frame for frame in self.frames if frame.kind == DATA]

    @property
    def waiting(self) -> int:
        """Messages and fragments in the queue."""
        return sum(map(len, self.queued))


# --- the peer -------------------------------------------------------------------------------------


class ClassicPeer:
    """A classic peer without sockets.

    Args:
        name: what it is called, at most 30 bytes of which are announced.
        host: its own IPv4 address: packets from there are its own.
        tcp_port, discovery_port, udp_port: its ports.
        offer: what its CAPABILITY says; body: that CAPABILITY's very bytes instead; greets: False:
            it never sends one.
        direct_buffer: bytes of its direct buffer, which is also its capacity for fragments.
        fragmentation: False: long messages go out whole.
        slots: peers in its table.
        dials: dial each peer when it is discovered, as a program of the original has to.
        forgets_at_once: quirk Q1: a peer that it does not dial is lost in the poll that discovered
            it.
        pongs: False: it leaves PINGs unanswered (no original does; a node must live with it all the
            same).
        deaf: what is broadcast does not reach it; mute: what it broadcasts reaches nobody. For a
            network that loses a packet, at the choice of the test.
        strict: raise Misbehaved; False: only do what the original does.

    actions: what a driver has to do: ("broadcast", bytes), ("datagram", bytes, address), ("dial",
        link, address), ("write", link, bytes),
    ("close", link). events: (kind, peer, detail): discovered, lost, connected, disconnected,
        message, stream. Messages and datagrams are also in
    lists of their own. quiet: links that are not read, by choice of the test. abandoned: messages
    that its application was told are sent and that were still in its queue when their connection
    ended.
    """

    def __init__(
        self,
        name: str | bytes = "classic",
        *,
        host: str = "127.0.0.2",
        tcp_port: int = TCP_PORT,
        discovery_port: int = DISCOVERY_PORT,
        udp_port: int = UDP_PORT,
        offer: Capabilities | None = None,
        body: bytes | None = None,
        greets: bool = True,
        direct_buffer: int = 4096,
        fragmentation: bool = True,
        slots: int = 16,
        dials: bool = False,
        forgets_at_once: bool = False,
        pongs: bool = True,
        deaf: bool = False,
        mute: bool = False,
        strict: bool = True,
    ) -> None:
        self.deaf, self.mute = deaf, mute
        self.name = (name.encode() if isinstance(name, str) else name)[:30]
        self.host, self.tcp_port, self.discovery_port, self.udp_port = (
            host,
            tcp_port,
            discovery_port,
            udp_port,
        )
        self.offer = offer or Capabilities(8192, 1024, 0, 5)
        self.body, self.greets, self.pongs = body, greets, pongs
        self.direct_buffer, self.fragmentation = direct_buffer, fragmentation
        self.dials, self.forgets_at_once, self.strict = dials, forgets_at_once, strict
        self.slots: list[Known | None] = [None] * slots
        self.links: list[Link] = []
        self.actions: deque[tuple[Any, ...]] = deque()
        self.events: list[tuple[str, Known | None, Any]] = []
        self.messages: list[bytes] = []
        self.datagrams: list[tuple[bytes, Address, int]] = []
        self.packets: list[tuple[Packet, Address]] = []
        self.quiet: set[Link] = set()
        self.abandoned: list[bytes] = []
        self.dropped = 0
        self.sent_messages = self.received_frames = 0
        self._running = False
        self._last_announce = 0.0
        self._message_number = 0
        self._fresh: list[Known] = []

    # What a program of it calls -------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start discovery: one ANNOUNCE at once."""
        self._running = True
        self._announce(now)

    def stop(self) -> None:
        """Stop discovery: one GOODBYE."""
        if self._running:
            self._running = False
            self._say(GOODBYE)

    def known(self, host: str, port: int) -> Known | None:
        """The peer with that key."""
        return next(
            (
                each
                for each in self.slots
                if each is not None and (each.host, each.port) == (host, port)
            ),
            None,
        )

    def connect(self, known: Known, now: float) -> Link:
        """Dial a discovered peer. Refused: INVALID_STATE, it is not just discovered."""
        if known.state != "discovered":
            raise Refused("PT_ERR_INVALID_STATE")
        known.state = "connecting"
        link = known.link = Link(
            known, dialled=True, stamp=now, reassembly=Reassembly(self.direct_buffer)
        )
        self.links.append(link)
        self.actions.append(("dial", link, (known.host, known.port)))
        return link

    def call(self, address: Address, now: float) -> Link:
        """Dial an address that was not discovered: what the original can do only after an ANNOUNCE
        from there."""
        known = self.known(*address) or self._admit(b"", *address, now)
        if known is None:
            raise Refused("PT_ERR_PEER_NOT_FOUND")
        return self.connect(known, now)

    def send(self, link: Link, message: bytes, priority: int = NORMAL, *, key: int = 0) -> None:
        """Send as the original does: queue, direct buffer or fragments. Refused: WOULD_BLOCK,
        BUFFER_FULL, MESSAGE_TOO_LARGE, INVALID_PARAM."""
        if not 1 <= len(message) <= FRAME_MAX or not LOW <= priority <= CRITICAL:
            raise Refused("PT_ERR_INVALID_PARAM")
        if not link.up or link.closed:
            raise Refused("PT_ERR_PEER_NOT_FOUND")
        pressure = 0 if link.theirs is None else link.theirs.buffer_pressure
        if priority < (0 if pressure < 50 else 1 if pressure < 75 else 2 if pressure < 90 else 3):
            raise Refused("PT_ERR_WOULD_BLOCK")
        largest = self.effective(link)
        if self.fragmentation and len(message) > largest:
            size = min(largest - 8, PIECE)
            number, self._message_number = self._message_number, (self._message_number + 1) & 0xFFFF
            for payload in fragments(message, number, size):
                if link.waiting >= QUEUE_SLOTS:
                    raise Refused("PT_ERR_BUFFER_FULL")
                link.queued[priority].append([payload, FRAGMENT, 0])
        elif len(message) > SLOT_SIZE:
            if len(message) > self.direct_buffer:
                raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
            if link.direct is not None:
                raise Refused("PT_ERR_WOULD_BLOCK")
            link.direct = message
        else:
            if link.waiting >= (QUEUE_SLOTS if priority >= HIGH else 1):
                raise Refused("PT_ERR_BUFFER_FULL")
            if key:
                for entry in (entry for line in link.queued for entry in line):
                    if entry[2] == key:
                        entry[0] = message
                        return
            link.queued[priority].append([message, 0, key])

    def send_stream(self, link: Link, data: bytes) -> None:
        """Send a stream: plain DATA of the chunk size, one for each poll. Refused: as the original
        has it."""
        if not link.up or link.closed:
            raise Refused("PT_ERR_NOT_CONNECTED")
        if not data:
            raise Refused("PT_ERR_INVALID_PARAM")
        if len(data) > STREAM_MAX:
            raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
        if link.streaming:
            raise Refused("PT_ERR_BUSY")
        link.stream, link.streaming, link.cancelled = data, True, False

    def cancel_stream(self, link: Link) -> None:
        """Give a stream up at the next poll."""
        if not link.streaming:
            raise Refused("PT_ERR_PEER_NOT_FOUND")
        link.cancelled = True

    def send_datagram(self, host: str, payload: bytes) -> None:
        """Send to a peer's address at our own port number, which all have to share."""
        if len(payload) > DATAGRAM_MAX:
            raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
        self.actions.append(
            ("datagram", encode_datagram(payload, self.udp_port), (host, self.udp_port))
        )

    def disconnect(self, link: Link) -> None:
        """DISCONNECT, and close."""
        if link.closed:
            return
        if link.up:
            self.write(link, encode_frame(DISCONNECT, sequence=link.sequence))
        self._close(link)

    def report(self, link: Link, **changes: Any) -> None:
        """Send a whole CAPABILITY, with these of our values changed for this link."""
        said = Capabilities(**{**vars(self.offer), **changes})
        link.offers.append(min(max(said.max_message, 256), FRAME_MAX))
        self.write(link, encode_frame(CAPABILITY, encode_capabilities(said)))

    def frame(self, link: Link, payload: bytes = b"", flags: int = 0, kind: int = DATA) -> None:
        """Send a frame at once, past all queues; DATA takes the next sequence number."""
        sequence = link.sequence if kind == DATA else 0
        if kind == DATA:
            link.sequence = (link.sequence + 1) & 0xFF
            self.sent_messages += 1
        self.write(link, encode_frame(kind, payload, flags, sequence))

    def write(self, link: Link, data: bytes) -> None:
        """Send bytes as they are."""
        self.actions.append(("write", link, data))

    def effective(self, link: Link) -> int:
        """The longest message that may be sent whole: 512 before the other side's CAPABILITY."""
        return min(self.offer.max_message, (link.theirs or Capabilities()).max_message)

    # What a driver reports ------------------------------------------------------------------------

    def heard(self, data: bytes, source: Address, now: float) -> None:
        """A datagram on the discovery port."""
        if source[0] == self.host or not self._running or self.deaf:
            return
        try:
            packet = decode_discovery(data[:48])
        except Refused as refused:
            self.dropped += 1
            self._complain(f"a discovery packet that is refused ({refused.name}): {data.hex()}")
            return
        self.packets.append((packet, source))
        if packet.flags & ~0xFF1F:
            self._complain(f"a discovery packet with flags 0x{packet.flags:04x}")
        if packet.transports & ~7 or not packet.transports & 1:
            self._complain(f"a discovery packet with transports 0x{packet.transports:02x}")
        if packet.port == 0:
            self._complain("a discovery packet of a peer that does not listen")
        if packet.kind == QUERY:
            self._announce(now)
            return
        known = self.known(source[0], packet.port)
        if packet.kind == GOODBYE:
            if self.strict and any(
                self._is_from(link, packet, source)
                for link in self.links
                if link.up and link not in self.quiet
            ):
                self._complain(
                    "a GOODBYE while its connection is open: the original would never read "
                    "from that again (Q4)"
                )
            if known is not None:
                self._lose(known)
        elif known is not None:
            known.last_seen = now
        else:
            found = self._admit(packet.name.split(b"\0")[0], source[0], packet.port, now)
            if found is not None:
                self.events.append(("discovered", found, packet))
                if self.dials:
                    self.connect(found, now)
                elif self.forgets_at_once:
                    self._fresh.append(found)

    def _is_from(self, link: Link, packet: Packet, source: Address) -> bool:
        """Whether a connection is that of the sender of a packet: by its port where we dialled,
        else if nobody else was heard from there."""
        if link.known.host != source[0]:
            return False
        return (
            link.known.port == packet.port
            if link.dialled
            else {each.port for each, heard in self.packets if heard[0] == source[0]}
            == {packet.port}
        )

    def heard_datagram(self, data: bytes, source: Address) -> None:
        """A datagram on the message port. Delivered only if a peer with port 0 is known there
        (Q3)."""
        if len(data) > 1400:
            self._complain(f"a datagram of {len(data):,} bytes")
        try:
            port, payload = decode_datagram(data[:1400])
        except Refused as refused:
            self.dropped += 1
            self._complain(f"a datagram that is refused ({refused.name}): {data[:20].hex()}")
            return
        if len(payload) + 8 != len(data):
            self._complain(
                f"a datagram with {len(data) - 8 - len(payload)} bytes behind its payload"
            )
        if port != source[1]:
            self._complain(f"a datagram from port {source[1]} that says {port}")
        self.datagrams.append((payload, source, port))
        known = self.known(source[0], 0)
        if known is None:
            self.dropped += 1
        else:
            self.events.append(("message", known, payload))
            self.messages.append(payload)

    def accepted(self, source: Address, now: float) -> Link | None:
        """Somebody connected; None: there is no room, close it."""
        known = self._admit(b"", *source, now)
        if known is None:
            return None
        link = known.link = Link(known, dialled=False, reassembly=Reassembly(self.direct_buffer))
        self.links.append(link)
        self._up(link)
        return link

    def dialled(self, link: Link, ok: bool) -> None:
        """What became of a dial."""
        if link.closed:
            return
        if ok:
            self._up(link)
        else:
            link.closed = True
            self.links.remove(link)
            link.known.state, link.known.link = "failed", None

    def received(self, link: Link, data: bytes, now: float) -> None:
        """Bytes of a connection."""
        link.received += data
        while not link.closed:
            try:
                frame = self._next_frame(link)
            except Refused as refused:
                self._close(link)
                self._complain(
                    f"a frame that is refused ({refused.name}): {bytes(link.received[:20]).hex()}"
                )
                return
            if frame is None:
                return
            del link.received[: 12 + len(frame.payload)]
            first = not link.frames
            link.frames.append(frame)
            self.received_frames += 1
            if self.strict:
                self._judge(link, frame, first)
            self._take(link, frame, now)

    def ended(self, link: Link, *, torn: bool = False) -> None:
        """The other side closed its half; torn: the connection broke."""
        if not link.closed:
            if link.received and not torn:
                self._complain(
                    "a connection that ends inside a frame, after "
                    f"{bytes(link.received[:20]).hex()}"
                )
            self._close(link)

    def poll(self, now: float) -> None:
        """What is due: for each connection one large message, up to 16 small ones, one chunk;
        announce; forget."""
        for link in list(self.links):
            if link.up and not link.closed:
                self._send_due(link)
        if self._running and now - self._last_announce >= ANNOUNCE_EVERY:
            self._announce(now)
        for known in [
            each for each in self.slots if each is not None and each.state == "discovered"
        ]:
            if known in self._fresh or now - known.last_seen >= FORGET_AFTER:
                self._lose(known)
        self._fresh.clear()

    # Inside ---------------------------------------------------------------------------------------

    def _say(self, kind: int) -> None:
        if not self.mute:
            self.actions.append(
                ("broadcast", encode_discovery(Packet(kind, self.tcp_port, self.name)))
            )

    def _announce(self, now: float) -> None:
        self._say(ANNOUNCE)
        self._last_announce = now

    def _admit(self, name: bytes, host: str, port: int, now: float) -> Known | None:
        for index, taken in enumerate(self.slots):
            if taken is None:
                known = self.slots[index] = Known(index + 1, name, host, port, now)
                return known
        return None

    def _free(self, known: Known) -> None:
        if self.slots[known.number - 1] is known:
            self.slots[known.number - 1] = None

    def _lose(self, known: Known) -> None:
        self.events.append(("lost", known, None))
        self._free(known)

    def _up(self, link: Link) -> None:
        link.up = True
        link.known.state = "connected"
        self.events.append(("connected", link.known, link))
        if self.greets:
            body = encode_capabilities(self.offer) if self.body is None else self.body
            with contextlib.suppress(Refused):
                link.offers.append(decode_capabilities(body).max_message)
            self.write(link, encode_frame(CAPABILITY, body))

    def _close(self, link: Link) -> None:
        if not link.closed:
            link.closed = True
            self.links.remove(link)
            self.actions.append(("close", link))
            self.abandoned += [entry[0] for line in link.queued for entry in line]
            if link.direct is not None:
                self.abandoned.append(link.direct)
            if link.up:
                self.events.append(("disconnected", link.known, 0))
            self._free(link.known)

    def _next_frame(self, link: Link) -> Frame | None:
        if len(link.received) < 10:
            return None
        data = bytes(link.received[: 12 + FRAME_MAX])
        length = decode_header(data)[3]
        if length <= FRAME_MAX and len(data) < 12 + length:
            return None
        return decode_frame(data)

    def _take(self, link: Link, frame: Frame, now: float) -> None:
        if frame.kind == DATA and frame.flags & FRAGMENT:
            try:
                message = link.reassembly.add(frame.payload)
            except Refused as refused:
                link.ignored.append(refused.name)
                self._complain(f"a fragment that is refused ({refused.name})")
                return
            if message is not None:
                self._deliver(link, message)
        elif frame.kind == DATA:
            self._deliver(link, frame.payload)
        elif frame.kind == PING:
            if self.pongs:
                self.write(link, encode_frame(PONG))
        elif frame.kind == PONG:
            if link.stamp is not None:
                sample, link.stamp = now - link.stamp, None
                link.latency = sample if not link.latency else (3 * link.latency + sample) / 4
        elif frame.kind == DISCONNECT:
            self._close(link)
        elif frame.kind == CAPABILITY:
            try:
                link.theirs = decode_capabilities(frame.payload)
            except Refused as refused:
                link.ignored.append(refused.name)
                self._complain(f"a CAPABILITY that is refused ({refused.name})")

    def _deliver(self, link: Link, message: bytes) -> None:
        self.messages.append(message)
        self.events.append(("message", link.known, message))

    def _send_due(self, link: Link) -> None:
        message, link.direct = link.direct, None
        if message is not None and link.writable:  # not writable: accepted, and lost (Q6)
            self.frame(link, message)
        for _ in range(QUEUE_SLOTS):
            line = next((line for line in reversed(link.queued) if line), None)
            if line is None or not link.writable:
                break
            payload, flags, _key = line.popleft()
            self.frame(link, payload, flags)
        if link.streaming and link.cancelled:
            self._stream_over(link, "cancelled")
        elif link.streaming and link.writable:
            chunk = (
                1024
                if not link.latency
                else 4096
                if link.latency < 0.05
                else 2048
                if link.latency < 0.1
                else 1024
                if link.latency < 0.2
                else 512
            )
            part, link.stream = link.stream[:chunk], link.stream[chunk:]
            self.frame(link, part)
            if not link.stream:
                self._stream_over(link, "done")
        level = min(75, link.waiting * 100 // QUEUE_SLOTS // 25 * 25)
        if level != link.level:
            link.level = level
            self.report(link, buffer_pressure=link.waiting * 100 // QUEUE_SLOTS)

    def _stream_over(self, link: Link, result: str) -> None:
        link.stream, link.streaming = b"", False
        self.events.append(("stream", link.known, result))

    # What is too much -----------------------------------------------------------------------------

    def _complain(self, what: str) -> None:
        if self.strict:
            raise Misbehaved(f"the original does not send this: {what}")

    def _judge(self, link: Link, frame: Frame, first: bool) -> None:
        """Whether a reference sender could have sent this frame."""
        kind, flags, payload = frame.kind, frame.flags, frame.payload
        if first and kind != CAPABILITY:
            self._complain(f"a frame of type {kind} before CAPABILITY")
        if flags != 0 and (kind, flags) != (DATA, FRAGMENT):
            self._complain(f"flags 0x{flags:02x} on a frame of type {kind}")
        if kind not in (DATA, DISCONNECT) and frame.sequence:
            self._complain(f"sequence {frame.sequence} on a frame of type {kind}")
        if kind in (PING, PONG, DISCONNECT) and payload:
            self._complain(f"{len(payload)} bytes in a frame of type {kind}")
        if kind == ACK:
            self._complain("an ACK, which no original sends")
        if kind == REJECT and (len(payload) > 1 or payload > b"\x04"):
            self._complain(f"a REJECT that says {payload.hex()}")
        if kind == CAPABILITY:
            self._judge_capabilities(payload)
        if kind in (DATA, DISCONNECT):
            if frame.sequence != link.expected:
                self._complain(f"sequence {frame.sequence} where {link.expected} was next")
            link.expected = (frame.sequence + 1) & 0xFF
        if kind == DISCONNECT and (link.piece is not None or link.received):
            self._complain("a DISCONNECT in the middle of something")
        if kind == DATA:
            allowed = max(link.offers, default=512)
            if link.theirs is not None:
                allowed = min(allowed, link.theirs.max_message)
            if len(payload) > allowed:
                self._complain(
                    f"a frame of {len(payload):,} bytes where at most {allowed:,} were agreed"
                )
            if flags & FRAGMENT:
                self._judge_fragment(link, payload)

    def _judge_capabilities(self, body: bytes) -> None:
        try:
            entries = decode_entries(body)
        except Refused as refused:
            self._complain(f"a CAPABILITY that is refused ({refused.name}): {body.hex()}")
            return
        if [(kind, len(value)) for kind, value in entries[:4]] != [
            (1, 2),
            (2, 2),
            (3, 1),
            (4, 2),
        ] or any(kind <= 4 for kind, _ in entries[4:]):
            self._complain(
                "a CAPABILITY that does not begin with the four known entries, each once: "
                f"{body.hex()}"
            )
        if body[len(encode_entries(*entries)) :]:
            self._complain(f"a CAPABILITY with a byte behind its last entry: {body.hex()}")
        largest, _chunk, pressure, flags = (
            int.from_bytes(value, "big") for _, value in entries[:4]
        )
        if not 256 <= largest <= FRAME_MAX or pressure > 100 or flags & ~7:
            self._complain(
                f"a CAPABILITY of {largest} bytes, pressure {pressure}, flags 0x{flags:04x}"
            )

    def _judge_fragment(self, link: Link, payload: bytes) -> None:
        try:
            piece, data = decode_piece(payload)
        except Refused as refused:
            self._complain(f"a fragment that is refused ({refused.name})")
            return
        if piece.flags & ~(FIRST | LAST) or payload[7]:
            self._complain(
                f"a fragment with flags 0x{piece.flags:02x} and {payload[7]} in the reserved byte"
            )
        if not data:
            self._complain("a fragment without data")
        if piece.total > self.direct_buffer:
            self._complain(
                f"fragments of {piece.total:,} bytes, and there is room for {self.direct_buffer:,}"
            )
        if piece.total <= min(512, *link.offers, 512):
            self._complain(f"fragments of {piece.total:,} bytes, which fit into one frame")
        before = link.piece
        if piece.flags & FIRST and before is not None:
            self._complain("the first fragment of a message within another message")
        if before is not None and (before.message, before.total) != (piece.message, piece.total):
            self._complain(
                f"a fragment of message {piece.message} of {piece.total:,} bytes within "
                f"message {before.message} of {before.total:,}"
            )
        link.piece = None if piece.flags & LAST else piece
