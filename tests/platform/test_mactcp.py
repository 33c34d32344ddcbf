"""The MacTCP world: parameter blocks, polled results, and how fast the pipeline makes it.

The driver's rules are tested in C (tests/c/mactcp_rules.c), where they can be broken; here the
platform is what the loop sees of it. Truth comes from the model of the link, which gives each
figure.
"""

from __future__ import annotations

import re

import classic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.tables import IN_THE_LONG_FORM

from peertalk import _core, errors
from peertalk._core.binding import simulation
from peertalk._core.values import BATCH, DISCONNECT, EDGE, READ, READY, TIMER, WRITE
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NOT_CONNECTED,
    ERR_TIMEOUT,
    ERR_WOULD_BLOCK,
)

WORLDS = ("mactcp", "opentransport")
MS = 1_000_000


@pytest.fixture
def standard():
    return _core.load("standard")


def test_the_driver_refuses_what_the_real_one_refuses_and_says_which_rule_was_broken(
    standard_programs,
):
    """A missing sentinel, a block not cleared, bytes changed in flight, a completion routine, calls
    at notification time; and what is right: the blocks themselves, 10,000 sends through two slots
    completing out of order, 30 s and then failure, abandoned slots, synchronous sends that overtake
    nothing."""
    standard_programs.run("mactcp_rules")


@pytest.mark.parametrize(
    ("build", "rows"),
    [("standard", 18), pytest.param("lowmem", 6, marks=IN_THE_LONG_FORM)],
)
def test_throughput_is_that_of_the_model_over_minutes_of_simulated_time(
    request, rounds, build, rows
):
    """Within 1 % on both platforms, flat in rate and memory, nothing lost; one message takes as
    long with the pipeline as without. The program checks each row; all of them together take
    minutes, in the long form each takes ten."""
    programs = request.getfixturevalue(f"{build}_programs")
    told = programs.run("sim_throughput", str(rounds(10, 600)))
    found = {
        (world, int(size), int(depth), packed): float(rate)
        for world, size, depth, packed, rate in re.findall(
            r"^(\w+) +(\d+) bytes, depth (\d+)(, packed)?: ([\d.]+) KB/s$", told, flags=re.M
        )
    }
    assert len(found) == rows
    for world in WORLDS:
        assert found[world, 1_024, 2, ""] >= 1.95 * found[f"{world}_sync", 1_024, 1, ""]
        if build == "standard":
            assert found[world, 4_096, 4, ""] >= 3.9 * found[f"{world}_sync", 4_096, 1, ""]
            assert found[world, 1_024, 4, ", packed"] >= 290


def test_the_tables_have_what_the_source_says(c_core):
    """Asynchronous entries: set on the classic worlds, NULL on plain sockets and in the synchronous
    twins that are the baseline."""
    asynchronous = (
        "tcp_send_async",
        "poll_send_completions",
        "wait_send_completions",
        "send_slots_available",
    )
    for name, world in c_core.platforms().items():
        wanted = [int(name in ("posix", *WORLDS))] * 4
        if name == "posix_worker":  # a worker waits for all of its links alone
            wanted = [1, 1, 0, 1]
        assert world["tcp_send"] == 1 and [world[entry] for entry in asynchronous] == wanted, name
        assert (world["simulated"], world["ticks_per_second"]) == (
            (0, 1_000) if name.startswith("posix") else (1, 60)
        )


@pytest.mark.parametrize("world", WORLDS)
def test_sizes_are_those_of_the_maker_and_ours(pair, standard, world):
    """108 bytes for a block in the source, 92 in the maker's header: both are reported, and neither
    is passed off as the other, nor as that of the simulated driver, which notes more in it: one for
    each slot, and one for the send that stands alone."""
    loop, sim = pair((standard, standard), (world, world)).loop_a, simulation()
    of_link = loop._ops.link_size(standard.limits.classic_depth)
    assert (sim.lib.PT_MACTCP_BLOCK_SIZE, sim.lib.PT_MACTCP_BLOCK_DOCUMENTED) == (92, 108)
    assert 0 < loop._ffi.sizeof("pt_send_slot") <= 64 and 0 < of_link < 2_048
    if world == "mactcp":
        assert sim.ffi.sizeof("pt_mactcp_block") > 92
        assert of_link > (4 + 1) * sim.ffi.sizeof("pt_mactcp_block")


@pytest.mark.parametrize("world", WORLDS)
def test_messages_arrive_in_order_and_whole_on_every_core(pair, c_core, world):
    """The same loop, pipeline and frames as on sockets; only the world is another."""
    both = pair((c_core, c_core), (world, world))
    limit = c_core.limits.message_max_payload
    assert (
        both.link_a.max_message == limit
        and both.link_a.send(bytes(limit + 1)) == ERR_MESSAGE_TOO_LARGE
    )
    messages = [bytes([number % 251]) * (1 + number * 61 % limit) for number in range(150)]
    both.send_all(messages)
    assert both.received == messages and both.failed == 0
    assert both.link_a.slots_pending == 0
    both.run(seconds=4)
    assert both.loop_a.next_timeout() is None, "an idle link needs no turns"


@pytest.mark.parametrize("loss", [0, 0.05], ids=["whole", "lossy"])
@pytest.mark.parametrize("world", [*WORLDS, *(f"{world}_sync" for world in WORLDS)])
def test_what_a_world_puts_on_the_wire_is_read_by_the_scripted_original(c_core, world, loss):
    """A capture of the wire, taken at a host that runs nothing of ours, and decoded by the scripted
    peer, which shares no code with the core: were both ends ours, a mistake that both make would
    never be seen."""
    sim = c_core.Simulator(4, preset="classic")
    a, b = sim.add_host("a"), sim.add_host("b")
    loop = c_core.Loop(platform=world, simulator=sim, host=a)
    listener = b.listen(7_354)
    dialled = a.dial(b.address, 7_354)
    while dialled.outcome() == ERR_WOULD_BLOCK or not listener.ready:
        assert sim.step()
    far = listener.accept()
    sim.link("a", "b", loss=loss)
    link = loop.open_link(dialled.fileno(), 1)
    limit = c_core.limits.message_max_payload
    wanted = [
        (classic.DATA, bytes([number]) * (number * 97 % limit)) for number in range(1, 60)
    ] + [(classic.DATA, b""), (classic.DATA, bytes(limit)), (classic.PING, b"")]
    waiting = list(wanted)
    capture: list[bytes] = []
    while waiting or link.pending:
        while waiting and link.send_frame(*waiting[0]) >= 0:
            del waiting[0]
        while loop.has_work():
            loop.turn(0.0)
        if link.pending or waiting:
            assert sim.step(), "nothing more happens, and not all has left"
        while packet := far.recv():
            capture.append(packet)
    assert link.send_frame(DISCONNECT) >= 0
    loop.turn(0.0)
    sim.advance(sim.now_ns + 60_000 * MS)
    capture.append(far.recv())
    counts = sim.link_statistics("a", "b")
    assert counts.packets > 10 and (counts.lost > 0) == (loss > 0)

    stream, frames = b"".join(capture), []
    while stream:
        frames.append(classic.decode_frame(stream))
        stream = stream[len(frames[-1].payload) + 12 :]
    assert [(frame.kind, frame.payload) for frame in frames] == [
        *wanted,
        (classic.DISCONNECT, b""),
    ]
    assert {frame.flags for frame in frames} == {0}
    numbers = [frame.sequence for frame in frames if frame.kind != classic.PING]
    assert numbers == list(range(len(numbers))) and frames[-2].sequence == 0
    assert loop.violations() == []
    link.close()
    loop.close()
    sim.close()


@pytest.mark.parametrize("budget", [16, 1_024])
@pytest.mark.parametrize("world", WORLDS)
def test_a_turn_serves_as_many_sources_as_its_budget_says(c_core, world, budget):
    """The simulated worlds collect what is ready by themselves: forty links in one turn, or in
    three."""
    count = 40
    sim = c_core.Simulator(4, preset="classic")
    a, b = sim.add_host("a"), sim.add_host("b")
    loop = c_core.Loop(platform=world, simulator=sim, host=b, io_budget=budget)
    listener = b.listen(7_354)
    for tag in range(count):
        dialled = a.dial(b.address, 7_354)
        while dialled.outcome() == ERR_WOULD_BLOCK or not listener.ready:
            assert sim.step()
        loop.open_link(listener.accept().fileno(), tag)
        assert dialled.send(c_core.encode_frame(classic.DATA, b"in")) > 0
    sim.advance(sim.now_ns + 60_000 * MS)
    turns = []
    while loop.has_work():
        turns.append([tag for kind, tag, _, _ in loop.turn(0.0) if kind == BATCH])
    assert [len(each) for each in turns if each] == ([16, 16, 8] if budget == 16 else [count])
    assert {tag for each in turns for tag in each} == set(range(count))
    assert loop.violations() == []
    loop.close()
    sim.close()


@settings(max_examples=30, deadline=None)
@given(
    world=st.sampled_from(WORLDS),
    depth=st.integers(1, 6),
    packing=st.booleans(),
    sizes=st.lists(st.integers(0, 1_024), min_size=1, max_size=40),
)
def test_slots_available_is_depth_less_pending_at_all_times(
    pair_class, world, depth, packing, sizes
):
    """The number that decides between asynchronous and synchronous sends must never be stale."""
    core = _core.load("lowmem")
    both = pair_class((core, core), (world, world), depth=depth, packing=packing)
    waiting = [bytes(size) for size in sizes]
    for _ in range(10_000):
        while waiting:
            code = both.link_a.send(waiting[0])
            assert both.link_a.slots_available == depth - both.link_a.slots_pending
            assert (code == ERR_WOULD_BLOCK) <= (both.link_a.slots_available == 0)
            if code < 0:
                break
            del waiting[0]
        both.serve()
        assert both.link_a.slots_available == depth - both.link_a.slots_pending
        if not both.sim.step():
            break
    assert both.received == [bytes(size) for size in sizes] and both.sent == len(sizes)
    assert both.violations() == []
    both.sim.close()


@pytest.mark.parametrize("blocking", [False, True], ids=["wait", "sync"])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
@pytest.mark.parametrize("world", [*WORLDS, *(f"{world}_sync" for world in WORLDS)])
def test_a_send_blocks_only_when_every_slot_is_taken_or_the_world_knows_no_other_way(
    pair, c_core, world, taken, blocking
):
    """The table of S0.93 and S0.94: free slots go the asynchronous way; full ones refuse, or, where
    the sender may block, drain first."""
    asynchronous = not world.endswith("_sync")
    both = pair((c_core, c_core), (world, world.removesuffix("_sync")), depth=2, packing=False)
    link, messages = both.link_a, [b"first", b"second"] * taken
    for message in messages:
        assert link.send(message) >= 0
    start = both.sim.now_ns
    code = (link.send_sync if blocking else link.send)(b"last")
    passed_ns, drained = both.sim.now_ns - start, link.slots_available == 2
    blocks = blocking and (taken or not asynchronous)
    if taken and asynchronous and not blocking:
        assert code == ERR_WOULD_BLOCK and link.slots_available == 0
    else:
        assert code >= 0
        messages.append(b"last")
    assert link.statistics().sync_sends == blocks
    assert drained or not blocks, "a blocking send returns when all has left"
    assert (passed_ns > 0) == (blocks or not asynchronous), "it is virtual time that passes"
    assert both.received == [] and both.sent == 0 and link.pending == len(messages), (
        "no event is delivered within a call"
    )
    assert both.run(lambda: both.sent == len(messages) == len(both.received))
    assert both.received == messages


@settings(max_examples=60, deadline=None)
@given(
    world=st.sampled_from(WORLDS),
    depth=st.integers(1, 6),
    packing=st.booleans(),
    jitter_ms=st.sampled_from([0, 40]),
    limit=st.sampled_from([0, 700]),
    sends=st.lists(
        st.tuples(st.integers(4, 1_024), st.booleans(), st.booleans()), min_size=1, max_size=40
    ),
)
def test_a_blocking_send_overtakes_nothing_and_leaves_no_gap(
    pair_class, world, depth, packing, jitter_ms, limit, sends
):
    """T.3 and T.4: whatever mixture of both ways, with writes completing out of order and taken in
    parts, each message arrives once and in order, and a refusal takes no number of the sequence,
    which the receiving end would see as a gap."""
    core = _core.load("lowmem")
    both = pair_class(
        (core, core), (world, world), depth=depth, packing=packing, loop={"send_limit": limit}
    )
    both.a.set_completion_jitter(jitter_ms * MS)
    accepted = []
    for number, (size, blocking, serving) in enumerate(sends):
        message = number.to_bytes(4, "big") + bytes(size - 4)
        code = (both.link_a.send_sync if blocking else both.link_a.send)(message)
        assert code >= 0 or (code == ERR_WOULD_BLOCK and not blocking)
        if code >= 0:
            accepted.append(message)
        assert both.link_a.pending + both.sent == len(accepted)
        assert both.link_a._link.pipeline.send_seq == len(accepted) % 256
        if serving:
            both.serve()
    assert both.run(lambda: both.sent == len(accepted) == len(both.received))
    assert (
        both.received == accepted
        and both.failed == 0
        and not both.closed
        and both.violations() == []
    )
    both.sim.close()


@pytest.mark.parametrize("world", WORLDS)
def test_a_blocking_send_gives_up_after_five_seconds_and_has_changed_nothing(pair, c_core, world):
    """Nobody reads: the slots cannot drain. The same message may be sent again, and comes once."""
    both = pair((c_core, c_core), (world, world), depth=3, packing=False, window=500)
    both.link_b.pause()
    messages = [bytes([number]) * 1_000 for number in range(3)]
    for message in messages:
        assert both.link_a.send(message) >= 0
    for _ in range(2):
        start = both.sim.now_ns
        assert both.link_a.send_sync(b"last") == ERR_TIMEOUT
        assert 4_980 * MS <= both.sim.now_ns - start <= 5_000 * MS
        both.serve()
        assert (
            both.link_a.pending + both.sent == 3 and both.link_a.statistics().messages_accepted == 3
        )
        assert both.link_a._link.pipeline.send_seq == 3 and not both.closed
    both.link_b.resume()
    assert both.run(lambda: both.sent == 3)
    assert both.link_a.send_sync(b"last") >= 0
    assert (
        both.run(lambda: len(both.received) == 4)
        and both.received == [*messages, b"last"]
        and both.failed == 0
    )


@pytest.mark.parametrize("world", WORLDS)
def test_a_blocking_send_ends_with_its_connection(pair, standard, world):
    """Who waits for slots hears within the wait that they will never come free; what was in them
    has its outcome."""
    both = pair((standard, standard), (world, world), depth=2, packing=False, window=500)
    both.link_b.pause()
    for _ in range(2):
        assert both.link_a.send(bytes(1_000)) >= 0
    both.run(seconds=1)
    both.socket_b.abort()
    start = both.sim.now_ns
    assert both.link_a.send_sync(b"never") == ERR_NOT_CONNECTED
    assert both.sim.now_ns - start < 1_000 * MS
    assert both.run(lambda: "a" in both.closed)
    assert (
        both.closed["a"][0] == ERR_CONNECTION_CLOSED
        and both.sent + both.failed + both.link_a.pending == 2
    )


@pytest.mark.parametrize("world", WORLDS)
def test_four_messages_are_on_the_wire_before_the_first_acknowledgement(pair, standard, world):
    """That is the whole idea."""
    both = pair((standard, standard), (world, world), depth=4, packing=False)
    both.sim.trace()
    for _ in range(4):
        assert both.link_a.send(bytes(1_024)) >= 0
    assert both.link_a.send(b"x") == ERR_WOULD_BLOCK
    assert both.run(lambda: both.sent == 4)
    kinds = [record.kind for record in both.sim.trace() if record.kind in ("send", "ack")]
    assert kinds == ["send"] * 4 + ["ack"] * 4


@pytest.mark.parametrize("world", WORLDS)
def test_a_connection_that_ends_in_order_ends_with_code_0_on_both_sides(pair, standard, world):
    """What was queued leaves first; each side hears that the other has finished."""
    both = pair((standard, standard), (world, world))
    for _ in range(3):
        both.link_a.send(b"bye")
    both.link_a.shut()
    assert both.run(lambda: "b" in both.finished)
    assert both.received == [b"bye"] * 3
    both.link_b.send(b"bye, too")
    both.link_b.shut()
    assert both.run(lambda: len(both.closed) == 2)
    assert both.closed == {"a": (0, 0), "b": (0, 0)} and both.received[3:] == [b"bye, too"]


@pytest.mark.parametrize("world", WORLDS)
def test_a_paused_link_stops_the_other_side_and_loses_nothing(pair, standard, world):
    """Backpressure over the window, as with sockets."""
    both = pair((standard, standard), (world, world), window=8_000)
    both.link_b.pause()
    count = 0
    while True:
        while both.link_a.send(bytes(900)) >= 0:
            count += 1
        if not both.run(lambda: both.link_a.slots_available, seconds=20):
            break
    assert count < 40 and both.received == [] and not both.closed
    both.link_b.resume()
    assert both.run(lambda: both.sent == count and len(both.received) == count)


@pytest.mark.parametrize("world", WORLDS)
def test_every_send_has_an_outcome_when_the_peer_vanishes(pair, standard, world):
    """Thirty simulated seconds without a sign of life; then what was not reported as sent is
    counted as pending, and the link is closed."""
    both = pair((standard, standard), (world, world))
    both.b.vanish()
    start = both.sim.now_ns
    for _ in range(4):
        both.link_a.send(bytes(4_000))
    assert both.run(lambda: "a" in both.closed)
    assert 30_000 * MS <= both.sim.now_ns - start < 31_000 * MS
    assert (
        both.closed["a"][0] == ERR_CONNECTION_CLOSED
        and both.sent == 0
        and both.failed + both.link_a.pending == 4
    )


@pytest.mark.parametrize("world", WORLDS)
def test_the_result_of_each_slot_is_told_with_its_code(pair, c_core, world):
    """A link that is paused does not hear from reading that the connection is gone: the slots are
    the only ones who know."""
    both = pair((c_core, c_core), (world, world), depth=3, packing=False)
    both.link_a.pause()
    both.b.vanish()
    for _ in range(3):
        assert both.link_a.send(bytes(1_000)) >= 0
    assert both.run(lambda: both.failed == 3, seconds=31)
    assert (
        both.failed_with == {ERR_CONNECTION_CLOSED} and both.sent == 0 and both.link_a.pending == 0
    )


@pytest.mark.parametrize("world", WORLDS)
def test_a_link_closed_in_flight_keeps_its_memory_until_the_driver_lets_go(pair, standard, world):
    """Freed earlier, the driver would send from memory that is somebody else's by then."""
    both = pair((standard, standard), (world, world))
    for _ in range(3):
        both.link_a.send(bytes(4_000))
    both.serve()
    both.link_a.close()
    both.socket_a.close()
    assert both.loop_a.abandoned == 3 and both.loop_a.pool.statistics().in_use >= 3
    assert both.run(lambda: both.loop_a.abandoned == 0, seconds=1)
    both.loop_a.turn(0.0)
    assert both.loop_a.pool.statistics().in_use == 0
    assert both.run(lambda: len(both.received) == 3), "what the driver had was still sent"


@pytest.mark.parametrize("world", WORLDS)
def test_slot_buffers_are_borrowed_when_a_link_opens_but_with_low_memory_at_first_use(pair, world):
    """The Mac SE has no 16 KB to spare for a peer that says nothing."""
    for name, before in (("standard", 4 * 4_112), ("lowmem", 0)):
        core = _core.load(name)
        both = pair((core, core), (world, world))
        assert before <= both.loop_a.pool.statistics().bytes <= before + 4 * 16
        both.send_all([b"x" * 100])
        assert both.loop_a.pool.statistics().in_use == (4 if before else 0)


@pytest.mark.parametrize("world", WORLDS)
def test_a_link_without_memory_is_refused_and_changes_nothing(pair, standard, world):
    """Each allocation in turn fails: the platform's own blocks are counted with the pool's."""
    both = pair((standard, standard), (world, world))
    both.link_a.close()
    both.loop_a.turn(0.0)
    held = both.loop_a.pool._account.bytes
    for attempt in range(1, 8):
        both.loop_a.pool.trim()
        both.loop_a.pool.fail_at(attempt)
        try:
            link = both.loop_a.open_link(both.socket_a.fileno(), 9)
        except errors.OutOfMemory:
            both.loop_a.pool.fail_at(0)
            both.loop_a.pool.trim()
            assert both.loop_a.pool._account.bytes <= held
        else:
            both.loop_a.pool.fail_at(0)
            assert attempt > 5
            link.close()
            break
    else:
        pytest.fail("a link needs fewer allocations than that")


@pytest.mark.parametrize("world", WORLDS)
def test_a_turn_waits_on_the_virtual_clock_and_wakes_for_timers_and_wakes(pair, standard, world):
    """Nothing blocks in the kernel: with a timeout the clock moves, by no more than that."""
    both = pair((standard, standard), (world, world))
    loop = both.loop_a
    start = both.sim.now_ns
    assert loop.turn(0.0) == [] and both.sim.now_ns == start
    assert loop.turn(0.25) == [] and both.sim.now_ns == start + 250 * MS
    loop.wake()
    assert loop.has_work() and loop.turn(10.0) == [] and both.sim.now_ns == start + 250 * MS
    timer = loop.timer(77)
    timer.arm(0.1)
    due = loop.next_deadline_ns()
    assert due is not None and start + 350 * MS <= due <= start + 400 * MS
    assert loop.turn(10.0) == [(TIMER, 77, 0, 0)] and due <= both.sim.now_ns < due + 20 * MS
    assert loop.turn(None) == [], "no timer, no event: a wait without end ends at once"
    assert both.link_b.send(b"hello") >= 0
    both.loop_b.turn(0.0)
    assert loop.turn(None) == [(1, 1, 5, [b"hello"])]


@pytest.mark.parametrize("world", WORLDS)
def test_watches_report_listeners_dials_and_datagrams(pair, standard, world):
    """Python opens connections; the loop only says when to look, again and again: EDGE is taken for
    nothing."""
    both = pair((standard, standard), (world, world))
    listener, ear = both.a.listen(99), both.a.datagram(98)
    watches = [
        both.loop_a.watch(each.fileno(), tag, READ | EDGE)
        for each, tag in ((listener, 5), (ear, 6))
    ]
    dialled = both.b.dial(both.a.address, 99)
    watch = both.loop_b.watch(dialled.fileno(), 7, 2)
    for _ in range(2):
        assert both.loop_a.turn(1.0) == [(READY, 5, READ, 0)]
    assert listener.accept() is not None and not both.loop_a.has_work()
    assert both.loop_b.turn(1.0) == [(READY, 7, WRITE, 0)] and dialled.outcome() == 0
    both.b.datagram(0).sendto(b"x", (both.a.address, 98))
    assert both.loop_a.turn(1.0) == [(READY, 6, READ, 0)]
    watches[1].set(0)
    assert not both.loop_a.has_work()
    for each in (*watches, watch):
        each.close()


def test_a_loop_needs_a_host_of_its_own_simulator(standard):
    """A handle of one network means nothing in another."""
    sim, other = standard.Simulator(1), standard.Simulator(2)
    host = sim.add_host("a")
    for wrong in ({"simulator": sim}, {"simulator": other, "host": host}, {}):
        with pytest.raises(errors.InvalidArgument):
            standard.Loop(platform="mactcp", **wrong)
    with pytest.raises(errors.InvalidArgument):
        standard.Loop(platform="posix", simulator=sim, host=host)
    loop = standard.Loop(platform="mactcp", simulator=sim, host=host)
    assert (loop.fd, loop.descriptors()) == (-1, [])
    with pytest.raises(errors.InvalidArgument):
        loop.open_link(12_345, 1)
    sim.close()
    other.close()
    with pytest.raises(errors.InvalidState):
        loop.turn()
