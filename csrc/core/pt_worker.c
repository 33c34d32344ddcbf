#include "pt_worker.h"

#include <stddef.h>
#include <string.h>

#include "pt_assert.h"
#include "pt_loop_inside.h"

#if PT_WORKERS
/* Stream bytes of one turn: so that nobody waits for the lock for long. */
#define WORKER_READ 262144

/* Events of one turn: timers, of which only the pool's has something to say. */
#define WORKER_EVENTS 64

/* How long a full worker waits at most before it looks whether links can be written again: to hear
 * that from the system it would have to hear of all that it does not read, too. */
#define FULL_RETRY_MS 5

/* Where a large message lands that was not offered: behind this. */
typedef struct kept_landing {
    pt_landing base;
    pt_memory memory; /* it may outlive the worker that made it, at another one */
    size_t size;
} kept_landing;

/* ------------------------------------------------------------------------------------- recording */

static uint32_t padded(uint32_t len)
{
    return (len + 3U) & ~3U;
}

/* Room for so many bytes in the last block, or a new one. NULL: no memory. */
static uint8_t *claim(pt_worker *worker, uint32_t size)
{
    PT_ASSERT(size % 4 == 0 && size <= PT_POSIX_SLOT_SIZE - sizeof(pt_block));

    pt_block *block = worker->last;
    if (block == NULL || block->room - block->used < size) {
        block = (void *)pt_pool_acquire_share(worker->context->pool, PT_POSIX_SLOT_SIZE);
        if (block == NULL)
            return NULL;
        block->next = NULL;
        block->taken = 0;
        block->used = 0;
        block->room = (uint32_t)(PT_POSIX_SLOT_SIZE - sizeof *block);
        *(worker->last != NULL ? &worker->last->next : &worker->first) = block;
        worker->last = block;
    }
    uint8_t *place = (uint8_t *)(block + 1) + block->used;
    block->used += size;
    worker->kept += size;
    return place;
}

static int keep(pt_worker *worker, uint32_t tag, uint32_t about, const void *payload, uint32_t len)
{
    PT_ASSERT(payload != NULL || len == 0);

    uint8_t *place = claim(worker, (uint32_t)sizeof(pt_record) + padded(len));
    if (place == NULL)
        return PT_ERR_NO_MEMORY;
    pt_record *record = (void *)place;
    record->tag = tag;
    record->about = about;
    record->len = len;
    if (len != 0)
        memcpy(record + 1, payload, len);
    worker->newest = record;
    worker->has_news |= PT_NEWS_FRAMES;
    return PT_OK;
}

/* 1 when a control frame without payload repeats the one before it: see turn() of the border. */
static int says_nothing_more(const pt_worker *worker, uint32_t tag, const pt_frame *frame)
{
    const pt_record *last = worker->newest;
    PT_ASSERT(last == NULL || worker->last != NULL);
    return frame->payload_len == 0 && frame->type != PT_FRAME_DATA && last != NULL &&
           last->tag == tag && last->len == 0 &&
           (last->about & 0xFFFF) == (frame->type | (uint32_t)frame->flags << 8);
}

static int keep_frame(void *sink_context, uint32_t tag, const pt_frame *frame)
{
    pt_worker *worker = sink_context;
    PT_ASSERT(worker->reading != NULL && worker->reading->source.tag == tag);

    if (frame->type == PT_FRAME_PING && worker->reading->answers) {
        worker->is_pinged = 1;
        return PT_OK;
    }
    if (says_nothing_more(worker, tag, frame))
        return PT_OK;
    return keep(worker, tag,
                frame->type | (uint32_t)frame->flags << 8 | (uint32_t)frame->sequence << 16,
                frame->payload, frame->payload_len);
}

static void drop_landing(pt_landing *base)
{
    kept_landing *landing = (kept_landing *)base;
    PT_ASSERT(landing->size > sizeof *landing);
    pt_memory memory = landing->memory;
    memory.release(memory.context, landing, landing->size);
}

static pt_landing *land(void *sink_context, uint32_t tag, uint32_t total)
{
    const pt_worker *worker = sink_context;
    (void)tag;
    PT_ASSERT(total != 0 && total <= PT_WIDE_MAX_PAYLOAD);

    size_t size = sizeof(kept_landing) + total;
    kept_landing *landing = worker->memory->allocate(worker->memory->context, size);
    if (landing == NULL)
        return NULL;
    memset(landing, 0, sizeof *landing);
    landing->base.memory = (uint8_t *)(landing + 1);
    landing->base.drop = drop_landing;
    landing->base.total = total;
    landing->memory = *worker->memory;
    landing->size = size;
    return &landing->base;
}

static int landed(void *sink_context, uint32_t tag, pt_landing *landing)
{
    PT_ASSERT(landing->memory != NULL);
    PT_ASSERT(landing->received == landing->total);
    pt_worker *worker = sink_context;
    int result =
        keep(worker, tag, PT_FRAME_DATA | PT_RECORD_LANDED, (const void *)&landing, sizeof landing);
    if (result != PT_OK)
        landing->drop(landing);
    else if (landing->id == 0) /* what was granted counts elsewhere */
        worker->kept += landing->total;
    return result;
}

/* The next record of a block that is not gone, from *at on, which is set behind it; NULL: there is
 * none. */
static pt_record *next_record(pt_block *block, uint32_t *at)
{
    PT_ASSERT(*at <= block->used && *at % 4 == 0);

    while (*at < block->used) {
        pt_record *record = (void *)((uint8_t *)(block + 1) + *at);
        PT_ASSERT(block->used - *at >= sizeof *record + record->len);
        *at += (uint32_t)sizeof *record + padded(record->len);
        if (!(record->about & PT_RECORD_GONE))
            return record;
    }
    return NULL;
}

const pt_record *pt_block_next(pt_block *block)
{
    return next_record(block, &block->taken);
}

void pt_block_again(pt_block *block, const pt_record *record)
{
    PT_ASSERT(block->taken >= sizeof *record + record->len);

    block->taken -= (uint32_t)sizeof *record + padded(record->len);
}

/* ------------------------------------------------------------------------------------ the thread */

/* Wait for something to do, at most so long, and let others have the context meanwhile. */
static int wait(pt_worker *worker, uint32_t most_ms)
{
    pt_context *context = worker->context;
    PT_ASSERT(!worker->is_asleep && context->ready_count == 0);

    int limit = worker->is_full ? FULL_RETRY_MS : pt_loop_next_timeout(context);
    if (worker->is_full && context->lines[PT_LINE_DIRTY].first != NULL)
        limit = 0;
    if (limit < 0 || (uint32_t)limit > most_ms)
        limit = most_ms < INT32_MAX ? (int)most_ms : -1;
    worker->is_lingering = limit != 0 && worker->is_given && !worker->is_full;
    worker->is_asleep = limit != 0 && !worker->is_lingering;
    worker->turns_waited += limit != 0;
    worker->is_given &= limit == 0; /* then it is not pushed yet */
    context->wait_calls++;
    int found = context->ops->wait(context, limit);
    worker->is_asleep = 0;
    worker->is_lingering = 0;
    return found;
}

/* One turn: what is to be pushed, a wait for so long at most, and what that found. */
static int turn(pt_worker *worker, uint32_t most_ms)
{
    pt_context *context = worker->context;
    PT_ASSERT(context->worker == worker && context->ready_count == 0);
    pt_event events[WORKER_EVENTS];
    pt_loop_begin(context);
    int found = wait(worker, most_ms);
    if (found < 0)
        return found;
    uint32_t room = worker->kept < worker->limit ? worker->limit - worker->kept : 0;
    worker->is_full = room == 0;
    pt_sink sink = {.frame = keep_frame,
                    .land = land,
                    .landed = landed,
                    .context = worker,
                    .room = room < WORKER_READ ? room : WORKER_READ};
    int count = pt_loop_work(context, events, WORKER_EVENTS, &sink);
    PT_ASSERT(count >= 0 && count <= WORKER_EVENTS);
    for (int index = 0; index < count; index++) {
        PT_ASSERT(events[index].kind == PT_EVENT_STILL);
        worker->still = events[index];
        worker->has_news |= PT_NEWS_LINKS;
    }
    return PT_OK;
}

/* The worker's thread has the turns again. */
static void unpark(pt_worker *worker)
{
    PT_ASSERT(worker->is_parked || !worker->is_led);

    worker->is_wanted = 0;
    if (worker->is_parked)
        worker->context->ops->wake(worker->context);
}

/* Leave the turns to those who lead, while there are any. Who sends meanwhile writes, or wakes. */
static void park(pt_worker *worker)
{
    pt_context *context = worker->context;
    PT_ASSERT(!worker->is_led && context->ready_count == 0);
    uint32_t leads;
    worker->is_parked = 1;
    worker->is_asleep = 1;
    do {
        leads = worker->leads;
        worker->turns_waited++;
        context->ops->doze(context, PT_LEAD_MS);
    } while (worker->is_led ||
             (worker->is_wanted && !worker->is_stopped && worker->leads != leads &&
              context->lines[PT_LINE_DIRTY].first == NULL));
    PT_ASSERT(worker->is_parked && context->ready_count == 0);
    worker->is_parked = 0;
    worker->is_asleep = 0;
    worker->is_wanted = 0;
}

int pt_worker_lead(pt_worker *worker)
{
    pt_context *context = worker->context;
    PT_ASSERT(worker->is_parked || !worker->is_led);
    if (worker->is_led || worker->is_stopped)
        return 0;
    if (!worker->is_parked) {
        worker->is_wanted = 1; /* who is about to wait for the worker's word is not let down */
        return 0;
    }
    int result = PT_OK;
    uint32_t began = context->ops->clock(context);
    uint32_t waited = 0;
    worker->is_led = 1;
    worker->is_asleep = 0;
    worker->leads++;
    while (result == PT_OK && worker->first == NULL && worker->is_wanted && !worker->is_stopped &&
           waited < PT_LEAD_MS) {
        result = turn(worker, PT_LEAD_MS - waited);
        waited = context->ops->clock(context) - began;
    }
    PT_ASSERT(worker->is_parked && worker->is_led);
    worker->is_led = 0;
    worker->is_asleep = 1;
    if (worker->first == NULL || !pt_worker_keeps_one(worker))
        unpark(worker); /* it is no conversation, in which one message comes at a time */
    return worker->first != NULL;
}

int pt_worker_run(pt_worker *worker)
{
    pt_context *context = worker->context;
    int result = PT_OK;
    context->ops->lock(context);
    PT_ASSERT(!worker->is_running);
    worker->is_running = 1;
    while (!worker->is_stopped && result == PT_OK) {
        result = turn(worker, UINT32_MAX);
        pt_worker_tell_news(worker);
        if (worker->is_wanted && worker->first != NULL && !worker->is_stopped)
            park(worker); /* with a message, whose receiver comes for it and then may lead */
    }
    worker->is_running = 0;
    context->ops->unlock(context);
    return result;
}

void pt_worker_await(pt_worker *worker)
{
    pt_context *context = worker->context;
    PT_ASSERT(context->ops != NULL);
    context->ops->lock(context);
    while (!worker->is_running && !worker->is_stopped)
        context->ops->settle(context, 0);
    context->ops->unlock(context);
}

int pt_worker_await_room(pt_worker *worker, pt_link *link)
{
    pt_context *context = worker->context;
    PT_ASSERT(link->state == PT_LINK_OPEN && !worker->is_stopped);
    const pt_send_pipeline *pipeline = &link->pipeline;
    uint32_t began = context->ops->clock(context);
    uint32_t waited = 0;
    uint32_t given = worker->given;
    worker->awaiting++;
    unpark(worker);
    while (worker->given == given && link->state == PT_LINK_OPEN &&
           pipeline->pending_count > pipeline->depth / 2 && !worker->is_stopped &&
           waited < PT_ROOM_MS) {
        link->pipeline.awaited = 1; /* until it is told, or another one has gone */
        context->ops->settle(context, PT_ROOM_MS - waited);
        waited = context->ops->clock(context) - began;
    }
    worker->awaiting--;
    if (worker->given != given)
        return 0; /* it may be another worker's */
    link->pipeline.awaited = 0;
    return pipeline->pending_count <= pipeline->depth / 2;
}

void pt_worker_stop(pt_worker *worker)
{
    pt_context *context = worker->context;
    PT_ASSERT(context->ops != NULL);
    context->ops->lock(context);
    worker->is_stopped = 1;
    context->ops->wake(context);
    while (worker->is_running || worker->awaiting != 0 || worker->is_led)
        context->ops->settle(context, 0);
    context->ops->unlock(context);
}

int pt_worker_init(pt_worker *worker, pt_context *context, pt_context *home,
                   const pt_memory *memory, uint32_t limit)
{
    if (worker == NULL || context == NULL || home == NULL || memory == NULL || home == context ||
        context->ops == NULL || context->ops->lock == NULL || context->sources != NULL ||
        limit < PT_POSIX_SLOT_SIZE)
        return PT_ERR_INVALID_PARAM;
    memset(worker, 0, sizeof *worker);
    worker->context = context;
    worker->home = home;
    worker->memory = memory;
    worker->limit = limit;
    worker->is_asked = 1;
    worker->may_write = 1;
    context->worker = worker;
    return PT_OK;
}

void pt_worker_cleanup(pt_worker *worker)
{
    pt_context *context = worker->context;
    context->ops->lock(context);
    PT_ASSERT(!worker->is_running);
    for (pt_block *block = worker->first; block != NULL; block = block->next) {
        const pt_record *record;
        while ((record = pt_block_next(block)) != NULL) {
            pt_landing *landing;
            if (!(record->about & PT_RECORD_LANDED))
                continue;
            memcpy((void *)&landing, record + 1, sizeof landing);
            landing->drop(landing);
        }
    }
    pt_block *blocks = worker->first;
    worker->first = NULL;
    worker->last = NULL;
    worker->newest = NULL;
    pt_worker_give_back(worker, blocks);
    worker->kept = 0;
    context->ops->unlock(context);
}

/* --------------------------------------------------------------------------------- for the others */

/* What was kept; who takes it has a turn, and may send as much as after any other one. */
static pt_block *take_blocks(pt_worker *worker)
{
    pt_context *context = worker->context;
    pt_block *blocks = worker->first;
    PT_ASSERT((blocks == NULL) == (worker->last == NULL));
    PT_ASSERT(blocks != NULL || worker->newest == NULL);
    worker->first = NULL;
    worker->last = NULL;
    worker->newest = NULL;
    worker->kept = 0;
    worker->may_write = 1;
    context->turn_messages = 0;
    context->turn_bytes = 0;
    if (worker->is_full)
        pt_loop_wake(context);
    return blocks;
}

pt_block *pt_worker_take_frames(pt_worker *worker)
{
    PT_ASSERT(worker->context->worker == worker);

    worker->has_news &= (uint8_t)~PT_NEWS_FRAMES;
    if (!worker->has_news)
        worker->is_asked = 1;
    return take_blocks(worker);
}

pt_block *pt_worker_take(pt_worker *worker, pt_event *events, int capacity, int *count)
{
    pt_context *context = worker->context;
    PT_ASSERT(events == NULL || capacity >= 8);

    pt_block *blocks = take_blocks(worker);
    if (worker->is_parked && blocks == NULL)
        unpark(worker); /* whoever took nothing is about to wait for the worker's word */
    if (events != NULL) {
        *count = pt_loop_report(context, events, capacity - 1);
        if (worker->still.kind != 0)
            events[(*count)++] = worker->still;
        worker->still.kind = 0;
    }
    worker->has_news = context->lines[PT_LINE_LEFT].first != NULL ? PT_NEWS_LINKS : 0;
    worker->is_asked = !worker->has_news;
    if (worker->has_news && worker->home->ops != NULL)
        worker->home->ops->wake(worker->home);
    return blocks;
}

void pt_worker_give_back(pt_worker *worker, pt_block *blocks)
{
    PT_ASSERT(blocks == NULL || blocks != worker->first);

    while (blocks != NULL) {
        pt_block *next = blocks->next;
        uint32_t used = blocks->used + (uint32_t)sizeof *blocks;
        (void)pt_pool_release(worker->context->pool, (uint8_t *)blocks, used);
        blocks = next;
    }
}

void pt_worker_put_back(pt_worker *worker, pt_block *blocks)
{
    PT_ASSERT(blocks != NULL);

    pt_block *last = blocks;
    worker->kept += last->used - last->taken;
    for (; last->next != NULL; last = last->next)
        worker->kept += last->next->used;
    last->next = worker->first;
    worker->first = blocks;
    if (worker->last == NULL)
        worker->last = last;
    worker->has_news |= PT_NEWS_FRAMES;
}

uint32_t pt_worker_keeps(const pt_worker *worker, uint32_t tag)
{
    pt_context *context = worker->context;
    PT_ASSERT(context->worker == worker);
    uint32_t count = 0;
    context->ops->lock(context);
    for (pt_block *block = worker->first; block != NULL; block = block->next) {
        const pt_record *record;
        uint32_t at = block->taken;
        while ((record = next_record(block, &at)) != NULL)
            count += record->tag == tag;
    }
    context->ops->unlock(context);
    return count;
}

/* --------------------------------------------------------------------------------------- moving */

/* Bytes that a record counts in kept, as landed() has it. */
static uint32_t weight(const pt_record *record)
{
    uint32_t bytes = (uint32_t)sizeof *record + padded(record->len);
    pt_landing *landing;
    if (!(record->about & PT_RECORD_LANDED))
        return bytes;
    PT_ASSERT(record->len == sizeof landing);
    memcpy((void *)&landing, record + 1, sizeof landing);
    return landing->id == 0 ? bytes + landing->total : bytes;
}

/* What all records of a link weigh; gone: and they are struck out. */
static uint32_t weigh(pt_worker *worker, uint32_t tag, int gone)
{
    PT_ASSERT((worker->first == NULL) == (worker->last == NULL));

    uint32_t sum = 0;
    for (pt_block *block = worker->first; block != NULL; block = block->next) {
        pt_record *record;
        uint32_t at = block->taken;
        while ((record = next_record(block, &at)) != NULL) {
            if (record->tag != tag)
                continue;
            sum += weight(record);
            if (gone)
                record->about |= PT_RECORD_GONE;
        }
    }
    return sum;
}

/* Keep the records of a link here, too. 0: there is no memory for one. */
static int copy_records(pt_worker *worker, const pt_worker *from, uint32_t tag)
{
    PT_ASSERT(worker != from);

    for (pt_block *block = from->first; block != NULL; block = block->next) {
        const pt_record *record;
        uint32_t at = block->taken;
        while ((record = next_record(block, &at)) != NULL) {
            if (record->tag != tag)
                continue;
            if (keep(worker, tag, record->about, record + 1, record->len) != PT_OK)
                return 0;
            worker->kept += weight(record) - (uint32_t)sizeof *record - padded(record->len);
        }
    }
    return 1;
}

/* Have kept no more than before; the pool lends memory of zeros. */
static void cut_back(pt_worker *worker, const pt_worker *before, uint32_t used)
{
    pt_block *last = before->last;
    pt_block *more = last != NULL ? last->next : worker->first;
    worker->first = before->first;
    worker->last = last;
    worker->newest = before->newest;
    worker->kept = before->kept;
    if (last != NULL) {
        PT_ASSERT(used <= last->used && last->used <= last->room);
        memset((uint8_t *)(last + 1) + used, 0, last->used - used);
        last->used = used;
        last->next = NULL;
    }
    pt_worker_give_back(worker, more);
}

int pt_worker_move(pt_worker *from, pt_worker *to, pt_link *link)
{
    PT_ASSERT(from->context->worker == from && to->context->worker == to);

    if (from == to || from->home != to->home || from->memory->context != to->memory->context)
        return PT_ERR_INVALID_PARAM;
    if (link->busy || from->is_untold)
        return PT_ERR_BUSY;
    if (!pt_link_is_live(link))
        return PT_ERR_NOT_CONNECTED;
    uint32_t tag = link->source.tag;
    uint32_t brought = weigh(from, tag, 0);
    if (to->kept != 0 && (to->kept > to->limit || brought > to->limit - to->kept))
        return PT_ERR_BUSY;
    const pt_worker before = *to;
    uint32_t used = to->last != NULL ? to->last->used : 0;
    int result = copy_records(to, from, tag) ? pt_link_move(from->context, to->context, link)
                                             : PT_ERR_NO_MEMORY;
    if (result != PT_OK) {
        cut_back(to, &before, used);
        return result;
    }
    from->given++;
    link->pipeline.awaited = 0;
    (void)weigh(from, tag, 1);
    if (from->newest != NULL && from->newest->tag == tag)
        from->newest = NULL; /* what comes now repeats nothing */
    from->kept -= brought < from->kept ? brought : from->kept;
    return PT_OK;
}

void pt_worker_set_tells_sent(pt_worker *worker, int tells)
{
    pt_context *context = worker->context;
    context->ops->lock(context);
    worker->tells_sent = tells != 0;
    PT_ASSERT(context->worker == worker);
    if (tells && context->lines[PT_LINE_LEFT].first != NULL)
        worker->has_news |= PT_NEWS_LINKS;
    pt_worker_tell_news(worker);
    context->ops->unlock(context);
}
#endif
