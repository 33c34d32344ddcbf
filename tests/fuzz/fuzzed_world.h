/* What fuzz_whole.c needs beside wide_stream.h: a platform that the input rules, and a ledger of
 * what a link promised to write, by which each byte that the platform took is judged. The ledger
 * knows nothing of slots and buffers.
 *
 * Whoever includes this defines DEPTH, SLOT_SIZE and LONGEST (bytes of a departing message), and
 * FRAMES (that a run sends at most).
 */
#ifndef FUZZED_WORLD_H
#define FUZZED_WORLD_H

#include "pt_loop.h"
#include "wide_stream.h"

#define WRITTEN (12u * PT_WIDE_MAX_PAYLOAD) /* more than one step brings */
#define SEEDS   256u

/* A payload that holds and a departure share, so that who reads it too late is found out. */
typedef struct cargo {
    size_t users;
    uint8_t bytes[];
} cargo;

/* A hold. */
typedef struct loan {
    pt_hold base;
    cargo *payload;
    uint32_t len;
} loan;

/* A departure. */
typedef struct parcel {
    pt_departure base;
    cargo *payload;
} parcel;

/* A frame that the link accepted, which is written behind at least low bytes of all that departs,
 * and at most high. */
typedef struct promised_frame {
    uint32_t len, payload_len;
    const uint8_t *payload; /* behind the len bytes */
    uint32_t low, high, messages;
    uint8_t bytes[SLOT_SIZE];
} promised_frame;

/* A message that departs, or departed. */
typedef struct journey {
    parcel *live;         /* until it was dropped */
    uint32_t from, taken; /* of all that departs, the bytes before it and those of it */
    uint32_t start, total;
    uint8_t seed;
} journey;

/* What the input says of the platform, the clock and the memory. */
static struct {
    size_t room;       /* bytes that the other side still takes */
    size_t arrived;    /* bytes of what was said that can be read, and ... */
    size_t brought;    /* ... that were */
    uint32_t read_max; /* bytes of one read */
    uint32_t now;
    uint64_t acknowledged; /* bytes, by the other side's system */
    int code;              /* why writing fails, */
    int at_once;           /* already where a slot is handed over */
    int read_code;         /* why reading fails */
    int ended;             /* nothing more will be said */
    int keeps;             /* slots that are done are not told */
    int abandons;          /* nor are those in flight when the link ends */
    int backward;          /* the newest slot is told first */
    int neighbour;         /* the other link seems to be ready */
    int untold;            /* slots that are done and were not told */
    int dry;               /* the pool gets no memory */
    int no_holds;          /* nor is there any for holds */
} world;

/* What the link was asked, promised, wrote and told. */
static struct {
    uint32_t depth, slice_max;
    uint32_t first, last;   /* of the frames that are accepted and not written */
    uint32_t journeys, now; /* the journey that is written */
    uint64_t position;      /* bytes of all whole frames that were written */
    uint32_t departed;      /* bytes of all journeys that were written in whole slices */
    uint32_t written, accepted, reported;   /* messages */
    uint32_t closed, finished;              /* events */
    size_t loans, loaned, parcels, cargoes; /* that are alive; loaned: bytes */
    size_t offered;                         /* bytes of a hold that a send has not accepted yet */
    uint8_t sequence;
} ledger;

static uint8_t pattern[LONGEST + SEEDS];
static promised_frame frames[FRAMES];
static journey journeys[FRAMES];
static uint64_t ends[FRAMES * 2]; /* the position behind each message that was written */
static uint8_t written[WRITTEN];
static size_t written_len, written_at; /* at: where the frame begins that is not whole */
static pt_context context;
static pt_source *ready[2];
static pt_link links[2]; /* the second one never hears or says anything */
static pt_send_slot slots[2][DEPTH];

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline void *allocate_unless_dry(void *unused, size_t size)
{
    return world.dry ? NULL : allocate(unused, size);
}

/* ------------------------------------------------------------------------------- what is lent */

/* Bytes of the pattern, which differ by where they begin. */
static inline cargo *load(uint8_t seed, uint32_t len)
{
    cargo *all = malloc(sizeof *all + len);
    EXPECT(all != NULL);
    all->users = 1;
    memcpy(all->bytes, pattern + seed, len);
    ledger.cargoes++;
    return all;
}

static inline void unload(cargo *all)
{
    EXPECT(all->users != 0);
    if (--all->users != 0)
        return;
    ledger.cargoes--;
    free(all);
}

static inline void let_go(pt_hold *base)
{
    loan *lent = (loan *)base;
    EXPECT(ledger.loans != 0 && ledger.loaned >= lent->len);
    ledger.loans--;
    ledger.loaned -= lent->len;
    ledger.offered = least(ledger.offered, ledger.loaned);
    unload(lent->payload);
    free(lent);
}

static inline pt_hold *lend(cargo *payload, uint32_t len)
{
    loan *lent = calloc(1, sizeof *lent);
    EXPECT(lent != NULL);
    *lent = (loan){.base.let_go = let_go, .payload = payload, .len = len};
    payload->users++;
    ledger.loans++;
    ledger.loaned += len;
    return &lent->base;
}

static inline pt_hold *hold_slice(pt_departure *base)
{
    uint32_t len = (uint32_t)least(base->total - base->offset, ledger.slice_max);
    size_t loaned = ledger.loaned - ledger.offered;
    EXPECT(loaned == 0 || loaned + len <= PT_WIDE_MAX_PAYLOAD);
    return world.no_holds ? NULL : lend(((parcel *)base)->payload, len);
}

/* Bytes of a journey that slots have taken. */
static inline uint32_t taken(const journey *of)
{
    return of->live != NULL ? of->live->base.offset - of->start : of->taken;
}

/* Bytes of all journeys that slots have taken. */
static inline uint32_t all_taken(void)
{
    const journey *last = &journeys[ledger.journeys];
    return ledger.journeys != 0 ? last[-1].from + taken(last - 1) : 0;
}

static inline void drop_parcel(pt_departure *base)
{
    parcel *all = (parcel *)base;
    journey *last = &journeys[ledger.journeys - 1];
    EXPECT(ledger.parcels == 1 && last->live == all);
    ledger.parcels--;
    last->taken = taken(last);
    last->live = NULL;
    ledger.accepted += base->offset == base->total;
    unload(all->payload);
    free(all);
}

/* ---------------------------------------------------------------------------- what was written */

/* A slice of a departing message stands there: their ids fit a byte, others do not. */
static inline int is_departing(const uint8_t *start, size_t left, pt_wide *wide)
{
    return left >= PT_WIDE_HEADER_SIZE && pt_wide_decode(start, wide) == PT_OK &&
           wide->type == PT_FRAME_DATA && wide->id != 0 && wide->id <= UINT8_MAX;
}

/* A whole frame, which ends so many messages, at most one. */
static inline void count_written(size_t size, uint32_t messages)
{
    ledger.position += size;
    if (messages != 0)
        ends[ledger.written++] = ledger.position;
}

/* Returns its length; 0: it is not whole. */
static inline size_t read_departing(const uint8_t *start, size_t left, const pt_wide *wide)
{
    const journey *now = &journeys[ledger.now];
    while (now->live == NULL && ledger.departed == now->from + now->taken) {
        EXPECT(ledger.now < ledger.journeys);
        now = &journeys[++ledger.now];
    }
    EXPECT(ledger.now < ledger.journeys && wide->id == ledger.now % UINT8_MAX + 1);
    EXPECT(wide->total == now->total);
    EXPECT(wide->offset == now->start + (ledger.departed - now->from));
    EXPECT(wide->payload_len == least(wide->total - wide->offset, ledger.slice_max));
    EXPECT(ledger.departed + wide->payload_len <= now->from + taken(now));
    EXPECT(ledger.first == ledger.last || frames[ledger.first].high > ledger.departed);
    size_t size = PT_WIDE_HEADER_SIZE + wide->payload_len;
    if (left < size)
        return 0;
    const uint8_t *payload = start + PT_WIDE_HEADER_SIZE;
    EXPECT(memcmp(payload, pattern + now->seed + wide->offset, wide->payload_len) == 0);
    EXPECT(pt_crc32c(pt_wide_start_crc(start), payload, wide->payload_len) == wide->crc);
    ledger.departed += wide->payload_len;
    count_written(size, wide->offset + wide->payload_len == wide->total);
    return size;
}

/* As read_departing(), of the first frame that is accepted. */
static inline size_t read_accepted(const uint8_t *start, size_t left)
{
    if (left < 2 || (pt_is_wide(start) && left < PT_WIDE_HEADER_SIZE))
        return 0;
    const promised_frame *frame = &frames[ledger.first];
    EXPECT(ledger.first < ledger.last);
    EXPECT(memcmp(start, frame->bytes, least(left, frame->len)) == 0);
    EXPECT(frame->low <= ledger.departed && ledger.departed <= frame->high);
    size_t size = frame->len + frame->payload_len;
    if (left < size)
        return 0;
    EXPECT(frame->payload_len == 0 ||
           memcmp(start + frame->len, frame->payload, frame->payload_len) == 0);
    count_written(size, frame->messages);
    ledger.first++;
    return size;
}

static inline void read_written(void)
{
    size_t size = 1;
    while (size != 0 && written_at < written_len) {
        const uint8_t *start = written + written_at;
        size_t left = written_len - written_at;
        pt_wide wide;
        size = is_departing(start, left, &wide) ? read_departing(start, left, &wide)
                                                : read_accepted(start, left);
        written_at += size;
    }
}

/* Nothing that was accepted is still to be written. */
static inline int is_all_written(void)
{
    read_written();
    return ledger.first == ledger.last && ledger.departed == all_taken() &&
           written_at == written_len;
}

/* ------------------------------------------------------------------------------- the platform */

static inline void append(const uint8_t *bytes, size_t len)
{
    if (len > sizeof written - written_len) {
        memmove(written, written + written_at, written_len - written_at);
        written_len -= written_at;
        written_at = 0;
    }
    EXPECT(len <= sizeof written - written_len);
    memcpy(written + written_len, bytes, len);
    written_len += len;
}

static inline size_t take(const uint8_t *bytes, size_t len)
{
    len = least(len, world.room);
    append(bytes, len);
    world.room -= len;
    return len;
}

/* Take what is left of a slot. 1: it is done. */
static inline int take_slot(pt_link *link, pt_send_slot *slot)
{
    size_t count = take(slot->buffer + slot->sent_len, (size_t)slot->message_len - slot->sent_len);
    slot->sent_len = (uint16_t)(slot->sent_len + count);
    link->sent_bytes += count;
    pt_hold *hold = context.ops->refers ? slot->hold : NULL;
    if (slot->sent_len < slot->message_len || hold == NULL)
        return slot->sent_len == slot->message_len;
    count = take(hold->payload + hold->sent, hold->len - hold->sent);
    hold->sent += (uint32_t)count;
    link->sent_bytes += count;
    return hold->sent == hold->len;
}

static inline uint8_t pending_slot(const pt_send_pipeline *pipeline, int place)
{
    return (uint8_t)((pipeline->head + place) % pipeline->room);
}

static inline int poll(pt_context *unused, pt_link *link)
{
    (void)unused;
    pt_send_pipeline *pipeline = &link->pipeline;
    EXPECT(link == &links[0] && !link->blocked);
    if (world.code != PT_OK) {
        link->system_error = 32;
        return world.code;
    }
    uint8_t done[DEPTH];
    int count = 0;
    for (int place = 0; place < pipeline->pending_count && !link->blocked; place++) {
        uint8_t index = pending_slot(pipeline, place);
        if (pipeline->slots[index].state != PT_SLOT_IN_FLIGHT)
            continue;
        if (take_slot(link, &pipeline->slots[index]))
            done[count++] = index;
        else
            link->blocked = 1;
    }
    for (int index = 0; !world.keeps && index < count; index++)
        pt_pipeline_complete(pipeline, done[world.backward ? count - 1 - index : index], PT_OK);
    world.untold = world.keeps ? count : 0;
    return count - world.untold;
}

static inline int start_sending(pt_context *unused, pt_link *link, const uint8_t *data,
                                uint16_t len)
{
    (void)unused;
    EXPECT(link->state == PT_LINK_OPEN || link->state == PT_LINK_SHUT);
    EXPECT(data != NULL && len != 0);
    return world.at_once ? world.code : PT_OK;
}

/* As a platform that waits until all has left. */
static inline int send(pt_context *unused, pt_link *link, const uint8_t *data, uint16_t len)
{
    int code = start_sending(unused, link, data, len);
    if (code != PT_OK || world.code != PT_OK)
        return world.code;
    append(data, len);
    link->sent_bytes += len;
    return PT_OK;
}

static inline int wait_for_room(pt_context *unused, pt_link *link, int timeout_ms)
{
    (void)unused;
    EXPECT(link->pipeline.pending_count != 0 && timeout_ms > 0);
    world.room += least(1000, SIZE_MAX - world.room);
    world.now += 1000;
    return PT_OK;
}

static inline uint32_t unacknowledged(pt_context *unused, const pt_link *link)
{
    (void)unused;
    return (uint32_t)(link->sent_bytes - least(world.acknowledged, link->sent_bytes));
}

static inline int receive(pt_context *unused, pt_link *link, uint8_t *buffer, uint32_t size)
{
    (void)unused;
    link->system_error = 0;
    size_t len = least(least(size, world.read_max), world.arrived - world.brought);
    if (link != &links[0])
        return PT_ERR_WOULD_BLOCK;
    if (world.read_code != PT_OK)
        return world.read_code;
    if (len == 0)
        return world.ended ? PT_ERR_CONNECTION_CLOSED : PT_ERR_WOULD_BLOCK;
    memcpy(buffer, stream + world.brought, len);
    world.brought += len;
    return (int)len;
}

static inline int finish(pt_context *unused, pt_link *link)
{
    (void)unused;
    EXPECT(link->state == PT_LINK_SHUT && is_all_written());
    return PT_OK;
}

static inline int watch(pt_context *unused, pt_source *source)
{
    (void)unused;
    source->registered = source->interest;
    return PT_OK;
}

static inline void forget_source(pt_context *unused, pt_source *source)
{
    (void)unused;
    pt_send_pipeline *pipeline = &((pt_link *)source)->pipeline;
    source->registered = 0xFF;
    for (int place = 0; !world.abandons && place < pipeline->pending_count; place++) {
        uint8_t index = pending_slot(pipeline, place);
        if (pipeline->slots[index].state == PT_SLOT_IN_FLIGHT)
            pt_pipeline_complete(pipeline, index, PT_ERR_CONNECTION_CLOSED);
    }
}

static inline int wait(pt_context *unused, int timeout_ms)
{
    (void)unused;
    EXPECT(timeout_ms == 0);
    for (pt_source *source = context.sources; source != NULL; source = source->next) {
        const pt_link *link = (const pt_link *)source;
        int reads = link != &links[0]
                        ? world.neighbour
                        : world.arrived > world.brought || world.ended || world.read_code != PT_OK;
        int writes = world.room != 0 || world.code != PT_OK;
        source->ready = (uint8_t)((reads ? PT_READY_READ : 0) | (writes ? PT_READY_WRITE : 0));
        source->ready &= source->registered == 0xFF ? 0 : source->registered;
        if (source->registered != 0xFF && !link->blocked && link->pipeline.pending_count != 0)
            source->ready |= PT_READY_WRITE; /* slots may be done */
        if (source->ready != 0)
            pt_context_ready(&context, source);
    }
    return (int)context.ready_count;
}

static inline void wake(pt_context *unused)
{
    (void)unused;
    context.woken = 1;
}

static inline uint32_t read_clock(pt_context *unused)
{
    (void)unused;
    return world.now;
}

static pt_platform_ops ops = {.name = "fuzzed",
                              .tcp_send = send,
                              .wait_send_completions = wait_for_room,
                              .tcp_receive = receive,
                              .tcp_finish = finish,
                              .watch = watch,
                              .forget = forget_source,
                              .wait = wait,
                              .wake = wake,
                              .clock = read_clock,
                              .ticks_per_second = 1000};

#endif
