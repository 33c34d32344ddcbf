/* libFuzzer: what one link brings, all the way: a stream made of frames with true lengths and
 * checksums, and of lies about them, goes through the ingest in pieces, and what comes out is used
 * as a node does: fragments are put together, batches split, capabilities read. All borrow from one
 * pool that is too small for them together.
 *
 * Input: records: a byte for the kind (see say()) and for how the stream is cut before it, a byte
 * for the flags, two for a number, then as many bytes as the number says, at most what is left.
 *
 * Whatever comes: no message is longer than allowed, the pool lends no more than a frame, a message
 * and one that was just delivered need, a stream that was given up brings nothing more, and all
 * memory comes back.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pt_ingest.h"
#include "pt_reassembly.h"
#include "pt_wire.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

#define LIMIT      512u
#define MAX_INPUT  4096u
#define POOL_BYTES 1600u

static size_t held; /* bytes lent by the source */

static void *allocate(void *context, size_t size)
{
    (void)context;
    held += size;
    return aligned_alloc(16, (size + 15) / 16 * 16);
}

static void release(void *context, void *memory, size_t size)
{
    (void)context;
    held -= size;
    free(memory);
}

typedef struct receiver {
    pt_reassembly reassembly;
    uint64_t messages;
    uint64_t refused; /* of what the frames brought */
    uint32_t sum;     /* of all bytes, so that each is read */
} receiver;

static void take(receiver *all, const uint8_t *message, size_t len)
{
    EXPECT(len <= LIMIT);
    all->messages++;
    for (size_t at = 0; at < len; at++)
        all->sum += message[at];
}

static void split(receiver *all, const uint8_t *payload, size_t len)
{
    int count = pt_batch_count(payload, len);
    size_t offset = 0;
    uint16_t entry_len;
    const uint8_t *entry;
    if (count < 0) {
        all->refused++;
        return;
    }
    for (; (entry = pt_batch_next(payload, len, &offset, &entry_len)) != NULL; count--)
        take(all, entry, entry_len);
    EXPECT(count == 0 && offset == len);
}

static int use(void *context, uint32_t tag, const pt_frame *frame)
{
    receiver *all = context;
    EXPECT(tag == 3 && frame->type >= 1 && frame->type <= 7 && frame->payload_len <= LIMIT);
    if (frame->type == PT_FRAME_CAPABILITY) {
        pt_capability capability;
        all->refused += pt_capability_decode(frame->payload, frame->payload_len, &capability) < 0;
    } else if (frame->type == PT_FRAME_DATA && (frame->flags & PT_FLAG_FRAGMENT) != 0) {
        const uint8_t *message = NULL;
        uint16_t message_len = 0;
        int code = pt_reassembly_feed(&all->reassembly, frame->payload, frame->payload_len,
                                      &message, &message_len);
        if (code == PT_REASSEMBLY_COMPLETE)
            take(all, message, message_len);
        else
            all->refused += code < 0;
        EXPECT(all->reassembly.received_len <= all->reassembly.total_len &&
               all->reassembly.total_len <= LIMIT);
    } else if (frame->type == PT_FRAME_DATA && (frame->flags & PT_FLAG_BATCH) != 0) {
        split(all, frame->payload, frame->payload_len);
    } else {
        take(all, frame->payload, frame->payload_len);
    }
    return PT_OK;
}

/* What a record adds to the stream. Returns its length. */
static size_t say(uint8_t kind, uint8_t flags, uint16_t number, const uint8_t *body, size_t len,
                  uint8_t *out, size_t room)
{
    pt_frame frame = {.payload = body,
                      .payload_len = (uint32_t)len,
                      .type = (uint8_t)(kind % 7 + 1),
                      .flags = flags,
                      .sequence = 0};
    size_t size = len + PT_FRAME_OVERHEAD;
    EXPECT(room >= size);
    switch (kind >> 3 & 3) {
    case 0: /* the bytes as they are */
        if (len != 0)
            memcpy(out, body, len);
        return len;
    case 1: /* a true frame */
        EXPECT(pt_frame_encode(&frame, out, room) == (int)size);
        pt_frame again;
        EXPECT(pt_frame_decode(out, size, &again) == (int)size && again.type == frame.type &&
               again.flags == flags && again.payload_len == len);
        EXPECT(pt_frame_decode(out, size - 1, &again) == PT_ERR_TRUNCATED);
        return size;
    case 2: /* a compact one, whose length is a lie when the number says so */
        frame.flags &= 0x0F;
        if (number & 1)
            frame.payload_len = number;
        EXPECT(pt_compact_encode(&frame, out, room) == PT_COMPACT_HEADER_SIZE);
        if (len != 0)
            memcpy(out + PT_COMPACT_HEADER_SIZE, body, len);
        return PT_COMPACT_HEADER_SIZE + len;
    default: /* a full header that lies, without a checksum */
        frame.payload_len = number;
        EXPECT(pt_header_encode(&frame, out, room) == PT_HEADER_SIZE);
        if (len != 0)
            memcpy(out + PT_HEADER_SIZE, body, len);
        return PT_HEADER_SIZE + len;
    }
}

/* Feed exactly these bytes from memory of their own. 0: the link has ended. */
static int feed(pt_ingest *ingest, pt_pool *pool, receiver *all, const uint8_t *data, size_t len)
{
    size_t at = 0, consumed;
    pt_sink sink = {.frame = use, .context = all, .room = UINT32_MAX};
    uint8_t *copy = malloc(len != 0 ? len : 1);
    EXPECT(copy != NULL);
    if (len != 0)
        memcpy(copy, data, len);
    int code = pt_ingest_feed(ingest, copy, len, &sink, &consumed);
    if (code == PT_ERR_BACKPRESSURE) { /* as in the loop, which had this buffer in hand before it
                                          read: so it comes from elsewhere when all is lent */
        pt_reassembly_cleanup(&all->reassembly);
        uint8_t *spare = pt_pool_acquire(pool, LIMIT + PT_FRAME_OVERHEAD);
        EXPECT(spare != NULL);
        sink.spare = &spare;
        at = consumed;
        code = pt_ingest_feed(ingest, copy + at, len - at, &sink, &consumed);
        EXPECT(code != PT_ERR_BACKPRESSURE);
        if (spare != NULL)
            pt_pool_release(pool, spare, 0);
        sink.spare = NULL;
    }
    free(copy);
    if (code == PT_OK) {
        EXPECT(at + consumed == len);
        return 1;
    }
    EXPECT(code == PT_ERR_MAGIC || code == PT_ERR_VERSION || code == PT_ERR_INVALID_PARAM ||
           code == PT_ERR_MESSAGE_TOO_LARGE || code == PT_ERR_CRC);
    uint64_t messages = all->messages;
    static const uint8_t more[PT_HEADER_SIZE] = "PTMG";
    EXPECT(pt_ingest_feed(ingest, more, sizeof more, &sink, &consumed) == PT_ERR_INVALID_STATE &&
           consumed == 0 && all->messages == messages);
    EXPECT(ingest->staging == NULL && pt_ingest_partial_len(ingest) == 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t stream[MAX_INPUT * 4 + PT_FRAME_OVERHEAD];
    static const pt_pool_class classes[] = {
        {64, 1, 0}, {256, 1, 0}, {LIMIT + PT_FRAME_OVERHEAD, 1, 0}};
    static const pt_memory source = {allocate, release, NULL};
    if (size > MAX_INPUT)
        size = MAX_INPUT;
    void *memory = malloc(pt_pool_size(classes, 3));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 3, POOL_BYTES, &source);
    EXPECT(pool != NULL);
    receiver all = {.messages = 0};
    pt_ingest ingest = {0};
    pt_ingest_init(&ingest, pt_message_format(0), pool, LIMIT, 3);
    pt_reassembly_init(&all.reassembly, pool, LIMIT);

    size_t len = 0;
    int alive = 1;
    for (size_t at = 0; alive && size - at >= 4;) {
        uint8_t kind = data[at], flags = data[at + 1];
        uint16_t number = (uint16_t)(data[at + 2] << 8 | data[at + 3]);
        at += 4;
        size_t body_len = number % (LIMIT + 1);
        if (body_len > size - at)
            body_len = size - at;
        size_t cut = len;
        len += say(kind, flags, number, data + at, body_len, stream + len, sizeof stream - len);
        at += body_len;
        if (kind & 0x80) /* cut within it, or before it, or leave it for later */
            cut += (size_t)(kind >> 5 & 3) * (len - cut) / 3;
        else if (kind & 0x40)
            continue;
        else
            cut = len;
        alive = feed(&ingest, pool, &all, stream, cut);
        len -= cut;
        memmove(stream, stream + cut, len);

        pt_pool_statistics lent;
        pt_pool_get_statistics(pool, &lent);
        EXPECT(lent.in_use <= 3 && lent.bytes <= POOL_BYTES && held <= POOL_BYTES);
    }
    if (alive)
        feed(&ingest, pool, &all, stream, len);
    pt_ingest_cleanup(&ingest);
    pt_reassembly_cleanup(&all.reassembly);
    EXPECT(pt_pool_cleanup(pool) == 0 && held == 0);
    free(memory);
    return 0;
}
