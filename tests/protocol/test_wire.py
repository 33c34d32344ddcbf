"""Messages, announcements and capabilities: what the original reads stays the original's, what it
skips is ours."""

from __future__ import annotations

import gc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peertalk.errors import BadCrc, InvalidArgument, ProtocolError, Truncated
from peertalk.protocol.peer import Peer
from peertalk.protocol.wire import (
    INSTANCE_SIZE,
    PACKET_MAX,
    TLV_WAYS,
    WAY_LOCAL,
    Announcement,
    Batch,
    Capabilities,
    Greeting,
    Message,
    decode_announcement,
    decode_capabilities,
    decode_greeting,
    encode_announcement,
    encode_capabilities,
    encode_greeting,
)

# The packet of section 3.1 of the protocol, made by the original.
CLASSIC_PACKET = bytes.fromhex("50544c4b 01 01 0000 43ca 03 04 43524546 9517")
CLASSIC_CAPABILITY = bytes.fromhex("0102 2000 0202 0400 0301 00 0402 0005")
INSTANCE = bytes.fromhex("1a2b3c4d5e6f7081")

names = (
    st.text(max_size=31)
    .filter(lambda name: len(name.encode("utf-8", "replace")) <= 31)
    .filter(lambda name: name.isprintable())
)
instances = st.none() | st.binary(min_size=INSTANCE_SIZE, max_size=INSTANCE_SIZE).filter(any)
ports = st.none() | st.integers(1, 65535)
words = st.integers(0, 65535)
announcements = st.builds(
    Announcement, st.integers(1, 3), names, words, words, st.integers(0, 255), instances, ports
)
capabilities = st.builds(
    Capabilities,
    st.integers(256, 8192),
    words,
    st.integers(0, 100),
    words,
    instances,
    st.none() | names.filter(bool),
    ports,
    ports,
    st.none() | st.integers(8_193, 2**32 - 1),
)
# A value of any type byte and any length, and one that is nearly right.
tlvs = st.tuples(st.integers(0x80, 0x88) | st.integers(0, 255), st.binary(max_size=10)).map(
    lambda tlv: bytes((tlv[0], len(tlv[1]))) + tlv[1]
)
trailers = st.lists(tlvs, max_size=6).map(b"".join)


def closed(core, packet: bytes) -> bytes:
    """The packet with the CRC of its trailer behind it."""
    return packet + core.crc16(packet).to_bytes(2, "big")


@given(announcement=announcements)
def test_an_announcement_comes_back_as_it_was_sent(core, announcement):
    """The law of every codec."""
    packet = encode_announcement(core, announcement)
    assert len(packet) <= 65
    assert decode_announcement(core, packet) == announcement


@given(announcement=announcements)
def test_the_original_reads_our_announcement_as_its_own(core, announcement):
    """What is ours stands behind the CRC, where the original stops: the bytes before are those that
    it would have sent itself."""
    packet = encode_announcement(core, announcement)
    seen = core.decode_discovery(packet)
    classic = core.encode_discovery(
        announcement.type,
        announcement.port,
        announcement.name.encode(),
        announcement.flags,
        announcement.transports,
    )
    assert packet[: seen.size] == classic
    assert (len(packet) == seen.size) == (
        announcement.instance is None and announcement.datagram_port is None
    )


def test_a_packet_of_the_original_is_an_announcement_of_a_classic_peer(core):
    """These bytes were recorded."""
    announcement = Announcement(1, "CREF", 17354)
    assert decode_announcement(core, CLASSIC_PACKET) == announcement
    assert encode_announcement(core, announcement) == CLASSIC_PACKET


def test_the_trailer_has_the_bytes_that_the_document_shows(core):
    """Other implementations are written from the document, not from this code."""
    packet = encode_announcement(
        core, Announcement(1, "CREF", 17354, instance=INSTANCE, datagram_port=7355)
    )
    before_crc = CLASSIC_PACKET + bytes.fromhex("80 08 1a2b3c4d5e6f7081 83 02 1cbb")
    assert packet[:-2] == before_crc
    assert packet[-2:] == core.crc16(before_crc).to_bytes(2, "big")


@given(announcement=announcements.filter(lambda a: a.instance), data=st.data())
def test_a_damaged_trailer_makes_the_sender_classic_and_is_no_error(core, announcement, data):
    """What stands behind the CRC is nobody's promise: an original with noise behind its packet must
    still be found."""
    packet = bytearray(encode_announcement(core, announcement))
    size = core.decode_discovery(bytes(packet)).size
    position = data.draw(st.integers(size, len(packet) - 1))
    packet[position] ^= 1 << data.draw(st.integers(0, 7))
    seen = decode_announcement(core, bytes(packet))
    assert (seen.instance, seen.datagram_port) == (None, None)
    assert (seen.type, seen.name, seen.port) == (
        announcement.type,
        announcement.name,
        announcement.port,
    )


@given(announcement=announcements.filter(lambda a: a.instance), data=st.data())
def test_a_cut_trailer_makes_the_sender_classic(core, announcement, data):
    """A receive buffer of 48 bytes, as the original has it, cuts ours."""
    packet = encode_announcement(core, announcement)
    cut = data.draw(st.integers(core.decode_discovery(packet).size, len(packet) - 1))
    assert decode_announcement(core, packet[:cut]).instance is None


@given(trailer=trailers)
def test_unknown_and_ill_sized_tlvs_of_a_trailer_are_skipped(core, trailer):
    """Peers of later versions say more than we know, and strangers say it wrongly."""
    seen = decode_announcement(
        core,
        closed(
            core,
            CLASSIC_PACKET + trailer + bytes((0x80, 8)) + INSTANCE + bytes((0x83, 2, 0x1C, 0xBB)),
        ),
    )
    assert (seen.instance, seen.datagram_port) == (INSTANCE, 7355)


def test_a_trailer_whose_tlv_runs_past_its_end_is_no_trailer(core):
    """Half of it may be a lie, so all of it is."""
    packet = closed(core, CLASSIC_PACKET + bytes((0x80, 8)) + INSTANCE + bytes((0x83, 200, 1)))
    assert decode_announcement(core, packet) == Announcement(1, "CREF", 17354)


def test_a_trailer_beyond_the_longest_packet_is_not_read(core):
    """Bounds the work that one datagram of a stranger can cause."""
    fill = bytes((0x90, 255)) + bytes(255)
    short = closed(core, CLASSIC_PACKET + bytes((0x80, 8)) + INSTANCE + fill)
    long = closed(core, CLASSIC_PACKET + bytes((0x80, 8)) + INSTANCE + fill + fill)
    assert len(short) <= PACKET_MAX < len(long)
    assert decode_announcement(core, short).instance == INSTANCE
    assert decode_announcement(core, long).instance is None


def test_an_instance_of_zeros_and_a_port_of_zero_count_as_not_said(core):
    """Zero is what memory that nobody filled in holds; all such peers would share one identity."""
    seen = decode_announcement(
        core, closed(core, CLASSIC_PACKET + bytes((0x80, 8)) + bytes(8) + bytes((0x83, 2, 0, 0)))
    )
    assert (seen.instance, seen.datagram_port) == (None, None)
    seen = decode_capabilities(
        core, bytes((0x80, 8)) + bytes(8) + bytes((0x82, 2, 0, 0, 0x83, 2, 0, 0))
    )
    assert (seen.instance, seen.port, seen.datagram_port) == (None, None, None)


@given(data=st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: CLASSIC_PACKET + tail))
def test_reading_any_bytes_gives_an_announcement_or_a_protocol_error(core, data):
    """They come from strangers."""
    try:
        seen = decode_announcement(core, data)
    except ProtocolError:
        return
    assert seen.type in (1, 2, 3)
    assert seen.instance is None or len(seen.instance) == INSTANCE_SIZE


def test_damage_before_the_first_crc_is_an_error(core):
    """There the original's own rules hold."""
    packet = bytearray(encode_announcement(core, Announcement(1, "CREF", 17354, instance=INSTANCE)))
    packet[8] ^= 1
    with pytest.raises(BadCrc):
        decode_announcement(core, bytes(packet))
    with pytest.raises(Truncated):
        decode_announcement(core, CLASSIC_PACKET[:13])


def test_a_name_that_is_not_utf8_is_shown_with_replacement_characters(core):
    """A classic Mac announces MacRoman."""
    packet = core.encode_discovery(1, 7354, b"Mac\x8e", 0, 3)
    assert decode_announcement(core, packet).name == "Mac\ufffd"
    assert decode_capabilities(core, bytes((0x81, 4)) + b"Mac\x8e").name == "Mac\ufffd"


@given(capability=capabilities)
def test_capabilities_come_back_as_they_were_sent(core, capability):
    """The law of every codec."""
    payload = encode_capabilities(core, capability)
    assert len(payload) <= 72
    assert decode_capabilities(core, payload) == capability


@pytest.mark.parametrize(
    ("value", "largest"),
    [
        (b"\x01\0\0\0", 2**24),
        (b"\xff\xff\xff\xff", 2**32 - 1),
        (b"\0\0\x20\x01", 8_193),
        (b"\0\0\x20\0", None),
        (b"\0\0\0\0", None),
        (b"\x01\0\0", None),
        (b"\x01\0\0\0\0", None),
    ],
)
def test_a_longest_message_counts_where_it_is_longer_than_a_frame(core, value, largest):
    """Else it would say nothing new, and bind the wide form to frames that need none."""
    payload = bytes((0x88, len(value))) + value
    assert decode_capabilities(core, payload).largest == largest
    if largest is not None:
        said = encode_capabilities(core, Capabilities(8192, 1024, 0, 0, largest=largest))
        assert said[15:] == payload


@pytest.mark.parametrize("largest", [8_192, 2**32])
def test_no_other_longest_message_is_said(core, largest):
    with pytest.raises(InvalidArgument, match="longest message"):
        encode_capabilities(core, Capabilities(8192, 1024, 0, 0, largest=largest))


@given(capability=capabilities)
def test_the_original_reads_our_capabilities_as_its_own(core, capability):
    """Its four TLVs come first, byte for byte, and it skips the rest."""
    payload = encode_capabilities(core, capability)
    four = (
        capability.max_message,
        capability.preferred_chunk,
        capability.pressure,
        capability.flags,
    )
    assert payload[:15] == core.encode_capability(*four)
    assert tuple(core.decode_capability(payload)) == four


def test_capabilities_of_the_original_and_ours_have_the_documented_bytes(core):
    """Recorded, and then as the document of the extension shows them."""
    plain = Capabilities(8192, 1024, 0, 5)
    assert decode_capabilities(core, CLASSIC_CAPABILITY) == plain
    assert encode_capabilities(core, plain) == CLASSIC_CAPABILITY
    ours = Capabilities(8192, 1024, 0, 5, INSTANCE, "ada", 7354, 7355)
    assert encode_capabilities(core, ours) == CLASSIC_CAPABILITY + bytes.fromhex(
        "80 08 1a2b3c4d5e6f7081 81 03 616461 82 02 1cba 83 02 1cbb"
    )


@given(order=st.permutations(range(4)), trailer=trailers)
def test_extensions_are_found_in_any_order_and_the_last_of_a_kind_wins(core, order, trailer):
    """As the original reads its own TLVs."""
    ours = [
        bytes((0x80, 8)) + INSTANCE,
        bytes((0x81, 3)) + b"ada",
        bytes((0x82, 2, 0x1C, 0xBA)),
        bytes((0x83, 2, 0x1C, 0xBB)),
    ]
    seen = decode_capabilities(core, trailer + b"".join(ours[index] for index in order))
    assert (seen.instance, seen.name, seen.port, seen.datagram_port) == (
        INSTANCE,
        "ada",
        7354,
        7355,
    )


@pytest.mark.parametrize(
    ("kind", "sizes"), [(0x80, (0, 7, 9)), (0x81, (0, 32)), (0x82, (0, 1, 3)), (0x83, (0, 1, 3))]
)
def test_an_extension_of_a_wrong_length_is_ignored(core, kind, sizes):
    """Half an identity is none."""
    for size in sizes:
        payload = CLASSIC_CAPABILITY + bytes((kind, size)) + b"x" * size
        assert decode_capabilities(core, payload) == Capabilities(8192, 1024, 0, 5)


@given(payload=st.binary(max_size=80) | trailers)
@example(payload=b"")
@example(payload=b"\x80")
def test_reading_any_payload_gives_capabilities_or_a_protocol_error(core, payload):
    """A peer's CAPABILITY must not be able to end more than its own link."""
    try:
        seen = decode_capabilities(core, payload)
    except ProtocolError:
        return
    assert 256 <= seen.max_message <= 8192
    assert seen.name is None or seen.name


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "\u00e9" * 16},
        {"name": "\ud800"},
        {"instance": b"short"},
        {"instance": bytes(8)},
        {"datagram_port": 0},
        {"datagram_port": 65536},
    ],
)
def test_what_cannot_be_said_on_the_wire_is_refused(core, wrong):
    """Better here, with a number, than as a packet that nobody understands."""
    with pytest.raises(InvalidArgument):
        encode_announcement(core, Announcement(**{"type": 1, "name": "ada", "port": 1, **wrong}))
    with pytest.raises(InvalidArgument):
        encode_capabilities(core, Capabilities(8192, 1024, 0, 5, **wrong))


def test_capabilities_without_a_name_say_none_rather_than_an_empty_one(core):
    """An empty name would take away the one that was announced."""
    with pytest.raises(InvalidArgument, match="1 to 31"):
        encode_capabilities(core, Capabilities(8192, 1024, 0, 5, name=""))


def test_the_number_of_a_dial_counts_only_from_the_side_that_dialled():
    """Who could number the dials of another could say that they are over."""
    payload = encode_greeting(Greeting(number=7, place=3), INSTANCE)
    assert decode_greeting(payload, INSTANCE) == Greeting(number=7, place=3)
    assert decode_greeting(payload, bytes(reversed(INSTANCE))) == Greeting(number=0, place=3)
    assert decode_greeting(payload, None) == Greeting(number=0, place=3)


def test_a_message_shows_its_bytes_as_text_and_as_a_view():
    """text is strict: bytes that are no UTF-8 must not be changed silently."""
    ada = Peer(INSTANCE, name="ada")
    message = Message(ada, "caf\u00e9".encode())
    assert (message.peer, message.text, bytes(message.view)) == (ada, "caf\u00e9", message.data)
    assert message.view.obj is message.data
    assert message.view.readonly
    with pytest.raises(UnicodeDecodeError):
        assert Message(ada, b"\xff").text
    with pytest.raises(AttributeError):
        message.data = b""


def test_an_empty_message_is_a_message():
    """`while message := ...` must not end at it."""
    assert Message(Peer(INSTANCE), b"")


def test_a_batch_gives_payloads_or_messages_in_their_order():
    """The cheap way and the comfortable one see the same."""
    ada, payloads = Peer(INSTANCE), [b"one", b"", b"two"]
    batch = Batch(ada, payloads)
    assert (len(batch), list(batch)) == (3, payloads)
    assert [(message.peer, message.data) for message in batch.messages()] == [
        (ada, payload) for payload in payloads
    ]


def test_messages_are_no_work_for_the_garbage_collector():
    """At a million messages a second the collector would take longer than the messages."""
    assert not gc.is_tracked(Message(Peer(INSTANCE), b"data"))


@given(sought=names.filter(bool), asks=st.booleans())
def test_a_question_says_who_is_sought_where_the_original_does_not_look(core, sought, asks):
    """Of any other packet that says nothing: it would make a known peer another one."""
    kind = 2 if asks else 1
    asking = Announcement(kind, "CREF", 17354, instance=INSTANCE, datagram_port=1, sought=sought)
    packet = encode_announcement(core, asking)
    classic = core.encode_discovery(kind, 17354, b"CREF", 0, 3)
    assert packet[: len(classic)] == classic and len(packet) <= 101
    assert decode_announcement(core, packet).sought == (sought if asks else None)


@given(name=names, kind=st.integers(1, 3), local=st.booleans())
def test_that_a_node_has_a_socket_of_its_host_stands_where_the_original_does_not_look(
    core, name, kind, local
):
    """One bit; the others of its byte are kept for what else there may be."""
    said = Announcement(kind, name, 7354, instance=INSTANCE, datagram_port=7355, local=local)
    packet = encode_announcement(core, said)
    classic = core.encode_discovery(kind, 7354, name.encode(), 0, 3)
    assert packet[: len(classic)] == classic and decode_announcement(core, packet) == said
    assert (bytes((TLV_WAYS, 1, WAY_LOCAL)) == packet[-5:-2]) is local


@pytest.mark.parametrize(
    ("value", "local"),
    [(b"\x01", True), (b"\xff", True), (b"\xfe", False), (b"", False), (b"\1\1", False)],
)
def test_a_byte_of_ways_is_one_byte_and_its_first_bit_counts(core, value, local):
    """What later nodes say in the other bits is no fault."""
    packet = core.encode_discovery(1, 7354, b"ada", 0, 3) + bytes((TLV_WAYS, len(value))) + value
    packet += core.crc16(packet).to_bytes(2, "big")
    assert decode_announcement(core, packet).local is local
