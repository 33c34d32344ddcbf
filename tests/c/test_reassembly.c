/* Fragments and batches: the golden vectors, every arrow of the table, forged totals, no memory. */
#include "pt_reassembly.h"
#include "pt_wire.h"

#include "check.h"
#include "memory.h"
#include "vectors_batch.h"
#include "vectors_reassembly.h"

#define LIMIT 10u

static const pt_pool_class classes[] = {{6, 2, 0}, {LIMIT, 2, 0}, {8192, 2, 0}};
static memory_account account;

/* Feed a fragment from memory of its own size, so that a sanitizer sees who reads beyond. */
static int feed(pt_reassembly *reassembly, const uint8_t *payload, size_t len,
                const uint8_t **message, uint16_t *message_len)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);
    REQUIRE(copy != NULL);
    if (len > 0)
        memcpy(copy, payload, len);
    int code = pt_reassembly_feed(reassembly, copy, len, message, message_len);
    free(copy);
    return code;
}

static int piece(pt_reassembly *reassembly, uint16_t message_id, uint16_t total_len,
                 uint16_t offset, uint8_t flags, const char *text)
{
    uint8_t payload[64];
    const pt_fragment fragment = {message_id, total_len, offset, flags};
    const uint8_t *message;
    uint16_t message_len;
    REQUIRE(pt_fragment_encode(&fragment, payload, sizeof payload) == PT_FRAGMENT_HEADER_SIZE);
    memcpy(payload + PT_FRAGMENT_HEADER_SIZE, text, strlen(text));
    return feed(reassembly, payload, PT_FRAGMENT_HEADER_SIZE + strlen(text), &message,
                &message_len);
}

static void each_step_of_the_original_gives_what_it_gave_there(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 3, 0);
    for (size_t index = 0; index < VECTOR_COUNT(REASSEMBLY_VECTORS); index++) {
        const vector_reassembly *vector = &REASSEMBLY_VECTORS[index];
        check_case = vector->id;
        pt_reassembly reassembly;
        pt_reassembly_init(&reassembly, pool, vector->capacity);
        for (uint32_t number = 0; number < vector->step_count; number++) {
            const vector_step *step = &vector->steps[number];
            const uint8_t *message = NULL;
            uint16_t message_len = 0;
            if (!CHECK_EQUAL(feed(&reassembly, step->payload.data, step->payload.len, &message,
                                  &message_len),
                             step->code))
                break;
            if (step->code == PT_REASSEMBLY_COMPLETE && CHECK_EQUAL(message_len, step->message.len))
                CHECK_BYTES(message, step->message.data, step->message.len);
            CHECK(memory_lent(pool) <= 1);
        }
        pt_reassembly_cleanup(&reassembly);
        pt_reassembly_cleanup(&reassembly);
        CHECK_EQUAL(memory_lent(pool), 0);
    }
    memory_close_pool(pool, &account);
}

/* A fragment that means an event: in IDLE it is held against zeros, in RUNNING against 3 of the 6
 * bytes of message 7. */
static const struct {
    uint8_t event;
    struct {
        uint16_t message_id, total_len, offset;
        uint8_t flags;
        const char *text;
    } in[2];
} occasions[] = {
    {PT_PIECE_OVERRUN, {{0, 3, 2, 0, "xx"}, {7, 6, 3, 2, "defg"}}},
    {PT_PIECE_TOO_LARGE, {{9, 11, 0, 1, "x"}, {9, 11, 0, 1, "x"}}},
    {PT_PIECE_NO_MEMORY, {{9, 8, 0, 1, "x"}, {9, 8, 0, 1, "x"}}},
    {PT_PIECE_START, {{9, 8, 0, 1, "x"}, {9, 8, 0, 1, "x"}}},
    {PT_PIECE_OTHER_ID, {{1, 6, 0, 0, "x"}, {8, 6, 3, 0, "d"}}},
    {PT_PIECE_MISPLACED, {{0, 6, 3, 0, "d"}, {7, 6, 2, 0, "c"}}},
    {PT_PIECE_NEXT, {{0, 6, 0, 0, "a"}, {7, 6, 3, 0, "def"}}},
    {PT_PIECE_LAST_EARLY, {{0, 6, 0, 2, "a"}, {7, 6, 3, 2, "de"}}},
    {PT_PIECE_LAST, {{0, 6, 0, 2, ""}, {7, 6, 3, 2, "def"}}},
};

static void check_arrow(pt_pool *pool, uint8_t state, size_t index)
{
    uint8_t event = occasions[index].event;
    pt_reassembly_rule rule = pt_reassembly_rule_of(state, event);
    pt_reassembly reassembly;
    pt_reassembly_init(&reassembly, pool, LIMIT);
    if (state == PT_REASSEMBLY_RUNNING)
        CHECK_EQUAL(piece(&reassembly, 7, 6, 0, PT_FRAGMENT_FIRST, "abc"), PT_OK);
    pt_pool_trim(pool);
    account.dry = event == PT_PIECE_NO_MEMORY;
    CHECK_EQUAL(piece(&reassembly, occasions[index].in[state].message_id,
                      occasions[index].in[state].total_len, occasions[index].in[state].offset,
                      occasions[index].in[state].flags, occasions[index].in[state].text),
                rule.code);
    account.dry = 0;
    CHECK_EQUAL(reassembly.state, rule.state);
    CHECK_EQUAL(reassembly.buffer != NULL, rule.state == PT_REASSEMBLY_RUNNING);
    CHECK_EQUAL(reassembly.delivered != NULL, rule.code == PT_REASSEMBLY_COMPLETE);
    CHECK_EQUAL(memory_lent(pool),
                rule.state == PT_REASSEMBLY_RUNNING || rule.code == PT_REASSEMBLY_COMPLETE);
    if (state == PT_REASSEMBLY_RUNNING && rule.code < 0 && rule.state == PT_REASSEMBLY_RUNNING)
        CHECK_EQUAL(piece(&reassembly, 7, 6, 3, PT_FRAGMENT_LAST, "def"), PT_REASSEMBLY_COMPLETE);
    pt_reassembly_cleanup(&reassembly);
    CHECK_EQUAL(memory_lent(pool), 0);
}

static void each_event_in_each_state_does_what_the_table_says(void)
{
    static const uint8_t nothing[PT_FRAGMENT_HEADER_SIZE];
    pt_pool *pool = memory_open_pool(&account, classes, 3, 0);
    for (uint8_t state = PT_REASSEMBLY_IDLE; state <= PT_REASSEMBLY_RUNNING; state++) {
        for (size_t index = 0; index < sizeof occasions / sizeof occasions[0]; index++)
            check_arrow(pool, state, index);
        for (size_t len = 0; len < PT_FRAGMENT_HEADER_SIZE; len++) {
            pt_reassembly_rule rule = pt_reassembly_rule_of(state, PT_PIECE_SHORT);
            pt_reassembly reassembly;
            const uint8_t *message;
            uint16_t message_len;
            pt_reassembly_init(&reassembly, pool, LIMIT);
            if (state == PT_REASSEMBLY_RUNNING)
                CHECK_EQUAL(piece(&reassembly, 7, 6, 0, PT_FRAGMENT_FIRST, "abc"), PT_OK);
            CHECK_EQUAL(feed(&reassembly, nothing, len, &message, &message_len), rule.code);
            CHECK_EQUAL(reassembly.state, rule.state);
            pt_reassembly_cleanup(&reassembly);
        }
    }
    memory_close_pool(pool, &account);
}

static void a_forged_total_moves_no_bound(void)
{
    static const uint16_t totals[] = {0, 12, 4000, 65535};
    pt_pool *pool = memory_open_pool(&account, classes, 3, 0);
    for (size_t index = 0; index < sizeof totals / sizeof totals[0]; index++) {
        pt_reassembly reassembly;
        pt_reassembly_init(&reassembly, pool, LIMIT);
        CHECK_EQUAL(piece(&reassembly, 1, 10, 0, PT_FRAGMENT_FIRST, "hello"), PT_OK);
        CHECK_EQUAL(piece(&reassembly, 1, totals[index], 5, 0, "world!"), PT_ERR_INVALID_PARAM);
        CHECK_EQUAL(piece(&reassembly, 1, 10, 0, PT_FRAGMENT_FIRST, "hello"), PT_OK);
        CHECK_EQUAL(piece(&reassembly, 1, totals[index], 65535, 0, ""), PT_ERR_INVALID_PARAM);
        CHECK_EQUAL(piece(&reassembly, 1, 10, 0, PT_FRAGMENT_FIRST, "hello"), PT_OK);
        CHECK_EQUAL(piece(&reassembly, 1, totals[index], 5, PT_FRAGMENT_LAST, "world"),
                    PT_REASSEMBLY_COMPLETE);
        pt_reassembly_cleanup(&reassembly);
    }
    memory_close_pool(pool, &account);
}

static void a_delivered_message_lasts_until_the_next_call_and_is_wiped(void)
{
    pt_pool *pool = memory_open_pool(&account, classes, 3, 0);
    static const uint8_t whole[] = "\0\1\0\6\0\0\3\0abcdef";
    pt_reassembly reassembly;
    const uint8_t *message;
    uint16_t message_len;
    pt_reassembly_init(&reassembly, pool, LIMIT);
    REQUIRE(feed(&reassembly, whole, sizeof whole - 1, &message, &message_len) ==
            PT_REASSEMBLY_COMPLETE);
    CHECK_EQUAL(message_len, 6);
    CHECK_BYTES(message, (const uint8_t *)"abcdef", 6);
    CHECK_EQUAL(memory_lent(pool), 1);
    CHECK_EQUAL(feed(&reassembly, whole, 3, &message, &message_len), PT_ERR_TRUNCATED);
    CHECK_EQUAL(memory_lent(pool), 0);
    static const uint8_t zeros[6];
    uint8_t *buffer = pt_pool_acquire(pool, 6);
    REQUIRE(buffer != NULL);
    CHECK_BYTES(buffer, zeros, 6);
    pt_pool_release(pool, buffer, 0);
    pt_reassembly_cleanup(&reassembly);
    memory_close_pool(pool, &account);
}

static void batches_are_split_as_they_were_packed(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(BATCH_VECTORS); index++) {
        const vector_batch *vector = &BATCH_VECTORS[index];
        check_case = vector->id;
        size_t offset = 0;
        uint16_t len = 0;
        CHECK_EQUAL(pt_batch_count(vector->payload.data, vector->payload.len), vector->count);
        for (int number = 0; number < vector->count; number++) {
            const uint8_t *entry =
                pt_batch_next(vector->payload.data, vector->payload.len, &offset, &len);
            REQUIRE(entry != NULL);
            if (CHECK_EQUAL(len, vector->messages[number].len))
                CHECK_BYTES(entry, vector->messages[number].data, len);
        }
        CHECK(pt_batch_next(vector->payload.data, vector->payload.len, &offset, &len) == NULL);
        CHECK_EQUAL(offset, vector->payload.len);
    }
}

static void a_batch_that_is_cut_is_no_batch(void)
{
    const vector_batch *vector = &BATCH_VECTORS[0];
    for (size_t index = 0; index < VECTOR_COUNT(BATCH_VECTORS); index++)
        if (BATCH_VECTORS[index].count > vector->count && BATCH_VECTORS[index].payload.len < 200)
            vector = &BATCH_VECTORS[index];
    size_t ends = 0, offset = 0;
    uint16_t len;
    for (size_t cut = 0; cut <= vector->payload.len; cut++) {
        uint8_t *copy = malloc(cut > 0 ? cut : 1);
        REQUIRE(copy != NULL);
        memcpy(copy, vector->payload.data, cut);
        if (cut == offset) {
            CHECK_EQUAL(pt_batch_count(copy, cut), ends);
            ends++;
            pt_batch_next(vector->payload.data, vector->payload.len, &offset, &len);
        } else {
            CHECK_EQUAL(pt_batch_count(copy, cut), PT_ERR_TRUNCATED);
        }
        free(copy);
    }
    CHECK_EQUAL(ends, vector->count + 1);
}

int main(void)
{
    RUN(each_step_of_the_original_gives_what_it_gave_there);
    RUN(each_event_in_each_state_does_what_the_table_says);
    RUN(a_forged_total_moves_no_bound);
    RUN(a_delivered_message_lasts_until_the_next_call_and_is_wiped);
    RUN(batches_are_split_as_they_were_packed);
    RUN(a_batch_that_is_cut_is_no_batch);
    return check_end();
}
