/* Messages that come in parts, or several in one frame (docs/protocol.md, "Fragments" and
 * "Batches").
 *
 * A reassembly puts the fragments of one link together: one message at a time, pieces strictly in
 * order. Its first fragment says how long the message is; exactly so much is borrowed from the
 * pool, if that is within the limit, and given back with the message's end, whichever it is. What
 * that first fragment said rules: a later one may say another total, and nobody looks. A faulty
 * fragment costs a message at most, never the link.
 */
#ifndef PT_REASSEMBLY_H
#define PT_REASSEMBLY_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"
#include "pt_pool.h"

#define PT_REASSEMBLY_COMPLETE 1 /* a result: the message is whole */

enum pt_reassembly_state {
    PT_REASSEMBLY_IDLE = 0,
    PT_REASSEMBLY_RUNNING = 1 /* a message has begun */
};

/* What a fragment means: the first that applies, in this order, and behind START one more. In IDLE
 * the message that a fragment is held against has id, total and length 0. */
enum pt_reassembly_event {
    PT_PIECE_SHORT = 0, /* no whole fragment header */
    PT_PIECE_OVERRUN =
        1, /* it ends behind the total: the stored one for the running message, else its own */
    PT_PIECE_TOO_LARGE = 2,  /* first of a message above the limit */
    PT_PIECE_NO_MEMORY = 3,  /* first of a message for which the pool has no memory */
    PT_PIECE_START = 4,      /* first of a message */
    PT_PIECE_OTHER_ID = 5,   /* of another message */
    PT_PIECE_MISPLACED = 6,  /* not where the bytes so far end: doubled, lost or out of order */
    PT_PIECE_NEXT = 7,       /* next, and not the last, though all may be there */
    PT_PIECE_LAST_EARLY = 8, /* next and last, and bytes are missing */
    PT_PIECE_LAST = 9        /* next and last, and all are there */
};

/* What comes of it. code: what pt_reassembly_feed() returns; of START, nothing yet. */
typedef struct pt_reassembly_rule {
    int8_t code;
    uint8_t state; /* enum pt_reassembly_state, afterwards */
} pt_reassembly_rule;

typedef struct pt_reassembly {
    pt_pool *pool;
    uint8_t *buffer;     /* borrowed: the bytes so far; NULL when IDLE, or when total_len is 0 */
    uint8_t *delivered;  /* borrowed: the message that was delivered by the last call, else NULL */
    uint32_t limit;      /* longest message that is taken, bytes */
    uint16_t message_id; /* this and the next two: of the running message, 0 without one */
    uint16_t total_len;  /* as its first fragment said */
    uint16_t received_len; /* never above total_len */
    uint16_t delivered_len;
    uint8_t state; /* enum pt_reassembly_state */
} pt_reassembly;

/* Make ready, holding nothing. pool lends the memory of messages; a message of more than limit
 * bytes is refused. */
void pt_reassembly_init(pt_reassembly *reassembly, pt_pool *pool, uint32_t limit);

/* Give memory back and forget an unfinished message. May be called at any time, also twice. */
void pt_reassembly_cleanup(pt_reassembly *reassembly);

/* Take the payload of one DATA frame with PT_FLAG_FRAGMENT: fragment header and piece.
 *
 * Returns
 *   PT_OK                      taken; the message is not whole yet
 *   PT_REASSEMBLY_COMPLETE     *message and *message_len are the whole message, valid until the
 * next call of feed or cleanup (NULL when it is empty) PT_ERR_TRUNCATED           no whole header
 * (nothing has changed); or the last piece, and bytes are missing (the message is lost)
 *   PT_ERR_INVALID_PARAM       another message's (the running one goes on); or a piece that does
 * not fit or is out of order (the running one is lost) PT_ERR_MESSAGE_TOO_LARGE   the first piece
 * of a message above the limit (the running one goes on) PT_ERR_INVALID_STATE       not the first
 * piece, and no message has begun PT_ERR_NO_MEMORY           the first piece, and the pool has no
 * memory (that message is lost, and an unfinished one that it replaces)
 */
int pt_reassembly_feed(pt_reassembly *reassembly, const uint8_t *payload, size_t len,
                       const uint8_t **message, uint16_t *message_len);

/* The table: what comes of an event in a state. Both must be of their enums. */
pt_reassembly_rule pt_reassembly_rule_of(uint8_t state, uint8_t event);

/* Judge the whole payload of a DATA frame with PT_FLAG_BATCH: entries of length (2), reserved (2),
 * data. Returns their number, or PT_ERR_TRUNCATED when one does not end within the payload: then
 * none of them may be believed. */
int pt_batch_count(const uint8_t *payload, size_t len);

/* The entry at *offset, at first 0, of a payload that pt_batch_count() has found good: returns its
 * bytes, sets *entry_len and moves *offset behind it. NULL: there is none. */
const uint8_t *pt_batch_next(const uint8_t *payload, size_t len, size_t *offset,
                             uint16_t *entry_len);

#endif
