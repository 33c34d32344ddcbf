/* What Python cannot ask of the receiving machine: formats of other shapes, a sink that stops, a
 * lent buffer, codes of a sink that look like faults.
 *
 * usage: ingest_formats. Exit status 0, or the process stops at what is wrong.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../fuzz/named_forms.h"
#include "pt_check.h"
#include "pt_ingest.h"

#define LAST              (PT_FORMAT_MAX_HEADER - 1) /* of the longest header */
#define NAMED_PAYLOAD     40
#define NAMED_WHOLE       (PT_FORMAT_MAX_HEADER + NAMED_PAYLOAD + 2)
#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

static int dry; /* 1: the source of memory refuses */

static void *allocate(void *context, size_t size)
{
    (void)context;
    return dry ? NULL : aligned_alloc(16, (size + 15) / 16 * 16);
}

static void release(void *context, void *memory, size_t size)
{
    (void)context;
    (void)size;
    free(memory);
}

/* A format with the smallest header and no trailer: one byte of length, 0xFF is a fault; the last
 * payload byte of a frame must not be '!'. */
static int read_length(const uint8_t *header, pt_frame *frame)
{
    if (header[0] == 0xFF)
        return PT_ERR_INVALID_PARAM;
    memset(frame, 0, sizeof *frame);
    frame->payload_len = header[0];
    return PT_OK;
}

static int verify_length(const uint8_t *whole, const pt_frame *frame)
{
    EXPECT(frame->payload_len == whole[0]);
    return whole[frame->payload_len] == '!' ? PT_ERR_CRC : PT_OK;
}

static const pt_format short_format = {
    .read_header = read_length, .verify = verify_length, .header_size = 1};

/* The largest header, length in its last byte, and a trailer of 3 that must repeat it. */
static int read_long(const uint8_t *header, pt_frame *frame)
{
    memset(frame, 0, sizeof *frame);
    frame->type = header[0];
    frame->payload_len = header[LAST];
    return PT_OK;
}

static int verify_long(const uint8_t *whole, const pt_frame *frame)
{
    const uint8_t *trailer = whole + PT_FORMAT_MAX_HEADER + frame->payload_len;
    return trailer[0] == whole[LAST] && trailer[1] == whole[LAST] && trailer[2] == whole[LAST]
               ? PT_OK
               : PT_ERR_CRC;
}

static const pt_format long_format = {.read_header = read_long,
                                      .verify = verify_long,
                                      .header_size = PT_FORMAT_MAX_HEADER,
                                      .trailer_size = 3};

/* Two forms, told by one byte: 'L' begins a header of 3 bytes, the last of which is the length, and
 * the trailer is '.'; anything else is the length. */
static int is_short(const uint8_t *start)
{
    return start[0] != 'L';
}

static int read_mixed(const uint8_t *header, pt_frame *frame)
{
    memset(frame, 0, sizeof *frame);
    frame->payload_len = header[2];
    return header[0] == 'L' ? PT_OK : PT_ERR_MAGIC;
}

static int read_mixed_short(const uint8_t *header, pt_frame *frame)
{
    return header[0] == 'L' ? PT_ERR_MAGIC : read_length(header, frame);
}

static int verify_mixed(const uint8_t *whole, const pt_frame *frame)
{
    return whole[3 + frame->payload_len] == '.' ? PT_OK : PT_ERR_CRC;
}

static const pt_format mixed_short_form = {
    .read_header = read_mixed_short, .verify = verify_length, .header_size = 1};
static const pt_format mixed_format;

static const pt_format *mixed_form(const uint8_t *start)
{
    return is_short(start) ? &mixed_short_form : &mixed_format;
}

static const pt_format mixed_format = {
    .read_header = read_mixed,
    .verify = verify_mixed,
    .header_size = 3,
    .trailer_size = 1,
    .start_size = 1,
    .form = mixed_form,
};

/* Write a frame of one of these forms. Returns its length. */
static size_t put_named(uint8_t *out, char name, const char *payload)
{
    uint8_t start[2] = {':', (uint8_t)name};
    const pt_format *form = named_form(start);
    size_t len = strlen(payload);
    memset(out, 0, form->header_size);
    memcpy(out, start, sizeof start);
    out[form->header_size - 1] = (uint8_t)len;
    memcpy(out + form->header_size, payload, len);
    memset(out + form->header_size + len, (int)len, form->trailer_size);
    return form->header_size + len + form->trailer_size;
}

typedef struct record {
    uint32_t count;
    uint8_t text[1024]; /* payloads, each with a '|' behind it */
    uint32_t text_len;
    int answer;
} record;

static int note(void *context, uint32_t tag, const pt_frame *frame)
{
    record *seen = context;
    EXPECT(tag == 5);
    seen->count++;
    memcpy(seen->text + seen->text_len, frame->payload, frame->payload_len);
    seen->text_len += frame->payload_len;
    seen->text[seen->text_len++] = '|';
    return seen->answer;
}

static void expect_text(const record *seen, const char *text)
{
    EXPECT(seen->text_len == strlen(text) && memcmp(seen->text, text, seen->text_len) == 0);
}

static uint64_t in_use(const pt_pool *pool)
{
    pt_pool_statistics statistics;
    pt_pool_get_statistics(pool, &statistics);
    return statistics.in_use;
}

static void read_every_cut(pt_pool *pool)
{
    static const uint8_t stream[] = "\3abc\0\1x\5hello";
    size_t len = sizeof stream - 1;
    for (size_t first = 0; first <= len; first++) {
        for (size_t second = first; second <= len; second++) {
            record seen = {0};
            pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
            pt_ingest ingest = {0};
            size_t consumed;
            pt_ingest_init(&ingest, &short_format, pool, 100, 5);
            EXPECT(pt_ingest_feed(&ingest, stream, first, &sink, &consumed) == PT_OK &&
                   consumed == first);
            EXPECT(pt_ingest_feed(&ingest, NULL, 0, &sink, &consumed) == PT_OK && consumed == 0);
            EXPECT(pt_ingest_feed(&ingest, stream + first, second - first, &sink, &consumed) ==
                       PT_OK &&
                   consumed == second - first);
            EXPECT(pt_ingest_feed(&ingest, stream + second, len - second, &sink, &consumed) ==
                       PT_OK &&
                   consumed == len - second);
            expect_text(&seen, "abc||x|hello|");
            EXPECT(ingest.frames == 4 && ingest.payload_bytes == 9 &&
                   pt_ingest_partial_len(&ingest) == 0 && in_use(pool) == 0);
            pt_ingest_cleanup(&ingest);
        }
    }
}

static void read_two_forms_at_every_cut(pt_pool *pool)
{
    static const uint8_t stream[] = "\3abcL-\2de.\0\0L-\0.L-\1f.\1g\1h";
    size_t len = sizeof stream - 1;
    for (size_t first = 0; first <= len; first++) {
        for (size_t second = first; second <= len; second++) {
            record seen = {0};
            pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
            pt_ingest ingest = {0};
            size_t consumed;
            pt_ingest_init(&ingest, &mixed_format, pool, 100, 5);
            EXPECT(pt_ingest_feed(&ingest, stream, first, &sink, &consumed) == PT_OK &&
                   consumed == first);
            EXPECT(pt_ingest_feed(&ingest, stream + first, second - first, &sink, &consumed) ==
                       PT_OK &&
                   consumed == second - first);
            EXPECT(pt_ingest_feed(&ingest, stream + second, len - second, &sink, &consumed) ==
                       PT_OK &&
                   consumed == len - second);
            expect_text(&seen, "abc|de||||f|g|h|");
            EXPECT(pt_ingest_partial_len(&ingest) == 0 && in_use(pool) == 0);
            pt_ingest_cleanup(&ingest);
        }
    }
}

static void read_long_headers(pt_pool *pool)
{
    enum { WHOLE = PT_FORMAT_MAX_HEADER + 6 };
    uint8_t stream[2 * WHOLE];
    memset(stream, 0, sizeof stream);
    for (uint8_t *frame = stream; frame < stream + sizeof stream; frame += WHOLE) {
        frame[0] = 9;
        frame[LAST] = 3;
        memcpy(frame + PT_FORMAT_MAX_HEADER, "xyz\3\3\3", 6);
    }
    for (size_t cut = 1; cut <= sizeof stream; cut++) {
        record seen = {0};
        pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
        pt_ingest ingest = {0};
        size_t consumed;
        pt_ingest_init(&ingest, &long_format, pool, 3, 5);
        for (size_t at = 0; at < sizeof stream; at += consumed) {
            size_t piece = sizeof stream - at < cut ? sizeof stream - at : cut;
            EXPECT(pt_ingest_feed(&ingest, stream + at, piece, &sink, &consumed) == PT_OK &&
                   consumed == piece);
        }
        expect_text(&seen, "xyz|xyz|");
        pt_ingest_cleanup(&ingest);
    }
}

enum memory_way { GRANTED, REFUSED_ONCE, SPARED };

/* Feed all of data. Memory is there; or each time the machine asks for some it is refused at first,
 * and then granted; or there is none but a spare buffer for each feed. */
static void feed_all(pt_ingest *ingest, pt_pool *pool, const uint8_t *data, size_t len,
                     const pt_sink *sink, enum memory_way way)
{
    size_t at = 0;
    for (int was_refused = 0; at < len;) {
        size_t consumed, rest = len - at;
        uint8_t *copy = malloc(rest); /* so that a sanitizer sees who reads beyond, or later */
        EXPECT(copy != NULL);
        memcpy(copy, data + at, rest);
        uint32_t held = pt_ingest_partial_len(ingest);
        uint8_t *spare = way == SPARED ? pt_pool_acquire(pool, NAMED_WHOLE) : NULL;
        pt_sink sparing = *sink;
        sparing.spare = &spare;
        pt_pool_trim(pool);
        dry = way == SPARED || (way == REFUSED_ONCE && !was_refused);
        int code = pt_ingest_feed(ingest, copy, rest, &sparing, &consumed);
        dry = 0;
        free(copy);
        EXPECT(spare == NULL || pt_pool_release(pool, spare, 0) == PT_OK);
        PT_CHECK(pt_ingest_check(ingest));
        at += consumed;
        was_refused = code == PT_ERR_BACKPRESSURE;
        if (!was_refused) {
            EXPECT(code == PT_OK && at == len);
            continue;
        }
        EXPECT(way == REFUSED_ONCE && ingest->state == PT_INGEST_WAIT_HEADER && at < len);
        EXPECT(consumed == 0 || data[at] == ':');
        EXPECT(pt_ingest_partial_len(ingest) == (consumed == 0 ? held : 0) && in_use(pool) == 0);
    }
}

static void read_long_and_short_forms_at_every_cut(pt_pool *pool, enum memory_way way)
{
    uint8_t stream[6 * NAMED_WHOLE];
    size_t len = put_named(stream, 'A', "hello");
    len += put_named(stream + len, 'C', "x");
    len += put_named(stream + len, 'B', "");
    len += put_named(stream + len, 'A', "");
    len += put_named(stream + len, 'C', "");
    len += put_named(stream + len, 'B', "abc");
    for (size_t first = 0; first <= len; first++) {
        for (size_t second = first; second <= len; second++) {
            record seen = {0};
            pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
            pt_ingest ingest = {0};
            pt_ingest_init(&ingest, &form_a, pool, NAMED_PAYLOAD, 5);
            feed_all(&ingest, pool, stream, first, &sink, way);
            feed_all(&ingest, pool, stream + first, second - first, &sink, way);
            feed_all(&ingest, pool, stream + second, len - second, &sink, way);
            expect_text(&seen, "hello|x||||abc|");
            EXPECT(pt_ingest_partial_len(&ingest) == 0 && in_use(pool) == 0);
            pt_ingest_cleanup(&ingest);
        }
    }
}

/* What is cut in a header that fits into the struct costs no memory; a longer header has memory for
 * its whole frame from the byte on that tells its form, and never asks again. */
static void borrow_for_long_headers_alone(pt_pool *pool)
{
    for (const char *name = "ABC"; *name != 0; name++) {
        uint8_t stream[NAMED_WHOLE];
        size_t len = put_named(stream, *name, "hello");
        size_t header_size = named_form(stream)->header_size;
        for (size_t cut = 1; cut < header_size; cut++) {
            record seen = {0};
            pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
            pt_ingest ingest = {0};
            size_t consumed;
            pt_ingest_init(&ingest, &form_a, pool, NAMED_PAYLOAD, 5);
            EXPECT(pt_ingest_feed(&ingest, stream, cut, &sink, &consumed) == PT_OK);
            int is_staged = header_size > PT_INGEST_HEADER_ROOM && cut >= form_a.start_size;
            EXPECT(in_use(pool) == (uint64_t)is_staged && pt_ingest_partial_len(&ingest) == cut);
            if (is_staged) {
                pt_pool_trim(pool);
                dry = 1;
                for (size_t at = cut; at < len; at++) {
                    EXPECT(pt_ingest_feed(&ingest, stream + at, 1, &sink, &consumed) == PT_OK);
                    PT_CHECK(pt_ingest_check(&ingest));
                }
                dry = 0;
                expect_text(&seen, "hello|");
            }
            pt_ingest_cleanup(&ingest);
            EXPECT(in_use(pool) == 0);
        }
    }
}

/* A sink's answer is passed on as it is, ends nothing, and the frame counts as taken, whether it
 * lay whole or was staged. */
static void stop_at_every_frame(pt_pool *pool, int answer, size_t cut)
{
    static const uint8_t stream[] = "\2ab\2cd\2ef";
    size_t len = sizeof stream - 1;
    record seen = {.answer = answer};
    pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
    pt_ingest ingest = {0};
    pt_ingest_init(&ingest, &short_format, pool, 100, 5);
    size_t at = 0;
    while (at < len) {
        size_t consumed;
        size_t piece = len - at < cut ? len - at : cut;
        uint32_t before = seen.count;
        int code = pt_ingest_feed(&ingest, stream + at, piece, &sink, &consumed);
        at += consumed;
        EXPECT(seen.count - before <= 1);
        EXPECT(code == (seen.count > before ? answer : PT_OK));
        EXPECT(code == PT_OK ? consumed == piece : at == (size_t)3 * seen.count);
    }
    expect_text(&seen, "ab|cd|ef|");
    EXPECT(in_use(pool) == 0 && ingest.state == PT_INGEST_WAIT_HEADER);
    pt_ingest_cleanup(&ingest);
}

static void stage_in_the_spare_buffer_what_the_pool_refused(pt_pool *pool)
{
    static const uint8_t stream[] = "\2ab\5hello";
    record seen = {0};
    pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
    pt_ingest ingest = {0};
    size_t consumed;
    uint8_t *spare = pt_pool_acquire(pool, 101);
    EXPECT(spare != NULL);
    pt_pool_trim(pool);
    dry = 1;
    pt_ingest_init(&ingest, &short_format, pool, 100, 5);
    EXPECT(pt_ingest_feed(&ingest, stream, 5, &sink, &consumed) == PT_ERR_BACKPRESSURE &&
           consumed == 3);
    EXPECT(pt_ingest_partial_len(&ingest) == 0 && ingest.state == PT_INGEST_WAIT_HEADER);
    sink.spare = &spare;
    EXPECT(pt_ingest_feed(&ingest, stream + 3, 2, &sink, &consumed) == PT_OK && consumed == 2);
    EXPECT(spare == NULL && pt_ingest_partial_len(&ingest) == 2 && in_use(pool) == 1);
    EXPECT(pt_ingest_feed(&ingest, stream + 5, 4, &sink, &consumed) == PT_OK && consumed == 4);
    expect_text(&seen, "ab|hello|");
    EXPECT(spare == NULL && in_use(pool) == 0); /* it was the ingest's since the first feed ended */
    pt_ingest_cleanup(&ingest);
    dry = 0;
}

/* Two frames that are cut, at the beginning and at the end of what one feed brings, need one buffer
 * after the other. In between it does not lie in the pool, which others may empty. */
static void stage_two_frames_in_one_spare_buffer(pt_pool *pool)
{
    uint8_t named[3 * NAMED_WHOLE];
    size_t len = put_named(named, 'A', "hello");
    len += put_named(named + len, 'A', "abc");
    record seen = {0};
    uint8_t *spare = pt_pool_acquire(pool, NAMED_WHOLE);
    const uint8_t *place = spare;
    pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX, .spare = &spare};
    pt_ingest ingest = {0};
    size_t consumed;
    EXPECT(spare != NULL);
    pt_pool_trim(pool);
    dry = 1;
    pt_ingest_init(&ingest, &form_a, pool, NAMED_PAYLOAD, 5);
    EXPECT(pt_ingest_feed(&ingest, named, 1, &sink, &consumed) == PT_OK && spare == place);
    EXPECT(pt_ingest_feed(&ingest, named + 1, len - 2, &sink, &consumed) == PT_OK);
    expect_text(&seen, "hello|");
    EXPECT(spare == NULL && ingest.staging == place && consumed == len - 2);
    EXPECT(pt_ingest_feed(&ingest, named + len - 1, 1, &sink, &consumed) == PT_OK);
    expect_text(&seen, "hello|abc|");
    EXPECT(in_use(pool) == 0);
    pt_ingest_cleanup(&ingest);

    /* Nothing of the frame stays in a buffer that comes back. */
    dry = 0;
    spare = pt_pool_acquire(pool, NAMED_WHOLE);
    EXPECT(spare != NULL);
    pt_pool_trim(pool);
    dry = 1;
    pt_ingest_init(&ingest, &form_a, pool, NAMED_PAYLOAD, 5);
    EXPECT(pt_ingest_feed(&ingest, named, 1, &sink, &consumed) == PT_OK);
    EXPECT(pt_ingest_feed(&ingest, named + 1, len - 1, &sink, &consumed) == PT_OK);
    EXPECT(spare != NULL);
    for (size_t at = 0; at < NAMED_WHOLE; at++)
        EXPECT(spare[at] == 0);
    pt_ingest_cleanup(&ingest);
    EXPECT(pt_pool_release(pool, spare, 0) == PT_OK);
    dry = 0;
}

/* A stream that is bad from one place on ends there, wherever it is cut before. */
static void end_at_fault(pt_pool *pool, const pt_format *format, const uint8_t *stream, size_t len,
                         size_t bad_at, int expected)
{
    for (size_t cut = 0; cut <= len; cut++) {
        record seen = {0};
        pt_sink sink = {.frame = note, .context = &seen, .room = UINT32_MAX};
        pt_ingest ingest = {0};
        size_t consumed;
        pt_ingest_init(&ingest, format, pool, NAMED_PAYLOAD, 5);
        int code = pt_ingest_feed(&ingest, stream, cut, &sink, &consumed);
        size_t start = 0;
        if (code == PT_OK) {
            start = cut;
            code = pt_ingest_feed(&ingest, stream + cut, len - cut, &sink, &consumed);
        }
        EXPECT(code == expected);
        EXPECT(consumed == (bad_at > start ? bad_at - start : 0));
        expect_text(&seen, "a|");
        EXPECT(ingest.state == PT_INGEST_INIT && in_use(pool) == 0);
        EXPECT(pt_ingest_feed(&ingest, stream, 1, &sink, &consumed) == PT_ERR_INVALID_STATE &&
               consumed == 0);
    }
}

static void end_at_every_fault(pt_pool *pool)
{
    static const struct {
        const char *stream;
        size_t len, bad_at;
        int code;
    } cases[] = {
        {"\1a\377", 3, 2, PT_ERR_INVALID_PARAM},
        {"\1a\145", 3, 2, PT_ERR_MESSAGE_TOO_LARGE},
        {"\1a\2b!\1c", 7, 2, PT_ERR_CRC},
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++)
        end_at_fault(pool, &short_format, (const uint8_t *)cases[index].stream, cases[index].len,
                     cases[index].bad_at, cases[index].code);
}

/* The header says it as soon as it is whole: nothing behind it is waited for. */
static void end_at_every_fault_of_a_long_header(pt_pool *pool)
{
    for (const char *name = "AB"; *name != 0; name++) {
        uint8_t stream[3 * NAMED_WHOLE];
        size_t bad_at = put_named(stream, *name, "a");
        uint8_t *bad = stream + bad_at;
        size_t len = bad_at + put_named(bad, *name, "b");
        size_t header_size = named_form(bad)->header_size;
        bad[header_size - 1] = 0xFF;
        end_at_fault(pool, &form_a, stream, bad_at + header_size, bad_at, PT_ERR_INVALID_PARAM);
        bad[header_size - 1] = NAMED_PAYLOAD + 1;
        end_at_fault(pool, &form_a, stream, bad_at + header_size, bad_at, PT_ERR_MESSAGE_TOO_LARGE);
        bad[header_size - 1] = 1;
        stream[len - 1] = 2;
        end_at_fault(pool, &form_a, stream, len, bad_at, PT_ERR_CRC);
        bad[1] = 'X';
        end_at_fault(pool, &form_a, stream, bad_at + PT_FORMAT_MAX_HEADER, bad_at, PT_ERR_MAGIC);
    }
}

int main(void)
{
    /* The second class holds the shortest frame with the largest header, and no longer one. */
    static const pt_pool_class classes[] = {
        {16, 2, 0}, {PT_FORMAT_MAX_HEADER + 2, 2, 0}, {128, 2, 0}};
    static const pt_memory source = {allocate, release, NULL};
    void *memory = malloc(pt_pool_size(classes, 3));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 3, 0, &source);

    read_every_cut(pool);
    read_two_forms_at_every_cut(pool);
    read_long_headers(pool);
    for (enum memory_way way = GRANTED; way <= SPARED; way++)
        read_long_and_short_forms_at_every_cut(pool, way);
    borrow_for_long_headers_alone(pool);
    for (size_t cut = 1; cut <= 9; cut++) {
        stop_at_every_frame(pool, PT_ERR_WOULD_BLOCK, cut);
        stop_at_every_frame(pool, PT_ERR_CRC, cut);
        stop_at_every_frame(pool, PT_ERR_BACKPRESSURE, cut);
    }
    stage_in_the_spare_buffer_what_the_pool_refused(pool);
    stage_two_frames_in_one_spare_buffer(pool);
    end_at_every_fault(pool);
    end_at_every_fault_of_a_long_header(pool);

    pt_ingest untouched;
    memset(&untouched, 0, sizeof untouched);
    pt_ingest_cleanup(&untouched);

    EXPECT(pt_pool_cleanup(pool) == 0);
    free(memory);
    return 0;
}
