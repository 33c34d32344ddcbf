"""What a node counts, with units, and how the counters of its links become those of the node."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .._core.values import LinkStatistics, LoopStatistics, PoolStatistics


class QueueStatus(msgspec.Struct, frozen=True):
    """How full the way to one peer is.

    pending: messages accepted and not yet taken by the system; capacity: messages that the outbox
    holds at most (HIGH ones an eighth more, CRITICAL ones a quarter more); bytes: payload bytes in
    the outbox; pressure: fill of the outbox or what the peer has reported of itself, the larger
    one, 0 to 100; reason: what holds messages up, "" (nothing), "slots", "connection",
    "pressure" (the peer refuses LOW messages, a classic one from 75 on NORMAL, from 90 on HIGH
    ones), or "frozen" (it has not answered for Config.link_timeout: see PeerFrozen).
    """

    pending: int
    capacity: int
    bytes: int
    pressure: int
    reason: str


class PeerStatistics(msgspec.Struct, frozen=True):
    """Counters of one peer since it was first heard of.

    messages_accepted, messages_sent, messages_failed: messages to it; what was called sent and
    failed all the same is failed; messages_received: messages from it; bytes_received: payload
    bytes from it; queue: see QueueStatus.
    """

    messages_accepted: int
    messages_sent: int
    messages_failed: int
    messages_received: int
    bytes_received: int
    queue: QueueStatus


class NodeStatistics(msgspec.Struct, frozen=True):
    """Counters of a node since it started.

    messages_accepted, messages_sent, messages_failed: messages that users sent, and what became of
    them, so messages_sent sinks where a connection ends before what was sent on it is acknowledged;
    messages_received: messages that arrived; payload_bytes_sent, payload_bytes_received:
    bytes of those; bytes_sent, bytes_received: stream bytes, framing and control frames included;
    write_calls, read_calls: system calls on links; messages_per_write: messages given to links per
    writing system call; slots_high_water: most slots in flight on one link; links_open: connections
    now; links_opened, links_refused: connections since the start; bad_frames: links ended by a
    fault of a frame; crc_errors: those of them by their checksum; frames_ignored: frames that
    brought nothing: of a kind that this version does not use, or a CAPABILITY, fragment or batch
    that is not as it must be; inbox_bytes: cost in bytes of messages not yet taken; pauses: times
    that a link was paused because the inbox was full; ended_still: connections that were ended
    because their peer took nothing while memory for sending was short; pressure_reports: CAPABILITY
    frames that told
    a peer of another level of our pressure; pongs_dropped: PINGs not answered for want of room on
    their link; turns: turns of the loop; peers: known now; pool_bytes, pool_peak_bytes: memory of
    slots and staging buffers in C, bytes; datagrams_sent: datagrams that the system took;
    datagrams_refused: those that it did not take, which are gone; datagrams_received: those of
    known peers; datagrams_ignored: those that were malformed, too long or of nobody known;
    datagrams_overflowed: those received that were not taken in time and gave way to newer ones;
    announcements_sent: packets of discovery that the system took, one for each interface, or one
    that answers somebody;
    announcements_refused: those that it did not take (a firewall, an interface that is down), or
    that an interface without its cable did not carry; peers_refused: announcements of strangers for
    whom there was no room; accepts_refused: callers that were turned away, or had to wait, because
    the program had no descriptors or the system no memory.
    """

    messages_accepted: int
    messages_sent: int
    messages_failed: int
    messages_received: int
    payload_bytes_sent: int
    payload_bytes_received: int
    bytes_sent: int
    bytes_received: int
    write_calls: int
    read_calls: int
    messages_per_write: float
    slots_high_water: int
    links_open: int
    links_opened: int
    links_refused: int
    bad_frames: int
    crc_errors: int
    frames_ignored: int
    inbox_bytes: int
    pauses: int
    ended_still: int
    pressure_reports: int
    pongs_dropped: int
    turns: int
    peers: int
    pool_bytes: int
    pool_peak_bytes: int
    datagrams_sent: int
    datagrams_refused: int
    datagrams_received: int
    datagrams_ignored: int
    datagrams_overflowed: int
    announcements_sent: int
    announcements_refused: int
    peers_refused: int
    accepts_refused: int


class MemoryUse(msgspec.Struct, frozen=True):
    """Memory of one part, in bytes: now, and at most so far."""

    bytes: int
    peak: int


class MemoryReport(dict[str, MemoryUse]):
    """Memory of a node's C side, part by part; the last part, "total", is the sum. Printed as a
    table."""

    def __str__(self) -> str:
        lines = [f"{'part':<16}{'bytes':>12}{'peak':>12}"]
        return "\n".join(
            lines + [f"{part:<16}{use.bytes:>12,}{use.peak:>12,}" for part, use in self.items()]
        )


class LinkTotals:
    """Sums that outlive the links and peers that they come from. Units as in NodeStatistics."""

    __slots__ = (
        "abandoned",
        "accepted",
        "accepts_refused",
        "announcements_refused",
        "announcements_sent",
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
        for name in self.__slots__:
            setattr(self, name, 0)

    abandoned: int
    """Messages that were accepted and never given to a link; `accepted` counts those that were."""
    accepted: int
    accepts_refused: int
    announcements_refused: int
    announcements_sent: int
    bytes_received: int
    bytes_sent: int
    datagrams_ignored: int
    datagrams_overflowed: int
    datagrams_received: int
    datagrams_refused: int
    datagrams_sent: int
    ended_still: int
    failed: int
    high_water: int
    ignored: int
    opened: int
    pauses: int
    payload_received: int
    payload_sent: int
    pongs_dropped: int
    pressure_reports: int
    reads: int
    received: int
    sent: int
    writes: int

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
    ) -> NodeStatistics:
        """The node's counters now: these sums and the links that are open. queued: messages that no
        link has taken."""
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
            bytes_sent=now.bytes_sent,
            bytes_received=now.bytes_received,
            write_calls=now.writes,
            read_calls=now.reads,
            messages_per_write=now.accepted / now.writes if now.writes else 0.0,
            slots_high_water=now.high_water,
            links_open=links_open,
            links_opened=now.opened,
            links_refused=links_refused,
            bad_frames=loop.bad_frames,
            crc_errors=loop.crc_errors,
            frames_ignored=now.ignored,
            inbox_bytes=inbox_bytes,
            pauses=now.pauses,
            ended_still=now.ended_still,
            pressure_reports=now.pressure_reports,
            pongs_dropped=now.pongs_dropped,
            turns=loop.turns,
            peers=peers,
            pool_bytes=pool.bytes,
            pool_peak_bytes=pool.peak_bytes,
            datagrams_sent=now.datagrams_sent,
            datagrams_refused=now.datagrams_refused,
            datagrams_received=now.datagrams_received,
            datagrams_ignored=now.datagrams_ignored,
            datagrams_overflowed=now.datagrams_overflowed,
            announcements_sent=now.announcements_sent,
            announcements_refused=now.announcements_refused,
            peers_refused=peers_refused,
            accepts_refused=now.accepts_refused,
        )
