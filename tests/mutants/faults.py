"""Faults of one line, each with the promise that it breaks and the tests that must notice it.

A fault is as a tired colleague would make it: a comparison that is off by one, a line that is gone,
a bound that is not looked at. run.py plants them one at a time. When a change moves the line of a
fault, test_mutants.py says so: bring the fault along, or take another of the same kind.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """name: of the fault. path: the file, from the root. before: text that stands there once.
    after: what takes its place. breaks: the promise. tests: ids for pytest, one of which fails."""

    name: str
    path: str
    before: str
    after: str
    breaks: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "frame-crc",
        "csrc/core/pt_wire.c",
        "get16(data + covered))\n        return PT_ERR_CRC;\n\n    frame.payload",
        "get16(data + covered))\n        covered += 0;\n\n    frame.payload",
        "a frame whose CRC does not match is refused",
        ("tests/core/test_wire.py::test_frame_is_that_of_the_vector[standard]",),
    ),
    Fault(
        "name-too-long",
        "csrc/core/pt_wire.c",
        "if (!is_discovery_type(data[5]) || name_len > PT_NAME_MAX)",
        "if (!is_discovery_type(data[5]))",
        "a name of more than 31 bytes is refused before it is copied",
        ("tests/core/test_wire.py::test_discovery_packet_is_that_of_the_vector[standard]",),
    ),
    Fault(
        "pressure-above-100",
        "csrc/core/pt_wire.c",
        "value[0] > 100 ? 100 : value[0]",
        "value[0]",
        "pressure is 0 to 100, whatever the other side says",
        ("tests/core/test_wire.py::test_capability_is_that_of_the_vector[standard]",),
    ),
    Fault(
        "datagram-length",
        "csrc/core/pt_wire.c",
        "if (len - PT_DATAGRAM_HEADER_SIZE < payload_len)",
        "if (len < payload_len)",
        "a datagram that says more than it holds is refused",
        ("tests/core/test_wire.py::test_datagram_is_that_of_the_vector[standard]",),
    ),
    Fault(
        "compact-lookalike",
        "csrc/core/pt_wire.c",
        " && data[1] != (FRAME_MAGIC >> 16 & 0xFF);",
        ";",
        "a full frame is not taken for a compact one",
        ("tests/core/test_wire.py::test_compact_header_is_that_of_the_vector[standard]",),
    ),
    Fault(
        "ingest-limit",
        "csrc/core/pt_ingest.c",
        "return frame->payload_len <= ingest->max_payload ? PT_OK",
        "return frame->payload_len <= UINT16_MAX ? PT_OK",
        "a frame longer than the maximum is refused at its header",
        ("tests/core/test_ingest.py::test_an_oversize_payload_is_judged_on_its_header",),
    ),
    Fault(
        "ingest-work",
        "csrc/core/pt_ingest_inside.h",
        "ingest->work - 1 >= ingest->work_limit - 1 && code == PT_OK ? PT_ERR_BUSY : code",
        "code",
        "one link's frames do not hold up a turn",
        (
            "tests/c/test_c_suite.py",
            "tests/platform/test_posix.py",
        ),
    ),
    Fault(
        "ingest-no-memory",
        "csrc/core/pt_ingest.c",
        "            ingest->staged_len = held;\n",
        "            (void)held;\n",
        "a frame that finds no memory is read again as if nothing had been",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_loop]",),
    ),
    Fault(
        "ingest-long-header",
        "csrc/core/pt_ingest.c",
        "const pt_frame longest = {.payload_len = ingest->max_payload};",
        "const pt_frame longest = {.payload_len = 0};",
        "what is staged of a long header has memory for its whole frame",
        ("tests/c/test_programs.py::test_the_receiving_machine_takes_any_format",),
    ),
    Fault(
        "fragment-gap",
        "csrc/core/pt_reassembly.c",
        "fragment->offset != reassembly->received_len",
        "fragment->offset < reassembly->received_len",
        "a message with a gap is not delivered",
        (
            "tests/core/test_reassembly.py::test_each_step_of_the_original_gives_what_it_gave_there[standard-reasm-gap]",
        ),
    ),
    Fault(
        "fragment-overrun",
        "csrc/core/pt_reassembly.c",
        "piece_len > total_len - fragment->offset",
        "piece_len > total_len",
        "a piece does not run past the end of its message",
        (
            "tests/core/test_reassembly.py::test_each_step_of_the_original_gives_what_it_gave_there[standard-reasm-exceeds-total]",
        ),
    ),
    Fault(
        "pool-not-cleared",
        "csrc/core/pt_pool.c",
        "memset(buffer, 0, used <= header->buffer_size ? used : header->buffer_size);",
        "memset(buffer, 0, 0);",
        "a borrower never sees what the last one wrote",
        ("tests/core/test_pool.py::test_returned_bytes_are_wiped_up_to_what_was_used",),
    ),
    Fault(
        "pool-budget",
        "csrc/core/pt_pool.c",
        "if (cost > pool->budget - held)",
        "if (cost > pool->budget)",
        "a pool stays within its budget",
        ("tests/core/test_pool.py::test_free_buffers_of_one_class_serve_another",),
    ),
    Fault(
        "pool-aba",
        "csrc/core/pt_pool_inside.h",
        "(((seen >> 32) + 1) << 32) |",
        "((seen >> 32) << 32) |",
        "two threads never borrow the same buffer",
        ("tests/c/test_programs.py::test_the_head_of_a_free_list_never_shows_a_value_twice",),
    ),
    Fault(
        "pool-kept",
        "csrc/core/pt_pool_inside.h",
        "if (head_count(seen) >= limit)",
        "if (head_count(seen) > limit)",
        "a class keeps no more free buffers than it may",
        ("tests/core/test_pool.py::test_what_comes_back_beyond_the_kept_ones_is_freed",),
    ),
    Fault(
        "pool-returned-twice",
        "csrc/core/pt_pool.c",
        "    if (!is_lent)\n        return PT_ERR_INVALID_PARAM;",
        "",
        "a release build refuses a buffer that is returned twice",
        ("tests/c/test_programs.py::test_without_assertions_a_buffer_returned_wrongly_is_refused",),
    ),
    Fault(
        "pool-shelves",
        "csrc/core/pt_pool.c",
        "if (link_get(&other->shelf[at]) != 0)",
        "if (0)",
        "what a context keeps for itself serves another one that needs it",
        (
            "tests/core/test_pool.py::"
            "test_a_door_keeps_eight_of_each_class_and_others_take_them_when_they_must",
        ),
    ),
    Fault(
        "pool-place",
        "csrc/core/pt_pool.c",
        "cell_swap(&pool->taken, &taken, taken & ~bit)",
        "cell_swap(&pool->taken, &taken, taken | bit)",
        "a door that is left with buffers out is the next one's at once",
        (
            "tests/core/test_pool.py::"
            "test_a_door_that_is_left_with_buffers_out_is_the_next_ones_at_once",
        ),
    ),
    Fault(
        "pool-strays",
        "csrc/core/pt_pool.c",
        "if (lender != number_of(door)) {",
        "if (0) {",
        "a return is counted where the buffer was lent",
        ("tests/c/test_c_suite.py",),
    ),
    Fault(
        "pool-share-budget",
        "csrc/core/pt_pool.c",
        "if (is_share && was_free)\n        leave_budget",
        "if (is_share && !was_free)\n        leave_budget",
        "a share that was a free buffer gives its cost back to the budget",
        (
            "tests/core/test_pool.py",
            "tests/c/test_c_suite.py",
        ),
    ),
    Fault(
        "pipeline-sequence",
        "csrc/core/pt_pipeline.c",
        "    if (counted)\n        pipeline->send_seq++;",
        "    pipeline->send_seq++;",
        "only DATA and DISCONNECT have a sequence number",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_pipeline]",),
    ),
    Fault(
        "pipeline-result",
        "csrc/core/pt_pipeline.c",
        "slot->result = (int16_t)result;",
        "slot->result = (int16_t)(result & 0);",
        "a write that failed is reported as failed",
        (
            "tests/core/test_pipeline.py::test_results_come_in_the_order_of_sending_whatever_the_platform_does",
        ),
    ),
    Fault(
        "pipeline-in-flight",
        "csrc/core/pt_pipeline.c",
        "PT_SLOT_COMPLETED, NOWHERE, PT_SLOT_ABANDONED},",
        "PT_SLOT_COMPLETED, NOWHERE, PT_SLOT_FREE},",
        "the buffer of a write under way is not given back before its end",
        ("tests/core/test_pipeline.py::test_small_frames_share_a_slot_in_order",),
    ),
    Fault(
        "pipeline-share",
        "csrc/core/pt_pipeline.c",
        "pipeline->lazy && pipeline->share_count < PT_SLOT_SHARE",
        "pipeline->lazy",
        "a link's share is bounded",
        (
            "tests/core/test_pipeline.py::test_a_link_has_two_frames_in_flight_however_much_others_hold",
        ),
    ),
    Fault(
        "loop-dirty-left",
        "csrc/core/pt_link.c",
        "pt_context_leave(context, link, PT_LINE_DIRTY);\n    if (PT_PROMPT",
        "if (PT_PROMPT",
        "a link that is closed is in no list of its context",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_loop]",),
    ),
    Fault(
        "send-burst",
        "csrc/core/pt_send.c",
        "return burst <= PT_PROMPT_FRAMES && !link->pipeline.many",
        "return !link->pipeline.many",
        "after a burst the first frame waits for the others",
        (
            "tests/core/test_prompt.py::"
            "test_after_a_burst_the_first_waits_too_until_one_comes_alone_again",
        ),
    ),
    Fault(
        "loop-tells-late",
        "csrc/core/pt_loop.c",
        "context->wheel.now - context->left_since < PT_TELL_MS",
        "context->turns != 0",
        "what has left is told in time",
        (
            "tests/core/test_prompt.py::"
            "test_what_has_left_may_be_told_late_and_then_with_the_turn_that_is_due",
        ),
    ),
    Fault(
        "loop-late-frame",
        "csrc/core/pt_read.c",
        "pt_read_link(context, link, sink, 0);\n    if (link->state != PT_LINK_ENDED &&",
        "if (link->state != PT_LINK_ENDED &&",
        "a cut frame whose rest lies in the system does not end its link",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_loop]",),
    ),
    Fault(
        "loop-spare",
        "csrc/core/pt_read.c",
        "    if (!has_spare(context))\n        size = rest;",
        "    if (!has_spare(context))\n        size = 0;",
        "a link that waits for the rest of its frame is read though memory is out",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_loop]",),
    ),
    Fault(
        "loop-last-words",
        "csrc/core/pt_link.c",
        "if (code != PT_ERR_CONNECTION_CLOSED || (link->unread & PT_UNREAD_ENDED)) {",
        "if (code != PT_OK) {",
        "what came before a break is read before the link ends",
        (
            "tests/core/test_link_ends.py::test_sends_to_a_side_that_is_gone_end_the_link_after_its_last_words",
        ),
    ),
    Fault(
        "loop-budget",
        "csrc/core/pt_read.c",
        "served < context->io_budget && context->lines[PT_LINE_HELD].first != NULL",
        "context->lines[PT_LINE_HELD].first != NULL",
        "as many links as the budget says are served in a turn",
        (
            "tests/c/test_c_suite.py",
            "tests/platform/test_posix.py",
        ),
    ),
    Fault(
        "wheel-wrap",
        "csrc/core/pt_wheel.c",
        "if (is_before(now, wheel->now))",
        "if (now < wheel->now)",
        "timers outlive the end of the 32-bit clock",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_loop]",),
    ),
    Fault(
        "wheel-order",
        "csrc/core/pt_wheel.c",
        "if (wheel->due != NULL && is_before(",
        "if (wheel->due == NULL && is_before(",
        "timers are due in the order of their deadlines",
        ("tests/core/test_wheel.py",),
    ),
    Fault(
        "notes-merge",
        "csrc/core/pt_notes.c",
        "            notes->list[kept - 1].count += notes->list[index].count;\n",
        "",
        "no message that was not acknowledged is forgotten",
        ("tests/c/test_c_suite.py::test_the_core_passes_its_c_tests[standard-test_link]",),
    ),
    Fault(
        "posix-enobufs",
        "csrc/platform/pt_posix.c",
        " || error == ENOBUFS || error == ENOMEM",
        "",
        "a system without memory for a moment ends no link",
        ("tests/c/test_programs.py::test_a_system_without_memory_for_a_moment_ends_no_link",),
    ),
    Fault(
        "posix-partial",
        "csrc/platform/pt_posix.c",
        "link->blocked = (size_t)sent < total;",
        "link->blocked = 0;",
        "a link whose system took less than all waits for room",
        ("tests/core/test_link.py::test_a_full_pipeline_refuses_and_leaves_no_gap",),
    ),
    Fault(
        "bound-owner",
        "csrc/border/pt_sender.c",
        "Py_INCREF(fresh->owner);",
        "Py_INCREF(fresh->owner);\n    Py_INCREF(fresh->owner);",
        "a link that ended keeps nothing of its loop",
        (
            "tests/platform/test_border.py::test_links_that_end_leave_nothing_that_was_bound_to_them[standard]",
        ),
    ),
    Fault(
        "bound-type",
        "csrc/border/pt_sender.c",
        "release(self);\n    Py_DECREF(type);",
        "release(self);",
        "a link that ended keeps nothing of its type",
        (
            "tests/platform/test_border.py::test_links_that_end_leave_nothing_that_was_bound_to_them[standard]",
        ),
    ),
    Fault(
        "outbox-streak",
        "peertalk/protocol/outbox.py",
        "count = min(count, STREAK - self._streak)",
        "count = min(count, 2 * STREAK - self._streak)",
        "no class starves",
        ("tests/protocol/test_outbox.py",),
    ),
    Fault(
        "outbox-bytes",
        "peertalk/protocol/outbox.py",
        "total > self.max_bytes or self._count >= self.max_messages or not priority",
        "self._count >= self.max_messages or not priority",
        "what waits is bounded in bytes",
        ("tests/protocol/test_outbox.py",),
    ),
    Fault(
        "outbox-revoke",
        "peertalk/protocol/outbox.py",
        "taken = min(last - first + 1, -(-frames // each))",
        "taken = min(last - first + 1, frames // each)",
        "a message of which one fragment may be lost is told",
        (
            "tests/protocol/test_outbox.py::test_a_message_of_which_one_fragment_may_be_lost_is_taken_back",
        ),
    ),
    Fault(
        "line-hold",
        "peertalk/protocol/line.py",
        "        if self._waits(connection):\n            return Turn.HOLD\n",
        "",
        "a later connection is not read before an older one",
        (
            "tests/protocol/test_line.py::test_no_interleaving_of_two_nodes_with_two_connections_breaks_a_promise",
        ),
    ),
    Fault(
        "line-place",
        "peertalk/protocol/line.py",
        "if place <= self.place or self._claims.covers(connection):",
        "if self._claims.covers(connection):",
        "a connection whose place has passed is not used",
        ("tests/protocol/test_line.py::test_the_larger_id_follows_and_never_uses_one_by_itself",),
    ),
    Fault(
        "stale-pong",
        "peertalk/protocol/connections.py",
        "self.spoilt = paused or self.pinged is not None",
        "self.spoilt = paused",
        "the PONG of a PING that was given up measures nothing",
        (
            "tests/protocol/test_connections.py::test_a_ping_measures_only_what_surely_was_its_own_way",
        ),
    ),
    Fault(
        "connection-places",
        "peertalk/protocol/connections.py",
        "if len(self.by_tag) < self.max_connections:",
        "if len(self.by_tag) <= self.max_connections:",
        "no more connections exist than the bound",
        ("tests/protocol/test_connections.py::test_connections_are_bounded_and_refusals_counted",),
    ),
    Fault(
        "inbox-turns",
        "peertalk/protocol/inbox.py",
        "            line.append(queue)\n        else:",
        "            line.appendleft(queue)\n        else:",
        "peers are heard in turn",
        ("tests/protocol/test_inbox.py::test_the_peers_are_served_in_turn",),
    ),
    Fault(
        "inbox-room",
        "peertalk/protocol/inbox.py",
        "        return self.full and outlet.cost > 0",
        "        return self.full and outlet.cost > self.limit",
        "a link whose inbox is full is not read",
        (
            "tests/protocol/test_inbox.py::test_a_full_inbox_stops_whoever_has_something_there_and_nobody_else",
        ),
    ),
    Fault(
        "inbox-order",
        "peertalk/protocol/inbox.py",
        "            if queue.first is not lot.close():\n                queue.restore(lot)",
        "            if queue.first is not lot.close():\n                queue.append(lot)",
        "messages keep their order when a peer gets an inbox of its own",
        (
            "tests/protocol/test_inbox.py::test_a_lot_that_is_being_taken_from_stays_the_first_when_its_peer_is_read_alone",
        ),
    ),
    Fault(
        "trailer-crc",
        "peertalk/protocol/wire.py",
        '        and core.crc16(data[:trailer_end]) == int.from_bytes(data[trailer_end:], "big")\n',
        "",
        "a trailer whose CRC does not match is ignored",
        (
            "tests/protocol/test_wire.py::test_a_damaged_trailer_makes_the_sender_classic_and_is_no_error",
        ),
    ),
    Fault(
        "dial-of-another",
        "peertalk/protocol/wire.py",
        "if len(connection) == INSTANCE_SIZE + 4 and connection[:INSTANCE_SIZE] == theirs:",
        "if len(connection) == INSTANCE_SIZE + 4:",
        "nobody numbers the dials of another",
        (
            "tests/protocol/test_wire.py::test_the_number_of_a_dial_counts_only_from_the_side_that_dialled",
        ),
    ),
    Fault(
        "socket-of-a-stranger",
        "peertalk/runtime/greeting.py",
        "if connection.local and greetings.is_stranger(connection, instance):",
        "if connection.local and instance is None:",
        "who greets at a socket of the host and is not who was called gets no message",
        ("tests/runtime/test_local.py::test_who_is_not_who_was_called_gets_nothing",),
    ),
    Fault(
        "socket-of-another-host",
        "peertalk/protocol/neighbours.py",
        "entry.announcement.local and self._is_ours(host)",
        "entry.announcement.local",
        "a peer of another host is not called at a socket of this one",
        (
            "tests/protocol/test_neighbours.py::test_a_peer_that_says_so_and_is_heard_at_an_address_of_ours_has_a_socket_of_our_host",
        ),
    ),
    Fault(
        "socket-in-an-open-folder",
        "peertalk/protocol/local.py",
        "owner == user and not mode & (stat.S_IRWXG | stat.S_IRWXO)",
        "owner == user",
        "a socket of the host lies where nobody else may enter",
        ("tests/protocol/test_local.py::test_a_folder_is_private_when_nobody_else_may_enter",),
    ),
    Fault(
        "moved-records-told-twice",
        "csrc/core/pt_worker.c",
        "record->about |= PT_RECORD_GONE;",
        "record->about |= 0;",
        "what a worker has kept of a link that moves is told by the other one alone",
        (
            "tests/core/test_moving.py::test_what_it_has_brought_goes_with_a_link_that_moves[standard-0]",
        ),
    ),
    Fault(
        "moved-before-it-is-told",
        "csrc/core/pt_worker.c",
        "if (link->busy || from->is_untold)",
        "if (link->busy)",
        "a link does not move while a part of what it has brought is taken and not told",
        (
            "tests/core/test_moving.py::test_what_could_not_be_told_is_told_before_its_link_moves[standard]",
        ),
    ),
    Fault(
        "moved-without-its-timer",
        "csrc/core/pt_moving.c",
        "    pt_wheel_arm(&to->wheel, timer, deadline);\n",
        "    (void)deadline;\n",
        "a frame that is cut has the time that it had left, when its link has moved",
        (
            "tests/core/test_moving.py::test_a_frame_that_is_cut_for_too_long_ends_a_link_that_has_moved[standard]",
        ),
    ),
)
