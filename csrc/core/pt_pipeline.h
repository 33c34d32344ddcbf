/* Messages in flight on one link: a ring of slots, each one write, each carrying one frame or many.
 *
 * A lazy pipeline always finds PT_SLOT_SHARE buffers of one whole frame each, whatever others hold.
 * Larger ones, of slot_size, come out of the pool's budget, and only while more is sent than leaves
 * at once; where there is none it goes on with its share.
 *
 * Where the caller gives one slot alone, all are borrowed when a second one is wanted, until
 * pt_pipeline_rest(): one write at a time needs no more.
 *
 * Slots are taken round-robin and reported in that order; the platform may complete them in any
 * order. pending_count counts the slots that are not FREE, and they lie next to each other from
 * head on. Sans-I/O: who moves the bytes, and when, is the caller's. One worker's thread only.
 * Never allocates but through its pool, never blocks.
 */
#ifndef PT_PIPELINE_H
#define PT_PIPELINE_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"
#include "pt_pool.h"
#include "pt_wide.h"
#include "pt_wire.h"

enum pt_slot_state {
    PT_SLOT_FREE = 0,
    PT_SLOT_FILLING =
        1, /* holds frames; the platform has not seen it; small frames may still be packed in */
    PT_SLOT_IN_FLIGHT = 2, /* the platform's: buffer must not move or change */
    PT_SLOT_COMPLETED = 3, /* result known, not yet reported because an older slot is not done */
    PT_SLOT_ABANDONED =
        4 /* the link is gone, the platform has not let go: buffer kept until it does */
};

/* What moves a slot from state to state. */
enum pt_slot_step {
    PT_SLOT_STEP_RESERVE = 0,
    PT_SLOT_STEP_LAUNCH = 1,
    PT_SLOT_STEP_COMPLETE = 2,
    PT_SLOT_STEP_REPORT = 3,
    PT_SLOT_STEP_CLOSE = 4 /* of its link */
};

/* A payload that a slot refers to. Memory is the caller's, who sets let_go. */
typedef struct pt_hold {
    void (*let_go)(struct pt_hold *hold); /* the payload is not needed any more, nor is this */
    const uint8_t *payload;
    uint32_t len;
    uint32_t sent; /* of these, bytes that the platform has taken; the platform's to keep */
} pt_hold;

/* A large message that a link sends by itself, slice after slice. Memory is the caller's, who sets
 * all of it. */
typedef struct pt_departure {
    pt_hold *(*hold)(struct pt_departure *departure); /* for one slice; NULL: no memory */
    void (*drop)(struct pt_departure *departure);     /* it is not needed any more */
    const uint8_t *payload;                           /* of total bytes, 1 or more */
    uint32_t id;                                      /* not 0 */
    uint32_t total;
    uint32_t offset; /* bytes of it that slots have taken; less than total */
} pt_departure;

typedef struct pt_send_slot {
    uint8_t *buffer; /* from the pool; NULL while nothing is borrowed */
    union {
        void *platform_data; /* the platform's block for this write; or, where slots refer, ... */
        pt_hold *hold;       /* ... of the payload behind the bytes in the buffer; NULL: none */
    };
    uint32_t message_count; /* DATA frames carried */
    uint16_t buffer_size;   /* bytes, 0 while nothing is borrowed */
    uint16_t message_len;   /* bytes of frames in the buffer */
    uint16_t used_len;      /* highest byte of the buffer that was ever written, for wiping it */
    uint16_t sent_len; /* of these, bytes that the platform has taken; the platform's to keep */
    int16_t result;    /* completion code: PT_OK or PT_ERR_* */
    uint8_t state;     /* enum pt_slot_state */
    uint8_t no_delay;  /* 1: leaves at once, nothing more is packed in */
} pt_send_slot;

typedef struct pt_send_pipeline {
    pt_send_slot *slots; /* a ring of room slots: the caller's, or the borrowed ones */
    pt_send_slot *only;  /* the caller's one slot, where others are borrowed; else NULL */
    pt_pool *pool;
    uint64_t accepted; /* messages (DATA frames) put into slots */
    uint64_t reported; /* of these, reported done or failed by pt_pipeline_report() */
    uint64_t frames;   /* frames of any type put into slots */
    uint64_t payload_bytes;
    uint64_t refusals;   /* pt_pipeline_send() said PT_ERR_WOULD_BLOCK or PT_ERR_NO_MEMORY */
    uint16_t slot_size;  /* bytes borrowed for a slot of a link in bulk */
    uint16_t small_size; /* of any other: one whole frame, or slot_size if that is less */
    uint32_t lent;       /* bytes of the buffers that slots have */
    uint8_t depth;       /* 1 .. PT_PIPELINE_MAX_DEPTH */
    uint8_t room;        /* depth, or 1 while all slots but the only one are to be borrowed */
    uint8_t head;        /* oldest slot that is not FREE */
    uint8_t next_slot;   /* the slot that is taken next; head + pending_count, round-robin */
    uint8_t pending_count;
    uint8_t high_water;    /* largest pending_count seen */
    uint8_t send_seq;      /* sequence of the next DATA frame, wraps at 256 */
    uint8_t lazy;          /* 1: buffers are borrowed at first use and go back when reported */
    uint8_t keep;          /* the caller's; 1: lazy buffers that left more than half full stay until
                              pt_pipeline_rest() */
    uint8_t packing;       /* 1: small frames share a slot */
    uint8_t filling_count; /* FILLING slots; they are the newest, so the oldest of them is next_slot
                              - filling_count, round-robin */
    uint8_t ripe;          /* 1: the newest FILLING slot should leave without waiting for the turn's
                              end: it is full (no room for another empty frame), carries a no-delay
                              frame, or packing is off */
    uint8_t share_count;   /* buffers held of the link's share, at most PT_SLOT_SHARE */
    uint8_t more : 1;      /* the caller's; 1: more is being sent than small_size holds */
    uint8_t is_still : 1;  /* the caller's; 1: what is in flight does not move, and nothing more is
                              borrowed than the share */
    uint8_t awaited : 1;   /* the caller's; 1: a thread sleeps until half of the slots are free */
    uint8_t many : 1;      /* the caller's; 1: more frames follow in this call */
    uint8_t refers : 1;    /* 1: a slot has referred to a payload: see pt_pipeline_send_wide() */
    uint8_t initialized;
} pt_send_pipeline;

/* What a pipeline borrows at first use. */
enum pt_lazy { PT_LAZY_NOTHING = 0, PT_LAZY_BUFFERS = 1, PT_LAZY_SLOTS = 2 /* and buffers */ };

/* The state that a step leads to; PT_NOWHERE: no slot takes that step in that state. */
uint8_t pt_slot_next(uint8_t state, uint8_t step);

/* Make ready in the caller's memory, which must not move. slots: depth of them, or one where slots
 * are borrowed, kept as long as the pipeline. slot_size: at least PT_FRAME_OVERHEAD and at most the
 * pool's largest class and 65,535. lazy: enum pt_lazy; PT_LAZY_NOTHING: borrows all buffers now;
 * when one is refused those borrowed are given back and nothing has changed. Returns PT_OK,
 * PT_ERR_INVALID_PARAM, PT_ERR_ALREADY_INITIALIZED or PT_ERR_NO_MEMORY. */
int pt_pipeline_init(pt_send_pipeline *pipeline, pt_send_slot *slots, uint8_t depth,
                     uint16_t slot_size, pt_pool *pool, int lazy, int packing);

/* Give all buffers back, but those of slots IN_FLIGHT, which become ABANDONED. Returns the number
 * of ABANDONED slots: while it is not 0 the memory must stay; pt_pipeline_complete() of the last
 * one ends it. May be called again. Messages not yet reported count as accepted - reported. */
int pt_pipeline_cleanup(pt_send_pipeline *pipeline);

/* Reserve the next free slot, round-robin: it becomes FILLING, empty, with a buffer. *slot_index is
 * untouched on failure. Returns PT_OK, PT_ERR_WOULD_BLOCK (every slot is taken, or every buffer
 * that this link may have now: report brings one back) or PT_ERR_NO_MEMORY (lazy only: no slot is
 * taken, and the system has no memory). O(1). */
int pt_pipeline_reserve(pt_send_pipeline *pipeline, uint8_t *slot_index);

/* Put one frame on its way: copy the payload once into the newest FILLING slot that has room
 * (packing), else into a slot reserved now; write header, sequence (DATA and DISCONNECT take
 * send_seq and count it, the others carry 0) and CRC. PT_FLAG_NO_DELAY makes the slot ripe and is
 * not put on the wire. The caller's payload is free at once.
 *
 * Returns PT_OK, or, with nothing changed but refusals (no gap in the sequence):
 * - PT_ERR_WOULD_BLOCK: every slot is taken, or every buffer that this link may have now.
 * - PT_ERR_NO_MEMORY: no slot is taken, and the system has no memory for one.
 * - PT_ERR_MESSAGE_TOO_LARGE: the frame does not fit small_size.
 * - PT_ERR_INVALID_PARAM: the type is out of range, or payload is NULL and has a length.
 * - PT_ERR_NOT_INITIALIZED: before pt_pipeline_init(), or after pt_pipeline_cleanup().
 */
int pt_pipeline_send(pt_send_pipeline *pipeline, uint8_t type, uint8_t flags,
                     const uint8_t *payload, uint32_t payload_len);

/* As pt_pipeline_send(), for a wide frame; wide->crc is not looked at. With hold the payload is
 * referred to: it must stay as it is until hold is let go of, which is when its slot is reported or
 * the pipeline cleaned up; when the frame is refused hold stays the caller's. Without hold it is
 * copied. The frame of a message that ends it is the one that counts as its message. */
int pt_pipeline_send_wide(pt_send_pipeline *pipeline, const pt_wide *wide, const uint8_t *payload,
                          pt_hold *hold);

/* The oldest FILLING slot, for handing to the platform; its state becomes IN_FLIGHT. Returns its
 * index, or -1 when there is none. */
int pt_pipeline_launch(pt_send_pipeline *pipeline);

/* The platform is done with a slot: PT_OK or PT_ERR_*. IN_FLIGHT becomes COMPLETED, ABANDONED
 * becomes FREE. */
void pt_pipeline_complete(pt_send_pipeline *pipeline, uint8_t slot_index, int result);

/* Free the oldest slot if it is COMPLETED. Returns 1 and sets *message_count and *result; 0 when
 * the oldest slot is not done. Call until 0. */
int pt_pipeline_report(pt_send_pipeline *pipeline, uint32_t *message_count, int *result);

/* Give back the buffers of all FREE slots, and borrowed slots when all are FREE (lazy only). A link
 * in bulk transfer keeps them from one use to the next, which saves wiping them each time; an idle
 * one should hold none. */
void pt_pipeline_rest(pt_send_pipeline *pipeline);

/* 1 when a FREE slot still holds a buffer, or slots are borrowed, so that pt_pipeline_rest() has
 * work, if not at once (lazy only). */
int pt_pipeline_keeps(const pt_send_pipeline *pipeline);

/* Bytes of the payloads that slots refer to. */
uint32_t pt_pipeline_referred(const pt_send_pipeline *pipeline);

/* Free slots now: depth - pending_count. */
uint8_t pt_pipeline_available(const pt_send_pipeline *pipeline);

#endif
