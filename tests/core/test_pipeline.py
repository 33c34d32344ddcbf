"""The send pipeline: slots in a ring, frames packed into them, results in order.

Truth comes from csrc/core/pt_pipeline.h and from a model of it that is a list of lists.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from peertalk import errors
from peertalk._core.values import (
    ACK,
    CAPABILITY,
    COALESCABLE,
    DATA,
    DISCONNECT,
    FRAGMENT,
    NO_DELAY,
    PING,
    PONG,
    REJECT,
)
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_INVALID_PARAM,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NETWORK,
    ERR_NO_MEMORY,
    ERR_NOT_INITIALIZED,
    ERR_TIMEOUT,
    ERR_WOULD_BLOCK,
    FRAME_OVERHEAD,
    OK,
    SLOT_ABANDONED,
    SLOT_COMPLETED,
    SLOT_FILLING,
    SLOT_FREE,
    SLOT_IN_FLIGHT,
)


def frames_in(core: Any, data: bytes) -> list[Any]:
    """The frames that stand one behind the other in data, and nothing else."""
    frames = []
    while data:
        frames.append(core.decode_frame(data))
        data = data[len(frames[-1].payload) + FRAME_OVERHEAD :]
    return frames


def launched(core: Any, pipeline: Any) -> list[Any]:
    """The frames of the oldest filling slot, which is launched."""
    index = pipeline.launch()
    assert index >= 0
    return frames_in(core, pipeline.slot_bytes(index))


def test_small_frames_share_a_slot_in_order(core):
    """Packing is what makes 64-byte messages cost a fraction of a system call; it must not
    reorder."""
    pipeline = core.SendPipeline(depth=2, slot_size=1_000)
    for number in range(10):
        assert pipeline.send(DATA, b"message %d" % number) == OK
    assert pipeline.pending == 1
    assert [frame.payload for frame in launched(core, pipeline)] == [
        b"message %d" % number for number in range(10)
    ]
    assert pipeline.close() == 1


def test_a_frame_that_finds_no_room_takes_the_next_slot(core):
    """A slot is one write: a frame is never split over two, and the room is used to its last
    byte."""
    pipeline = core.SendPipeline(depth=3, slot_size=100)
    assert pipeline.send(DATA, bytes(100 - 2 * FRAME_OVERHEAD - 1)) == OK
    assert pipeline.send(DATA, b"!") == OK  # exactly what was left
    assert pipeline.pending == 1
    assert pipeline.send(DATA, b"") == OK
    assert pipeline.pending == 2
    assert len(launched(core, pipeline)) == 2
    assert len(launched(core, pipeline)) == 1


def test_without_packing_every_frame_has_its_own_slot(core):
    """The one-message slots of the original are benchmarked beside the packed ones."""
    pipeline = core.SendPipeline(depth=3, slot_size=1_000, packing=False)
    for payload in (b"a", b"b", b"c"):
        assert pipeline.send(DATA, payload) == OK
        assert pipeline.is_ripe()
    assert pipeline.send(DATA, b"d") == ERR_WOULD_BLOCK
    assert [launched(core, pipeline)[0].payload for _ in range(3)] == [b"a", b"b", b"c"]


def test_a_no_delay_frame_closes_its_slot_for_others(core):
    """What must leave at once must not wait for what comes after it; what stood before it goes with
    it."""
    pipeline = core.SendPipeline(depth=3, slot_size=1_000)
    pipeline.send(DATA, b"before")
    assert not pipeline.is_ripe()
    pipeline.send(DATA, b"now", NO_DELAY)
    assert pipeline.is_ripe()
    pipeline.send(DATA, b"after")
    assert not pipeline.is_ripe()
    assert [frame.payload for frame in launched(core, pipeline)] == [b"before", b"now"]
    assert [frame.payload for frame in launched(core, pipeline)] == [b"after"]


def test_a_launched_slot_takes_no_more_frames(core):
    """In flight the bytes belong to the platform: a frame packed in then would be lost or sent
    twice."""
    pipeline = core.SendPipeline(depth=2, slot_size=1_000)
    pipeline.send(DATA, b"first")
    index = pipeline.launch()
    before = pipeline.slot_bytes(index)
    pipeline.send(DATA, b"second")
    assert pipeline.slot_bytes(index) == before
    assert pipeline.pending == 2
    assert [frame.payload for frame in launched(core, pipeline)] == [b"second"]
    assert pipeline.launch() == -1


def test_only_data_and_disconnect_count_in_the_sequence(core):
    """The original counts DATA and the final DISCONNECT; the others carry 0 and do not count."""
    pipeline = core.SendPipeline()
    types = [DATA, PING, DATA, PONG, CAPABILITY, ACK, REJECT, DATA, DISCONNECT, DATA]
    for type in types:
        assert pipeline.send(type, b"") == OK
    assert [(frame.type, frame.sequence) for frame in launched(core, pipeline)] == list(
        zip(types, [0, 0, 1, 0, 0, 0, 0, 2, 3, 4], strict=True)
    )
    assert pipeline.send_seq == 5


def test_the_sequence_wraps_at_256(core):
    """One byte on the wire: message 256 carries 0 again."""
    pipeline = core.SendPipeline(slot_size=12 * 100, depth=4, lazy=False)
    for _ in range(300):
        assert pipeline.send(DATA, b"") == OK
    frames = [frame for _ in range(3) for frame in launched(core, pipeline)]
    assert [frame.sequence for frame in frames] == [number % 256 for number in range(300)]


def test_flags_and_type_arrive_but_no_delay_stays_here(core):
    """Flags are the receiver's business; NO_DELAY is the sender's alone."""
    pipeline = core.SendPipeline()
    pipeline.send(DATA, b"piece", FRAGMENT | COALESCABLE | NO_DELAY)
    (frame,) = launched(core, pipeline)
    assert frame == (DATA, FRAGMENT | COALESCABLE, 0, b"piece")


def test_a_refusal_for_want_of_slots_changes_nothing(core):
    """WOULD_BLOCK leaves no gap in the sequence: the message is sent later as if nothing had
    been."""
    pipeline = core.SendPipeline(depth=2, slot_size=64)
    for _ in range(2):
        assert pipeline.send(DATA, bytes(52)) == OK
    before = (
        pipeline.send_seq,
        pipeline.accepted,
        pipeline.pending,
        [pipeline.slot_bytes(index) for index in range(2)],
    )
    for _ in range(300):
        assert pipeline.send(DATA, b"refused") == ERR_WOULD_BLOCK
        assert pipeline.send(PING, b"refused") == ERR_WOULD_BLOCK
    assert before == (
        pipeline.send_seq,
        pipeline.accepted,
        pipeline.pending,
        [pipeline.slot_bytes(index) for index in range(2)],
    )

    pipeline.complete(pipeline.launch())
    assert pipeline.report() == (1, OK)
    assert pipeline.send(DATA, b"again") == OK
    assert [launched(core, pipeline)[0].sequence for _ in range(2)] == [1, 2]


def test_a_refusal_for_want_of_memory_changes_nothing(core):
    """A lazy slot that finds no buffer is not taken, and the message that was refused has no number
    yet."""
    pool = core.BufferPool([(64, 4)])
    pipeline = core.SendPipeline(depth=2, slot_size=64, pool=pool)
    pool.fail_at(1)
    for _ in range(3):
        assert pipeline.send(DATA, b"refused") == ERR_NO_MEMORY
    assert (pipeline.pending, pipeline.accepted, pipeline.send_seq, pipeline.available) == (
        0,
        0,
        0,
        2,
    )
    assert pool.statistics().in_use == 0
    pool.fail_at(0)
    assert pipeline.send(DATA, b"sent") == OK
    assert launched(core, pipeline) == [(DATA, 0, 0, b"sent")]
    assert pipeline.close() == 1
    pipeline.complete(0)
    assert pipeline.close() == 0
    assert pool.close() == 0


def test_a_link_that_holds_a_slot_is_never_refused_for_memory(core):
    """What it waits for is its own slot, whose report tells of it; nobody has to ask again for
    memory that others hold."""
    pool = core.BufferPool([(64, 1)])
    pipeline = core.SendPipeline(depth=2, slot_size=64, pool=pool)
    assert pipeline.send(DATA, bytes(52)) == OK
    assert pipeline.send(DATA, b"x") == ERR_WOULD_BLOCK
    pipeline.complete(pipeline.launch())
    assert pipeline.report() == (1, OK)
    assert pipeline.send(DATA, b"x") == OK
    pipeline.close()


def test_a_frame_that_fits_no_slot_is_too_large(core):
    """Refused for good, not for now: a caller that retried would wait for ever."""
    pipeline = core.SendPipeline(depth=2, slot_size=200)
    assert pipeline.send(DATA, bytes(189)) == ERR_MESSAGE_TOO_LARGE
    assert pipeline.pending == 0
    assert pipeline.send(DATA, bytes(188)) == OK
    assert pipeline.is_ripe()
    assert launched(core, pipeline) == [(DATA, 0, 0, bytes(188))]


@pytest.mark.parametrize("type", [0, 8, 255])
def test_a_type_that_the_protocol_lacks_is_refused(core, type):
    """A receiver ends the link at such a frame."""
    pipeline = core.SendPipeline()
    assert pipeline.send(type, b"") == ERR_INVALID_PARAM
    assert (pipeline.pending, pipeline.send_seq) == (0, 0)


def test_the_payload_is_the_callers_again_when_send_returns(core):
    """The copy is made in send: a caller may reuse its buffer at once."""
    pipeline = core.SendPipeline()
    payload = bytearray(b"as it was")
    pipeline.send(DATA, payload)
    payload[:] = b"scribbled"
    pipeline.send(DATA, memoryview(payload)[:4])
    payload[:] = bytes(9)
    assert [frame.payload for frame in launched(core, pipeline)] == [b"as it was", b"scri"]


def test_results_come_in_the_order_of_sending_whatever_the_platform_does(core):
    """Sent and Failed are true of particular messages, so reports stay first in, first out."""
    pipeline = core.SendPipeline(depth=3, slot_size=64, packing=False)
    for payload in (b"a", b"b", b"c"):
        pipeline.send(DATA, payload)
    first, second, third = (pipeline.launch() for _ in range(3))
    pipeline.complete(third)
    pipeline.complete(second, ERR_CONNECTION_CLOSED)
    assert pipeline.report() is None
    assert pipeline.slot_state(second) == SLOT_COMPLETED
    pipeline.complete(first)
    assert [pipeline.report() for _ in range(4)] == [
        (1, OK),
        (1, ERR_CONNECTION_CLOSED),
        (1, OK),
        None,
    ]
    assert pipeline.available == 3
    assert pipeline.reported == pipeline.accepted == 3


def test_slots_are_taken_round_robin(core):
    """The next free slot, not the first: so the ring stays in order."""
    pipeline = core.SendPipeline(depth=3, slot_size=64, packing=False)
    taken = []
    for _ in range(7):
        pipeline.send(DATA, b"")
        taken.append(pipeline.launch())
        pipeline.complete(taken[-1])
        pipeline.report()
    assert taken == [0, 1, 2, 0, 1, 2, 0]


def test_a_slot_of_control_frames_reports_no_messages(core):
    """Only DATA frames are messages; the slot that becomes free is news all the same."""
    pipeline = core.SendPipeline()
    pipeline.send(PING, b"")
    pipeline.send(CAPABILITY, b"\0" * 15)
    pipeline.complete(pipeline.launch())
    assert pipeline.report() == (0, OK)
    assert pipeline.accepted == 0


def test_a_slot_is_ripe_when_no_empty_frame_fits(core):
    """Full slots leave without waiting for the end of the turn; one byte less than full is not
    full."""
    pipeline = core.SendPipeline(depth=4, slot_size=100)
    assert not pipeline.is_ripe()
    pipeline.send(DATA, bytes(100 - 2 * FRAME_OVERHEAD))
    assert not pipeline.is_ripe()
    pipeline.send(DATA, b"")
    assert pipeline.is_ripe()
    pipeline.launch()
    assert not pipeline.is_ripe()
    pipeline.send(DATA, bytes(100 - 2 * FRAME_OVERHEAD + 1))
    assert pipeline.is_ripe()


def test_a_lazy_pipeline_that_is_idle_holds_no_buffer(core):
    """An idle link costs next to nothing: buffers are borrowed at first use and go back when
    reported."""
    pool = core.BufferPool([(128, 8)])
    pipeline = core.SendPipeline(depth=4, slot_size=128, pool=pool)
    assert pool.statistics().in_use == 0
    pipeline.send(DATA, b"x")
    assert pool.statistics().in_use == 1
    pipeline.complete(pipeline.launch())
    assert pool.statistics().in_use == 1
    pipeline.report()
    assert pool.statistics().in_use == 0
    assert pipeline.close() == 0
    assert pool.close() == 0


def test_a_pipeline_that_is_not_lazy_borrows_once(core):
    """The classic worlds reserve their memory at start and never ask again."""
    pool = core.BufferPool([(128, 8)])
    pipeline = core.SendPipeline(depth=4, slot_size=128, lazy=False, pool=pool)
    assert pool.statistics().in_use == 4
    for _ in range(9):
        pipeline.send(DATA, b"x")
        pipeline.complete(pipeline.launch())
        pipeline.report()
    assert pool.statistics().in_use == pool.statistics().acquires == 4
    assert pipeline.close() == 0
    assert pool.statistics().in_use == 0
    assert pool.close() == 0


def a_pool_for(core: Any, links: int, larger: int) -> Any:
    """A pool with the share of so many links, and a budget of so many larger buffers."""
    limits = core.limits
    small = limits.frame_max_payload + FRAME_OVERHEAD
    return core.BufferPool(
        [(small, 2 * links), (limits.slot_size, 64)], budget=larger * (limits.slot_size + 16)
    )


def fill(core: Any, pipeline: Any) -> int:
    """Send whole frames until one is refused. Returns how many were accepted."""
    count = 0
    while pipeline.send(DATA, bytes(core.limits.frame_max_payload)) == OK:
        count += 1
    return count


def test_a_link_has_two_frames_in_flight_however_much_others_hold(core):
    """A hundred peers that do not read must not silence the one that does."""
    pool = a_pool_for(core, links=3, larger=2)
    greedy, late = (core.SendPipeline(depth=8, pool=pool) for _ in range(2))
    fill(core, greedy)
    assert fill(core, late) == 2
    for _ in range(300):
        assert late.send(PING, b"") == ERR_WOULD_BLOCK
        late.complete(late.launch())
        assert late.report() == (1, OK)
        assert late.send(DATA, bytes(core.limits.frame_max_payload)) == OK
    for pipeline in (greedy, late):
        while (index := pipeline.launch()) >= 0:
            pipeline.complete(index)
        while pipeline.report():
            pass
        assert pipeline.close() == 0
    assert pool.statistics().in_use == 0
    assert pool.close() == 0


def test_a_small_message_borrows_no_more_than_one_frame_needs(core):
    """To wipe and lend 64 KiB for 5 bytes cost more than to send them, and one message to each of
    a thousand peers used up all the memory that there is."""
    pool = a_pool_for(core, links=20, larger=64)
    pipelines = [core.SendPipeline(pool=pool) for _ in range(20)]
    for pipeline in pipelines:
        assert pipeline.send(DATA, b"hello") == OK
    assert pool.statistics().bytes == 20 * (core.limits.frame_max_payload + FRAME_OVERHEAD + 16)
    for pipeline in pipelines:
        assert pipeline.close() == 0


def test_a_link_in_bulk_gets_larger_slots(core):
    """Packing is what bulk lives on: behind a full slot that is still under way comes a large
    one."""
    pool = a_pool_for(core, links=1, larger=64)
    pipeline = core.SendPipeline(depth=4, pool=pool)
    while pipeline.pending < 3:
        assert pipeline.send(DATA, bytes(60)) == OK
    small, large = (len(pipeline.slot_bytes(pipeline.launch())) for _ in range(2))
    assert small <= core.limits.frame_max_payload + FRAME_OVERHEAD < large <= core.limits.slot_size
    for index in range(2):
        pipeline.complete(index)
    pipeline.close()


def test_who_says_that_more_comes_gets_larger_slots_from_the_first_on(core):
    """Many messages of 4,096 bytes left one alone in their first slot, and an eighth less in each
    write."""
    pool = a_pool_for(core, links=1, larger=64)
    pipeline = core.SendPipeline(depth=4, pool=pool)
    pipeline.more = True
    while pipeline.pending < 2:
        assert pipeline.send(DATA, bytes(60)) == OK
    assert len(pipeline.slot_bytes(0)) > core.limits.frame_max_payload + FRAME_OVERHEAD
    pipeline.more = False
    pipeline.complete(pipeline.launch())
    assert pipeline.report() is not None
    pipeline.close()


@pytest.mark.parametrize("attempt", [1, 2, 3, 4])
def test_a_pipeline_that_cannot_borrow_all_keeps_nothing(core, attempt):
    """Allocation failure at start: a clear error and no leak, whichever buffer it was."""
    pool = core.BufferPool([(128, 8)])
    pool.fail_at(attempt)
    with pytest.raises(errors.OutOfMemory):
        core.SendPipeline(depth=4, slot_size=128, lazy=False, pool=pool)
    assert pool.statistics().in_use == 0
    assert pool.close() == 0


@pytest.mark.parametrize(
    ("depth", "slot_size"), [(0, 128), (65, 128), (4, FRAME_OVERHEAD - 1), (4, 0), (4, 129)]
)
def test_depth_and_slot_size_have_bounds(core, depth, slot_size):
    """1 to 64 slots, of 12 bytes to the pool's largest class."""
    pool = core.BufferPool([(128, 64)])
    with pytest.raises(errors.InvalidArgument):
        core.SendPipeline(depth=depth, slot_size=slot_size, pool=pool)
    assert core.SendPipeline(depth=64, slot_size=FRAME_OVERHEAD, pool=pool).send(DATA, b"") == OK


def test_the_defaults_are_those_of_the_limits(core):
    """Depth and slot size are arguments; what stands in pt_config.h is used when nothing is
    said."""
    pipeline = core.SendPipeline()
    assert pipeline.available == core.limits.pipeline_depth
    assert pipeline.send(DATA, bytes(core.limits.frame_max_payload)) == OK
    while pipeline.send(DATA, b"") == OK:
        pass
    assert not pipeline.available
    largest = max(len(pipeline.slot_bytes(index)) for index in range(core.limits.pipeline_depth))
    assert core.limits.slot_size - FRAME_OVERHEAD < largest <= core.limits.slot_size


def test_slots_in_flight_outlive_the_link(core):
    """The platform still reads from them: the memory stays until it lets go, then it goes back."""
    pool = core.BufferPool([(64, 4)])
    pipeline = core.SendPipeline(depth=4, slot_size=64, packing=False, pool=pool)
    for payload in (b"done", b"flying", b"flying too", b"waiting"):
        pipeline.send(DATA, payload)
    pipeline.complete(pipeline.launch())
    flying = [pipeline.launch(), pipeline.launch()]
    bytes_before = [pipeline.slot_bytes(index) for index in flying]

    assert pipeline.close() == 2
    assert pipeline.close() == 2
    assert [pipeline.slot_state(index) for index in flying] == [SLOT_ABANDONED, SLOT_ABANDONED]
    assert [pipeline.slot_bytes(index) for index in flying] == bytes_before
    assert pool.statistics().in_use == 2

    pipeline.complete(flying[1], ERR_CONNECTION_CLOSED)
    assert pipeline.close() == 1
    pipeline.complete(flying[0])
    assert pipeline.close() == 0
    assert pipeline.slot_state(flying[0]) == SLOT_FREE
    assert pool.statistics().in_use == 0
    assert pool.close() == 0


def test_a_closed_pipeline_accepts_nothing(core):
    """And what was not reported can still be counted: accepted less reported."""
    pipeline = core.SendPipeline()
    pipeline.send(DATA, b"never reported")
    assert pipeline.close() == 0
    assert pipeline.send(DATA, b"") == ERR_NOT_INITIALIZED
    assert (pipeline.accepted, pipeline.reported) == (1, 0)


class Against(RuleBasedStateMachine):
    """A pipeline beside a model of it: a list of slots, each a list of frames."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.core = core

    @initialize(
        depth=st.integers(1, 5),
        slot_size=st.integers(FRAME_OVERHEAD, 90),
        lazy=st.booleans(),
        packing=st.booleans(),
        capacity=st.integers(1, 6),
    )
    def make(self, depth, slot_size, lazy, packing, capacity):
        self.pool = self.core.BufferPool([(slot_size, depth if not lazy else capacity)])
        self.pipeline = self.core.SendPipeline(
            depth=depth, slot_size=slot_size, lazy=lazy, packing=packing, pool=self.pool
        )
        self.depth, self.slot_size, self.lazy, self.packing, self.capacity = (
            depth,
            slot_size,
            lazy,
            packing,
            capacity,
        )
        self.slots: list[dict[str, Any]] = []  # from the oldest on
        self.taken = 0
        self.sequence = self.accepted = self.reported = 0
        self.memory = True

    def _expected(self, type, frame_len, flags):
        """What send must answer, and the model after it."""
        if frame_len > self.slot_size:
            return ERR_MESSAGE_TOO_LARGE
        newest = self.slots[-1] if self.slots else None
        fits = (
            newest
            and newest["state"] == SLOT_FILLING
            and self.packing
            and not newest["sealed"]
            and newest["len"] + frame_len <= self.slot_size
        )
        if not fits:
            if len(self.slots) == self.depth:
                return ERR_WOULD_BLOCK
            if self.lazy and (len(self.slots) == self.capacity):
                return ERR_WOULD_BLOCK
            self.slots.append(
                {
                    "state": SLOT_FILLING,
                    "frames": [],
                    "len": 0,
                    "sealed": False,
                    "index": self.taken % self.depth,
                    "result": None,
                }
            )
            self.taken += 1
        return OK

    @rule(
        type=st.sampled_from([DATA, DATA, DATA, PING, DISCONNECT, CAPABILITY]),
        payload=st.binary(max_size=90),
        no_delay=st.booleans(),
    )
    def send(self, type, payload, no_delay):
        flags = NO_DELAY if no_delay else 0
        expected = self._expected(type, len(payload) + FRAME_OVERHEAD, flags)
        assert self.pipeline.send(type, payload, flags) == expected
        if expected == OK:
            counts = type in (DATA, DISCONNECT)
            slot = self.slots[-1]
            slot["frames"].append((type, 0, self.sequence if counts else 0, payload))
            slot["len"] += len(payload) + FRAME_OVERHEAD
            slot["sealed"] |= no_delay
            self.sequence = (self.sequence + counts) % 256
            self.accepted += type == DATA

    @rule()
    def launch(self):
        filling = [slot for slot in self.slots if slot["state"] == SLOT_FILLING]
        index = self.pipeline.launch()
        if not filling:
            assert index == -1
            return
        assert index == filling[0]["index"]
        assert frames_in(self.core, self.pipeline.slot_bytes(index)) == filling[0]["frames"]
        filling[0]["state"] = SLOT_IN_FLIGHT

    @precondition(lambda self: any(slot["state"] == SLOT_IN_FLIGHT for slot in self.slots))
    @rule(
        data=st.data(),
        result=st.sampled_from([OK, OK, ERR_CONNECTION_CLOSED, ERR_NETWORK, ERR_TIMEOUT]),
    )
    def complete(self, data, result):
        slot = data.draw(
            st.sampled_from([slot for slot in self.slots if slot["state"] == SLOT_IN_FLIGHT])
        )
        assert frames_in(self.core, self.pipeline.slot_bytes(slot["index"])) == slot["frames"], (
            "the bytes moved while in flight"
        )
        self.pipeline.complete(slot["index"], result)
        slot["state"], slot["result"] = SLOT_COMPLETED, result

    @rule()
    def report(self):
        if not self.slots or self.slots[0]["state"] != SLOT_COMPLETED:
            assert self.pipeline.report() is None
            return
        slot = self.slots.pop(0)
        count = sum(frame[0] == DATA for frame in slot["frames"])
        assert self.pipeline.report() == (count, slot["result"])
        self.reported += count

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "slots"):
            return
        pipeline = self.pipeline
        assert pipeline.pending == len(self.slots)
        assert pipeline.available == self.depth - len(self.slots)
        assert (pipeline.send_seq, pipeline.accepted, pipeline.reported) == (
            self.sequence,
            self.accepted,
            self.reported,
        )
        states = {slot["index"]: slot["state"] for slot in self.slots}
        assert [pipeline.slot_state(index) for index in range(self.depth)] == [
            states.get(index, SLOT_FREE) for index in range(self.depth)
        ]
        newest = self.slots[-1] if self.slots else None
        ripe = (
            newest
            and newest["state"] == SLOT_FILLING
            and (
                not self.packing
                or newest["sealed"]
                or newest["len"] + FRAME_OVERHEAD > self.slot_size
            )
        )
        assert pipeline.is_ripe() == bool(ripe)
        assert self.pool.statistics().in_use == (len(self.slots) if self.lazy else self.depth)

    def teardown(self):
        if not hasattr(self, "slots"):
            return
        flying = [slot["index"] for slot in self.slots if slot["state"] == SLOT_IN_FLIGHT]
        assert self.pipeline.close() == len(flying)
        assert self.pool.statistics().in_use == len(flying)
        for left, index in zip(range(len(flying) - 1, -1, -1), reversed(flying), strict=True):
            self.pipeline.complete(index)
            assert self.pool.statistics().in_use == left
        assert self.pipeline.close() == 0
        assert self.pool.close() == 0


def test_any_history_of_a_pipeline_is_that_of_its_model(core, rounds):
    """Sends, launches, completions out of order, reports and a close with slots in flight: every
    state, count and byte."""
    run_state_machine_as_test(
        lambda: Against(core),
        settings=settings(
            max_examples=rounds(40, 2_000), stateful_step_count=60, deadline=None, print_blob=True
        ),
    )
