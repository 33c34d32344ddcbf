/* libFuzzer: fragments and batches from anyone, in memory of their exact size. A second,
 * simple-minded reassembly watches: the same messages come out, what is held stays within what was
 * announced and allowed, and all of it comes back.
 *
 * Input: a byte for the limit, then records: a byte, whose low 6 bits are the length of a payload
 * (63: the next byte more), 0x40 makes the pool refuse, 0x80 forgets all; then the payload. Each is
 * fed as a fragment and split as a batch.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pt_reassembly.h"
#include "pt_wire.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

#define LARGEST   320u
#define MAX_INPUT 4096u

static int dry;     /* 1: the source of memory refuses */
static size_t held; /* bytes lent by the source */

static void *allocate(void *context, size_t size)
{
    (void)context;
    if (dry)
        return NULL;
    held += size;
    return aligned_alloc(16, (size + 15) / 16 * 16);
}

static void release(void *context, void *memory, size_t size)
{
    (void)context;
    held -= size;
    free(memory);
}

/* What the rules say, without memory of its own beyond one array. */
typedef struct twin {
    uint8_t bytes[LARGEST];
    uint32_t limit, id, total, received;
    int running;
} twin;

static int twin_feed(twin *model, const uint8_t *payload, size_t len, int refused)
{
    if (len < 8)
        return PT_ERR_TRUNCATED;
    uint32_t id = (uint32_t)payload[0] << 8 | payload[1];
    uint32_t total = (uint32_t)payload[2] << 8 | payload[3];
    uint32_t offset = (uint32_t)payload[4] << 8 | payload[5];
    uint32_t size = (uint32_t)len - 8;
    int first = payload[6] & 1, last = payload[6] & 2;
    if (offset + size > (!first && model->running && id == model->id ? model->total : total)) {
        model->running = 0;
        return PT_ERR_INVALID_PARAM;
    }
    if (first) {
        if (total > model->limit)
            return PT_ERR_MESSAGE_TOO_LARGE;
        model->running = !(refused && total > 0);
        if (!model->running)
            return PT_ERR_NO_MEMORY;
        model->id = id;
        model->total = total;
        model->received = 0;
    }
    if (!model->running)
        return PT_ERR_INVALID_STATE;
    if (id != model->id)
        return PT_ERR_INVALID_PARAM;
    if (offset != model->received) {
        model->running = 0;
        return PT_ERR_INVALID_PARAM;
    }
    memcpy(model->bytes + offset, payload + 8, size);
    model->received += size;
    if (!last)
        return PT_OK;
    model->running = 0;
    return model->received == model->total ? PT_REASSEMBLY_COMPLETE : PT_ERR_TRUNCATED;
}

static void split(const uint8_t *payload, size_t len)
{
    size_t offset = 0, sum = 0;
    int count = pt_batch_count(payload, len);
    if (count < 0) {
        EXPECT(count == PT_ERR_TRUNCATED);
        return;
    }
    for (int number = 0; number < count; number++) {
        uint16_t entry_len;
        const uint8_t *entry = pt_batch_next(payload, len, &offset, &entry_len);
        EXPECT(entry == payload + sum + 4 && offset == sum + 4 + entry_len && offset <= len);
        for (uint16_t at = 0; at < entry_len; at++)
            sum += entry[at] & 0u; /* a sanitizer watches */
        sum = offset;
    }
    uint16_t none;
    EXPECT(sum == len && pt_batch_next(payload, len, &offset, &none) == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if (size > MAX_INPUT)
        size = MAX_INPUT;
    static const pt_pool_class classes[] = {{16, 1, 0}, {64, 1, 0}, {LARGEST, 1, 0}};
    static const pt_memory source = {allocate, release, NULL};
    static twin model;
    void *memory = malloc(pt_pool_size(classes, 3));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 3, 0, &source);
    pt_reassembly reassembly;
    model.limit = data[0] % LARGEST + 1;
    model.running = 0;
    pt_reassembly_init(&reassembly, pool, model.limit);

    for (size_t at = 1; at < size;) {
        uint8_t word = data[at++];
        size_t len = word & 0x3F;
        if (len == 0x3F && at < size)
            len += data[at++];
        if (len > size - at)
            len = size - at;
        uint8_t *payload = malloc(len != 0 ? len : 1);
        EXPECT(payload != NULL);
        memcpy(payload, data + at, len);
        at += len;

        if (word & 0x80) {
            pt_reassembly_cleanup(&reassembly);
            model.running = 0;
        }
        dry = (word & 0x40) != 0;
        const uint8_t *message = NULL;
        uint16_t message_len = 0;
        pt_pool_statistics before, after;
        pt_pool_trim(pool);
        pt_pool_get_statistics(pool, &before);
        int code = pt_reassembly_feed(&reassembly, payload, len, &message, &message_len);
        dry = 0;
        pt_pool_get_statistics(pool, &after);
        int refused =
            after.refusals != before.refusals; /* what was just given back may serve again */
        EXPECT(code == twin_feed(&model, payload, len, refused));
        EXPECT((reassembly.state == PT_REASSEMBLY_RUNNING) == model.running);
        EXPECT(after.in_use <= 1 &&
               (after.in_use == 0) == (reassembly.buffer == NULL && reassembly.delivered == NULL));
        if (model.running) {
            uint32_t enough = model.total <= 16 ? 16 : model.total <= 64 ? 64 : LARGEST;
            EXPECT(reassembly.received_len == model.received &&
                   (model.total > 0) == (reassembly.buffer != NULL));
            EXPECT(model.total == 0 || pt_pool_buffer_size(reassembly.buffer) == enough);
            EXPECT(model.received == 0 ||
                   memcmp(reassembly.buffer, model.bytes, model.received) == 0);
        }
        if (code == PT_REASSEMBLY_COMPLETE)
            EXPECT(message_len == model.total &&
                   (message_len == 0 || memcmp(message, model.bytes, message_len) == 0));
        split(payload, len);
        free(payload);
    }
    pt_reassembly_cleanup(&reassembly);
    EXPECT(pt_pool_cleanup(pool) == 0 && held == 0);
    free(memory);
    return 0;
}
