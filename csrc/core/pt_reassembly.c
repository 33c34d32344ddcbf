/* Each fragment becomes an event, or START and one more, and RULES says what comes of it.
 *
 * Invariant: received_len <= total_len <= limit, and while a message runs buffer holds total_len
 * bytes. In IDLE all of these are 0, so that nothing of a former message can be taken for the
 * current one's.
 */
#include "pt_reassembly.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_wire.h"

#define STATES             2
#define EVENTS             10
#define BATCH_ENTRY_HEADER 4 /* length 2, reserved 2 */

#define IDLE    PT_REASSEMBLY_IDLE
#define RUNNING PT_REASSEMBLY_RUNNING

static const pt_reassembly_rule RULES[STATES][EVENTS] = {
    [IDLE] =
        {
            [PT_PIECE_SHORT] = {PT_ERR_TRUNCATED, IDLE},
            [PT_PIECE_OVERRUN] = {PT_ERR_INVALID_PARAM, IDLE},
            [PT_PIECE_TOO_LARGE] = {PT_ERR_MESSAGE_TOO_LARGE, IDLE},
            [PT_PIECE_NO_MEMORY] = {PT_ERR_NO_MEMORY, IDLE},
            [PT_PIECE_START] = {PT_OK, RUNNING},
            [PT_PIECE_OTHER_ID] = {PT_ERR_INVALID_STATE, IDLE},
            [PT_PIECE_MISPLACED] = {PT_ERR_INVALID_STATE, IDLE},
            [PT_PIECE_NEXT] = {PT_ERR_INVALID_STATE, IDLE},
            [PT_PIECE_LAST_EARLY] = {PT_ERR_INVALID_STATE, IDLE},
            [PT_PIECE_LAST] = {PT_ERR_INVALID_STATE, IDLE},
        },
    [RUNNING] =
        {
            [PT_PIECE_SHORT] = {PT_ERR_TRUNCATED, RUNNING},
            [PT_PIECE_OVERRUN] = {PT_ERR_INVALID_PARAM, IDLE},
            [PT_PIECE_TOO_LARGE] = {PT_ERR_MESSAGE_TOO_LARGE, RUNNING},
            [PT_PIECE_NO_MEMORY] = {PT_ERR_NO_MEMORY, IDLE},
            [PT_PIECE_START] = {PT_OK, RUNNING},
            [PT_PIECE_OTHER_ID] = {PT_ERR_INVALID_PARAM, RUNNING},
            [PT_PIECE_MISPLACED] = {PT_ERR_INVALID_PARAM, IDLE},
            [PT_PIECE_NEXT] = {PT_OK, RUNNING},
            [PT_PIECE_LAST_EARLY] = {PT_ERR_TRUNCATED, IDLE},
            [PT_PIECE_LAST] = {PT_REASSEMBLY_COMPLETE, IDLE},
        },
};

pt_reassembly_rule pt_reassembly_rule_of(uint8_t state, uint8_t event)
{
    PT_ASSERT(state < STATES && event < EVENTS);

    return RULES[state][event];
}

static void forget(pt_reassembly *reassembly)
{
    PT_ASSERT(reassembly->received_len <= reassembly->total_len);
    PT_ASSERT(reassembly->buffer == NULL ||
              reassembly->total_len <= pt_pool_buffer_size(reassembly->buffer));

    if (reassembly->buffer != NULL)
        pt_pool_release(reassembly->pool, reassembly->buffer, reassembly->received_len);
    reassembly->buffer = NULL;
    reassembly->message_id = 0;
    reassembly->total_len = 0;
    reassembly->received_len = 0;
}

static void give_back_delivered(pt_reassembly *reassembly)
{
    PT_ASSERT(reassembly->delivered != NULL || reassembly->delivered_len == 0);

    if (reassembly->delivered != NULL)
        pt_pool_release(reassembly->pool, reassembly->delivered, reassembly->delivered_len);
    reassembly->delivered = NULL;
    reassembly->delivered_len = 0;
}

/* What a piece means to the running message, which is held to be as long as its first fragment
 * said. */
static uint8_t judge_piece(const pt_reassembly *reassembly, const pt_fragment *fragment,
                           size_t piece_len)
{
    PT_ASSERT(!(fragment->flags & PT_FRAGMENT_FIRST) ||
              fragment->message_id == reassembly->message_id);

    if (fragment->message_id != reassembly->message_id)
        return PT_PIECE_OTHER_ID;
    if (fragment->offset != reassembly->received_len)
        return PT_PIECE_MISPLACED;
    if (!(fragment->flags & PT_FRAGMENT_LAST))
        return PT_PIECE_NEXT;
    return reassembly->received_len + piece_len == reassembly->total_len ? PT_PIECE_LAST
                                                                         : PT_PIECE_LAST_EARLY;
}

static uint8_t judge(const pt_reassembly *reassembly, const pt_fragment *fragment, size_t piece_len)
{
    int first = (fragment->flags & PT_FRAGMENT_FIRST) != 0;
    int belongs =
        !first && reassembly->state == RUNNING && fragment->message_id == reassembly->message_id;
    size_t total_len = belongs ? reassembly->total_len : fragment->total_len;
    if (fragment->offset > total_len || piece_len > total_len - fragment->offset)
        return PT_PIECE_OVERRUN;
    if (first)
        return total_len > reassembly->limit ? PT_PIECE_TOO_LARGE : PT_PIECE_START;
    return judge_piece(reassembly, fragment, piece_len);
}

/* What the table says, and the memory that follows from it. */
static int apply(pt_reassembly *reassembly, uint8_t event)
{
    pt_reassembly_rule rule = pt_reassembly_rule_of(reassembly->state, event);
    if (rule.state == IDLE)
        forget(reassembly);
    reassembly->state = rule.state;
    PT_ASSERT(rule.state == RUNNING || reassembly->buffer == NULL);
    PT_ASSERT(rule.state == IDLE || reassembly->received_len <= reassembly->total_len);
    return rule.code;
}

/* A first fragment: it takes the place of whatever runs. START, or NO_MEMORY. */
static uint8_t begin(pt_reassembly *reassembly, const pt_fragment *fragment)
{
    PT_ASSERT(fragment->flags & PT_FRAGMENT_FIRST);
    PT_ASSERT(fragment->total_len <= reassembly->limit);

    forget(reassembly);
    if (fragment->total_len > 0) {
        reassembly->buffer = pt_pool_acquire_share(reassembly->pool, fragment->total_len);
        if (reassembly->buffer == NULL)
            return PT_PIECE_NO_MEMORY;
    }
    reassembly->message_id = fragment->message_id;
    reassembly->total_len = fragment->total_len;
    return PT_PIECE_START;
}

static void append(pt_reassembly *reassembly, const uint8_t *piece, size_t piece_len)
{
    PT_ASSERT(piece_len <= (size_t)reassembly->total_len - reassembly->received_len);
    PT_ASSERT(reassembly->buffer != NULL || piece_len == 0);

    if (piece_len > 0)
        memcpy(reassembly->buffer + reassembly->received_len, piece, piece_len);
    reassembly->received_len = (uint16_t)(reassembly->received_len + piece_len);
}

void pt_reassembly_init(pt_reassembly *reassembly, pt_pool *pool, uint32_t limit)
{
    PT_ASSERT(pool != NULL);

    memset(reassembly, 0, sizeof *reassembly);
    reassembly->pool = pool;
    reassembly->limit = limit;
}

void pt_reassembly_cleanup(pt_reassembly *reassembly)
{
    give_back_delivered(reassembly);
    forget(reassembly);
    reassembly->state = IDLE;
}

int pt_reassembly_feed(pt_reassembly *reassembly, const uint8_t *payload, size_t len,
                       const uint8_t **message, uint16_t *message_len)
{
    PT_ASSERT(reassembly->received_len <= reassembly->total_len &&
              reassembly->total_len <= reassembly->limit);
    PT_ASSERT(reassembly->state == RUNNING ||
              (reassembly->buffer == NULL && reassembly->total_len == 0));

    give_back_delivered(reassembly);
    pt_fragment fragment;
    if (pt_fragment_decode(payload, len, &fragment) < 0)
        return apply(reassembly, PT_PIECE_SHORT);
    const uint8_t *piece = payload + PT_FRAGMENT_HEADER_SIZE;
    size_t piece_len = len - PT_FRAGMENT_HEADER_SIZE;

    uint8_t event = judge(reassembly, &fragment, piece_len);
    if (event == PT_PIECE_START) {
        event = begin(reassembly, &fragment);
        if (event == PT_PIECE_START) {
            apply(reassembly, event);
            event = judge_piece(reassembly, &fragment, piece_len);
        }
    }
    if (reassembly->state == RUNNING && (event == PT_PIECE_NEXT || event == PT_PIECE_LAST))
        append(reassembly, piece, piece_len);
    if (reassembly->state == RUNNING && event == PT_PIECE_LAST) {
        reassembly->delivered = reassembly->buffer;
        reassembly->delivered_len = reassembly->total_len;
        reassembly->buffer = NULL;
        *message = reassembly->delivered;
        *message_len = reassembly->delivered_len;
    }
    return apply(reassembly, event);
}

/* Bytes of the entry that begins at offset, its header included; 0 when it does not end within the
 * payload. */
static size_t entry_size(const uint8_t *payload, size_t len, size_t offset)
{
    PT_ASSERT(offset <= len);

    size_t left = len - offset;
    if (left < BATCH_ENTRY_HEADER)
        return 0;
    size_t size = BATCH_ENTRY_HEADER + ((size_t)payload[offset] << 8 | payload[offset + 1]);
    return size <= left ? size : 0;
}

int pt_batch_count(const uint8_t *payload, size_t len)
{
    int count = 0;
    for (size_t offset = 0; offset < len; count++) {
        size_t size = entry_size(payload, len, offset);
        if (size == 0)
            return PT_ERR_TRUNCATED;
        offset += size;
    }
    return count;
}

const uint8_t *pt_batch_next(const uint8_t *payload, size_t len, size_t *offset,
                             uint16_t *entry_len)
{
    PT_ASSERT(*offset <= len);

    size_t size = entry_size(payload, len, *offset);
    if (size == 0)
        return NULL;
    const uint8_t *entry = payload + *offset + BATCH_ENTRY_HEADER;
    *entry_len = (uint16_t)(size - BATCH_ENTRY_HEADER);
    *offset += size;
    PT_ASSERT(*offset <= len && entry + *entry_len == payload + *offset);
    return entry;
}
