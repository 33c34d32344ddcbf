/* One turn of waiting and working: the only engine. Every driver (an asyncio loop, the caller's
 * own thread, a simulated clock) calls pt_loop_turn() and hands its events to Python; C never calls
 * back.
 *
 * A turn pushes what was queued, waits (if it may) for readiness, serves at most io_budget sources,
 * reports finished sends and due timers. A source that was not served stays ready and comes in the
 * next turn. All functions but pt_loop_wake() belong to the worker's thread.
 *
 * A turn is bounded by work, which is counted and never timed: PT_TURN_MAX_WORK units and the
 * sink's room over all links, PT_LINK_MAX_WORK units and one read for a link that is not the only
 * one with something to read. What was read beyond that is held for the next turn.
 */
#ifndef PT_LOOP_H
#define PT_LOOP_H

#include "pt_link.h"
#include "pt_platform.h"

/* What a timer's kind means here. */
enum pt_timer_kind {
    PT_TIMER_CALLER = 0,
    PT_TIMER_FRAME = 1, /* a link's partial frame */
    PT_TIMER_REST = 2,  /* a link's slot buffers, to be given back when it has become idle */
    PT_TIMER_POOL = 3   /* the context's look at its pool */
};

enum pt_event_kind {
    PT_EVENT_BATCH =
        1, /* made by the border's sink only: payloads of DATA frames of one link, in order */
    PT_EVENT_FRAME = 2, /* made by sinks: a frame; the plain sink makes one for every frame, the
                           border's for all but plain DATA */
    PT_EVENT_SENT = 3, /* count messages of the link left in order; code PT_OK, or why they did not;
                          count may be 0: a slot became free */
    PT_EVENT_CLOSED = 4, /* the link is over: code says why, system_error beside it; only
                            pt_link_close() remains */
    PT_EVENT_READY = 5,  /* a watch: count holds enum pt_ready */
    PT_EVENT_TIMER = 6,  /* a timer of the caller expired */
    PT_EVENT_STILL = 8,  /* memory is scarce, and of all links this one has stood still the longest:
                            nothing of what it has to send has left for count milliseconds. Once a
                            second while that lasts; closing it gives its buffers back */
    PT_EVENT_FINISHED =
        7 /* the other side ended its half in order while ours is OPEN: nothing more will be read;
           * what is queued may still leave. Follow with pt_link_shut(), which brings
           * PT_EVENT_CLOSED when the slots are drained, or pt_link_close() */
};

typedef struct pt_event {
    uint64_t offset; /* FRAME: payload in the receive buffer */
    uint32_t kind;   /* enum pt_event_kind */
    uint32_t tag;    /* of the link, watch or timer */
    int32_t code;    /* PT_OK or PT_ERR_* */
    int32_t system_error;
    uint32_t count; /* SENT: messages; READY: enum pt_ready; STILL: milliseconds */
    uint32_t len;   /* FRAME: payload bytes */
    uint8_t type;   /* FRAME */
    uint8_t flags;
    uint8_t sequence;
} pt_event;

/* Make a context in the caller's memory. receive_buffer: at least PT_FRAME_OVERHEAD +
 * PT_FRAME_MAX_PAYLOAD bytes. platform_data: made ready for ops. io_budget: 1 .. PT_IO_BUDGET_MAX.
 * ready: io_budget places, for the sources of a turn, kept until cleanup. The pool's largest class
 * must hold a whole frame. Returns PT_OK or PT_ERR_INVALID_PARAM. */
int pt_context_init(pt_context *context, const pt_platform_ops *ops, void *platform_data,
                    pt_pool *pool, uint8_t *receive_buffer, uint32_t receive_buffer_size,
                    pt_source **ready, uint32_t io_budget);

/* Forget everything. Links must have been closed; returns PT_ERR_INVALID_STATE (and does nothing)
 * while one is not. What is called with the context afterwards is refused: a send or a drain with
 * PT_ERR_NOT_CONNECTED, a turn with PT_ERR_INVALID_PARAM; there is no timer and nothing to wake. */
int pt_context_cleanup(pt_context *context);

/* Report readiness of a foreign handle as PT_EVENT_READY, level-triggered. watch: the caller's
 * memory, zeroed. Change interest with pt_watch_set(). PT_OK, PT_ERR_INVALID_PARAM,
 * PT_ERR_ALREADY_INITIALIZED, PT_ERR_NO_MEMORY or PT_ERR_PLATFORM. */
int pt_watch_open(pt_context *context, pt_watch *watch, intptr_t handle, uint32_t tag,
                  uint8_t interest);
int pt_watch_set(pt_context *context, pt_watch *watch, uint8_t interest);
void pt_watch_close(pt_context *context, pt_watch *watch);

/* Expire once, delay_ms from now, as PT_EVENT_TIMER with timer->tag. Re-arming moves it. */
void pt_loop_arm(pt_context *context, pt_timer *timer, uint32_t delay_ms);
void pt_loop_cancel(pt_context *context, pt_timer *timer);

/* Wait only: up to timeout_ms, or to the next timer if that is sooner, or until something is ready
 * or woken; then call pt_loop_turn() with 0. Returns at once when there is work. The one function
 * that blocks, for callers that give up their locks around it. PT_OK or PT_ERR_PLATFORM. */
int pt_loop_wait(pt_context *context, int timeout_ms);

/* One turn. Frames go to sink in order, at most sink->room bytes of stream; other events into
 * events (capacity at least 4 x io_budget + 4; what does not fit stays due). Events of one turn
 * belong after its frames. Returns the number of events, or PT_ERR_PLATFORM, PT_ERR_INVALID_PARAM.
 */
int pt_loop_turn(pt_context *context, int timeout_ms, pt_event *events, int capacity,
                 const pt_sink *sink);

/* Milliseconds until a turn is needed though nothing becomes ready: 0 when there is work now, -1
 * when there is no timer. */
int pt_loop_next_timeout(pt_context *context);

/* End a wait. Any thread. */
void pt_loop_wake(pt_context *context);

/* The plain sink, for callers without the border: records every frame as PT_EVENT_FRAME in its own
 * array; payloads are copied into buffer, one behind the other, and offset says where. A frame that
 * began in an earlier turn counts in room with its rest alone, and each link may have one. So it is
 * never full when buffer_size >= room + a whole frame for each link, and capacity >= room /
 * PT_COMPACT_HEADER_SIZE (the smallest frame) + one for each link; PT_ERR_INTERNAL, which ends the
 * link, if it is all the same. */
typedef struct pt_plain_sink {
    pt_event *events;
    uint8_t *buffer;
    uint32_t capacity;
    uint32_t count;
    uint32_t buffer_size;
    uint32_t buffer_len;
} pt_plain_sink;

/* Empty plain and make sink stand for it, with so much room. Call before each turn. */
void pt_plain_sink_init(pt_plain_sink *plain, pt_sink *sink, uint32_t room);

#endif
