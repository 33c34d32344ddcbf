"""What can be sent: any kind of buffer, one message or many, and how a message is described."""

from __future__ import annotations

import array
import ctypes
import itertools
import mmap

import pytest

from peertalk import errors
from peertalk._core import load
from peertalk.protocol.payloads import Drawing, check_choices, payload_of


def drawing(payloads, chunk=2):
    """The messages of a send_many, so many at a time."""
    return Drawing(payloads, lambda size: chunk, load().all_bytes, 1024)


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (b"bytes", b"bytes"),
        ("Grüße", "Grüße".encode()),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view")[1:], b"iew"),
        ("", b""),
        (memoryview(array.array("I", [1])), array.array("I", [1]).tobytes()),
        (memoryview(bytes(6)).cast("B", (2, 3)), bytes(6)),
        (array.array("d", [0.5, 2.0]), array.array("d", [0.5, 2.0]).tobytes()),
        (ctypes.create_string_buffer(b"ab"), b"ab\0"),
        ((ctypes.c_uint16 * 2)(1, 2), array.array("H", [1, 2]).tobytes()),
        (ctypes.c_uint32(7), array.array("I", [7]).tobytes()),
    ],
)
def test_bytes_buffers_and_text_can_be_sent(data, meant):
    """As they are; text as UTF-8, as str says by itself nowhere."""
    assert bytes(payload_of(data)) == meant and drawing([data]).draw() == [meant]


@pytest.mark.parametrize("data", [5, None, ["text"], 1.5, object()])
def test_what_is_no_data_is_refused_by_its_type(data):
    """bytes(5) is five zeros: a number sent by mistake must not become that."""
    with pytest.raises(errors.WrongType, match=type(data).__name__):
        payload_of(data)
    several = drawing([b"good", data, b"never"])
    assert several.draw() == [b"good"], "as one by one: those before it are sent"
    for _ in range(2):
        with pytest.raises(errors.WrongType, match=type(data).__name__):
            several.draw()


def test_a_view_with_gaps_is_refused():
    """It has no bytes that could be sent as they lie."""
    with pytest.raises(errors.WrongType, match="gaps"):
        payload_of(memoryview(b"abcdef")[::2])


def released():
    view = memoryview(b"abc")
    view.release()
    return view


def closed_map():
    closed = mmap.mmap(-1, 16)
    closed.close()
    return closed


@pytest.mark.parametrize("make", [released, closed_map])
def test_a_buffer_that_is_gone_is_refused_in_our_own_words(make):
    """Python's own ValueError says nothing of a message."""
    with pytest.raises(errors.InvalidArgument, match="has no bytes to send"):
        payload_of(make())
    with pytest.raises(errors.WrongType, match="use send"):
        drawing(make())


def test_text_that_utf_8_cannot_hold_is_refused_with_the_way_to_send_it():
    """Names of files and words of a command line may hold half characters."""
    with pytest.raises(errors.InvalidArgument, match=r"'\\udc80', half a character.*surrogatepass"):
        payload_of("a\udc80b")


def test_nothing_of_a_buffer_is_held_when_the_call_is_over():
    """An array that is exported cannot grow, and an error keeps what its frames held."""
    owned, mapped = array.array("H", range(8)), mmap.mmap(-1, 4096)
    payload = payload_of(owned), payload_of(mapped)
    owned.append(8)
    mapped.close()
    assert payload == (array.array("H", range(8)).tobytes(), bytes(4096))


def test_a_map_of_a_large_file_is_refused_before_it_is_copied():
    """Whoever sends a file by mistake should read its size, not run out of memory."""
    with mmap.mmap(-1, 1 << 30) as mapped:  # nothing of it is there before it is touched
        with pytest.raises(errors.MessageTooLarge, match="1,073,741,824 bytes"):
            payload_of(mapped)


@pytest.mark.parametrize(
    "data",
    [b"abc", "abc", bytearray(b"abc"), memoryview(b"abc"), array.array("B"), mmap.mmap(-1, 1)],
    ids=lambda data: type(data).__name__,
)
def test_one_message_in_place_of_several_is_refused(data):
    """send_many(b"abc") would be three numbers, send_many("abc") three messages: neither is what
    was meant."""
    with pytest.raises(errors.WrongType, match="use send"):
        drawing(data)


def test_several_messages_are_something_to_iterate():
    """None in place of a list is a slip that should be named."""
    with pytest.raises(errors.WrongType, match="NoneType"):
        drawing(None)


def test_an_endless_iterator_is_drawn_a_chunk_at_a_time():
    """Drawn whole, it would take all memory; drawn ahead, it would be stale when it is sent."""
    numbers = itertools.count()
    several = drawing((b"%d" % number for number in numbers), chunk=5)
    first = several.draw()
    assert first == [b"%d" % number for number in range(len(first))] and len(first) <= 64
    assert len(several.draw()) == 5 and next(numbers) == len(first) + 5


def test_a_list_that_changes_while_it_is_sent_is_taken_as_it_is_then():
    """It is the caller's: what we keep of it is a chunk of our own."""
    messages = [b"0", b"1", b"2", b"3"]
    several = drawing(messages)
    chunk = several.draw()
    messages[:] = ["changed"] * 3
    assert chunk == [b"0", b"1"] and several.draw() == [b"changed"] and several.draw() == []


def test_what_an_iterator_raises_comes_after_what_it_gave():
    """Those before the fault were meant to be sent."""

    def faulty():
        yield b"1"
        yield "2"
        raise KeyError("mine")

    several = drawing(faulty())
    assert several.draw() == [b"1"] and several.draw() == [b"2"]
    several.accepted = 2
    with pytest.raises(KeyError) as raised, several:
        several.draw()
    assert raised.value.accepted == 2


def test_what_an_iterator_raises_keeps_what_it_came_of():
    """Raised anew, an error of the program's own lost the one that it was raised from."""

    def faulty():
        try:
            yield {}["lacking"]
        except KeyError:
            raise ValueError("mine")  # noqa: B904

    with pytest.raises(ValueError, match="mine") as raised, drawing(faulty()) as several:
        several.draw()
    assert isinstance(raised.value.__context__, KeyError)
    assert not raised.value.__suppress_context__


def test_an_error_that_several_callers_hear_says_of_each_how_many_were_accepted():
    """The end of a link is one error for all who wait: a number in it would be that of the last."""
    error = errors.ConnectionClosed("gone", peer="bob")
    error.__cause__ = OSError(104)
    told = []
    for accepted in (0, 7):
        with pytest.raises(errors.ConnectionClosed) as raised, drawing([]) as several:
            several.accepted = accepted
            raise error
        told.append(raised.value)
    assert [each.accepted for each in told] == [0, 7] and error.accepted is None
    assert {(type(each), str(each), each.peer, each.__cause__) for each in told} == {
        (errors.ConnectionClosed, "gone", "bob", error.__cause__)
    }


@pytest.mark.parametrize(
    ("priority", "key", "error"),
    [(4, None, "priority 4"), (-1, None, "priority -1"), (1, b"k", "bytes"), (1, 1.5, "float")],
)
def test_what_is_no_class_or_no_key_is_refused(priority, key, error):
    """A key of bytes would never match the str of the same look."""
    with pytest.raises(errors.InvalidArgument, match=error):
        check_choices(priority, key)


class Records(bytes):
    """A packet whose length counts its records."""

    def __len__(self):
        return 1


class Words(str):
    __slots__ = ()

    def encode(self, *_):
        return self


def test_bytes_and_text_of_the_programs_own_class_are_as_long_as_they_are():
    """What such a class says of its length passed the limit, and the message was never sent."""
    assert payload_of(Records(b"abc")) == b"abc" and type(payload_of(Records(b"abc"))) is bytes
    assert payload_of(Words("abc")) == b"abc"
