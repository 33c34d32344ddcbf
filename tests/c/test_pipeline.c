/* Messages in flight: the ring of slots, its order, its bytes, its refusals, and what is left when
 * a link ends. */
#include "pt_check.h"
#include "pt_crc32c.h"
#include "pt_mactcp_driver.h"
#include "pt_pipeline.h"

#include "check.h"
#include "memory.h"
#include "pairs.h"

#define MAX_DEPTH 8
#define SLOT_SIZE 1040

static const pt_pool_class classes[] = {{SLOT_SIZE, 2 * MAX_DEPTH, 0}};
static memory_account account;
static pt_send_pipeline pipeline;
static pt_send_slot slots[MAX_DEPTH];

/* Payload of the longest frame: what a slot takes, and the wire. */
#define LARGEST                                                                                    \
    (SLOT_SIZE - PT_FRAME_OVERHEAD < PT_FRAME_MAX_PAYLOAD ? SLOT_SIZE - PT_FRAME_OVERHEAD          \
                                                          : PT_FRAME_MAX_PAYLOAD)

static void open_pipeline(pt_pool *pool, uint8_t depth, int lazy, int packing)
{
    memset(&pipeline, 0, sizeof pipeline);
    REQUIRE(pt_pipeline_init(&pipeline, slots, depth, SLOT_SIZE, pool, lazy, packing) == PT_OK);
}

static void check_frame_in(const uint8_t *bytes, size_t len, uint8_t type, uint8_t flags,
                           uint8_t sequence, const uint8_t *payload, uint32_t payload_len)
{
    pt_frame frame;
    if (!CHECK_EQUAL(pt_frame_decode(bytes, len, &frame), PT_FRAME_OVERHEAD + payload_len))
        return;
    CHECK_EQUAL(frame.type, type);
    CHECK_EQUAL(frame.flags, flags);
    CHECK_EQUAL(frame.sequence, sequence);
    CHECK_BYTES(frame.payload, payload, payload_len);
}

static void what_a_slot_holds_is_the_frame_of_the_encoder(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    uint8_t payload[SLOT_SIZE - PT_FRAME_OVERHEAD], frame_bytes[SLOT_SIZE];
    draw_bytes(payload, sizeof payload);
    open_pipeline(pool, 2, 1, 0);
    uint8_t sequence = 0;
    for (uint32_t len = 0; len <= sizeof payload; len += len < 20 ? 1 : 97) {
        for (uint8_t type = PT_FRAME_DATA; type <= PT_FRAME_CAPABILITY; type++) {
            uint32_t count;
            int result;
            uint8_t flags = (uint8_t)draw(256);
            int counted = type == PT_FRAME_DATA || type == PT_FRAME_DISCONNECT;
            pt_frame frame = {.payload = payload,
                              .payload_len = len,
                              .type = type,
                              .sequence = counted ? sequence : 0};
            frame.flags = flags & (uint8_t)~PT_FLAG_NO_DELAY;
            sequence = (uint8_t)(sequence + counted);
            int whole = pt_frame_encode(&frame, frame_bytes, sizeof frame_bytes);
            CHECK_EQUAL(pt_pipeline_send(&pipeline, type, flags, payload, len), PT_OK);
            int index = pt_pipeline_launch(&pipeline);
            REQUIRE(index >= 0);
            if (CHECK_EQUAL(slots[index].message_len, whole))
                CHECK_BYTES(slots[index].buffer, frame_bytes, (size_t)whole);
            pt_pipeline_complete(&pipeline, (uint8_t)index, PT_OK);
            CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
            CHECK_EQUAL(count, type == PT_FRAME_DATA);
        }
    }
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    memory_close_pool(pool, &account);
}

static void a_full_pipeline_refuses_and_leaves_no_gap_in_the_sequence(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    for (uint8_t depth = 1; depth <= MAX_DEPTH; depth++) {
        uint8_t payload[8] = {1, 2, 3, 4, 5, 6, 7, 8};
        uint32_t count;
        int result;
        open_pipeline(pool, depth, 0, 0);
        for (uint8_t index = 0; index < depth; index++) {
            CHECK_EQUAL(pt_pipeline_available(&pipeline), depth - index);
            CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 8), PT_OK);
            CHECK_EQUAL(pt_pipeline_launch(&pipeline), index);
        }
        CHECK_EQUAL(pt_pipeline_launch(&pipeline), -1);
        for (int round = 0; round < 3; round++)
            CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 8),
                        PT_ERR_WOULD_BLOCK);
        CHECK_EQUAL(pipeline.refusals, 3);
        CHECK_EQUAL(pipeline.high_water, depth);
        CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 0);
        pt_pipeline_complete(&pipeline, 0, PT_OK);
        CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 8), PT_OK);
        int index = pt_pipeline_launch(&pipeline);
        CHECK_EQUAL(index, 0);
        check_frame_in(slots[0].buffer, slots[0].message_len, PT_FRAME_DATA, 0, depth, payload, 8);
        for (uint8_t left = 0; left < depth; left++)
            pt_pipeline_complete(&pipeline, left, PT_OK);
        while (pt_pipeline_report(&pipeline, &count, &result))
            CHECK_EQUAL(count, 1);
        CHECK_EQUAL(pipeline.reported, pipeline.accepted);
        CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    }
    memory_close_pool(pool, &account);
}

static void completions_in_any_order_are_reported_in_the_order_of_sending(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    open_pipeline(pool, 4, 1, 0);
    static const uint8_t order[] = {2, 0, 3, 1};
    static const unsigned reports[] = {0, 1, 0, 3};
    for (uint8_t index = 0; index < 4; index++) {
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &index, 1), PT_OK);
        CHECK_EQUAL(pt_pipeline_launch(&pipeline), index);
    }
    int next = 0;
    for (int step = 0; step < 4; step++) {
        uint32_t count;
        int result;
        pt_pipeline_complete(&pipeline, order[step], -order[step]);
        unsigned reported = 0;
        while (pt_pipeline_report(&pipeline, &count, &result)) {
            CHECK_EQUAL(result, -next);
            next++;
            reported++;
        }
        CHECK_EQUAL(reported, reports[step]);
    }
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    memory_close_pool(pool, &account);
}

static void small_frames_share_a_slot_until_it_is_full(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    uint8_t payload[64];
    draw_bytes(payload, sizeof payload);
    open_pipeline(pool, 2, 1, 1);
    uint32_t per_slot = SLOT_SIZE / (64 + PT_FRAME_OVERHEAD);
    for (uint32_t number = 0; number < per_slot; number++)
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 64), PT_OK);
    CHECK_EQUAL(pipeline.pending_count, 1);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 64), PT_OK);
    CHECK_EQUAL(pipeline.pending_count, 2);
    CHECK_EQUAL(pt_pipeline_launch(&pipeline), 0);
    CHECK_EQUAL(slots[0].message_count, per_slot);
    for (uint32_t number = 0; number < per_slot; number++) {
        const uint8_t *bytes = slots[0].buffer + number * (64 + PT_FRAME_OVERHEAD);
        check_frame_in(bytes, 64 + PT_FRAME_OVERHEAD, PT_FRAME_DATA, 0, (uint8_t)number, payload,
                       64);
    }

    /* No delay: the slot leaves at once and takes nothing more; the flag stays at home. */
    CHECK_EQUAL(pipeline.ripe, 0);
    CHECK_EQUAL(
        pt_pipeline_send(&pipeline, PT_FRAME_DATA, PT_FLAG_NO_DELAY | PT_FLAG_BATCH, payload, 1),
        PT_OK);
    CHECK_EQUAL(pipeline.ripe, 1);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 1), PT_ERR_WOULD_BLOCK);
    const uint8_t *second = slots[1].buffer + 64 + PT_FRAME_OVERHEAD;
    check_frame_in(second, 1 + PT_FRAME_OVERHEAD, PT_FRAME_DATA, PT_FLAG_BATCH,
                   (uint8_t)(per_slot + 1), payload, 1);
    CHECK_EQUAL(pt_pipeline_launch(&pipeline), 1);
    pt_pipeline_complete(&pipeline, 0, PT_OK);
    pt_pipeline_complete(&pipeline, 1, PT_OK);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    memory_close_pool(pool, &account);
}

static void lazy_slots_cost_nothing_before_the_first_send(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    uint32_t count;
    int result;
    open_pipeline(pool, 4, 1, 0);
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(account.bytes, 0);
    account.dry = 1;
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, (const uint8_t *)"x", 1),
                PT_ERR_NO_MEMORY);
    CHECK_EQUAL(pipeline.send_seq, 0);
    CHECK_EQUAL(pipeline.pending_count, 0);
    account.dry = 0;
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, (const uint8_t *)"x", 1), PT_OK);
    CHECK_EQUAL(memory_lent(pool), 1);
    pt_pipeline_complete(&pipeline, (uint8_t)pt_pipeline_launch(&pipeline), PT_OK);
    CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);

    /* Not lazy: all or none, and what was borrowed goes back. */
    static const pt_pool_class three[] = {{SLOT_SIZE, 3, 0}};
    memory_close_pool(pool, &account);
    pool = memory_open_pool(&account, three, 1, 0);
    memset(&pipeline, 0, sizeof pipeline);
    CHECK_EQUAL(pt_pipeline_init(&pipeline, slots, 4, SLOT_SIZE, pool, 0, 0), PT_ERR_NO_MEMORY);
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, NULL, 0), PT_ERR_NOT_INITIALIZED);
    CHECK_EQUAL(pt_pipeline_init(&pipeline, slots, 3, SLOT_SIZE, pool, 0, 0), PT_OK);
    CHECK_EQUAL(memory_lent(pool), 3);
    CHECK_EQUAL(pt_pipeline_init(&pipeline, slots, 3, SLOT_SIZE, pool, 0, 0),
                PT_ERR_ALREADY_INITIALIZED);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    memory_close_pool(pool, &account);
}

/* The budgets of a whole node, by sizeof and by the account, with the sizes of pointers that this
 * machine has: the pipelines of eight peers, in lowmem of four, each slot with its buffer and with
 * the parameter block of a classic platform. */
static void the_pipelines_of_all_peers_are_within_their_budget(void)
{
    static const pt_pool_class own[] = {
        {PT_SLOT_BUFFER_SIZE, PT_MAX_PEERS * PT_SEND_PIPELINE_DEPTH, 0}};
    static pt_send_pipeline pipelines[PT_MAX_PEERS];
    static pt_send_slot all[PT_MAX_PEERS][PT_SEND_PIPELINE_DEPTH];
    static uint8_t payload[PT_MESSAGE_MAX_PAYLOAD];
    const size_t budget = PT_IS_LOWMEM ? 10 * 1024 : 136 * 1024;
    const size_t tables =
        sizeof pipelines + sizeof all +
        PT_MAX_PEERS * PT_SEND_PIPELINE_DEPTH * (size_t)PT_MACTCP_BLOCK_DOCUMENTED;
    pt_pool *pool = memory_open_pool(&account, own, 1, 0);
    for (int peer = 0; peer < PT_MAX_PEERS; peer++)
        REQUIRE(pt_pipeline_init(&pipelines[peer], all[peer], PT_SEND_PIPELINE_DEPTH,
                                 PT_SLOT_BUFFER_SIZE, pool, PT_IS_LOWMEM, 0) == PT_OK);
    CHECK_EQUAL(memory_lent(pool), PT_IS_LOWMEM ? 0 : PT_MAX_PEERS * PT_SEND_PIPELINE_DEPTH);
    if (PT_IS_LOWMEM)
        CHECK_EQUAL(account.bytes, 0); /* not a byte before the first send */
    for (int peer = 0; peer < PT_MAX_PEERS; peer++) {
        for (int slot = 0; slot < PT_SEND_PIPELINE_DEPTH; slot++) {
            CHECK_EQUAL(
                pt_pipeline_send(&pipelines[peer], PT_FRAME_DATA, 0, payload, sizeof payload),
                PT_OK);
            CHECK_EQUAL(pt_pipeline_launch(&pipelines[peer]), slot);
            /* A lazy slot counts what it asked for, of a buffer of 1,040. */
            CHECK_EQUAL(all[peer][slot].buffer_size, PT_IS_LOWMEM ? 1036 : 4112);
            CHECK_EQUAL(all[peer][slot].message_len, sizeof payload + PT_FRAME_OVERHEAD);
        }
    }
    CHECK(account.bytes >= PT_MAX_PEERS * PT_SEND_PIPELINE_DEPTH * (size_t)PT_SLOT_BUFFER_SIZE);
    CHECK(account.bytes + tables < budget);
    CHECK(account.bytes + tables < (PT_IS_LOWMEM ? 10000 : 138000)); /* what the documents say */
    printf("pipelines of %d peers: %lu bytes of buffers and %lu of slots and blocks, of %lu; a "
           "slot has %lu\n",
           PT_MAX_PEERS, (unsigned long)account.bytes, (unsigned long)tables, (unsigned long)budget,
           (unsigned long)sizeof(pt_send_slot));
    for (int peer = 0; peer < PT_MAX_PEERS; peer++) {
        for (uint8_t slot = 0; slot < PT_SEND_PIPELINE_DEPTH; slot++)
            pt_pipeline_complete(&pipelines[peer], slot, PT_OK);
        CHECK_EQUAL(pt_pipeline_cleanup(&pipelines[peer]), 0);
    }
    memory_close_pool(pool, &account);
}

static void what_does_not_fit_is_refused_with_nothing_changed(void)
{
    static uint8_t payload[SLOT_SIZE];
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    open_pipeline(pool, 2, 1, 1);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, LARGEST + 1),
                PT_ERR_MESSAGE_TOO_LARGE);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, UINT32_MAX),
                PT_ERR_MESSAGE_TOO_LARGE);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, 0, 0, payload, 1), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, 8, 0, payload, 1), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, NULL, 1), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pipeline.frames, 0);
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, LARGEST), PT_OK);
    CHECK_EQUAL(pipeline.ripe, 1);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);

    pt_send_pipeline other;
    memset(&other, 0, sizeof other);
    CHECK_EQUAL(pt_pipeline_init(&other, slots, 0, SLOT_SIZE, pool, 1, 0), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_pipeline_init(&other, slots, 1, PT_FRAME_OVERHEAD - 1, pool, 1, 0),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_pipeline_init(&other, NULL, 1, SLOT_SIZE, pool, 1, 0), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_pipeline_init(&other, slots, 1, SLOT_SIZE, NULL, 1, 0), PT_ERR_INVALID_PARAM);
    memory_close_pool(pool, &account);
}

static void a_buffer_in_flight_stays_until_the_platform_lets_go(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    open_pipeline(pool, 4, 1, 0);
    for (uint8_t index = 0; index < 4; index++) {
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &index, 1), PT_OK);
        if (index < 3)
            CHECK_EQUAL(pt_pipeline_launch(&pipeline), index);
    }
    pt_pipeline_complete(&pipeline, 1, PT_OK);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 2);
    CHECK_EQUAL(memory_lent(pool), 2);
    CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, NULL, 0), PT_ERR_NOT_INITIALIZED);
    pt_pipeline_complete(&pipeline, 2, PT_ERR_CONNECTION_CLOSED);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 1);
    pt_pipeline_complete(&pipeline, 0, PT_OK);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    CHECK_EQUAL(pipeline.accepted - pipeline.reported, 4);
    memory_close_pool(pool, &account);
}

static void slots_are_borrowed_when_a_second_is_wanted_and_go_back(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    uint32_t count;
    int result;
    open_pipeline(pool, 3, PT_LAZY_SLOTS, 0);
    for (uint8_t round = 0; round < 4; round++) {
        for (uint8_t alone = 0; alone < 5; alone++) {
            CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &alone, 1), PT_OK);
            CHECK_EQUAL(memory_lent(pool), 1);
            CHECK_EQUAL(pt_pipeline_launch(&pipeline), 0);
            pt_pipeline_complete(&pipeline, 0, PT_OK);
            CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
            CHECK_EQUAL(pt_pipeline_keeps(&pipeline), 0);
        }
        for (uint8_t index = 0; index < 3; index++) {
            CHECK_EQUAL(pt_pipeline_available(&pipeline), 3 - index);
            CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &index, 1), PT_OK);
            CHECK_EQUAL(pt_pipeline_launch(&pipeline), index);
            CHECK_EQUAL(memory_lent(pool), index == 0 ? 1 : index + 2);
        }
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &round, 1), PT_ERR_WOULD_BLOCK);
        if (round == 3)
            break;
        pt_pipeline_rest(&pipeline);
        CHECK_EQUAL(memory_lent(pool), 4); /* not while they are in use */
        for (uint8_t index = 3; index-- > 0;)
            pt_pipeline_complete(&pipeline, index, PT_OK);
        for (uint8_t left = 3; left > 0; left--)
            CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
        CHECK_EQUAL(memory_lent(pool), 1);
        CHECK_EQUAL(pt_pipeline_keeps(&pipeline), 1);
        pt_pipeline_rest(&pipeline);
        CHECK_EQUAL(memory_lent(pool), 0);
    }
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 3);
    for (uint8_t index = 0; index < 3; index++) {
        CHECK_EQUAL(memory_lent(pool), 4 - index);
        pt_pipeline_complete(&pipeline, index, PT_OK);
    }
    CHECK_EQUAL(memory_lent(pool), 0);
    memory_close_pool(pool, &account);
}

static void without_memory_for_the_other_slots_one_goes_on(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    uint8_t *all[2 * MAX_DEPTH];
    uint32_t count;
    int result;
    open_pipeline(pool, 3, PT_LAZY_SLOTS, 0);
    for (int index = 1; index < 2 * MAX_DEPTH; index++)
        REQUIRE((all[index] = pt_pool_acquire(pool, SLOT_SIZE)) != NULL);
    for (uint8_t alone = 0; alone < 5; alone++) {
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &alone, 1), PT_OK);
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &alone, 1), PT_ERR_WOULD_BLOCK);
        CHECK_EQUAL(pt_pipeline_launch(&pipeline), 0);
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, &alone, 1), PT_ERR_WOULD_BLOCK);
        pt_pipeline_complete(&pipeline, 0, PT_OK);
        CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
        CHECK_EQUAL(count, 1);
    }
    CHECK_EQUAL(pipeline.refusals, 10);
    for (int index = 1; index < 2 * MAX_DEPTH; index++)
        pt_pool_release(pool, all[index], 0);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    memory_close_pool(pool, &account);
}

static void ten_thousand_random_steps_keep_every_message(void)
{
    static uint8_t wire[MAX_DEPTH];
    uint8_t payload[300];
    draw_bytes(payload, sizeof payload);
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    for (int way = 0; way < 3; way++) { /* enum pt_lazy */
        int packing = way != 0;
        uint64_t accepted = 0, reported = 0;
        unsigned in_flight = 0;
        uint32_t count;
        int result;
        open_pipeline(pool, 5, way, packing);
        for (unsigned step = 0; step < 5000; step++) {
            switch (draw(4)) {
            case 0:
            case 1: {
                int code = pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, draw(300));
                CHECK(code == PT_OK ||
                      (code == PT_ERR_WOULD_BLOCK && pt_pipeline_available(&pipeline) == 0));
                accepted += code == PT_OK;
                break;
            }
            case 2: {
                int index = pt_pipeline_launch(&pipeline);
                if (index >= 0)
                    wire[in_flight++] = (uint8_t)index;
                break;
            }
            default:
                if (in_flight > 0) {
                    unsigned place = draw(in_flight);
                    pt_pipeline_complete(&pipeline, wire[place], PT_OK);
                    wire[place] = wire[--in_flight];
                }
                while (pt_pipeline_report(&pipeline, &count, &result))
                    reported += count;
                pt_pipeline_rest(&pipeline);
            }
            PT_CHECK(pt_pipeline_check(&pipeline));
            CHECK(pipeline.accepted == accepted && pipeline.reported == reported);
            CHECK(pipeline.pending_count >= in_flight && pipeline.pending_count <= 5);
        }
        CHECK(accepted > 500 && reported > 500);
        for (; in_flight > 0; in_flight--)
            pt_pipeline_complete(&pipeline, wire[in_flight - 1], PT_OK);
        while (pt_pipeline_report(&pipeline, &count, &result))
            reported += count;
        for (int index = pt_pipeline_launch(&pipeline); index >= 0;
             index = pt_pipeline_launch(&pipeline))
            pt_pipeline_complete(&pipeline, (uint8_t)index, PT_OK);
        while (pt_pipeline_report(&pipeline, &count, &result))
            reported += count;
        CHECK_EQUAL(reported, accepted);
        CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
        CHECK_EQUAL(memory_lent(pool), 0);
    }
    memory_close_pool(pool, &account);
}

static pt_pool *pair_pool;

/* The one slot of a pipeline, in that state. */
static void enter_slot(uint8_t state)
{
    pair_pool = memory_open_pool(&account, classes, 1, 0);
    open_pipeline(pair_pool, 1, 1, 0);
    if (state != PT_SLOT_FREE)
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, NULL, 0), PT_OK);
    if (state > PT_SLOT_FILLING)
        CHECK_EQUAL(pt_pipeline_launch(&pipeline), 0);
    if (state == PT_SLOT_COMPLETED)
        pt_pipeline_complete(&pipeline, 0, PT_OK);
    else if (state == PT_SLOT_ABANDONED)
        CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 1);
    CHECK_EQUAL(slots[0].state, state);
}

/* What is not done changes nothing; a slot has a buffer while it is taken. */
static int take_slot_step(uint8_t state, uint8_t step)
{
    const pt_send_pipeline before = pipeline;
    uint8_t index;
    uint32_t count;
    int code, done = 1;
    (void)state;
    if (step == PT_SLOT_STEP_RESERVE)
        done = pt_pipeline_reserve(&pipeline, &index) == PT_OK;
    else if (step == PT_SLOT_STEP_LAUNCH)
        done = pt_pipeline_launch(&pipeline) == 0;
    else if (step == PT_SLOT_STEP_COMPLETE)
        pt_pipeline_complete(&pipeline, 0, PT_OK);
    else if (step == PT_SLOT_STEP_REPORT)
        done = pt_pipeline_report(&pipeline, &count, &code);
    else
        pt_pipeline_cleanup(&pipeline);
    CHECK(done || memcmp(&before, &pipeline, sizeof before) == 0);
    CHECK_EQUAL(memory_lent(pair_pool), slots[0].state != PT_SLOT_FREE);
    return slots[0].state;
}

static void leave_slot(void)
{
    if (pt_pipeline_cleanup(&pipeline) != 0)
        pt_pipeline_complete(&pipeline, 0, PT_OK);
    memory_close_pool(pair_pool, &account);
}

static void each_step_in_each_state_does_what_the_table_says(void)
{
    static const machine slot = {pt_slot_next,
                                 enter_slot,
                                 take_slot_step,
                                 leave_slot,
                                 {
                                     /* reserve, launch, complete, report, close */
                                     "1-!-0", /* FREE */
                                     "-2!-0", /* FILLING */
                                     "--3-4", /* IN_FLIGHT */
                                     "--!00", /* COMPLETED */
                                     "!-0-4", /* ABANDONED */
                                 }};
    check_pairs(&slot);
}

static pt_hold holds[8];
static unsigned next_hold;
static int holds_out; /* that were not let go of */

static void let_go(pt_hold *hold)
{
    (void)hold;
    holds_out--;
}

/* A payload of len bytes at offset of a message of total bytes, referred to if held. */
static int send_slice(uint32_t offset, uint32_t total, const uint8_t *payload, uint32_t len,
                      int held)
{
    pt_hold *hold = &holds[next_hold++ % 8];
    hold->let_go = let_go;
    pt_wide wide = {
        .type = PT_FRAME_DATA, .id = 3, .offset = offset, .total = total, .payload_len = len};
    int code = pt_pipeline_send_wide(&pipeline, &wide, payload, held ? hold : NULL);
    holds_out += held && code == PT_OK;
    return code;
}

/* The bytes of a slot are those of one wide frame behind a small one. */
static void check_wide_in(const pt_send_slot *slot, const uint8_t *payload, uint32_t len, int held)
{
    pt_wide wide;
    const uint8_t *header = slot->buffer + PT_FRAME_OVERHEAD + 1;
    if (!CHECK_EQUAL(pt_wide_decode(header, &wide), PT_OK))
        return;
    CHECK_EQUAL(wide.payload_len, len);
    CHECK_EQUAL(wide.crc, pt_crc32c(pt_wide_start_crc(header), payload, len));
    CHECK_EQUAL(held ? slot->hold->len : 0, held ? len : 0);
    CHECK_BYTES(held ? slot->hold->payload : header + PT_WIDE_HEADER_SIZE, payload, len);
    CHECK_EQUAL(slot->message_len,
                PT_FRAME_OVERHEAD + 1 + PT_WIDE_HEADER_SIZE + (held ? 0 : (int)len));
}

static void a_slot_refers_to_a_large_payload_until_it_is_reported_or_dropped(void)
{
    static uint8_t payload[PT_WIDE_MAX_PAYLOAD + 1];
    draw_bytes(payload, sizeof payload);
    for (int held = 0; held < 2; held++) {
        pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
        uint32_t len = held ? PT_WIDE_MAX_PAYLOAD : 100, count;
        int result;
        open_pipeline(pool, 3, 1, 1);
        CHECK_EQUAL(pt_pipeline_send(&pipeline, PT_FRAME_DATA, 0, payload, 1), PT_OK);
        CHECK_EQUAL(send_slice(0, 3 * len, payload, len, held), PT_OK);
        check_wide_in(&slots[0], payload, len, held);
        CHECK_EQUAL(pipeline.ripe, held);
        CHECK_EQUAL(pt_pipeline_referred(&pipeline), held ? len : 0);
        CHECK_EQUAL(pipeline.accepted, 1);
        CHECK_EQUAL(send_slice(len, 3 * len, payload, len, held), PT_OK);
        CHECK_EQUAL(send_slice(2 * len, 3 * len, payload, len, held), PT_OK);
        CHECK_EQUAL(pipeline.accepted, 2);
        CHECK_EQUAL(pipeline.frames, 4);
        PT_CHECK(pt_pipeline_check(&pipeline));
        if (held) {
            CHECK_EQUAL(pipeline.pending_count, 3);
            CHECK_EQUAL(send_slice(0, 5, payload, 5, held), PT_ERR_WOULD_BLOCK);
            CHECK_EQUAL(holds_out, 3);
            CHECK_EQUAL(pt_pipeline_launch(&pipeline), 0);
            pt_pipeline_complete(&pipeline, 0, PT_OK);
            CHECK_EQUAL(holds_out, 3);
            CHECK_EQUAL(pt_pipeline_report(&pipeline, &count, &result), 1);
            CHECK_EQUAL(count, 1);
            CHECK_EQUAL(holds_out, 2);
            CHECK_EQUAL(pt_pipeline_launch(&pipeline), 1);
            CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 1); /* still the platform's */
            CHECK_EQUAL(holds_out, 1);
            pt_pipeline_complete(&pipeline, 1, PT_OK);
        } else {
            CHECK_EQUAL(send_slice(0, SLOT_SIZE, payload, SLOT_SIZE, 0), PT_ERR_MESSAGE_TOO_LARGE);
            CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
        }
        CHECK_EQUAL(holds_out, 0);
        CHECK_EQUAL(pt_pipeline_referred(&pipeline), 0);
        memory_close_pool(pool, &account);
    }
}

static void a_wide_frame_that_cannot_be_is_refused(void)
{
    static uint8_t payload[PT_WIDE_MAX_PAYLOAD + 1];
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    open_pipeline(pool, 2, 1, 1);
    CHECK_EQUAL(send_slice(0, UINT32_MAX, payload, PT_WIDE_MAX_PAYLOAD + 1, 1),
                PT_ERR_MESSAGE_TOO_LARGE);
    CHECK_EQUAL(send_slice(0, 5, NULL, 5, 0), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(send_slice(0, 5, NULL, 0, 1), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pipeline.frames, 0);
    CHECK_EQUAL(pipeline.pending_count, 0);
    CHECK_EQUAL(pt_pipeline_cleanup(&pipeline), 0);
    CHECK_EQUAL(send_slice(0, 5, payload, 5, 1), PT_ERR_NOT_INITIALIZED);
    memory_close_pool(pool, &account);
}

int main(void)
{
    RUN(what_a_slot_holds_is_the_frame_of_the_encoder);
    RUN(a_full_pipeline_refuses_and_leaves_no_gap_in_the_sequence);
    RUN(completions_in_any_order_are_reported_in_the_order_of_sending);
    RUN(small_frames_share_a_slot_until_it_is_full);
    RUN(lazy_slots_cost_nothing_before_the_first_send);
    RUN(the_pipelines_of_all_peers_are_within_their_budget);
    RUN(what_does_not_fit_is_refused_with_nothing_changed);
    RUN(a_buffer_in_flight_stays_until_the_platform_lets_go);
    RUN(slots_are_borrowed_when_a_second_is_wanted_and_go_back);
    RUN(without_memory_for_the_other_slots_one_goes_on);
    RUN(ten_thousand_random_steps_keep_every_message);
    RUN(each_step_in_each_state_does_what_the_table_says);
    RUN(a_slot_refers_to_a_large_payload_until_it_is_reported_or_dropped);
    RUN(a_wide_frame_that_cannot_be_is_refused);
    return check_end();
}
