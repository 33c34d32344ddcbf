"""The scripted classic peer against the golden vectors and against what is known of the original:
whoever fails the suite of compatibility must be at fault, not the script."""

from __future__ import annotations

import ast
import json
import sys
import zlib
from pathlib import Path

import classic
import pytest
from classic import (
    DATA,
    FIRST,
    FRAGMENT,
    LAST,
    Capabilities,
    ClassicPeer,
    Misbehaved,
    Packet,
    Piece,
    Refused,
    encode_frame,
)
from kit.tables import each_row

VECTORS = Path(__file__).parent / "vectors"


def cases(kind, *operations):
    found = json.loads((VECTORS / f"{kind}.json").read_text())["cases"]
    chosen = [case for case in found if not operations or case["op"] in operations]
    assert chosen
    return each_row("case", {case["id"]: case for case in chosen})


def outcome(call, *arguments):
    """(result, error name)."""
    try:
        return call(*arguments), "PT_OK"
    except Refused as refused:
        return None, refused.name


def test_it_imports_nothing_but_the_standard_library():
    """Code that is shared with what it tests would agree with it about everything."""
    for path in Path(classic.__file__).parent.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
        assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "classic"}, path


# --- the formats ----------------------------------------------------------------------------------


@cases("crc16")
def test_crc(case):
    """The check value, and continued over two buffers."""
    data = bytes.fromhex(case["input"])
    assert classic.crc16(data) == int.from_bytes(classic._checksum(data), "big") == case["crc"]
    assert classic.crc16(data[3:], classic.crc16(data[:3])) == case["crc"]


@cases("header", "encode+decode", "decode")
def test_headers(case):
    """Order of the checks included."""
    result, error = outcome(classic.decode_header, bytes.fromhex(case["hex"]))
    assert error == case["error"]
    if error == "PT_OK":
        fields = case["fields"]
        assert result == (
            fields["type"],
            fields["flags"],
            fields["sequence"],
            fields["payload_len"],
        )
        if case["op"] == "encode+decode":
            assert (
                classic.encode_header(
                    fields["type"], fields["payload_len"], fields["flags"], fields["sequence"]
                ).hex()
                == case["hex"]
            )


@cases("frame", "encode+decode", "decode")
def test_frames(case):
    """CRC over header and payload, high byte first."""
    result, error = outcome(classic.decode_frame, bytes.fromhex(case["hex"]))
    assert error == case["error"]
    if error == "PT_OK":
        fields = case["fields"]
        assert (result.kind, result.flags, result.sequence, result.payload.hex()) == tuple(
            fields[name] for name in ("type", "flags", "sequence", "payload")
        )
        assert (
            encode_frame(result.kind, result.payload, result.flags, result.sequence).hex()
            == case["hex"]
        )


@cases("discovery", "encode+decode", "decode")
def test_discovery_packets_are_read(case):
    """Fourteen bytes and a name; what follows the CRC is not looked at."""
    result, error = outcome(classic.decode_discovery, bytes.fromhex(case["hex"]))
    assert error == case["error"]
    if error == "PT_OK":
        fields = case["fields"]
        expected = Packet(
            fields["type"],
            fields["sender_port"],
            bytes.fromhex(fields["name_hex"]),
            fields["flags"],
            fields["transports"],
        )
        assert result == expected
        if case["op"] == "encode+decode":
            assert classic.encode_discovery(expected).hex() == case["hex"]


@cases("discovery", "encode")
def test_discovery_packets_that_cannot_be_written(case):
    """A name or type that does not fit is refused before a byte is written."""
    fields = case["fields"]
    packet = Packet(
        fields["type"],
        fields["sender_port"],
        b"n" * fields["name_len"],
        fields["flags"],
        fields["transports"],
    )
    assert outcome(classic.encode_discovery, packet, case["buffer_size"]) == (None, case["error"])


@cases("capability", "encode+decode", "decode")
def test_capabilities(case):
    """Defaults, clamps, unknown, short and long entries."""
    result, error = outcome(classic.decode_capabilities, bytes.fromhex(case["hex"]))
    assert error == case["error"]
    if error == "PT_OK":
        assert vars(result) == case["decoded"]
    if case["op"] == "encode+decode":
        assert classic.encode_capabilities(Capabilities(**case["input"])).hex() == case["hex"]


@cases("fragment_header", "encode+decode", "decode")
def test_fragment_headers(case):
    """Unknown flag bits and the reserved byte pass."""
    result, error = outcome(classic.decode_piece, bytes.fromhex(case["hex"]))
    assert error == case["error"]
    if error == "PT_OK":
        fields = case["fields"]
        assert result == (
            Piece(fields["message_id"], fields["total_length"], fields["offset"], fields["flags"]),
            b"",
        )
        if case["op"] == "encode+decode":
            assert classic.encode_piece(result[0], b"").hex() == case["hex"]


@cases("udp", "encode+decode", "decode")
def test_datagrams(case):
    """The announced length rules."""
    result, error = outcome(classic.decode_datagram, bytes.fromhex(case["hex"]))
    assert error == case["error"]
    if error == "PT_OK":
        port, payload = result
        assert (port, payload.hex()) == (case["fields"]["sender_port"], case["fields"]["payload"])
        if case["op"] == "encode+decode":
            assert classic.encode_datagram(payload, port).hex() == case["hex"]


@cases("batch")
def test_batches(case):
    """An entry that does not fit starts the next batch."""
    messages = [bytes.fromhex(message) for message in (*case["messages"], *case["refused"])]
    payload, refused = classic.encode_batch(messages)
    assert (payload.hex(), refused) == (
        case["payload"],
        list(range(len(case["messages"]), len(messages))),
    )
    assert encode_frame(DATA, payload, classic.BATCH, case["sequence"]).hex() == case["frame"]


@cases("compact", "encode+decode")
def test_compact_headers(case):
    """The flag of fragments is lost in them."""
    given = case["input"]
    assert (
        classic.encode_compact(given["type"], given["payload_len"], given["flags"]).hex()
        == case["hex"]
    )


def numbered(cases_of):
    return pytest.mark.parametrize("case", cases_of, ids=[case["id"] for case in cases_of])


@numbered(
    [
        case
        for kind in ("fragmented_message", "live_fragments")
        for case in json.loads((VECTORS / f"{kind}.json").read_text())["cases"]
    ]
)
def test_messages_in_fragments(case):
    """Taken apart as the original does it, and put together again."""
    message = bytes.fromhex(case["message"])
    frames = [classic.decode_frame(bytes.fromhex(frame)) for frame in case["frames"]]
    number = classic.decode_piece(frames[0].payload)[0].message
    size = case.get("fragment_data", 248)
    assert [frame.payload for frame in frames] == classic.fragments(message, number, size)
    assert all(frame.flags == FRAGMENT for frame in frames)
    together = classic.Reassembly(8192)
    assert [together.add(frame.payload) for frame in frames] == [None] * (len(frames) - 1) + [
        message
    ]


@cases("reassembly")
def test_reassembly(case):
    """Which faults abort, and which leave the message that is under way alone."""
    together = classic.Reassembly(case["capacity"])
    for step in case["steps"]:
        result, error = outcome(together.add, bytes.fromhex(step["payload"]))
        if step["result"] in ("COMPLETE", "MORE"):
            assert error == "PT_OK" and (result is not None) == (step["result"] == "COMPLETE")
            if result is not None:
                assert result.hex() == step.get("message", result.hex())
        else:
            assert error == step["result"]


# --- behaviour ------------------------------------------------------------------------------------


def written(peer):
    """What it has written since it was asked last."""
    data = b"".join(action[2] for action in peer.actions if action[0] == "write")
    peer.actions.clear()
    return data


def connected(**options):
    peer = ClassicPeer(strict=False, **options)
    link = peer.accepted(("127.0.0.1", 50_000), 0.0)
    greeting = written(peer)
    return peer, link, greeting


@cases("tcp_stream")
def test_live_streams_end_as_they_did_when_they_were_recorded(case):
    """The script must behave as the original did with the very same bytes, all at once and one by
    one."""
    for cut in (1 << 20, 1):
        peer, link, _ = connected(direct_buffer=case.get("receiver_direct_buffer", 4096))
        sent, expect = bytes.fromhex(case["sent"]), case["expect"]
        for at in range(0, len(sent), cut):
            peer.received(link, sent[at : at + cut], 0.0)
        said = written(peer)
        if case["id"] == "rx-compact":
            assert link.closed and not peer.messages
        assert [(len(message), f"{zlib.crc32(message):08x}") for message in peer.messages] == [
            (each["len"], each["crc32"]) for each in expect["delivered"]
        ]
        assert said.hex() == "".join(expect["replies"])
        assert link.closed == (expect["connection"] == "closed")


def test_what_it_sends_first_is_what_was_seen_on_the_network():
    """Greeting, first DATA, PONG, DISCONNECT, ANNOUNCE and GOODBYE, byte for byte."""
    seen = {
        case["id"]: case["hex"] for case in json.loads((VECTORS / "live.json").read_text())["cases"]
    }
    peer, link, greeting = connected()
    assert greeting.hex() == seen["live-capability"]
    peer.send(link, b"hello")
    peer.poll(0.0)
    assert written(peer).hex() == seen["live-data"]
    peer.received(link, encode_frame(classic.PING), 0.0)
    assert written(peer).hex() == seen["live-pong"]
    peer.disconnect(link)
    assert written(peer).hex() == seen["live-disconnect"]
    peer = ClassicPeer("GoldenPeer", tcp_port=17354)
    peer.start(0.0)
    peer.stop()
    assert [action[1].hex() for action in peer.actions] == [
        seen["live-announce"],
        seen["live-goodbye"],
    ]


def test_discovery_keeps_the_times_of_the_original():
    """ANNOUNCE every 10 s and at a QUERY, silence of 30 s, 16 slots, its own address is not heard,
    names do not change."""
    peer = ClassicPeer(host="10.0.0.1")
    peer.start(0.0)
    for second in range(31):
        peer.poll(float(second))
    assert [action[0] for action in peer.actions] == ["broadcast"] * 4
    peer.heard(classic.encode_discovery(Packet(classic.QUERY, 7354)), ("10.0.0.2", 7353), 31.0)
    assert len(peer.actions) == 5 and peer.known("10.0.0.2", 7354) is None
    announce = classic.encode_discovery(Packet(classic.ANNOUNCE, 7354, b"ada"))
    peer.heard(announce, ("10.0.0.1", 7353), 32.0)
    assert not peer.events
    for number in range(20):
        peer.heard(announce + b"more", (f"10.0.1.{number}", 7353), 32.0)
    assert len(peer.events) == 16
    peer.heard(
        classic.encode_discovery(Packet(classic.ANNOUNCE, 7354, b"bob")), ("10.0.1.0", 7353), 61.9
    )
    assert len(peer.events) == 16 and peer.known("10.0.1.0", 7354).name == b"ada"
    peer.poll(62.0)
    assert [event[0] for event in peer.events[16:]] == ["lost"] * 15
    peer.heard(classic.encode_discovery(Packet(classic.GOODBYE, 7354)), ("10.0.1.0", 7353), 63.0)
    assert peer.events[-1][0] == "lost" and not any(peer.slots)


def test_it_loses_at_once_whom_it_does_not_dial_where_the_original_does():
    """Quirk Q1."""
    peer = ClassicPeer(host="10.0.0.1", forgets_at_once=True)
    peer.start(0.0)
    peer.heard(
        classic.encode_discovery(Packet(classic.ANNOUNCE, 7354, b"ada")), ("10.0.0.2", 7353), 1.0
    )
    peer.poll(1.0)
    assert [event[0] for event in peer.events] == ["discovered", "lost"]


def test_a_full_table_closes_who_calls():
    """16 slots, those that were only discovered included."""
    peer = ClassicPeer(slots=2)
    assert peer.accepted(("10.0.0.2", 1), 0.0) and peer.accepted(("10.0.0.2", 2), 0.0)
    assert peer.accepted(("10.0.0.2", 3), 0.0) is None


def test_it_sends_as_the_original_does():
    """Queue, direct buffer, fragments, admission (Q2), priorities, newest-wins and pressure: the
    errors are the original's."""
    peer, link, _ = connected()
    peer.received(
        link,
        encode_frame(
            classic.CAPABILITY, classic.encode_capabilities(Capabilities(8192, 1024, 0, 5))
        ),
        0.0,
    )
    peer.send(link, b"normal")
    assert outcome(peer.send, link, b"second") == (None, "PT_ERR_BUFFER_FULL")
    peer.send(link, b"old", classic.HIGH, key=7)
    peer.send(link, b"critical", classic.CRITICAL)
    peer.send(link, b"new", classic.HIGH, key=7)
    peer.send(link, bytes(4096))
    assert outcome(peer.send, link, bytes(300)) == (None, "PT_ERR_WOULD_BLOCK")
    assert outcome(peer.send, link, bytes(4097)) == (None, "PT_ERR_MESSAGE_TOO_LARGE")
    peer.poll(0.0)
    sizes = [len(action[2]) - 12 for action in peer.actions]
    assert sizes == [4096, 8, 3, 6] and b"new" in peer.actions[2][2]
    peer.actions.clear()
    for pressure, refused in ((49, ()), (50, (0,)), (75, (0, 1)), (90, (0, 1, 2))):
        said = encode_frame(
            classic.CAPABILITY, classic.encode_capabilities(Capabilities(300, 1024, pressure, 5))
        )
        peer.received(link, said, 0.0)
        for priority in range(4):
            error = outcome(peer.send, link, b"x", priority)[1]
            assert error == ("PT_ERR_WOULD_BLOCK" if priority in refused else "PT_OK")
            peer.poll(0.0)
    peer.actions.clear()
    assert outcome(peer.send, link, bytes(3969), classic.CRITICAL) == (None, "PT_ERR_BUFFER_FULL")
    peer.poll(0.0)
    frames = [classic.decode_frame(action[2]) for action in peer.actions]
    assert [len(frame.payload) for frame in frames] == [256] * 16
    assert not any(classic.decode_piece(frame.payload)[0].flags & LAST for frame in frames), (
        "quirk Q7"
    )


def test_a_full_queue_is_reported_as_pressure_and_its_end_too():
    """Levels of 0, 25, 50 and 75, each with a whole CAPABILITY."""
    peer, link, _ = connected()
    link.writable = False
    for number in range(12):
        peer.send(link, bytes([number]), classic.HIGH)
    peer.poll(0.0)
    link.writable = True
    peer.poll(0.0)
    kinds = [classic.decode_frame(action[2]) for action in peer.actions]
    reports = [
        classic.decode_capabilities(frame.payload)
        for frame in kinds
        if frame.kind == classic.CAPABILITY
    ]
    assert [report.buffer_pressure for report in reports] == [75, 0] and all(
        report.max_message == 8192 for report in reports
    )


def test_a_stream_is_plain_data_a_chunk_for_each_poll():
    """No marker, no total, no end."""
    peer, link, _ = connected()
    data = bytes(range(256)) * 10
    peer.send_stream(link, data)
    assert outcome(peer.send_stream, link, data) == (None, "PT_ERR_BUSY")
    for _ in range(3):
        peer.poll(0.0)
    frames = [classic.decode_frame(action[2]) for action in peer.actions]
    assert [(frame.kind, frame.flags, len(frame.payload)) for frame in frames] == [
        (1, 0, 1024),
        (1, 0, 1024),
        (1, 0, 512),
    ]
    assert b"".join(frame.payload for frame in frames) == data and peer.events[-1][::2] == (
        "stream",
        "done",
    )
    peer.send_stream(link, data)
    peer.cancel_stream(link)
    peer.poll(0.0)
    assert peer.events[-1][::2] == ("stream", "cancelled") and len(peer.actions) == 3


def test_datagrams_are_dropped_unless_a_peer_without_a_port_is_known():
    """Quirk Q3."""
    peer = ClassicPeer(host="10.0.0.1")
    peer.heard_datagram(classic.encode_datagram(b"lost", 7355), ("10.0.0.2", 7355))
    assert not peer.messages and peer.dropped == 1
    peer._admit(b"", "10.0.0.2", 0, 0.0)
    peer.heard_datagram(classic.encode_datagram(b"heard", 7355), ("10.0.0.2", 7355))
    assert peer.messages == [b"heard"]


# --- strictness -----------------------------------------------------------------------------------

GREETING = encode_frame(
    classic.CAPABILITY, classic.encode_capabilities(Capabilities(8192, 1024, 0, 5))
)


def piece(number, total, offset, flags, size, sequence=0, reserved=0):
    payload = bytearray(classic.encode_piece(Piece(number, total, offset, flags), bytes(size)))
    payload[7] = reserved
    return encode_frame(DATA, bytes(payload), FRAGMENT, sequence)


def said(**changes):
    return encode_frame(
        classic.CAPABILITY,
        classic.encode_capabilities(
            Capabilities(**{"max_message": 8192, "buffer_pressure": 0, **changes})
        ),
    )


FOREIGN = {
    "magic": b"XTMG" + GREETING[4:],
    "version": GREETING + encode_frame(DATA, b"x")[:4] + b"\x02" + encode_frame(DATA, b"x")[5:],
    "type 8": GREETING + encode_frame(8),
    "crc": GREETING + encode_frame(DATA, b"x")[:-1] + b"\0",
    "9,000 bytes": GREETING + classic.encode_header(DATA, 9000),
    "compact": GREETING + classic.encode_compact(DATA, 6) + b"123456",
    "DATA first": encode_frame(DATA, b"x"),
    "unreliable": GREETING + encode_frame(DATA, b"x", classic.UNRELIABLE),
    "coalescable": GREETING + encode_frame(DATA, b"x", classic.COALESCABLE),
    "no delay": GREETING + encode_frame(DATA, b"x", classic.NO_DELAY),
    "batch": GREETING + encode_frame(DATA, b"\0\1\0\0x", classic.BATCH),
    "fragment flag on a PING": GREETING + encode_frame(classic.PING, b"", FRAGMENT),
    "sequence on a PING": GREETING + encode_frame(classic.PING, b"", 0, 1),
    "sequence on a PONG": GREETING + encode_frame(classic.PONG, b"", 0, 1),
    "sequence on a CAPABILITY": encode_frame(classic.CAPABILITY, GREETING[10:-2], 0, 1),
    "a sequence that repeats": GREETING + encode_frame(DATA, b"x") * 2,
    "a sequence on DISCONNECT that is not the next": GREETING
    + encode_frame(DATA, b"x")
    + encode_frame(classic.DISCONNECT),
    "payload on a PING": GREETING + encode_frame(classic.PING, b"x"),
    "payload on a PONG": GREETING + encode_frame(classic.PONG, b"x"),
    "payload on a DISCONNECT": GREETING + encode_frame(classic.DISCONNECT, b"x"),
    "an ACK": GREETING + encode_frame(classic.ACK),
    "a REJECT without a known reason": GREETING + encode_frame(classic.REJECT, b"\5"),
    "CAPABILITY without pressure": encode_frame(
        classic.CAPABILITY, GREETING[10:18] + GREETING[21:-2]
    ),
    "CAPABILITY twice the same": encode_frame(
        classic.CAPABILITY, GREETING[10:-2] + b"\x03\x01\x00"
    ),
    "CAPABILITY that runs past its end": encode_frame(
        classic.CAPABILITY, GREETING[10:-2] + b"\x80\x05x"
    ),
    "CAPABILITY below 256": said(max_message=255),
    "CAPABILITY above 8,192": said(max_message=8193),
    "pressure above 100": said(buffer_pressure=101),
    "flags that mean nothing": said(flags=8),
    "more than the other side takes": said(max_message=600) + encode_frame(DATA, bytes(601)),
    "fragments for what fits": GREETING + piece(1, 400, 0, FIRST | LAST, 400),
    "more than 4,096 bytes in fragments": GREETING + piece(1, 4097, 0, FIRST, 248),
    "fragment without its first": GREETING + piece(1, 1000, 248, 0, 248),
    "a gap": GREETING + piece(1, 1000, 0, FIRST, 248) + piece(1, 1000, 300, 0, 248, 1),
    "another message within": GREETING
    + piece(1, 1000, 0, FIRST, 248)
    + piece(2, 1000, 0, FIRST, 248, 1),
    "another total": GREETING + piece(1, 1000, 0, FIRST, 248) + piece(1, 1001, 248, 0, 248, 1),
    "an empty piece": GREETING + piece(1, 1000, 0, FIRST, 0),
    "the reserved byte": GREETING + piece(1, 1000, 0, FIRST, 248, 0, 1),
    "unknown fragment flags": GREETING + piece(1, 1000, 0, FIRST | 4, 248),
    "LAST too early": GREETING + piece(1, 1000, 0, FIRST | LAST, 248),
    "a DISCONNECT within a message": GREETING
    + piece(1, 1000, 0, FIRST, 248)
    + encode_frame(classic.DISCONNECT, sequence=1),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_no_original_sends_is_complained_about(kind):
    """The suite is worth what the script refuses."""
    peer = ClassicPeer()
    link = peer.accepted(("10.0.0.2", 1), 0.0)
    with pytest.raises(Misbehaved):
        peer.received(link, FOREIGN[kind], 0.0)


def test_what_the_original_skips_or_sends_itself_is_not_complained_about():
    """Entries of unknown type, fragments in order with DATA between them, PING, PONG, a REJECT with
    its reason, repeated CAPABILITY."""
    peer = ClassicPeer()
    link = peer.accepted(("10.0.0.2", 1), 0.0)
    more = classic.encode_entries((0x80, bytes(8)), (0x81, b"ada"), (0xFF, b""))
    first = piece(9, 1000, 0, FIRST, 496, 0)
    last = piece(9, 1000, 496, LAST, 504, 2)
    stream = (
        encode_frame(classic.CAPABILITY, GREETING[10:-2] + more)
        + first
        + encode_frame(DATA, b"between", 0, 1)
        + last
    )
    stream += (
        encode_frame(classic.PING)
        + encode_frame(classic.PONG)
        + encode_frame(classic.REJECT, b"\2")
        + GREETING
    )
    stream += encode_frame(classic.DISCONNECT, sequence=3)
    peer.received(link, stream, 0.0)
    assert peer.messages == [b"between", bytes(1000)] and link.closed


def test_packets_and_datagrams_of_no_original_are_complained_about():
    """And bytes behind the CRC of a packet are not."""
    announce = classic.encode_discovery(Packet(classic.ANNOUNCE, 7354, b"ada"))
    peer = ClassicPeer(host="10.0.0.1")
    peer.start(0.0)
    peer.heard(announce + bytes(100), ("10.0.0.2", 7353), 0.0)
    for bad in (
        announce[:-1] + b"\0",
        Packet(1, 0, b"ada"),
        Packet(1, 7354, b"ada", 0x20),
        Packet(1, 7354, b"ada", 0, 2),
        Packet(1, 7354, b"ada", 0, 0x81),
    ):
        with pytest.raises(Misbehaved):
            peer.heard(
                bad if isinstance(bad, bytes) else classic.encode_discovery(bad),
                ("10.0.0.3", 7353),
                0.0,
            )
    for bad in (
        b"PTUD",
        classic.encode_datagram(b"x", 7355) + b"y",
        classic.encode_datagram(b"x", 7000),
        classic.encode_datagram(bytes(1393), 7355),
    ):
        with pytest.raises(Misbehaved):
            peer.heard_datagram(bad, ("10.0.0.2", 7355))
    peer.accepted(("10.0.0.2", 1), 0.0)
    with pytest.raises(Misbehaved, match="Q4"):
        peer.heard(
            classic.encode_discovery(Packet(classic.GOODBYE, 7354, b"ada")), ("10.0.0.2", 7353), 1.0
        )


# --- on real sockets ------------------------------------------------------------------------------


async def test_two_of_them_find_each_other_talk_and_leave(free_port):
    """The script can stand in for both sides, and a strict one finds nothing to complain about in
    what its like sends."""
    port, udp_port = free_port(), free_port()
    options = {"tcp_port": 0, "udp_port": udp_port, "discovery_port": port}
    one, other = (
        ClassicPeer("one", dials=True, **options),
        ClassicPeer("other", host="127.0.0.3", **options),
    )
    with classic.Sockets(one) as here, classic.Sockets(other, dribble=5) as there:
        async with classic.serving(here, there):
            link, back = await here.link(), await there.link()
            for size in (1, 256, 257, 4096):
                message = bytes([size & 0xFF]) * size
                one.send(link, message)
                assert await there.message() == message
                other.send(back, message)
                assert await here.message() == message
            one.send_stream(link, bytes(5000))
            await there.until(lambda: sum(map(len, other.messages)) == 5000)
            one.send_datagram("127.0.0.3", b"unheard")
            await there.until(lambda: other.datagrams)
            other.frame(back, kind=classic.PING)
            await there.until(lambda: back.frames[-1].kind == classic.PONG)
            other.disconnect(back)
            await here.until(lambda: link.closed)
            other.stop()
            await here.until(lambda: one.packets[-1][0].kind == classic.GOODBYE)


async def test_a_complaint_reaches_the_test():
    """A driver that swallowed it would make a suite that cannot fail."""
    strict, careless = (
        ClassicPeer(tcp_port=0, udp_port=0),
        ClassicPeer(host="127.0.0.3", tcp_port=0, udp_port=0, strict=False),
    )
    with (
        classic.Sockets(strict, discovery=False) as here,
        classic.Sockets(careless, discovery=False) as there,
    ):
        with pytest.raises(Misbehaved, match="flags 0x08"):
            async with classic.serving(here, there):
                link = careless.call(here.address, 0.0)
                await here.link()
                careless.frame(link, b"x", classic.BATCH)
                with pytest.raises(Misbehaved):
                    await here.message()


def test_in_a_simulated_network_too(c_core):
    """Ten seconds of its clock cost nothing: announcements, expiry and all."""
    from peertalk import sim

    async def main(net):
        one, other = ClassicPeer("one", dials=True), ClassicPeer("other")
        there = classic.SimulatedSockets(other, net.host("plus"), lambda: net.clock.seconds)
        here = classic.SimulatedSockets(one, net.host("se"), lambda: net.clock.seconds)
        async with classic.serving(here, there):
            link = await here.link()
            one.send(link, b"hello")
            assert await there.message() == b"hello"
            one.disconnect(link)
            one._running = False
            await there.until(lambda: other.events[-1][0] == "lost")
            return [event[0] for event in other.events], len(other.packets), int(net.clock.seconds)

    assert sim.run(main) == (["discovered", "connected", "message", "disconnected", "lost"], 2, 40)
