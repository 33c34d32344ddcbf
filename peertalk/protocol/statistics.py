"""What a node counts, with units, and how the counters of its links become those of the node.

Whoever does something counts it, in the sums of LinkTotals. A link counts by itself, and its
counters are added to the sums when it ends; a report adds those of the links that are open.

Invariant: a report changes no sum. Never: asks a link, a queue or a clock; all numbers are given.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .._core.values import LinkStatistics, LoopStatistics, PoolStatistics


class QueueStatus(msgspec.Struct, frozen=True):
    """How full the way to one peer is."""

    pending: int
    """Messages that were accepted and that the system has not taken yet."""
    capacity: int
    """Messages that the outbox holds at most; an eighth more are HIGH, a quarter more CRITICAL."""
    bytes: int
    """Bytes of the payloads in the outbox."""
    pressure: int
    """How full the outbox is, or what the peer reports of itself if that is more: 0 to 100."""
    reason: str
    """What holds messages up.

    "": nothing does. "slots": all slots of the connection are in flight. "grant": a large message
    waits until the peer has room for it. "connection": there is no connection yet. "pressure": the
    peer refuses LOW messages (a classic peer refuses NORMAL messages from 75 on, and HIGH messages
    from 90 on). "frozen": the peer has not answered for Config.link_timeout; see PeerFrozen.
    """


class PeerStatistics(msgspec.Struct, frozen=True):
    """Counters of one peer since it was first heard of."""

    messages_accepted: int
    """Messages to the peer that send() and its kin accepted."""
    messages_sent: int
    """Messages to the peer that the system took, and that did not fail afterwards."""
    messages_failed: int
    """Messages to the peer that failed, those included that were reported as Sent before."""
    messages_received: int
    """Messages from the peer."""
    bytes_received: int
    """Bytes of the payloads of the messages from the peer."""
    queue: QueueStatus
    """How full the way to the peer is; counts and bytes are explained there."""


class NodeStatistics(msgspec.Struct, frozen=True):
    """Counters of a node since it started."""

    messages_accepted: int
    """Messages that send() and its kin accepted."""
    messages_sent: int
    """Messages that the system took. The number sinks when a connection ends before everything
    that was sent on it is acknowledged."""
    messages_failed: int
    """Messages that were accepted and failed, those included that were reported as Sent before."""
    messages_received: int
    """Messages that arrived."""
    payload_bytes_sent: int
    """Bytes of the payloads of the messages that were sent."""
    payload_bytes_received: int
    """Bytes of the payloads of the messages that arrived."""
    bytes_sent: int
    """Bytes written to all connections, framing and control frames included."""
    bytes_received: int
    """Bytes read from all connections, framing and control frames included."""
    write_calls: int
    """System calls that wrote to connections."""
    read_calls: int
    """System calls that read from connections."""
    messages_per_write: float
    """Messages for each system call that wrote, on average."""
    slots_high_water: int
    """The most slots that were in flight at once on one connection."""
    links_open: int
    """Connections that are open now."""
    links_opened: int
    """Connections that were opened since the start."""
    links_refused: int
    """Connections that were refused since the start, because there was no room."""
    bad_frames: int
    """Connections that ended because a frame broke the protocol."""
    crc_errors: int
    """Of bad_frames: connections that ended because the checksum of a frame was wrong."""
    frames_ignored: int
    """Frames that brought nothing: of a kind that this version does not use, or a CAPABILITY,
    fragment or batch that is malformed."""
    inbox_bytes: int
    """Bytes of the messages that arrived and that the application has not taken, and 64 for each
    of these messages."""
    pauses: int
    """Times that a connection was paused because the inbox was full."""
    landing_bytes: int
    """Bytes of the large messages that were granted and are on their way here, all of each."""
    offers_waiting: int
    """Large messages that peers have offered and that wait for their grant."""
    grants_lost: int
    """Grants that were taken back because their message did not move while others waited."""
    ended_still: int
    """Connections that were ended because their peer took nothing while memory for sending was
    short."""
    pressure_reports: int
    """CAPABILITY frames that told a peer how full this node's inbox is."""
    pongs_dropped: int
    """PING frames that were not answered because their connection had no room."""
    turns: int
    """Turns of the loop."""
    peers: int
    """Peers that are known now."""
    pool_bytes: int
    """Bytes of slots and staging buffers in C now."""
    pool_peak_bytes: int
    """Bytes of slots and staging buffers in C, the most so far."""
    datagrams_sent: int
    """Datagrams that the system took."""
    datagrams_refused: int
    """Datagrams that the system did not take; they are gone."""
    datagrams_received: int
    """Datagrams that came from known peers."""
    datagrams_ignored: int
    """Datagrams that were malformed, too long, or from nobody who is known."""
    datagrams_overflowed: int
    """Datagrams that were not taken in time and gave way to newer ones; datagrams_received counts
    them too."""
    announcements_sent: int
    """Packets of discovery that the system took: one for each interface, or one that answers
    somebody."""
    announcements_refused: int
    """Packets of discovery that the system did not take (a firewall, an interface that is down), or
    that an interface without its cable did not carry."""
    peers_refused: int
    """Times that an announcement of a stranger found no room for another peer."""
    accepts_refused: int
    """Connections that callers tried to open and that were turned away, or had to wait, because the
    program had no descriptors or the system no memory."""


class MemoryUse(msgspec.Struct, frozen=True):
    """Memory of one part of a node's C side."""

    bytes: int
    """Bytes that the part holds now."""
    peak: int
    """Bytes that the part held at most so far."""


class MemoryReport(dict[str, MemoryUse]):
    """Memory of a node's C side, part by part. The last part, "total", is the sum. str() of the
    report is a table."""

    def __str__(self) -> str:
        lines = [f"{'part':<16}{'bytes':>12}{'peak':>12}"]
        return "\n".join(
            lines + [f"{part:<16}{use.bytes:>12,}{use.peak:>12,}" for part, use in self.items()]
        )


class LinkTotals:
    """Sums that outlive the links and peers that they come from. Units as in NodeStatistics.

    abandoned: messages that were accepted and never given to a link; accepted: those that were.
    bad_words: connections that ended because of what was said about a large message.
    """

    __slots__ = (
        "abandoned",
        "accepted",
        "accepts_refused",
        "announcements_refused",
        "announcements_sent",
        "bad_words",
        "bytes_received",
        "bytes_sent",
        "datagrams_ignored",
        "datagrams_overflowed",
        "datagrams_received",
        "datagrams_refused",
        "datagrams_sent",
        "ended_still",
        "failed",
        "high_water",
        "ignored",
        "opened",
        "pauses",
        "payload_received",
        "payload_sent",
        "pongs_dropped",
        "pressure_reports",
        "reads",
        "received",
        "sent",
        "writes",
    )

    def __init__(self) -> None:
        self.abandoned = self.accepted = self.failed = self.received = self.sent = 0
        self.accepts_refused = self.announcements_refused = self.announcements_sent = 0
        self.bytes_received = self.bytes_sent = self.payload_received = self.payload_sent = 0
        self.datagrams_ignored = self.datagrams_overflowed = self.datagrams_received = 0
        self.datagrams_refused = self.datagrams_sent = self.ended_still = self.high_water = 0
        self.ignored = self.opened = self.pauses = self.pongs_dropped = self.pressure_reports = 0
        self.bad_words = self.reads = self.writes = 0

    def add(self, link: LinkStatistics) -> None:
        """Take over the counters of a link that ends."""
        self.accepted += link.messages_accepted
        self.payload_sent += link.payload_bytes_sent
        self.payload_received += link.payload_bytes_received
        self.bytes_sent += link.bytes_sent
        self.bytes_received += link.bytes_received
        self.writes += link.write_calls
        self.reads += link.read_calls
        self.high_water = max(self.high_water, link.slots_high_water)

    def report(
        self,
        open_links: Iterable[LinkStatistics],
        loop: LoopStatistics,
        pool: PoolStatistics,
        *,
        links_open: int,
        links_refused: int,
        inbox_bytes: int,
        peers: int,
        peers_refused: int,
        queued: int,
        **large: int,
    ) -> NodeStatistics:
        """The node's counters now: these sums and the links that are open. queued: messages that no
        link has taken; large: landing_bytes, offers_waiting, grants_lost."""
        now = LinkTotals()
        for name in self.__slots__:
            setattr(now, name, getattr(self, name))
        for link in open_links:
            now.add(link)
        return NodeStatistics(
            messages_accepted=now.accepted + now.abandoned + queued,
            messages_sent=now.sent,
            messages_failed=now.failed,
            messages_received=now.received,
            payload_bytes_sent=now.payload_sent,
            payload_bytes_received=now.payload_received,
            write_calls=now.writes,
            read_calls=now.reads,
            messages_per_write=now.accepted / now.writes if now.writes else 0.0,
            slots_high_water=now.high_water,
            links_open=links_open,
            links_opened=now.opened,
            links_refused=links_refused,
            bad_frames=loop.bad_frames + now.bad_words,
            crc_errors=loop.crc_errors,
            frames_ignored=now.ignored,
            inbox_bytes=inbox_bytes,
            turns=loop.turns,
            peers=peers,
            pool_bytes=pool.bytes,
            pool_peak_bytes=pool.peak_bytes,
            peers_refused=peers_refused,
            **large,
            **{name: getattr(now, name) for name in _ALIKE},
        )


_ALIKE = tuple(sorted({*LinkTotals.__slots__} & {*NodeStatistics.__struct_fields__}))
"""Sums that a node reports under the name that they have here."""


class ReactorStatistics(msgspec.Struct, frozen=True):
    """Counters since the reactor opened."""

    sockets: int
    """Registered now."""
    turns: int
    events: int
    """Times that a socket was told to be ready."""
    timeouts: int
    """Timers that have expired."""
    orders: int
    """From other threads."""
