/* libFuzzer: the receiving half of a link that understands wide frames. A stream of full, compact
 * and wide frames, with true lengths and checksums and with lies about them, goes through the
 * ingest in pieces, by pt_ingest_feed() and straight to where a message lands; between the pieces
 * messages are expected, forgone and forgotten.
 *
 * Input: records: a byte for the kind, a byte for the flags, two for a number, then a body. A kind
 * with OP is something that the caller does (see act()), and has no body. Any other is something
 * that the other side says (see say()): its body has as many bytes as the number says for frames of
 * the classic forms, and at most STEM bytes, which are stretched, for wide ones. What is said is
 * fed at once, or cut by thirds with CUT, or left for later with LATER.
 *
 * A model reads the same stream from its own copy, one frame after the other, and knows nothing of
 * pieces, buffers and memory. After each piece both must agree: on what was handed on, in order and
 * byte by byte; on whether the stream was given up, why and where; on how many bytes of a frame are
 * held; on which landings are alive.
 */
#define LIMIT       300u
#define TOTAL_LIMIT 2048u
#define SLICE       1024u
#define UNASKED     1024u
#define STREAM      32768u

#include "pt_check.h"
#include "wide_stream.h"

#define MAX_INPUT 4096u

#define OP    0x08
#define LATER 0x40
#define CUT   0x80

/* ------------------------------------------------------------------------- the two side by side */

static void compare(const pt_ingest *ingest)
{
    compare_stream(ingest);
    uint32_t room = 0;
    int straight = model.target == NOT_OFFERED ||
                   (model.target == OFFERED && !model.promises[model.wide.id].is_forgone);
    EXPECT((pt_ingest_place(ingest, &room) != NULL) == straight);
    EXPECT(!straight || room == model.at + PT_WIDE_HEADER_SIZE + model.wide.payload_len - fed);
    EXPECT(pt_ingest_unasked(ingest) == (model.target == NOT_OFFERED ? model.wide.payload_len : 0));
    EXPECT((ingest->state == PT_INGEST_INIT) == (model.code != PT_OK));
    EXPECT(pt_ingest_partial_len(ingest) == (model.code == PT_OK ? fed - model.at : 0));
    pt_ingest_check(ingest);
}

/* A stream that was given up brings nothing more. */
static void knock(pt_ingest *ingest)
{
    size_t consumed = 1;
    EXPECT(pt_ingest_feed(ingest, stream, said, &sink, &consumed) == PT_ERR_INVALID_STATE);
    EXPECT(consumed == 0);
    pt_landing *landing = make_landing(IDS + 1, 1);
    EXPECT(pt_ingest_expect(ingest, landing) == PT_ERR_INVALID_STATE);
    drop(landing);
    compare(ingest);
}

/* Feed so many bytes, from memory of their own, however often it takes. spare: as a sink's. */
static int feed(pt_ingest *ingest, size_t len, uint8_t **spare)
{
    for (;;) {
        size_t consumed;
        uint8_t *copy = malloc(len != 0 ? len : 1);
        EXPECT(copy != NULL);
        memcpy(copy, stream + fed, len);
        ingest->work = 0;
        pt_sink sparing = sink;
        sparing.spare = spare;
        int code = pt_ingest_feed(ingest, copy, len, &sparing, &consumed);
        free(copy);
        EXPECT(consumed <= len && code != PT_ERR_BACKPRESSURE);
        if (code != PT_ERR_BUSY && code != PT_ERR_WOULD_BLOCK) {
            size_t before = fed;
            EXPECT(code != PT_OK || consumed == len);
            fed += len;
            read_stream();
            EXPECT(code == PT_OK || consumed == (model.at > before ? model.at - before : 0));
            return code;
        }
        fed += consumed;
        len -= consumed;
        read_stream();
        compare(ingest);
    }
}

/* The next len bytes of what was said go in. 0: the stream was given up. */
static int pour(pt_ingest *ingest, size_t len, int straight, uint8_t **spare)
{
    uint32_t room = 0;
    uint8_t *place = straight ? pt_ingest_place(ingest, &room) : NULL;
    if (place != NULL && len != 0) {
        uint32_t count = len < room ? (uint32_t)len : room;
        memcpy(place, stream + fed, count);
        ingest->work = 0;
        int code = pt_ingest_placed(ingest, count, &sink);
        fed += count;
        len -= count;
        read_stream();
        EXPECT(code == PT_OK || code == PT_ERR_BUSY || code == PT_ERR_WOULD_BLOCK ||
               code == model.code);
        compare(ingest);
    }
    if (model.code == PT_OK)
        EXPECT(feed(ingest, len, spare) == model.code);
    compare(ingest);
    return model.code == PT_OK;
}

/* What the caller does between two pieces. 0: the stream was given up. */
static int act(pt_ingest *ingest, pt_pool *pool, uint8_t kind, uint8_t flags, uint16_t number,
               uint8_t **spare)
{
    uint32_t id = flags % IDS + 1;
    switch (kind & 7) {
    case 0:
    case 1:
        expect(ingest, id, number % TOTAL_LIMIT + 1);
        break;
    case 2:
        forgo(ingest, id);
        break;
    case 3:
        forget(ingest, id);
        break;
    case 4: /* take the only buffer: the next frame that is cut finds none */
        if (*spare == NULL && ingest->staging == NULL)
            *spare = pt_pool_acquire(pool, LIMIT + PT_FRAME_OVERHEAD);
        break;
    case 5:
        ingest->work_limit = number % 16;
        sink_answers = flags & 1 ? PT_ERR_WOULD_BLOCK : PT_OK;
        break;
    default: /* any number of bytes */
        return pour(ingest, number < said - fed ? number : said - fed, kind & 1, spare);
    }
    compare(ingest);
    return 1;
}

/* One record at data; *at is moved behind it. 0: the stream was given up. */
static int play(pt_ingest *ingest, pt_pool *pool, const uint8_t *data, size_t size, size_t *at,
                uint8_t **spare)
{
    uint8_t kind = data[*at], flags = data[*at + 1];
    uint16_t number = (uint16_t)(data[*at + 2] << 8 | data[*at + 3]);
    *at += 4;
    if ((kind & OP) != 0)
        return act(ingest, pool, kind, flags, number, spare);
    size_t len = number % (is_wide_kind(kind) ? STEM + 1 : LIMIT + 1);
    if (len > size - *at)
        len = size - *at;
    size_t start = said;
    said += say(kind, flags, number, data + *at, len, stream + said);
    *at += len;
    if ((kind & (CUT | LATER)) == LATER)
        return 1;
    size_t end = said;
    if ((kind & CUT) != 0) /* cut within it, or before it, or not at all */
        end = start + (size_t)(kind >> 5 & 3) * (said - start) / 3;
    return pour(ingest, end > fed ? end - fed : 0, kind & 0x10, spare);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pt_pool_class classes[] = {{LIMIT + PT_FRAME_OVERHEAD, 1, 0}};
    static const pt_memory source = {allocate, release, NULL};
    if (size > MAX_INPUT)
        size = MAX_INPUT;
    void *memory = malloc(pt_pool_size(classes, 1));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 1, 0, &source);
    EXPECT(pool != NULL);
    uint8_t *spare = NULL;
    pt_ingest ingest = {0};
    pt_ingest_init(&ingest, pt_message_format(1), pool, LIMIT, TAG);
    memset(&model, 0, sizeof model);
    memset(sent, 0, sizeof sent);
    said = fed = came.len = due.len = 0;
    sink_answers = PT_OK;

    int alive = 1;
    const size_t most = PT_WIDE_HEADER_SIZE + TOTAL_LIMIT + LIMIT;
    for (size_t at = 0; alive && size - at >= 4 && sizeof stream - said >= most;)
        alive = play(&ingest, pool, data, size, &at, &spare);
    if (alive)
        alive = pour(&ingest, said - fed, 1, &spare);
    if (!alive)
        knock(&ingest);
    if (!alive && size != 0)
        forget(&ingest, data[0] % IDS + 1);
    compare(&ingest);
    pt_ingest_cleanup(&ingest);
    EXPECT(landings == 0);
    if (spare != NULL)
        EXPECT(pt_pool_release(pool, spare, 0) == PT_OK);
    EXPECT(pt_pool_cleanup(pool) == 0 && held == 0);
    free(memory);
    return 0;
}
