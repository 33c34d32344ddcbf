/* The theory is in pt_pipeline.h. Decided here alone: which slot a frame goes into, when a slot
 * gets a buffer of its link's share and when a larger one, and which buffers stay. */
#include "pt_pipeline.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"

#define NOWHERE PT_NOWHERE

/* Following state, by state and step: reserve, launch, complete, report, close. */
static const uint8_t NEXT[][5] = {
    [PT_SLOT_FREE] = {PT_SLOT_FILLING, NOWHERE, NOWHERE, NOWHERE, PT_SLOT_FREE},
    [PT_SLOT_FILLING] = {NOWHERE, PT_SLOT_IN_FLIGHT, NOWHERE, NOWHERE, PT_SLOT_FREE},
    [PT_SLOT_IN_FLIGHT] = {NOWHERE, NOWHERE, PT_SLOT_COMPLETED, NOWHERE, PT_SLOT_ABANDONED},
    [PT_SLOT_COMPLETED] = {NOWHERE, NOWHERE, NOWHERE, PT_SLOT_FREE, PT_SLOT_FREE},
    [PT_SLOT_ABANDONED] = {NOWHERE, NOWHERE, PT_SLOT_FREE, NOWHERE, PT_SLOT_ABANDONED},
};

uint8_t pt_slot_next(uint8_t state, uint8_t step)
{
    PT_ASSERT(state <= PT_SLOT_ABANDONED);
    PT_ASSERT(step <= PT_SLOT_STEP_CLOSE);

    return NEXT[state][step];
}

static void move(pt_send_slot *slot, enum pt_slot_step step)
{
    slot->state = pt_slot_next(slot->state, (uint8_t)step);
    PT_ASSERT(slot->state != NOWHERE);
}

static uint8_t before(const pt_send_pipeline *pipeline, uint8_t index)
{
    return (uint8_t)((index ? index : pipeline->room) - 1);
}

static uint8_t after(const pt_send_pipeline *pipeline, uint8_t index)
{
    return (uint8_t)(index + 1 == pipeline->room ? 0 : index + 1);
}

static void forget_buffer(pt_send_slot *slot)
{
    slot->buffer = NULL;
    slot->buffer_size = 0;
    slot->used_len = 0;
    slot->message_len = 0;
}

/* The payload that a slot refers to is not needed any more. */
static void let_go(const pt_send_pipeline *pipeline, pt_send_slot *slot)
{
    if (!PT_WIDE || !pipeline->refers || slot->hold == NULL)
        return;
    pt_hold *hold = slot->hold;
    PT_ASSERT(hold->payload != NULL);
    PT_ASSERT(hold->sent <= hold->len);

    slot->hold = NULL;
    hold->let_go(hold);
}

/* The pool wipes as much as was ever written, which may be more than the last frames were. */
static void drop_buffer(pt_send_pipeline *pipeline, pt_send_slot *slot)
{
    if (slot->message_len > slot->used_len)
        slot->used_len = slot->message_len;
    if (slot->buffer != NULL) {
        if (pt_pool_is_share(slot->buffer))
            pipeline->share_count--;
        pipeline->lent -= slot->buffer_size;
        pt_pool_release(pipeline->pool, slot->buffer, slot->used_len);
    }
    forget_buffer(slot);
}

/* Keep a slot's buffer for the next write: with the slot that will be used next, so that one write
 * at a time needs one buffer. */
static void hand_on_buffer(pt_send_pipeline *pipeline, pt_send_slot *slot)
{
    pt_send_slot *next = &pipeline->slots[pipeline->next_slot];
    if (next == slot || next->state != PT_SLOT_FREE || next->buffer != NULL)
        return;
    next->buffer = slot->buffer;
    next->buffer_size = slot->buffer_size;
    next->used_len = slot->used_len > slot->message_len ? slot->used_len : slot->message_len;
    next->message_len = 0;
    forget_buffer(slot);
}

/* 1 when the caller says so, or the slot before is still under way and well filled: more is sent
 * than leaves at once. */
static int is_bulk(const pt_send_pipeline *pipeline)
{
    if (!pipeline->packing || pipeline->more)
        return pipeline->packing;
    const pt_send_slot *last = &pipeline->slots[before(pipeline, pipeline->next_slot)];
    return pipeline->pending_count != 0 && last->message_len > pipeline->small_size / 2;
}

/* Make sure that a slot has a buffer: one of this link's share, unless it is in bulk and the budget
 * has a larger one. */
static int lend_buffer(pt_send_pipeline *pipeline, pt_send_slot *slot)
{
    if (slot->buffer != NULL)
        return PT_OK;
    int has_share = pipeline->lazy && pipeline->share_count < PT_SLOT_SHARE;
    uint16_t size = is_bulk(pipeline) ? pipeline->slot_size : pipeline->small_size;
    if (!pipeline->is_still && (!has_share || size > pipeline->small_size))
        slot->buffer = pt_pool_acquire(pipeline->pool, size);
    if (slot->buffer == NULL && has_share) {
        size = pipeline->small_size;
        slot->buffer = pt_pool_acquire_share(pipeline->pool, size);
        pipeline->share_count = (uint8_t)(pipeline->share_count + (slot->buffer != NULL));
    }
    if (slot->buffer == NULL)
        return PT_ERR_NO_MEMORY;
    pipeline->lent += size;
    slot->buffer_size = size;
    return PT_OK;
}

static inline int has_borrowed(const pt_send_pipeline *pipeline)
{
    return PT_BORROWED_SLOTS && pipeline->only != NULL && pipeline->slots != pipeline->only;
}

/* A second slot is wanted: the first one moves to the others. 0 when there is no memory for them.
 */
static int borrow_slots(pt_send_pipeline *pipeline)
{
    PT_ASSERT(pipeline->only != NULL && pipeline->pending_count == 1);

    uint32_t size = pipeline->depth * (uint32_t)sizeof *pipeline->slots;
    pt_send_slot *slots = (void *)pt_pool_acquire_share(pipeline->pool, size);
    if (slots == NULL)
        return 0;
    slots[0] = *pipeline->only;
    pipeline->slots = slots;
    pipeline->room = pipeline->depth;
    pipeline->next_slot = 1;
    return 1;
}

/* Nothing is in flight, and no slot has a buffer. */
static void return_slots(pt_send_pipeline *pipeline)
{
    if (!has_borrowed(pipeline))
        return;
    pt_pool_release(pipeline->pool, (uint8_t *)pipeline->slots,
                    pipeline->depth * (uint32_t)sizeof *pipeline->slots);
    memset(pipeline->only, 0, sizeof *pipeline->only);
    pipeline->slots = pipeline->only;
    pipeline->room = 1;
    pipeline->head = 0;
    pipeline->next_slot = 0;
}

int pt_pipeline_init(pt_send_pipeline *pipeline, pt_send_slot *slots, uint8_t depth,
                     uint16_t slot_size, pt_pool *pool, int lazy, int packing)
{
    if (pipeline == NULL || slots == NULL || pool == NULL || depth == 0 ||
        depth > PT_PIPELINE_MAX_DEPTH || slot_size < PT_FRAME_OVERHEAD)
        return PT_ERR_INVALID_PARAM;
    if (pipeline->initialized)
        return PT_ERR_ALREADY_INITIALIZED;

    pt_send_pipeline fresh;
    memset(&fresh, 0, sizeof fresh);
    fresh.slots = slots;
    fresh.pool = pool;
    fresh.slot_size = slot_size;
    fresh.small_size = slot_size;
    if (lazy && slot_size > PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD)
        fresh.small_size = PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD;
    fresh.depth = depth;
    int borrows = PT_BORROWED_SLOTS && lazy == PT_LAZY_SLOTS;
    fresh.only = borrows ? slots : NULL;
    fresh.room = borrows ? 1 : depth;
    fresh.lazy = lazy != 0;
    fresh.packing = packing != 0;
    memset(slots, 0, fresh.room * sizeof *slots);
    if (!lazy) {
        for (uint8_t index = 0; index < depth; index++) {
            if (lend_buffer(&fresh, &slots[index]) == PT_OK)
                continue;
            while (index-- > 0)
                drop_buffer(&fresh, &slots[index]);
            return PT_ERR_NO_MEMORY;
        }
    }
    fresh.initialized = 1;
    *pipeline = fresh;
    return PT_OK;
}

int pt_pipeline_cleanup(pt_send_pipeline *pipeline)
{
    int abandoned = 0;
    for (uint8_t index = 0; index < pipeline->room; index++) {
        pt_send_slot *slot = &pipeline->slots[index];
        move(slot, PT_SLOT_STEP_CLOSE);
        if (slot->state == PT_SLOT_ABANDONED) {
            abandoned++;
        } else {
            let_go(pipeline, slot);
            drop_buffer(pipeline, slot);
        }
    }
    pipeline->pending_count = (uint8_t)abandoned;
    pipeline->filling_count = 0;
    pipeline->ripe = 0;
    pipeline->initialized = 0;
    if (abandoned == 0)
        return_slots(pipeline);
    return abandoned;
}

int pt_pipeline_reserve(pt_send_pipeline *pipeline, uint8_t *slot_index)
{
    PT_ASSERT(pipeline->initialized);
    PT_ASSERT(pipeline->pending_count <= pipeline->depth);
    PT_ASSERT(pipeline->filling_count <= pipeline->pending_count);

    if (pipeline->pending_count == pipeline->room &&
        (!PT_BORROWED_SLOTS || pipeline->room == pipeline->depth || !borrow_slots(pipeline)))
        return PT_ERR_WOULD_BLOCK;
    uint8_t index = pipeline->next_slot;
    pt_send_slot *slot = &pipeline->slots[index];
    if (lend_buffer(pipeline, slot) != PT_OK) {
        PT_ASSERT(pipeline->lazy); /* else pt_pipeline_init() lent them all */
        return pipeline->pending_count != 0 ? PT_ERR_WOULD_BLOCK : PT_ERR_NO_MEMORY;
    }

    move(slot, PT_SLOT_STEP_RESERVE);
    if (slot->message_len > slot->used_len)
        slot->used_len = slot->message_len;
    slot->message_count = 0;
    slot->message_len = 0;
    slot->sent_len = 0;
    slot->result = PT_OK;
    slot->no_delay = 0;
    pipeline->filling_count++;
    pipeline->ripe = 0;
    pipeline->pending_count++;
    if (pipeline->pending_count > pipeline->high_water)
        pipeline->high_water = pipeline->pending_count;
    pipeline->next_slot = after(pipeline, index);
    *slot_index = index;
    return PT_OK;
}

/* The slot that so many bytes go into. A FILLING one that is ripe takes no more; one that is not
 * may still be too full for this frame. NULL, with *result: it is refused. */
static inline pt_send_slot *find_slot(pt_send_pipeline *pipeline, uint32_t frame_len, int *result)
{
    uint8_t index = before(pipeline, pipeline->next_slot);
    if (pipeline->filling_count == 0 || pipeline->ripe ||
        frame_len >
            (uint32_t)(pipeline->slots[index].buffer_size - pipeline->slots[index].message_len)) {
        *result = pt_pipeline_reserve(pipeline, &index);
        if (*result != PT_OK) {
            pipeline->refusals++;
            return NULL;
        }
    }
    pt_send_slot *slot = &pipeline->slots[index];
    PT_ASSERT(slot->state == PT_SLOT_FILLING && (!pipeline->refers || slot->hold == NULL));
    PT_ASSERT(slot->message_len + frame_len <= slot->buffer_size);
    return slot;
}

int pt_pipeline_send(pt_send_pipeline *pipeline, uint8_t type, uint8_t flags,
                     const uint8_t *payload, uint32_t payload_len)
{
    if (!pipeline->initialized)
        return PT_ERR_NOT_INITIALIZED;
    if (type < PT_FRAME_DATA || type > PT_FRAME_CAPABILITY || (payload == NULL && payload_len != 0))
        return PT_ERR_INVALID_PARAM;
    if (payload_len > (uint32_t)pipeline->small_size - PT_FRAME_OVERHEAD)
        return PT_ERR_MESSAGE_TOO_LARGE;

    uint32_t frame_len = payload_len + PT_FRAME_OVERHEAD;
    int result = PT_OK;
    pt_send_slot *slot = find_slot(pipeline, frame_len, &result);
    if (slot == NULL)
        return result;

    uint8_t no_delay = (uint8_t)(flags & PT_FLAG_NO_DELAY);
    flags = (uint8_t)(flags & ~PT_FLAG_NO_DELAY);
    int counted = type == PT_FRAME_DATA || type == PT_FRAME_DISCONNECT;
    uint8_t sequence = counted ? pipeline->send_seq : 0;

    pt_frame_put(slot->buffer + slot->message_len, type, flags, sequence, payload, payload_len);

    slot->message_len = (uint16_t)(slot->message_len + frame_len);
    slot->no_delay |= no_delay != 0;
    if (slot->no_delay || !pipeline->packing ||
        slot->buffer_size - slot->message_len < PT_FRAME_OVERHEAD)
        pipeline->ripe = 1;
    if (counted)
        pipeline->send_seq++;
    if (type == PT_FRAME_DATA) {
        slot->message_count++;
        pipeline->accepted++;
    }
    pipeline->frames++;
    pipeline->payload_bytes += payload_len;
    return PT_OK;
}

#if PT_WIDE
int pt_pipeline_send_wide(pt_send_pipeline *pipeline, const pt_wide *wide, const uint8_t *payload,
                          pt_hold *hold)
{
    uint32_t copied = hold == NULL ? wide->payload_len : 0;
    if (!pipeline->initialized)
        return PT_ERR_NOT_INITIALIZED;
    if ((payload == NULL) != (wide->payload_len == 0) || (hold != NULL && payload == NULL))
        return PT_ERR_INVALID_PARAM;
    if (wide->payload_len > PT_WIDE_MAX_PAYLOAD ||
        PT_WIDE_HEADER_SIZE + copied > (uint32_t)pipeline->small_size)
        return PT_ERR_MESSAGE_TOO_LARGE;

    int result = PT_OK;
    pt_send_slot *slot = find_slot(pipeline, PT_WIDE_HEADER_SIZE + copied, &result);
    if (slot == NULL)
        return result;

    pt_wide_put(slot->buffer + slot->message_len, wide, payload);
    slot->message_len = (uint16_t)(slot->message_len + PT_WIDE_HEADER_SIZE);
    if (hold != NULL) {
        hold->payload = payload;
        hold->len = wide->payload_len;
        hold->sent = 0;
        slot->hold = hold;
        pipeline->refers = 1;
        pipeline->ripe = 1; /* nothing can stand behind it */
    } else if (copied != 0) {
        memcpy(slot->buffer + slot->message_len, payload, copied);
        slot->message_len = (uint16_t)(slot->message_len + copied);
    }
    if (!pipeline->packing || slot->buffer_size - slot->message_len < PT_FRAME_OVERHEAD)
        pipeline->ripe = 1;
    if (wide->type == PT_FRAME_DATA && wide->offset + wide->payload_len == wide->total) {
        slot->message_count++;
        pipeline->accepted++;
    }
    pipeline->frames++;
    pipeline->payload_bytes += wide->payload_len;
    return PT_OK;
}
#endif

int pt_pipeline_launch(pt_send_pipeline *pipeline)
{
    if (pipeline->filling_count == 0)
        return -1;
    int index = (int)pipeline->next_slot - pipeline->filling_count;
    if (index < 0)
        index += pipeline->room;
    move(&pipeline->slots[index], PT_SLOT_STEP_LAUNCH);
    if (--pipeline->filling_count == 0)
        pipeline->ripe = 0;
    return index;
}

void pt_pipeline_complete(pt_send_pipeline *pipeline, uint8_t slot_index, int result)
{
    PT_ASSERT(slot_index < pipeline->room);
    pt_send_slot *slot = &pipeline->slots[slot_index];
    move(slot, PT_SLOT_STEP_COMPLETE);
    slot->result = (int16_t)result;
    if (slot->state == PT_SLOT_FREE) { /* it was abandoned */
        let_go(pipeline, slot);
        drop_buffer(pipeline, slot);
        if (--pipeline->pending_count == 0)
            return_slots(pipeline);
    }
}

int pt_pipeline_report(pt_send_pipeline *pipeline, uint32_t *message_count, int *result)
{
    pt_send_slot *slot = &pipeline->slots[pipeline->head];
    if (pipeline->pending_count == 0 || slot->state != PT_SLOT_COMPLETED)
        return 0;
    *message_count = slot->message_count;
    *result = slot->result;
    pipeline->reported += slot->message_count;
    move(slot, PT_SLOT_STEP_REPORT);
    let_go(pipeline, slot);
    /* A larger one is worth keeping when a small one would not have done. */
    uint32_t worth =
        slot->buffer_size > pipeline->small_size ? pipeline->small_size : pipeline->small_size / 2U;
    if (pipeline->keep && slot->message_len > worth)
        hand_on_buffer(pipeline, slot);
    else if (pipeline->lazy)
        drop_buffer(pipeline, slot);
    pipeline->pending_count--;
    pipeline->head = after(pipeline, pipeline->head);
    return 1;
}

void pt_pipeline_rest(pt_send_pipeline *pipeline)
{
    if (!pipeline->lazy)
        return;
    for (uint8_t index = 0; index < pipeline->room; index++) {
        if (pipeline->slots[index].state == PT_SLOT_FREE)
            drop_buffer(pipeline, &pipeline->slots[index]);
    }
    if (pipeline->pending_count == 0)
        return_slots(pipeline);
}

int pt_pipeline_keeps(const pt_send_pipeline *pipeline)
{
    for (uint8_t index = 0; pipeline->lazy && index < pipeline->room; index++) {
        if (pipeline->slots[index].state == PT_SLOT_FREE && pipeline->slots[index].buffer != NULL)
            return 1;
    }
    return has_borrowed(pipeline);
}

#if PT_WIDE
uint32_t pt_pipeline_referred(const pt_send_pipeline *pipeline)
{
    PT_ASSERT(pipeline->room <= PT_PIPELINE_MAX_DEPTH);

    uint32_t sum = 0;
    for (uint8_t index = 0; index < pipeline->room; index++) {
        const pt_hold *hold = pipeline->refers ? pipeline->slots[index].hold : NULL;
        sum += hold != NULL ? hold->len : 0;
    }
    return sum;
}
#endif

uint8_t pt_pipeline_available(const pt_send_pipeline *pipeline)
{
    return (uint8_t)(pipeline->depth - pipeline->pending_count);
}

#if PT_ASSERTIONS
/* One slot, and 1 when its buffer is of the link's share. */
static int check_slot(const pt_send_pipeline *pipeline, const pt_send_slot *slot)
{
    PT_ASSERT(slot->state <= PT_SLOT_ABANDONED);
    PT_ASSERT((slot->buffer == NULL) == (slot->buffer_size == 0));
    PT_ASSERT(slot->state == PT_SLOT_FREE || slot->buffer != NULL);
    PT_ASSERT(slot->state == PT_SLOT_FREE || slot->message_len <= slot->buffer_size);
    PT_ASSERT(slot->sent_len <= slot->message_len || slot->state == PT_SLOT_FREE);
    PT_ASSERT(slot->buffer == NULL || pt_pool_buffer_size(slot->buffer) >= slot->buffer_size);
    const pt_hold *hold = pipeline->refers ? slot->hold : NULL;
    PT_ASSERT(hold == NULL || slot->state != PT_SLOT_FREE);
    PT_ASSERT(hold == NULL || hold->sent <= hold->len);
    PT_ASSERT(pipeline->lazy || slot->buffer != NULL);
    return slot->buffer != NULL && pt_pool_is_share(slot->buffer);
}

void pt_pipeline_check(const pt_send_pipeline *pipeline)
{
    PT_ASSERT(pipeline->initialized);
    PT_ASSERT(pipeline->pending_count <= pipeline->depth);
    PT_ASSERT(pipeline->filling_count <= pipeline->pending_count);
    PT_ASSERT(pipeline->pending_count <= pipeline->high_water);
    PT_ASSERT(pipeline->reported <= pipeline->accepted);
    PT_ASSERT(pipeline->filling_count != 0 || !pipeline->ripe);
    PT_ASSERT((pipeline->head + pipeline->pending_count) % pipeline->room == pipeline->next_slot);
    PT_ASSERT(pipeline->room == pipeline->depth || pipeline->slots == pipeline->only);

    int share_count = 0;
    uint32_t lent = 0;
    uint8_t index = pipeline->head;
    for (uint8_t place = 0; place < pipeline->room; place++, index = after(pipeline, index)) {
        const pt_send_slot *slot = &pipeline->slots[index];
        int is_filling = place < pipeline->pending_count &&
                         place >= pipeline->pending_count - pipeline->filling_count;
        PT_ASSERT((slot->state != PT_SLOT_FREE) == (place < pipeline->pending_count));
        PT_ASSERT((slot->state == PT_SLOT_FILLING) == is_filling);
        share_count += check_slot(pipeline, slot);
        lent += slot->buffer_size;
    }
    PT_ASSERT(lent == pipeline->lent);
    PT_ASSERT(share_count == pipeline->share_count);
    PT_ASSERT(share_count <= PT_SLOT_SHARE);
}
#endif
