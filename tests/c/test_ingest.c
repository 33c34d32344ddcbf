/* The receiving machine on message frames: golden streams, every cut, every fault, no memory. Other
 * formats are in ingest_formats.c. */
#include "pt_ingest.h"

#include "check.h"
#include "memory.h"
#include "pairs.h"
#include "vectors_tcp_stream.h"

static const pt_pool_class classes[] = {{64, 4, 0},
                                        {PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD, 4, 0}};
static memory_account account;

/* What a sink saw: frames, one behind the other, header fields and payload. */
typedef struct record {
    uint32_t count;
    uint32_t tag;
    size_t len;
    int answer; /* what the sink returns */
    uint8_t bytes[16384];
} record;

static record seen, expected;

static int note(void *context, uint32_t tag, const pt_frame *frame)
{
    record *into = context;
    const uint8_t head[5] = {frame->type, frame->flags, frame->sequence,
                             (uint8_t)(frame->payload_len >> 8), (uint8_t)frame->payload_len};
    REQUIRE(into->len + sizeof head + frame->payload_len <= sizeof into->bytes);
    memcpy(into->bytes + into->len, head, sizeof head);
    into->len += sizeof head;
    if (frame->payload_len > 0)
        memcpy(into->bytes + into->len, frame->payload, frame->payload_len);
    into->len += frame->payload_len;
    into->count++;
    into->tag = tag;
    return into->answer;
}

static void clear(record *into)
{
    memset(into, 0, offsetof(record, bytes));
}

static void check_same(void)
{
    CHECK_EQUAL(seen.count, expected.count);
    if (CHECK_EQUAL(seen.len, expected.len))
        CHECK_BYTES(seen.bytes, expected.bytes, expected.len);
}

/* Feed all of data in pieces of at most cut bytes. Stops at the first code that is not PT_OK;
 * *taken counts what was consumed. */
static int feed_in_pieces(pt_ingest *ingest, const uint8_t *data, size_t len, size_t cut,
                          record *into, size_t *taken)
{
    const pt_sink sink = {.frame = note, .context = into, .room = UINT32_MAX};
    int code = PT_OK;
    for (*taken = 0; *taken < len && code == PT_OK;) {
        size_t piece = len - *taken < cut ? len - *taken : cut, consumed;
        uint8_t *copy = malloc(piece); /* so that a sanitizer sees who reads beyond, or later */
        REQUIRE(copy != NULL);
        memcpy(copy, data + *taken, piece);
        code = pt_ingest_feed(ingest, copy, piece, &sink, &consumed);
        CHECK(consumed == piece || (code != PT_OK && consumed < piece));
        *taken += consumed;
        free(copy);
    }
    return code;
}

static void golden_streams_end_as_they_must_wherever_they_are_cut(void)
{
    static const size_t cuts[] = {1, 2, 3, 7, 9, 10, 11, 12, 13, 64, 300, 100000};
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    for (size_t index = 0; index < VECTOR_COUNT(TCP_STREAM_VECTORS); index++) {
        const vector_stream *vector = &TCP_STREAM_VECTORS[index];
        check_case = vector->id;
        if (!CHECK(vector->largest_payload <= PT_FRAME_MAX_PAYLOAD))
            continue;
        for (size_t cut = 0; cut < sizeof cuts / sizeof cuts[0]; cut++) {
            pt_ingest ingest = {0};
            size_t taken;
            clear(&seen);
            pt_ingest_init(&ingest, pt_message_format(0), pool, PT_FRAME_MAX_PAYLOAD, 7);
            CHECK_EQUAL(feed_in_pieces(&ingest, vector->sent.data, vector->sent.len, cuts[cut],
                                       &seen, &taken),
                        vector->code);
            CHECK_EQUAL(seen.count, vector->frame_count);
            CHECK(seen.count == 0 || seen.tag == 7);
            if (cut == 0) {
                memcpy(&expected, &seen, sizeof seen);
            } else {
                check_same();
            }
            CHECK_EQUAL(ingest.frames, vector->frame_count);
            CHECK_EQUAL(ingest.state == PT_INGEST_INIT, vector->code != PT_OK);
            pt_ingest_cleanup(&ingest);
            CHECK_EQUAL(memory_lent(pool), 0);
        }
    }
    memory_close_pool(pool, &account);
}

/* Frames of both forms and every kind of length, drawn; returns the bytes of the stream and leaves
 * in expected what must come of it. */
static size_t make_stream(uint8_t *stream, size_t size)
{
    static uint8_t payload[PT_FRAME_MAX_PAYLOAD];
    size_t len = 0;
    clear(&expected);
    for (unsigned number = 0; number < 12; number++) {
        pt_frame frame = {.payload = payload,
                          .type = (uint8_t)(1 + draw(7)),
                          .flags = (uint8_t)draw(256),
                          .sequence = (uint8_t)number};
        frame.payload_len = number == 5 ? PT_FRAME_MAX_PAYLOAD : draw(draw(2) ? 4 : 200);
        draw_bytes(payload, frame.payload_len);
        if (draw(3) == 0 && !(frame.type == PT_FRAME_ACK && (frame.flags & 0x0F) == 4)) {
            frame.flags &= 0x0F;
            frame.sequence = 0;
            REQUIRE(pt_compact_encode(&frame, stream + len, size - len) == PT_COMPACT_HEADER_SIZE);
            REQUIRE(size - len - PT_COMPACT_HEADER_SIZE >= frame.payload_len);
            memcpy(stream + len + PT_COMPACT_HEADER_SIZE, payload, frame.payload_len);
            len += PT_COMPACT_HEADER_SIZE + frame.payload_len;
        } else {
            int whole = pt_frame_encode(&frame, stream + len, size - len);
            REQUIRE(whole > 0);
            len += (size_t)whole;
        }
        note(&expected, 7, &frame);
    }
    return len;
}

static void frames_do_not_depend_on_how_the_stream_was_cut(void)
{
    static uint8_t stream[16384];
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    size_t len = make_stream(stream, sizeof stream);
    for (size_t cut = 1; cut <= len; cut = cut < 40 ? cut + 1 : cut * 2 + draw(9)) {
        pt_ingest ingest = {0};
        size_t taken;
        clear(&seen);
        pt_ingest_init(&ingest, pt_message_format(0), pool, PT_FRAME_MAX_PAYLOAD, 7);
        CHECK_EQUAL(feed_in_pieces(&ingest, stream, len, cut, &seen, &taken), PT_OK);
        check_same();
        CHECK_EQUAL(pt_ingest_partial_len(&ingest), 0);
        CHECK_EQUAL(memory_lent(pool), 0); /* an idle link holds no receive memory */
        pt_ingest_cleanup(&ingest);
    }
    memory_close_pool(pool, &account);
}

static void a_pool_without_memory_loses_nothing(void)
{
    static uint8_t stream[16384];
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    size_t len = make_stream(stream, sizeof stream);
    const pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
    unsigned refused = 0;
    for (size_t cut = 5; cut < 2000; cut = cut * 2 + 1) {
        pt_ingest ingest = {0};
        size_t at = 0;
        clear(&seen);
        pt_ingest_init(&ingest, pt_message_format(0), pool, PT_FRAME_MAX_PAYLOAD, 7);
        while (at < len) {
            size_t piece = len - at < cut ? len - at : cut, consumed;
            account.dry = draw(2) != 0;
            pt_pool_trim(pool);
            int code = pt_ingest_feed(&ingest, stream + at, piece, &sink, &consumed);
            CHECK(code == PT_OK || code == PT_ERR_BACKPRESSURE);
            at += consumed;
            refused += code != PT_OK;
            REQUIRE(refused < 10000); /* else the same bytes are refused for ever */
        }
        check_same();
        pt_ingest_cleanup(&ingest);
    }
    CHECK(refused > 0);
    account.dry = 0;
    memory_close_pool(pool, &account);
}

static void a_longer_payload_than_agreed_is_refused_on_its_header(void)
{
    static const uint8_t header[] = {'P', 'T', 'M', 'G', 1, 1, 0, 0, 0, 101};
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    for (size_t cut = 1; cut <= sizeof header; cut++) {
        pt_ingest ingest = {0};
        size_t taken;
        clear(&seen);
        pt_ingest_init(&ingest, pt_message_format(0), pool, 100, 7);
        CHECK_EQUAL(feed_in_pieces(&ingest, header, sizeof header, cut, &seen, &taken),
                    PT_ERR_MESSAGE_TOO_LARGE);
        CHECK_EQUAL(seen.count, 0);
        pt_ingest_init(&ingest, pt_message_format(0), pool, 101, 7);
        CHECK_EQUAL(feed_in_pieces(&ingest, header, sizeof header, cut, &seen, &taken), PT_OK);
        CHECK_EQUAL(pt_ingest_partial_len(&ingest), sizeof header);
        pt_ingest_cleanup(&ingest);
        pt_ingest_cleanup(&ingest);
    }
    memory_close_pool(pool, &account);
}

static void a_compact_frame_is_judged_on_its_four_bytes(void)
{
    static const struct {
        uint8_t header[4];
        int code;
    } cases[] = {
        {{'P', 0x10, 0, 101}, PT_ERR_MESSAGE_TOO_LARGE},
        {{'P', 0x05, 0, 0}, PT_ERR_INVALID_PARAM},
        {{'P', 0x8F, 0, 0}, PT_ERR_INVALID_PARAM},
        {{'P', 0x10, 0, 100}, PT_OK},
        {{'P', 'T', 0, 0},
         PT_OK}, /* taken for the start of a full header, of which more must come */
    };
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        for (size_t cut = 1; cut <= 4; cut++) {
            pt_ingest ingest = {0};
            size_t taken;
            clear(&seen);
            pt_ingest_init(&ingest, pt_message_format(0), pool, 100, 7);
            CHECK_EQUAL(feed_in_pieces(&ingest, cases[index].header, 4, cut, &seen, &taken),
                        cases[index].code);
            CHECK_EQUAL(seen.count, 0);
            CHECK_EQUAL(pt_ingest_partial_len(&ingest), cases[index].code == PT_OK ? 4 : 0);
            pt_ingest_cleanup(&ingest);
        }
    }
    memory_close_pool(pool, &account);
}

static void a_machine_that_failed_takes_no_more(void)
{
    static const uint8_t good[] = {0x50, 0x54, 0x4d, 0x47, 1,   1,   0,    0,   0,
                                   5,    'h',  'e',  'l',  'l', 'o', 0x41, 0x74};
    uint8_t stream[2 * sizeof good];
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    memcpy(stream, good, sizeof good);
    memcpy(stream + sizeof good, good, sizeof good);
    stream[sizeof good + 12] ^= 1;
    for (size_t cut = 1; cut <= sizeof stream; cut++) {
        pt_ingest ingest = {0};
        const pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
        size_t taken, consumed;
        clear(&seen);
        pt_ingest_init(&ingest, pt_message_format(0), pool, 100, 7);
        CHECK_EQUAL(feed_in_pieces(&ingest, stream, sizeof stream, cut, &seen, &taken), PT_ERR_CRC);
        CHECK_EQUAL(seen.count, 1);
        CHECK(taken >= sizeof good);
        CHECK_EQUAL(pt_ingest_feed(&ingest, good, sizeof good, &sink, &consumed),
                    PT_ERR_INVALID_STATE);
        CHECK_EQUAL(consumed, 0);
        CHECK_EQUAL(memory_lent(pool), 0);
    }
    memory_close_pool(pool, &account);
}

static void a_sink_that_stops_is_given_each_frame_once(void)
{
    static uint8_t stream[16384];
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    size_t len = make_stream(stream, sizeof stream), at = 0;
    const pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
    pt_ingest ingest = {0};
    clear(&seen);
    seen.answer = PT_ERR_BUFFER_FULL;
    pt_ingest_init(&ingest, pt_message_format(0), pool, PT_FRAME_MAX_PAYLOAD, 7);
    for (uint32_t calls = 1; at < len; calls++) {
        size_t consumed;
        CHECK_EQUAL(pt_ingest_feed(&ingest, stream + at, len - at, &sink, &consumed),
                    PT_ERR_BUFFER_FULL);
        CHECK_EQUAL(seen.count, calls);
        REQUIRE(consumed > 0);
        at += consumed;
    }
    check_same();
    pt_ingest_cleanup(&ingest);
    memory_close_pool(pool, &account);
}

/* One frame, of which a cut header is in HEADER, and more than its header in PAYLOAD. */
static const uint8_t hello[] = {0x50, 0x54, 0x4d, 0x47, 1,   1,   0,    0,   0,
                                5,    'h',  'e',  'l',  'l', 'o', 0x41, 0x74};
static const size_t held_in[] = {0, 5, 12, 12};
static pt_pool *pair_pool;
static pt_ingest one;
static int step_within, state_within; /* what the sink asks for, and the state that it sees */

static void feed_hello(size_t from, size_t to, int broken);

static int take_within(void *context, uint32_t tag, const pt_frame *frame)
{
    (void)context, (void)tag, (void)frame;
    state_within = one.state;
    if (step_within == PT_INGEST_STEP_INIT)
        pt_ingest_init(&one, pt_message_format(0), pair_pool, 100, 7);
    else if (step_within == PT_INGEST_STEP_CLEANUP)
        pt_ingest_cleanup(&one);
    else if (step_within == PT_INGEST_STEP_STAGE || step_within == PT_INGEST_STEP_FILL)
        feed_hello(0, step_within == PT_INGEST_STEP_STAGE ? 12 : sizeof hello, 0);
    return PT_OK;
}

/* broken: with a wrong version, or with a wrong CRC once that is held. */
static void feed_hello(size_t from, size_t to, int broken)
{
    const pt_sink sink = {.frame = take_within, .context = NULL, .room = UINT32_MAX};
    uint8_t bytes[sizeof hello];
    size_t consumed;
    memcpy(bytes, hello, sizeof hello);
    bytes[from <= 5 ? 5 : 16] ^= (uint8_t)broken;
    int code = pt_ingest_feed(&one, bytes + from, to - from, &sink, &consumed);
    CHECK_EQUAL(code == PT_OK, one.state != PT_INGEST_INIT);
}

static int refuse_header(const uint8_t *header, pt_frame *frame)
{
    (void)header, (void)frame;
    return PT_ERR_VERSION;
}

/* In PAYLOAD nothing but a long header is judged: of other frames the header was, and the rest is
 * when it is COMPLETE. */
static void fail_in_a_long_header(void)
{
    static const pt_format format = {.read_header = refuse_header,
                                     .header_size = PT_FORMAT_MAX_HEADER};
    static const uint8_t header[PT_FORMAT_MAX_HEADER];
    const pt_sink sink = {.frame = take_within, .context = NULL, .room = UINT32_MAX};
    size_t consumed;
    pt_ingest_cleanup(&one);
    pt_ingest_init(&one, &format, pair_pool, 100, 7);
    CHECK_EQUAL(pt_ingest_feed(&one, header, sizeof header - 1, &sink, &consumed), PT_OK);
    CHECK_EQUAL(one.state, PT_FORMAT_MAX_HEADER > PT_INGEST_HEADER_ROOM ? PT_INGEST_WAIT_PAYLOAD
                                                                        : PT_INGEST_WAIT_HEADER);
    CHECK_EQUAL(pt_ingest_feed(&one, header, 1, &sink, &consumed), PT_ERR_VERSION);
}

static void enter_ingest(uint8_t state)
{
    pair_pool = memory_open_pool(&account, classes, 2, 0);
    memset(&one, 0, sizeof one);
    if (state == PT_INGEST_INIT)
        return;
    pt_ingest_init(&one, pt_message_format(0), pair_pool, 100, 7);
    feed_hello(0, held_in[state], 0);
    CHECK_EQUAL(one.state, state == PT_INGEST_COMPLETE ? PT_INGEST_WAIT_PAYLOAD : state);
}

/* COMPLETE is seen by the sink alone, so what is asked for there is asked for by the sink. */
static int take_ingest_step(uint8_t state, uint8_t step)
{
    const size_t held = held_in[state];
    step_within = state == PT_INGEST_COMPLETE ? step : PT_INGEST_STEP_HAND_ON;
    state_within = one.state;
    if (step == PT_INGEST_STEP_FAIL && state == PT_INGEST_WAIT_PAYLOAD)
        fail_in_a_long_header();
    else if (step == PT_INGEST_STEP_FAIL || state == PT_INGEST_COMPLETE)
        feed_hello(held, sizeof hello, step == PT_INGEST_STEP_FAIL);
    else if (step == PT_INGEST_STEP_INIT)
        pt_ingest_init(&one, pt_message_format(0), pair_pool, 100, 7);
    else if (step == PT_INGEST_STEP_CLEANUP)
        pt_ingest_cleanup(&one);
    else
        feed_hello(held, step == PT_INGEST_STEP_STAGE ? (held < 12 ? 12 : 13) : sizeof hello, 0);
    CHECK_EQUAL(memory_lent(pair_pool), one.state == PT_INGEST_WAIT_PAYLOAD);
    CHECK(state != PT_INGEST_COMPLETE || step == PT_INGEST_STEP_FAIL || state_within == state);
    return step == PT_INGEST_STEP_FILL ? state_within : one.state;
}

static void leave_ingest(void)
{
    pt_ingest_cleanup(&one);
    memory_close_pool(pair_pool, &account);
}

static void each_step_in_each_state_does_what_the_table_says(void)
{
    static const machine ingest = {pt_ingest_next,
                                   enter_ingest,
                                   take_ingest_step,
                                   leave_ingest,
                                   {
                                       /* init, stage, fill, hand on, fail, cleanup */
                                       "1----0", /* INIT */
                                       "!2db00", /* WAIT_HEADER */
                                       "!-3b00", /* WAIT_PAYLOAD */
                                       "!!!10!", /* COMPLETE */
                                   }};
    check_pairs(&ingest);
}

int main(void)
{
    RUN(golden_streams_end_as_they_must_wherever_they_are_cut);
    RUN(frames_do_not_depend_on_how_the_stream_was_cut);
    RUN(a_pool_without_memory_loses_nothing);
    RUN(a_longer_payload_than_agreed_is_refused_on_its_header);
    RUN(a_compact_frame_is_judged_on_its_four_bytes);
    RUN(a_machine_that_failed_takes_no_more);
    RUN(a_sink_that_stops_is_given_each_frame_once);
    RUN(each_step_in_each_state_does_what_the_table_says);
    return check_end();
}
