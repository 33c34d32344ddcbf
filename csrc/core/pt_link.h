/* One connection: a stream of checked frames in, a pipeline of slots out, and an end that is told
 * once.
 *
 * Nothing here waits but pt_link_drain() and pt_link_send_sync(). What becomes of a link between
 * two calls is done by the turn (pt_loop.h), which also reports it: frames, what left, the end. All
 * functions belong to the worker's thread.
 */
#ifndef PT_LINK_H
#define PT_LINK_H

#include "pt_ingest.h"
#include "pt_notes.h"
#include "pt_pipeline.h"
#include "pt_platform.h"

enum pt_link_state {
    PT_LINK_NONE = 0,
    PT_LINK_OPEN = 1,
    PT_LINK_SHUT = 2,     /* nothing more is accepted; what was accepted leaves; still read */
    PT_LINK_FINISHED = 3, /* all has left, and our half of the stream is ended; still read */
    PT_LINK_BROKEN = 4,   /* cannot be written, end_code says why; what came before is read first */
    PT_LINK_ENDED = 5     /* over and forgotten by the platform: PT_EVENT_CLOSED was reported, or is
                             by the next turn; only pt_link_close() is allowed */
};

/* What moves a link from state to state. */
enum pt_link_step {
    PT_LINK_STEP_OPEN = 0,
    PT_LINK_STEP_SHUT = 1,
    PT_LINK_STEP_FINISH = 2,
    PT_LINK_STEP_BREAK = 3,
    PT_LINK_STEP_END = 4,
    PT_LINK_STEP_CLOSE = 5
};

/* Why a link is not read; bits. */
enum pt_unread {
    PT_UNREAD_PAUSED = 1,  /* pt_link_pause() */
    PT_UNREAD_STARVED = 2, /* no staging buffer is to be had */
    PT_UNREAD_ENDED = 4    /* the other side ended its half */
};

/* Events that a link owes beside those of failed_code; bits. */
enum pt_link_due { PT_DUE_SENT = 1, PT_DUE_FINISHED = 2, PT_DUE_CLOSED = 4 };

/* One connection. Memory is the caller's, zeroed at first, and must not move while in a context. */
struct pt_link {
    pt_source source;
    pt_link *next[PT_LINES]; /* in the lines of the context */
    pt_timer frame_timer;    /* armed while a frame is cut and the link is not paused */
    pt_timer rest_timer;     /* armed while slots keep buffers */
    uint8_t *held;        /* bytes that were read and are not yet taken apart; from the pool, NULL:
                             none */
    uint32_t held_len;    /* of them */
    uint32_t held_at;     /* of those, taken */
    uint32_t held_turn;   /* the last turn that took some, which reads no more */
    uint32_t read_max;    /* bytes that one read brings at most; the caller's to change */
    uint32_t moved;       /* tick at which bytes last left, or began to wait */
    uint32_t sync_sends;  /* frames that pt_link_send_sync() gave to tcp_send */
    uint16_t rest_frames; /* low bits of pipeline.frames when rest_timer was armed */
    uint16_t first_turn;  /* low bits of context->turns, and 1, at the last frame that was the first
                             since a turn ... */
    uint16_t burst_from;  /* ... and of pipeline.frames with that frame */
    uint16_t mean;        /* sixteenths of a byte of stream for a unit of work, when last read */
    pt_send_pipeline pipeline;
    pt_send_slot only; /* of the pipeline, where it borrows the others */
    pt_ingest ingest;
    pt_departure *departs; /* what is sent slice after slice; NULL: nothing */
    uint64_t received_bytes;
    uint64_t sent_bytes;
    uint64_t read_calls;  /* system calls that read */
    uint64_t write_calls; /* system calls that wrote */
    uint32_t max_message; /* longest DATA payload that may be sent now; raised or lowered by the
                             caller */
    uint32_t wide_max;    /* likewise in a wide frame; 0: none may be */
    uint32_t landing;     /* bytes of the wide frame that is let land though it was not offered */
    int32_t system_error; /* the system's number beside the last network failure; 0 after an end of
                             stream in order */
    uint32_t sent_count;  /* messages whose slots are free again and whose PT_EVENT_SENT is still to
                             come */
    uint32_t failed_count;     /* likewise, of one slot that did not leave; nothing behind it is
                                  reported before it */
    uint32_t unconfirmed;      /* ENDED: messages of the notes that were not acknowledged then */
    uint32_t frame_timeout_ms; /* a frame that has begun must be whole within this time */
    pt_notes notes;            /* none where ops->unacknowledged is NULL */
    int32_t end_error;         /* system_error beside end_code */
    int8_t failed_code;        /* of those of failed_count; PT_OK: there are none */
    int8_t end_code;           /* BROKEN, ENDED: why; else PT_OK */
    uint8_t state;             /* enum pt_link_state */
    uint8_t unread;            /* enum pt_unread; 0: it is read */
    uint8_t due;               /* enum pt_link_due */
    uint8_t blocked; /* 1: the platform took no more; set by it, cleared when the source is ready to
                        write */
    uint8_t in_line[PT_LINES]; /* 1: in that line of the context */
    uint8_t wanted;            /* 1: a frame found no room since PT_EVENT_SENT was last due */
    uint8_t busy;    /* 1: a worker is in a system call with bytes of this link, without the lock */
    uint8_t answers; /* the caller's; 1: a worker answers its PINGs */
};

/* Take over a connected, non-blocking connection; format: of what comes on it. A link of a worker
 * is paused until pt_link_resume(), so that nothing becomes of it before its owner knows it. slots:
 * the caller's array of depth slots, kept as long as the link, or NULL: all but one are borrowed,
 * in worlds that are not classic. Returns PT_OK, or PT_ERR_INVALID_PARAM,
 * PT_ERR_ALREADY_INITIALIZED, PT_ERR_NO_MEMORY, PT_ERR_PLATFORM with nothing changed. */
int pt_link_open(pt_context *context, pt_link *link, intptr_t handle, uint32_t tag,
                 pt_send_slot *slots, uint8_t depth, uint16_t slot_size, int packing,
                 uint32_t max_payload, const pt_format *format);

/* The state that a step leads to; PT_NOWHERE: no link takes that step in that state. */
uint8_t pt_link_next(uint8_t state, uint8_t step);

/* What pt_link_send() and pt_link_send_many() say beside success. */
enum pt_send_hint {
    PT_SEND_NEEDS_TURN = 1, /* first unsent frame since the last turn: see to it that a turn comes
                               at the end of this tick */
    PT_SEND_YIELD = 2, /* PT_TURN_MAX_MESSAGES or PT_TURN_MAX_BYTES accepted since the last turn:
                          let the loop turn before sending more */
    PT_SEND_LEFT = 4 /* it has left already, and no turn is needed for it: PT_EVENT_SENT comes with
                        the next turn, or after PT_TELL_MS: see context->tells_late */
};

/* Accept one frame. Payloads of DATA frames may be up to link->max_message bytes, of others up to
 * PT_FRAME_MAX_PAYLOAD; flag PT_FLAG_NO_DELAY makes it leave at once (and stays local: it is not
 * put on the wire). Where ops->prompt says so the first frame of a link at rest leaves at once too,
 * unless it began a burst the last time. When all slots are taken it pushes them into the system
 * and tries once more; it never blocks (but in a world without tcp_send_async). A failure met there
 * is reported by the next turn as PT_EVENT_CLOSED.
 *
 * Returns a sum of enum pt_send_hint (0 or more): it was accepted. Or, with nothing of it taken (no
 * gap in the sequence):
 * - PT_ERR_WOULD_BLOCK: every slot is taken, or every buffer that this link may have now.
 * - PT_ERR_NO_MEMORY: no slot is taken, and the system has no memory for one.
 * - PT_ERR_MESSAGE_TOO_LARGE: the payload is longer than said above.
 * - PT_ERR_NOT_CONNECTED: the link is not OPEN, or ceased to be while it was pushed.
 * - PT_ERR_INVALID_PARAM: the type is out of range, or payload is NULL and has a length. */
int pt_link_send(pt_context *context, pt_link *link, uint8_t type, uint8_t flags,
                 const uint8_t *payload, uint32_t payload_len);

/* As pt_link_send(), for a wide frame: see pt_pipeline_send_wide(); of the flags PT_FLAG_NO_DELAY
 * means something. PT_ERR_MESSAGE_TOO_LARGE: it is
 * longer than pt_link_slice_max(). PT_ERR_INVALID_PARAM: hold in a world that copies, or none where
 * a world refers and the payload does not fit a slot. */
int pt_link_send_wide(pt_context *context, pt_link *link, const pt_wide *wide, uint8_t flags,
                      const uint8_t *payload, pt_hold *hold);

/* Send a message from departure->offset on, slice after slice, as slots come free: the next slice
 * takes a slot when those before it have left, behind what stands in slots then, and never the last
 * free one. While a part of it waits the platform says when there is room, and slots that hold no
 * end of a message come free without PT_EVENT_SENT, unless a frame found none. departure is the
 * link's until it is dropped: with the last slice, by pt_link_recall(), or when the link is closed.
 *
 * Returns a sum of enum pt_send_hint, or, with departure still the caller's: PT_ERR_NOT_CONNECTED;
 * PT_ERR_INVALID_STATE (another one departs); PT_ERR_NO_MEMORY (no slot is taken, and there is no
 * memory for the first slice). */
int pt_link_depart(pt_context *context, pt_link *link, pt_departure *departure);

/* Bytes of the departing message that no slot has taken; 0: none departs. */
uint32_t pt_link_departing(const pt_link *link);

/* Send no more of the departing message than slots have taken. */
void pt_link_recall(pt_link *link);

/* The longest payload of a wide frame that the link can send; 0: none. */
uint32_t pt_link_slice_max(const pt_context *context, const pt_link *link);

/* As pt_link_send(), but where that says PT_ERR_WOULD_BLOCK, and always in a world without
 * tcp_send_async, it blocks: it waits until every slot of this link is free, at most
 * PT_DRAIN_TIMEOUT_TICKS (of 1/60 s), and then gives this frame alone to tcp_send, which has a
 * drain time-out of its own. So it cannot overtake. Its outcome is reported by the next turn, like
 * every other; while it waits nothing is read, and no event is lost or delivered. Never from a
 * notification.
 *
 * Returns as pt_link_send(); what the slots held may have moved on when the frame is refused.
 * Beside that
 * - PT_ERR_TIMEOUT: the slots did not come free in time; the caller may try again.
 * - PT_ERR_PLATFORM: the world failed while it waited.
 * - PT_ERR_WOULD_BLOCK: the world cannot wait, or a send that failed is still to be reported. */
int pt_link_send_sync(pt_context *context, pt_link *link, uint8_t type, uint8_t flags,
                      const uint8_t *payload, uint32_t payload_len);

/* Wait, at most PT_DRAIN_TIMEOUT_TICKS (of 1/60 s), until every slot of this link is free. PT_OK,
 * PT_ERR_NOT_CONNECTED (the link is not OPEN any more: the next turn says why), or as
 * pt_link_send_sync(). */
int pt_link_drain(pt_context *context, pt_link *link);

/* Wait until no worker is in a system call with bytes of the link. */
void pt_link_await_rest(pt_context *context, const pt_link *link);

/* Stop or go on reading. Paused, neither silence nor the partial-frame time-out counts. The other
 * side's hang-up is seen only after resume, when what it sent has been read. */
void pt_link_pause(pt_context *context, pt_link *link);
void pt_link_resume(pt_context *context, pt_link *link);

/* Accept no more; when all slots have left, end our half of the stream. Reading goes on until the
 * other side ends its half (a paused link must be resumed for that). When both halves are ended
 * PT_EVENT_CLOSED with PT_OK follows. */
void pt_link_shut(pt_context *context, pt_link *link);

/* Slots that could take a send now, as the platform says; 0 when the context is cleaned up. */
int pt_link_slots_available(pt_context *context, pt_link *link);

/* What a link has counted, and how it stands. */
typedef struct pt_link_counts {
    uint64_t accepted; /* messages */
    uint64_t pending;  /* of these, not in a PT_EVENT_SENT yet */
    uint64_t frames_sent;
    uint64_t payload_sent;
    uint64_t sent_bytes;
    uint64_t write_calls;
    uint64_t refusals;
    uint64_t frames_received;
    uint64_t payload_received;
    uint64_t received_bytes;
    uint64_t read_calls;
    uint64_t sync_sends;
    uint32_t partial_len;   /* bytes of an unfinished frame */
    uint32_t held_len;      /* bytes that were read and are taken apart in later turns */
    uint32_t slots_pending; /* slots that are filling or in flight */
    uint32_t high_water;    /* ... the most at once */
    uint32_t unread;        /* enum pt_unread */
} pt_link_counts;

/* As both are now, together: the caller has the lock, if there is one. */
void pt_link_count(const pt_link *link, pt_link_counts *out);

/* Bytes that one read brings at most, 1 or more; at first UINT32_MAX. */
void pt_link_set_read_max(pt_context *context, pt_link *link, uint32_t read_max);

/* 1: a worker answers the PINGs of this link by itself, and tells nobody of them; 0, at first: they
 * are told. Elsewhere they are told. */
void pt_link_set_answers(pt_context *context, pt_link *link, int answers);

/* Messages that were accepted and have not been in a PT_EVENT_SENT yet. */
uint64_t pt_link_pending(const pt_link *link);

/* Of the messages whose PT_EVENT_SENT with PT_OK was reported, the last so many are not known to be
 * acknowledged by the other side's system: those of every write that holds such a byte, and of what
 * was reported with it. Asks the system; for an ended link, what was so at its end. 0 for a closed
 * one, and in worlds without unacknowledged(). */
uint32_t pt_link_unconfirmed(pt_context *context, const pt_link *link);

/* Messages that have left and were not in a PT_EVENT_SENT yet: they are told by this call alone.
 * For a link that is to be closed. */
uint32_t pt_link_settle(pt_context *context, pt_link *link);

/* From now on, a frame that has begun must be whole within so many ms; also one that is cut now. A
 * link begins with PT_PARTIAL_FRAME_MS. */
void pt_link_set_frame_timeout(pt_context *context, pt_link *link, uint32_t timeout_ms);

/* Take the link out of the context and give its memory back. Its unreported messages stay so: ask
 * pt_link_pending() before. Returns the number of slots that the platform has not let go of (0 on
 * POSIX): the link's memory must stay until they are. The handle stays the caller's. May be called
 * twice. */
int pt_link_close(pt_context *context, pt_link *link);

#endif
