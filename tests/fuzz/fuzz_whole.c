/* libFuzzer: a whole link that understands wide frames, in a context, on a platform that the input
 * rules: it reads and writes pieces of any size, takes nothing for a while, tells late what is
 * done, breaks, and has no memory. The link receives what fuzz_wide.c says, and sends small frames,
 * words about large messages, slices, and departing messages.
 *
 * Input: a byte for what the link is like (see begin()), then records: a byte for the kind, a byte
 * for the flags, two for a number, then a body. A kind with OP is something that the caller, the
 * platform or the clock does (see act()), and has no body. Any other is something that the other
 * side says, as in fuzz_wide.c, after which the loop turns. Before the link is closed, all that
 * hinders it is lifted, unless the input closed it.
 *
 * After each record must hold: what the other side said was handed on in order and byte by byte, as
 * far as the link has come, until the first fault, and nothing after that; what the link wrote are
 * whole frames in the order in which they were accepted, each right to its checksum; the slices of
 * a departing message follow each other, as long as they can be; a frame that finds a free slot, as
 * it must where nothing but a departing message waits, stands before every slice that had none, and
 * any other behind no more of them than the last push put there; slices of a departing message are
 * put beside no more than PT_WIDE_MAX_PAYLOAD bytes that are held; no message is told to be sent
 * before it is written, or confirmed before it is acknowledged. In the end nothing is kept: each
 * hold, departure and landing was let go of once, and all memory of the pool came back. What holds
 * inside (pt_check.h) is asserted by each turn.
 */
#define LIMIT       300u
#define TOTAL_LIMIT 16384u
#define SLICE       8192u
#define UNASKED     8192u
#define STREAM      98304u

#define MAX_INPUT 4096u
#define DEPTH     4u
#define SLOT_SIZE 400u
#define LONGEST   600000u
#define FRAMES    (MAX_INPUT / 4)

#include "fuzzed_world.h"

#define OP    0x08
#define LATER 0x40
#define CUT   0x80

/* --------------------------------------------------------------------------- what must hold */

/* The link is over: all that came before a fault was handed on, and nothing after it. */
static void compare_ended(const pt_link *link)
{
    fed = world.brought;
    read_stream();
    int code = link->end_code;
    EXPECT(context.bad_frames == 0 || code == model.code);
    EXPECT(context.bad_frames != 0 || code == PT_OK || code == world.code ||
           code == world.read_code || code == sink_answers ||
           ((code == PT_ERR_TIMEOUT || code == PT_ERR_TRUNCATED) && fed > model.at));
    int may_lose = code == PT_ERR_NETWORK || code == PT_ERR_INTERNAL;
    EXPECT(came.len == due.len || (may_lose && came.len < due.len));
    EXPECT(memcmp(came.bytes, due.bytes, came.len) == 0);
    EXPECT(landings == 0);
}

/* At least the messages are not confirmed that were reported and end behind what is acknowledged.
 */
static void compare_unconfirmed(const pt_link *link)
{
    uint32_t count = pt_link_unconfirmed(&context, link), least_count = 0;
    while (least_count < ledger.reported &&
           ends[ledger.reported - least_count - 1] > world.acknowledged)
        least_count++;
    EXPECT(count <= ledger.reported);
    EXPECT(ops.unacknowledged == NULL || link->state == PT_LINK_ENDED || count >= least_count);
    EXPECT(count == 0 || ops.unacknowledged != NULL);
}

static void compare(const pt_link *link)
{
    read_written();
    EXPECT(ledger.reported <= ledger.written);
    compare_unconfirmed(link);
    EXPECT(ledger.parcels == (pt_link_departing(link) != 0));
    if (link->state == PT_LINK_ENDED) {
        compare_ended(link);
        return;
    }
    EXPECT(pt_link_pending(link) == ledger.accepted - ledger.reported);
    fed = world.brought - (link->held_len - link->held_at);
    read_stream();
    EXPECT(model.code == PT_OK);
    EXPECT(pt_ingest_partial_len(&link->ingest) == fed - model.at);
    compare_stream(&link->ingest);
    came.len = due.len = 0;
}

static void turn(uint32_t room)
{
    pt_event events[12];
    pt_sink limited = sink;
    limited.room = room;
    int count = pt_loop_turn(&context, 0, events, 12, &limited);
    EXPECT(count >= 0);
    for (int index = 0; index < count; index++) {
        EXPECT(events[index].tag == TAG);
        EXPECT(events[index].kind != PT_EVENT_SENT || events[index].code == PT_OK);
        ledger.reported += events[index].kind == PT_EVENT_SENT ? events[index].count : 0;
        ledger.closed += events[index].kind == PT_EVENT_CLOSED;
        ledger.finished += events[index].kind == PT_EVENT_FINISHED;
    }
    EXPECT(ledger.closed == (links[0].state == PT_LINK_ENDED));
    EXPECT(ledger.finished <= (unsigned)world.ended);
    compare(&links[0]);
}

/* --------------------------------------------------------------------------------- the caller */

/* A send said this; frame is what it would promise. sure: it had to be accepted, at once. */
static void promise_frame(promised_frame *frame, int code, uint32_t before, int sure)
{
    if (code < 0) {
        EXPECT(!sure &&
               (code == PT_ERR_WOULD_BLOCK || code == PT_ERR_NO_MEMORY || code == PT_ERR_TIMEOUT ||
                (code == PT_ERR_NOT_CONNECTED && links[0].state != PT_LINK_OPEN)));
        return;
    }
    ledger.last++;
    ledger.accepted += frame->messages;
    frame->low = before;
    frame->high = sure ? before : all_taken();
    read_written();
    if (sure || ledger.first == ledger.last)
        return;
    /* The last push put so much before it. */
    pt_wide wide;
    size_t left = written_len - written_at;
    uint32_t gone = ledger.departed;
    if (is_departing(written + written_at, left, &wide))
        gone += (uint32_t)(left - PT_WIDE_HEADER_SIZE);
    uint32_t most =
        ops.refers || ledger.depth < 2 ? ledger.slice_max : (ledger.depth - 1) * ledger.slice_max;
    frame->high = (uint32_t)least(frame->high, (gone > before ? gone : before) + most);
}

/* A frame must be accepted at once: a slot is free, and one must be where what departs is all that
 * takes any. */
static int is_sure(void)
{
    int is_free = pt_link_slots_available(&context, &links[0]) > 0;
    int is_alone = ledger.depth > 1 && ledger.first == ledger.last && world.untold == 0 &&
                   ops.tcp_send_async != NULL; /* else it is told by the next push */
    return links[0].state == PT_LINK_OPEN && !world.dry && world.now == 0 && (is_free || is_alone);
}

static void send_small(uint8_t flags, uint16_t number, int waits)
{
    promised_frame *promised = &frames[ledger.last];
    pt_frame frame = {.payload = pattern + number % SEEDS,
                      .payload_len = number % (SLOT_SIZE - 8),
                      .type = flags % 7 + 1,
                      .flags = flags >> 3};
    int is_open = links[0].state == PT_LINK_OPEN;
    int sure = is_sure() && (!waits || ops.tcp_send_async != NULL);
    uint32_t before = all_taken();
    int code = (waits ? pt_link_send_sync : pt_link_send)(
        &context, &links[0], frame.type, frame.flags, frame.payload, frame.payload_len);
    if (is_open && frame.payload_len > SLOT_SIZE - PT_FRAME_OVERHEAD) {
        EXPECT(code == PT_ERR_MESSAGE_TOO_LARGE || (waits && code < 0));
        return;
    }
    int counted = frame.type == PT_FRAME_DATA || frame.type == PT_FRAME_DISCONNECT;
    frame.flags &= (uint8_t)~PT_FLAG_NO_DELAY;
    frame.sequence = counted ? ledger.sequence : 0;
    ledger.sequence = (uint8_t)(ledger.sequence + (counted && code >= 0));
    *promised = (promised_frame){.messages = frame.type == PT_FRAME_DATA};
    if (code >= 0)
        promised->len = (uint32_t)pt_frame_encode(&frame, promised->bytes, SLOT_SIZE);
    promise_frame(promised, code, before, sure);
}

/* An offer, a grant or a refusal, or a slice, which is held where the platform refers. */
static void send_wide(uint8_t flags, uint16_t number, int has_payload)
{
    promised_frame *promised = &frames[ledger.last];
    uint32_t len = has_payload ? number % (ops.refers ? 3000u : ledger.slice_max + 4) + 1 : 0;
    if (has_payload && ops.refers && flags >= 0xF8)
        len = PT_WIDE_MAX_PAYLOAD + (flags & 1);
    uint8_t seed = (uint8_t)number;
    pt_wide wide = {.type = (uint8_t)(has_payload ? PT_FRAME_DATA : PT_FRAME_OFFER + flags % 3),
                    .reason = has_payload ? 0 : flags >> 4,
                    .payload_len = len,
                    .id = number | 0x80000000u,
                    .total = has_payload ? len + (flags & 2) : number};
    cargo *payload = has_payload ? load(seed, len) : NULL;
    pt_hold *hold = has_payload && ops.refers ? lend(payload, len) : NULL;
    int sure = is_sure(), is_open = links[0].state == PT_LINK_OPEN;
    uint32_t before = all_taken();
    ledger.offered = hold != NULL ? len : 0;
    int code = pt_link_send_wide(&context, &links[0], &wide, flags & PT_FLAG_NO_DELAY,
                                 has_payload ? payload->bytes : NULL, hold);
    ledger.offered = 0;
    if (code < 0 && hold != NULL)
        let_go(hold);
    *promised = (promised_frame){.len = PT_WIDE_HEADER_SIZE,
                                 .payload_len = len,
                                 .payload = pattern + seed,
                                 .messages = has_payload && wide.total == len};
    if (len <= ledger.slice_max) {
        pt_wide_put(promised->bytes, &wide, len != 0 ? pattern + seed : NULL);
        promise_frame(promised, code, before, sure);
    } else {
        EXPECT(code == (is_open ? PT_ERR_MESSAGE_TOO_LARGE : PT_ERR_NOT_CONNECTED));
    }
    if (payload != NULL)
        unload(payload);
}

static void depart(uint8_t flags, uint16_t number)
{
    uint32_t total = number % (20 * SLOT_SIZE) + 1;
    if (ops.refers && flags >= 0xE0)
        total = PT_WIDE_MAX_PAYLOAD - 100 + number * 5u;
    uint32_t start = flags & 1 ? number % total : 0;
    parcel *all = calloc(1, sizeof *all);
    EXPECT(all != NULL);
    all->payload = load((uint8_t)number, total);
    all->base = (pt_departure){.hold = hold_slice,
                               .drop = drop_parcel,
                               .payload = all->payload->bytes,
                               .id = ledger.journeys % UINT8_MAX + 1,
                               .total = total,
                               .offset = start};
    int is_open = links[0].state == PT_LINK_OPEN, is_free = ledger.parcels == 0;
    if (is_open && is_free) {
        journeys[ledger.journeys] = (journey){.live = all,
                                              .from = all_taken(),
                                              .start = start,
                                              .total = total,
                                              .seed = (uint8_t)number};
        ledger.journeys++;
        ledger.parcels++;
    }
    int code = pt_link_depart(&context, &links[0], &all->base);
    if (code >= 0) {
        EXPECT(is_open && is_free);
        return;
    }
    EXPECT(code == (!is_open  ? PT_ERR_NOT_CONNECTED
                    : is_free ? PT_ERR_NO_MEMORY
                              : PT_ERR_INVALID_STATE));
    EXPECT(code != PT_ERR_NO_MEMORY || world.dry || world.no_holds);
    if (code == PT_ERR_NO_MEMORY) {
        ledger.journeys--;
        ledger.parcels--;
    }
    unload(all->payload);
    free(all);
}

/* What the platform, the clock and the other side do. */
static void rule(uint8_t what, uint8_t flags, uint16_t number)
{
    switch (what) {
    case 0:
        turn(number);
        break;
    case 4:
        world.room = (size_t)number << (flags & 7);
        turn(UINT32_MAX);
        break;
    case 12:
        world.keeps = flags & 1;
        world.backward = flags >> 1 & 1;
        world.neighbour = flags >> 2 & 1;
        break;
    case 13:
        world.dry = flags & 1;
        world.no_holds = flags >> 1 & 1;
        break;
    case 14:
        world.read_max = number + 1u;
        world.arrived += least(number, said - world.arrived);
        break;
    case 15:
        world.now += number;
        break;
    case 16:
        if (flags & 2)
            world.read_code = PT_ERR_NETWORK;
        else if (world.code == PT_OK) /* else it is broken already */
            world.code = flags & 1 ? PT_ERR_CONNECTION_CLOSED : PT_ERR_NETWORK;
        world.at_once = flags >> 2 & 1;
        break;
    case 23:
        world.acknowledged = least(world.acknowledged + number, ledger.position);
        break;
    case 17:
        world.ended = 1;
        world.arrived = said;
        break;
    case 19:
        sink_answers = PT_ERR_INTERNAL;
        break;
    default:
        turn(UINT32_MAX);
    }
}

/* What a record with OP says. 0: the link is to be closed now. */
static int act(uint8_t kind, uint8_t flags, uint16_t number)
{
    pt_link *link = &links[0];
    uint32_t id = flags % IDS + 1;
    uint8_t what = (uint8_t)((kind & 7) | (kind >> 1 & 0x18) | (kind >> 2 & 0x20));
    switch (what) {
    case 1:
        expect(&link->ingest, id, number % TOTAL_LIMIT + 1);
        break;
    case 2:
        forgo(&link->ingest, id);
        break;
    case 3:
        forget(&link->ingest, id);
        break;
    case 5:
        send_small(flags, number, 0);
        break;
    case 6:
        send_wide(flags, number, 0);
        break;
    case 7:
        depart(flags, number);
        break;
    case 8:
        pt_link_recall(link);
        break;
    case 9:
        send_wide(flags, number, 1);
        break;
    case 10:
        pt_link_pause(&context, link);
        break;
    case 11:
        pt_link_resume(&context, link);
        break;
    case 22:
        send_small(flags, number, 1);
        break;
    case 18:
        pt_link_shut(&context, link);
        break;
    default:
        rule(what, flags, number);
    }
    return what != 20;
}

/* ------------------------------------------------------------------------------ from end to end */

static void begin(uint8_t kind, pt_pool *pool, uint8_t *buffer, uint32_t size)
{
    memset(&model, 0, sizeof model);
    memset(sent, 0, sizeof sent);
    memset(&world, 0, sizeof world);
    memset(&ledger, 0, sizeof ledger);
    memset(links, 0, sizeof links);
    said = fed = came.len = due.len = written_len = written_at = 0;
    sink_answers = PT_OK;
    world.read_max = UINT32_MAX;
    world.abandons = kind >> 5 & 1;
    ops.refers = kind & 1;
    ops.tcp_send_async = kind & 0x40 ? NULL : start_sending;
    ops.poll_send_completions = kind & 0x40 ? NULL : poll;
    ops.unacknowledged = kind & 0x80 ? unacknowledged : NULL;
    EXPECT(pt_context_init(&context, &ops, NULL, pool, buffer, size, ready, 2) == PT_OK);
    ledger.depth = (kind >> 2 & 3) + 1;
    for (int index = 1; index >= 0; index--)
        EXPECT(pt_link_open(&context, &links[index], index, TAG + (uint32_t)index,
                            kind & 0x10 ? NULL : slots[index], (uint8_t)ledger.depth, SLOT_SIZE,
                            kind >> 1 & 1, LIMIT, pt_message_format(1)) == PT_OK);
    ledger.slice_max = pt_link_slice_max(&context, &links[0]);
    EXPECT(ledger.slice_max ==
           (ops.refers ? PT_WIDE_MAX_PAYLOAD : SLOT_SIZE - PT_WIDE_HEADER_SIZE));
}

/* All that was said has been read, and all that was accepted written and told. */
static int is_settled(const pt_link *link)
{
    int is_told = ledger.parcels == 0 && ledger.loans == 0 && ledger.reported == ledger.accepted &&
                  is_all_written();
    int is_open =
        link->state == PT_LINK_OPEN && (is_told && ledger.finished == (unsigned)world.ended);
    return fed == said &&
           (is_open || link->state == PT_LINK_FINISHED || link->state == PT_LINK_BROKEN);
}

/* Nothing hinders the link any more: all arrives on both sides. */
static void settle(void)
{
    pt_link *link = &links[0];
    world.room = SIZE_MAX;
    world.arrived = said;
    world.read_max = UINT32_MAX;
    world.keeps = world.dry = world.no_holds = world.neighbour = 0;
    pt_link_resume(&context, link);
    int turns = 0;
    do
        turn(UINT32_MAX);
    while (link->state != PT_LINK_ENDED && ++turns < 1000 && !is_settled(link));
    if (link->state == PT_LINK_OPEN || link->state == PT_LINK_FINISHED)
        EXPECT(is_all_written() && ledger.loans == 0 && ledger.written == ledger.accepted &&
               ledger.reported == ledger.accepted && fed == said);
    EXPECT(link->state != PT_LINK_SHUT && (link->state != PT_LINK_OPEN || ledger.parcels == 0));
}

static void end(void)
{
    pt_send_pipeline *pipeline = &links[0].pipeline;
    int abandoned = pt_link_close(&context, &links[0]);
    EXPECT(ledger.parcels == 0 && landings == 0 && abandoned >= 0);
    EXPECT(world.abandons || abandoned == 0);
    EXPECT(ledger.loans <= (size_t)abandoned);
    for (uint8_t index = 0; abandoned != 0; index++) { /* the platform lets go of them at last */
        EXPECT(index < pipeline->room);
        if (pipeline->slots[index].state != PT_SLOT_ABANDONED)
            continue;
        pt_pipeline_complete(pipeline, index, PT_ERR_CONNECTION_CLOSED);
        abandoned--;
    }
    EXPECT(pt_link_close(&context, &links[0]) == 0 && pt_link_close(&context, &links[1]) == 0);
    EXPECT(pt_context_cleanup(&context) == PT_OK);
    EXPECT(ledger.loans == 0 && ledger.loaned == 0 && ledger.cargoes == 0);
}

/* One record at data; *at is moved behind it. 0: the link is to be closed now. */
static int play(const uint8_t *data, size_t size, size_t *at)
{
    uint8_t kind = data[*at], flags = data[*at + 1];
    uint16_t number = (uint16_t)(data[*at + 2] << 8 | data[*at + 3]);
    *at += 4;
    if ((kind & OP) != 0)
        return act(kind, flags, number);
    size_t len = least(number % (is_wide_kind(kind) ? STEM + 1 : LIMIT + 1), size - *at);
    size_t start = said;
    if (!world.ended)
        said += say(kind, flags, number, data + *at, len, stream + said);
    *at += len;
    if ((kind & (CUT | LATER)) == LATER)
        return 1;
    size_t end = kind & CUT ? start + (size_t)(kind >> 5 & 3) * (said - start) / 3 : said;
    world.arrived = end > world.arrived ? end : world.arrived;
    turn(UINT32_MAX);
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pt_pool_class classes[] = {{SLOT_SIZE, 64, 0},
                                            {PT_FRAME_MAX_PAYLOAD + PT_FRAME_OVERHEAD, 64, 0}};
    static const pt_memory source = {allocate_unless_dry, release, NULL};
    static uint8_t buffer[65536];
    if (size == 0)
        return 0;
    uint32_t next = 1;
    for (size_t at = 0; pattern[0] == 0 && at < sizeof pattern; at++)
        pattern[sizeof pattern - 1 - at] = (uint8_t)((next = next * 1664525 + 1013904223) >> 24);
    pattern[0] = 1;
    void *memory = malloc(pt_pool_size(classes, 2));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 2, 0, &source);
    EXPECT(pool != NULL);
    begin(data[0], pool, buffer, sizeof buffer);

    size = least(size, MAX_INPUT);
    int goes_on = 1;
    const size_t most = PT_WIDE_HEADER_SIZE + SLICE + 16 + LIMIT;
    for (size_t at = 1; goes_on && size - at >= 4 && sizeof stream - said >= most;) {
        goes_on = play(data, size, &at);
        compare(&links[0]);
        goes_on &= links[0].state != PT_LINK_ENDED;
    }
    if (goes_on)
        settle();
    end();
    EXPECT(pt_pool_cleanup(pool) == 0 && held == 0);
    free(memory);
    return 0;
}
