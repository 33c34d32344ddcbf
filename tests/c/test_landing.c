/* Wide frames among others: where their bytes land, however the stream is cut, and every fault. */
#include "pt_ingest.h"
#include "pt_wide.h"

#include "check.h"
#include "memory.h"

#define IDS      3
#define LONGEST  3000u
#define MESSAGES 40

static const pt_pool_class classes[] = {{64, 4, 0},
                                        {PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD, 4, 0}};
static memory_account account;
static pt_pool *pool;
static pt_ingest ingest;

static uint8_t stream[MESSAGES * (LONGEST + 64) * 2];
static size_t stream_len;
static uint8_t expected[sizeof stream], seen[sizeof stream];
static size_t expected_len, seen_len;
static int landings_out; /* that were made and neither dropped nor handed on */
static int refuse_landing;
static int answer;

static void drop(pt_landing *landing)
{
    landings_out--;
    free(landing->memory);
    free(landing);
}

static pt_landing *make_landing(uint32_t id, uint32_t total)
{
    pt_landing *landing = calloc(1, sizeof *landing);
    REQUIRE(landing != NULL);
    landing->memory = malloc(total);
    REQUIRE(landing->memory != NULL);
    landing->drop = drop;
    landing->id = id;
    landing->total = total;
    landings_out++;
    return landing;
}

static void note(const uint8_t *bytes, size_t len, uint8_t kind)
{
    REQUIRE(seen_len + len + 1 <= sizeof seen);
    seen[seen_len++] = kind;
    memcpy(seen + seen_len, bytes, len);
    seen_len += len;
}

static int take_frame(void *context, uint32_t tag, const pt_frame *frame)
{
    (void)context;
    CHECK_EQUAL(tag, 7);
    if (frame->payload_len != 0)
        note(frame->payload, frame->payload_len, frame->type);
    return answer;
}

static pt_landing *land(void *context, uint32_t tag, uint32_t total)
{
    (void)context;
    CHECK_EQUAL(tag, 7);
    return refuse_landing ? NULL : make_landing(0, total);
}

static int landed(void *context, uint32_t tag, pt_landing *landing)
{
    (void)context;
    CHECK_EQUAL(tag, 7);
    CHECK_EQUAL(landing->received, landing->total);
    note(landing->memory, landing->total, (uint8_t)(100 + landing->id));
    drop(landing);
    return answer;
}

static const pt_sink sink = {
    .frame = take_frame, .room = UINT32_MAX, .land = land, .landed = landed};

static void open_ingest(void)
{
    pool = memory_open_pool(&account, classes, 2, 0);
    memset(&ingest, 0, sizeof ingest);
    pt_ingest_init(&ingest, pt_message_format(1), pool, PT_FRAME_MAX_PAYLOAD, 7);
    seen_len = expected_len = stream_len = 0;
    refuse_landing = 0;
    answer = PT_OK;
}

static void close_ingest(void)
{
    pt_ingest_cleanup(&ingest);
    CHECK_EQUAL(landings_out, 0);
    CHECK_EQUAL(memory_lent(pool), 0);
    memory_close_pool(pool, &account);
}

static void expect(const uint8_t *bytes, size_t len, uint8_t kind)
{
    expected[expected_len++] = kind;
    memcpy(expected + expected_len, bytes, len);
    expected_len += len;
}

static void say_wide(uint8_t type, uint32_t id, uint32_t offset, uint32_t total,
                     const uint8_t *payload, uint32_t len)
{
    pt_wide wide = {.type = type, .id = id, .offset = offset, .total = total, .payload_len = len};
    pt_wide_put(stream + stream_len, &wide, payload);
    stream_len += PT_WIDE_HEADER_SIZE;
    if (len != 0)
        memcpy(stream + stream_len, payload, len);
    stream_len += len;
}

static void say_full(const uint8_t *payload, uint32_t len)
{
    pt_frame_put(stream + stream_len, PT_FRAME_DATA, 0, 0, payload, len);
    stream_len += PT_FRAME_OVERHEAD + len;
    expect(payload, len, PT_FRAME_DATA);
}

/* A message under way in slices. */
typedef struct sliced {
    uint8_t bytes[LONGEST];
    uint32_t total;
    uint32_t at;
} sliced;

/* A stream of full and compact frames, whole wide messages, what is said about them, and slices of
 * IDS messages, in turns. */
static void say_something(sliced *under_way)
{
    uint8_t payload[LONGEST];
    uint32_t len = 1 + (uint32_t)draw(PT_FRAME_MAX_PAYLOAD < 900 ? PT_FRAME_MAX_PAYLOAD : 900);
    draw_bytes(payload, sizeof payload);
    uint32_t kind = (uint32_t)draw(4 + IDS);
    if (kind == 0) {
        say_full(payload, len);
    } else if (kind == 1) {
        pt_frame frame = {.type = PT_FRAME_DATA, .payload = payload, .payload_len = len};
        stream_len += (size_t)pt_compact_encode(&frame, stream + stream_len, 4);
        memcpy(stream + stream_len, payload, len);
        stream_len += len;
        expect(payload, len, PT_FRAME_DATA);
    } else if (kind == 2) {
        say_wide(PT_FRAME_DATA, 0, 0, LONGEST, payload, LONGEST);
        expect(payload, LONGEST, 100);
    } else if (kind == 3) {
        say_wide(PT_FRAME_OFFER, len, 0, 5, NULL, 0);
        expect(stream + stream_len - 16, 12, PT_FRAME_OFFER);
    } else {
        sliced *one = &under_way[kind - 4];
        uint32_t id = kind - 3, left = one->total - one->at;
        len = len < left ? len : left;
        if (len == 0)
            return;
        say_wide(PT_FRAME_DATA, id, one->at, one->total, one->bytes + one->at, len);
        one->at += len;
        if (one->at == one->total)
            expect(one->bytes, one->total, (uint8_t)(100 + id));
    }
}

/* Feed len bytes in pieces of at most cut, and where it can be straight to where they land. */
static int feed(const uint8_t *data, size_t len, size_t cut, int straight)
{
    int code = PT_OK;
    for (size_t taken = 0; taken < len && code == PT_OK;) {
        size_t piece = len - taken < cut ? len - taken : cut, consumed;
        uint32_t room = 0;
        uint8_t *place = straight ? pt_ingest_place(&ingest, &room) : NULL;
        if (place != NULL) {
            consumed = piece < room ? piece : room;
            memcpy(place, data + taken, consumed);
            code = pt_ingest_placed(&ingest, (uint32_t)consumed, &sink);
        } else {
            uint8_t *copy = malloc(piece);
            REQUIRE(copy != NULL);
            memcpy(copy, data + taken, piece);
            code = pt_ingest_feed(&ingest, copy, piece, &sink, &consumed);
            CHECK(code != PT_OK || consumed == piece);
            free(copy);
        }
        taken += consumed;
    }
    return code;
}

static void messages_land_whole_and_in_order_wherever_the_stream_is_cut(void)
{
    static const size_t cuts[] = {1, 2, 3, 23, 24, 25, 100, 1000, 100000};
    static sliced under_way[IDS];
    for (size_t cut = 0; cut < sizeof cuts / sizeof cuts[0]; cut++) {
        for (int straight = 0; straight < 2; straight++) {
            open_ingest();
            for (uint32_t id = 1; id <= IDS; id++) {
                sliced *one = &under_way[id - 1];
                one->total = 1 + (uint32_t)draw(LONGEST);
                one->at = 0;
                draw_bytes(one->bytes, one->total);
                CHECK_EQUAL(pt_ingest_expect(&ingest, make_landing(id, one->total)), PT_OK);
            }
            for (int count = 0; count < MESSAGES; count++)
                say_something(under_way);
            CHECK_EQUAL(feed(stream, stream_len, cuts[cut], straight), PT_OK);
            if (CHECK_EQUAL(seen_len, expected_len))
                CHECK_BYTES(seen, expected, expected_len);
            CHECK_EQUAL(pt_ingest_partial_len(&ingest), 0);
            close_ingest();
        }
    }
}

/* What a stream ends with that says one header, with so much of its payload; the CRC is right. */
static int judge(const pt_wide *wide, size_t len)
{
    static uint8_t payload[PT_WIDE_MAX_PAYLOAD + 1];
    uint8_t header[PT_WIDE_HEADER_SIZE];
    pt_wide said = *wide;
    said.payload_len = 0;
    pt_wide_put(header, &said, NULL);
    header[4] = (uint8_t)(wide->payload_len >> 24);
    header[5] = (uint8_t)(wide->payload_len >> 16);
    header[6] = (uint8_t)(wide->payload_len >> 8);
    header[7] = (uint8_t)wide->payload_len;
    memcpy(stream, header, sizeof header);
    memcpy(stream + sizeof header, payload, len);
    return feed(stream, sizeof header + len, 1000, 0);
}

static void each_fault_of_a_wide_frame_ends_the_stream(void)
{
    static const struct {
        const char *name;
        pt_wide wide;
        int code;
    } cases[] = {
        {"an unknown type", {.type = 2}, PT_ERR_INVALID_PARAM},
        {"a type behind the last", {.type = 11}, PT_ERR_INVALID_PARAM},
        {"longer than a frame may be",
         {.type = 1, .payload_len = PT_WIDE_MAX_PAYLOAD + 1, .total = PT_WIDE_MAX_PAYLOAD + 1},
         PT_ERR_MESSAGE_TOO_LARGE},
        {"data without bytes", {.type = 1, .total = 5}, PT_ERR_INVALID_PARAM},
        {"an offer with bytes",
         {.type = 8, .id = 1, .payload_len = 1, .total = 9},
         PT_ERR_INVALID_PARAM},
        {"behind its total",
         {.type = 1, .id = 1, .payload_len = 6, .offset = 5, .total = 10},
         PT_ERR_INVALID_PARAM},
        {"an offset that wraps",
         {.type = 1, .id = 1, .payload_len = 6, .offset = UINT32_MAX, .total = 10},
         PT_ERR_INVALID_PARAM},
        {"a part under no id", {.type = 1, .payload_len = 6, .total = 10}, PT_ERR_INVALID_PARAM},
        {"an id that nobody expects",
         {.type = 1, .id = 9, .payload_len = 6, .total = 10},
         PT_ERR_INVALID_PARAM},
        {"another total",
         {.type = 1, .id = 1, .payload_len = 6, .total = 11},
         PT_ERR_INVALID_PARAM},
        {"not where the last slice ended",
         {.type = 1, .id = 1, .payload_len = 6, .offset = 1, .total = 10},
         PT_ERR_INVALID_PARAM},
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        check_case = cases[index].name;
        open_ingest();
        CHECK_EQUAL(pt_ingest_expect(&ingest, make_landing(1, 10)), PT_OK);
        CHECK_EQUAL(judge(&cases[index].wide, 0), cases[index].code);
        CHECK_EQUAL(ingest.state, PT_INGEST_INIT);
        CHECK_EQUAL(seen_len, 0);
        close_ingest();
    }
}

static void each_bit_that_is_changed_is_noticed(void)
{
    static uint8_t payload[100];
    for (size_t at = 0; at < PT_WIDE_HEADER_SIZE + sizeof payload; at++) {
        for (int bit = 0; bit < 8; bit++) {
            open_ingest();
            CHECK_EQUAL(pt_ingest_expect(&ingest, make_landing(3, 500)), PT_OK);
            say_wide(PT_FRAME_DATA, 3, 0, 500, payload, sizeof payload);
            say_wide(PT_FRAME_DATA, 3, 100, 500, payload, sizeof payload);
            stream[at] ^= (uint8_t)(1 << bit);
            uint64_t frames = ingest.frames;
            int code = feed(stream, stream_len, 40, at % 2 == 0);
            /* a shorter length is found out with what follows; a longer one waits for its bytes */
            CHECK(code < 0 || (ingest.frames == frames && at >= 4 && at < 8));
            CHECK_EQUAL(seen_len, 0);
            close_ingest();
        }
    }
}

static void what_is_forgone_is_dropped_and_what_is_forgotten_is_a_fault(void)
{
    static uint8_t payload[400];
    for (size_t cut = 30; cut <= 224; cut += 194) {
        open_ingest();
        CHECK_EQUAL(pt_ingest_expect(&ingest, make_landing(3, 400)), PT_OK);
        pt_landing *again = make_landing(3, 4);
        CHECK_EQUAL(pt_ingest_expect(&ingest, again), PT_ERR_INVALID_STATE);
        drop(again);
        say_wide(PT_FRAME_DATA, 3, 0, 400, payload, 200);
        say_wide(PT_FRAME_DATA, 3, 200, 400, payload, 100);
        CHECK_EQUAL(feed(stream, cut, 1000, 0), PT_OK);
        pt_landing *landing = pt_ingest_landing(&ingest, 3);
        REQUIRE(landing != NULL);
        uint32_t room = 0;
        CHECK_EQUAL(pt_ingest_place(&ingest, &room) != NULL, cut == 30);
        free(landing->memory);
        landing->memory = NULL;
        CHECK(pt_ingest_place(&ingest, &room) == NULL);
        CHECK_EQUAL(feed(stream + cut, stream_len - cut, 1000, 1), PT_OK);
        say_full(payload, 5);
        stream_len = 0;
        say_wide(PT_FRAME_DATA, 3, 300, 400, payload, 100);
        CHECK_EQUAL(feed(stream, 40, 1000, 1), PT_OK);
        pt_ingest_forget(&ingest, 3); /* in the middle of a slice */
        pt_ingest_forget(&ingest, 4);
        CHECK_EQUAL(pt_ingest_unasked(&ingest), 0);
        CHECK_EQUAL(feed(stream + 40, stream_len - 40, 1000, 1), PT_ERR_INVALID_PARAM);
        CHECK_EQUAL(seen_len, 0);
        close_ingest();
    }
    open_ingest();
    CHECK_EQUAL(pt_ingest_expect(&ingest, make_landing(3, 400)), PT_OK);
    pt_ingest_forget(&ingest, 3);
    CHECK_EQUAL(landings_out, 0);
    CHECK(pt_ingest_landing(&ingest, 3) == NULL);
    say_wide(PT_FRAME_DATA, 3, 0, 400, payload, 200);
    CHECK_EQUAL(feed(stream, stream_len, 1000, 1), PT_ERR_INVALID_PARAM);
    pt_landing *late = make_landing(5, 4);
    CHECK_EQUAL(pt_ingest_expect(&ingest, late), PT_ERR_INVALID_STATE);
    drop(late);
    close_ingest();
}

static void a_sink_without_memory_ends_the_stream_and_one_that_stops_goes_on(void)
{
    static uint8_t payload[LONGEST];
    open_ingest();
    refuse_landing = 1;
    say_wide(PT_FRAME_DATA, 0, 0, LONGEST, payload, LONGEST);
    CHECK_EQUAL(feed(stream, stream_len, 1000, 1), PT_ERR_NO_MEMORY);
    close_ingest();

    open_ingest();
    answer = PT_ERR_BUFFER_FULL;
    say_wide(PT_FRAME_DATA, 0, 0, LONGEST, payload, LONGEST);
    size_t first = stream_len;
    say_wide(PT_FRAME_DATA, 0, 0, LONGEST, payload, LONGEST);
    size_t consumed = 0;
    CHECK_EQUAL(pt_ingest_feed(&ingest, stream, stream_len, &sink, &consumed), PT_ERR_BUFFER_FULL);
    CHECK_EQUAL(consumed, first);
    answer = PT_OK;
    CHECK_EQUAL(feed(stream + first, first, 1000, 1), PT_OK);
    CHECK_EQUAL(seen_len, 2 * (LONGEST + 1));
    close_ingest();
}

static void a_spare_buffer_stays_where_it_is_when_the_frame_that_is_cut_is_a_wide_one(void)
{
    static uint8_t payload[LONGEST];
    uint8_t *taken[4]; /* all of the class that a cut frame needs */
    open_ingest();
    for (int i = 0; i < 4; i++)
        taken[i] = pt_pool_acquire(pool, PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD);
    say_full(payload, 500);
    say_wide(PT_FRAME_DATA, 0, 0, LONGEST, payload, LONGEST);
    pt_sink sparing = sink;
    sparing.spare = &taken[0];
    size_t consumed = 1;
    CHECK_EQUAL(pt_ingest_feed(&ingest, stream, 100, &sink, &consumed), PT_ERR_BACKPRESSURE);
    CHECK_EQUAL(consumed, 0);
    size_t cut = stream_len - 10; /* by now the full frame is whole, and needs no buffer */
    CHECK_EQUAL(pt_ingest_feed(&ingest, stream, cut, &sparing, &consumed), PT_OK);
    CHECK(taken[0] != NULL);
    CHECK_EQUAL(pt_ingest_feed(&ingest, stream + cut, 10, &sparing, &consumed), PT_OK);
    CHECK_EQUAL(seen_len, 500 + 1 + LONGEST + 1);
    for (int i = 0; i < 4; i++)
        pt_pool_release(pool, taken[i], 0);
    close_ingest();
}

static void a_link_that_does_not_know_them_takes_wide_frames_for_a_fault(void)
{
    open_ingest();
    pt_ingest_cleanup(&ingest);
    pt_ingest_init(&ingest, pt_message_format(0), pool, PT_FRAME_MAX_PAYLOAD, 7);
    say_wide(PT_FRAME_OFFER, 1, 0, 5, NULL, 0);
    CHECK_EQUAL(feed(stream, stream_len, 1000, 0), PT_ERR_MAGIC);
    close_ingest();
}

int main(void)
{
    RUN(messages_land_whole_and_in_order_wherever_the_stream_is_cut);
    RUN(each_fault_of_a_wide_frame_ends_the_stream);
    RUN(each_bit_that_is_changed_is_noticed);
    RUN(what_is_forgone_is_dropped_and_what_is_forgotten_is_a_fault);
    RUN(a_sink_without_memory_ends_the_stream_and_one_that_stops_goes_on);
    RUN(a_spare_buffer_stays_where_it_is_when_the_frame_that_is_cut_is_a_wide_one);
    RUN(a_link_that_does_not_know_them_takes_wide_frames_for_a_fault);
    return check_end();
}
