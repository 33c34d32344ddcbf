/* libFuzzer: a stream cut at points taken from the input, fed to a machine whose pool and sink
 * sometimes refuse, against the same stream in one piece: the same frames, the same fault at the
 * same place, and no memory kept.
 *
 * Input: a byte n, n bytes of script, then the stream. Each script byte says how the next piece is
 * fed: its low five bits give the length (see cut_len), 0x20 makes the pool refuse, 0x40 makes the
 * sink stop after the next frame, 0x80 lends a buffer when a cut frame found none. The script is
 * gone through twice; then everything is granted, so that the end is reached. Full frames whose CRC
 * field reads 0xBEEF get a true one before they are fed, so that the fuzzer need not guess
 * checksums. With 128 more in the first byte the stream has the format of named_forms.h.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "named_forms.h"
#include "pt_crc.h"
#include "pt_ingest.h"

#define MAX_PAYLOAD 600u
#define MAX_STREAM  4096u
#define MAX_FRAMES  (MAX_STREAM / 3 + 1) /* a frame of form C may have 3 bytes */
#define MAX_NAMED   200u                 /* payload bytes of named forms */

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

/* What one machine made of a stream. */
typedef struct record {
    uint32_t frame_count;
    uint32_t payload_len;
    int code;
    size_t end; /* offset in the stream where it stopped */
    struct {
        uint8_t type, flags, sequence;
        uint32_t len;
    } frames[MAX_FRAMES];
    uint8_t payloads[MAX_STREAM];
    int stop_next; /* the sink's answer to the next frame is PT_ERR_WOULD_BLOCK */
} record;

static record whole, pieces;

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

static void forget_all(record *seen)
{
    seen->frame_count = 0;
    seen->payload_len = 0;
    seen->stop_next = 0;
}

static int note_frame(void *context, uint32_t tag, const pt_frame *frame)
{
    record *seen = context;
    EXPECT(tag == 7);
    EXPECT(seen->frame_count < MAX_FRAMES && frame->payload_len <= MAX_PAYLOAD);
    uint32_t index = seen->frame_count++;
    seen->frames[index].type = frame->type;
    seen->frames[index].flags = frame->flags;
    seen->frames[index].sequence = frame->sequence;
    seen->frames[index].len = frame->payload_len;
    memcpy(seen->payloads + seen->payload_len, frame->payload, frame->payload_len);
    seen->payload_len += frame->payload_len;
    if (seen->stop_next) {
        seen->stop_next = 0;
        return PT_ERR_WOULD_BLOCK;
    }
    return PT_OK;
}

/* Feed exactly these bytes from memory of their own, so that reading one byte too many is seen.
 * spare: as a sink's. */
static int feed(pt_ingest *ingest, record *seen, const uint8_t *data, size_t len, size_t *consumed,
                uint8_t **spare)
{
    uint8_t *copy = malloc(len != 0 ? len : 1);
    pt_sink sink = {.frame = note_frame, .context = seen, .room = UINT32_MAX, .spare = spare};
    EXPECT(copy != NULL);
    memcpy(copy, data, len);
    int code = pt_ingest_feed(ingest, copy, len, &sink, consumed);
    EXPECT(*consumed <= len);
    free(copy);
    return code;
}

static void mend_checksums(uint8_t *stream, size_t len)
{
    for (size_t at = 0; len - at >= PT_COMPACT_HEADER_SIZE;) {
        if (pt_is_compact(stream + at, len - at)) {
            size_t whole = PT_COMPACT_HEADER_SIZE + (size_t)(stream[at + 2] << 8 | stream[at + 3]);
            if (len - at < whole)
                return;
            at += whole;
            continue;
        }
        if (len - at < PT_FRAME_OVERHEAD)
            return;
        size_t covered = PT_HEADER_SIZE + (size_t)(stream[at + 8] << 8 | stream[at + 9]);
        if (len - at < covered + PT_TRAILER_SIZE)
            return;
        uint8_t *trailer = stream + at + covered;
        if (trailer[0] == 0xBE && trailer[1] == 0xEF) {
            uint16_t crc = pt_crc16_table(0, stream + at, covered);
            trailer[0] = (uint8_t)(crc >> 8);
            trailer[1] = (uint8_t)crc;
        }
        at += covered + PT_TRAILER_SIZE;
    }
}

static size_t cut_len(uint8_t step)
{
    static const uint16_t lengths[32] = {0,  1,  2,  3,  4,  5,  6,   7,   8,   9,   10,
                                         11, 12, 13, 14, 15, 16, 19,  20,  21,  22,  23,
                                         24, 32, 48, 64, 76, 77, 128, 256, 612, 4096};
    return lengths[step & 0x1F];
}

static void feed_in_pieces(pt_ingest *ingest, pt_pool *pool, record *seen, const uint8_t *stream,
                           size_t len, const uint8_t *script, size_t script_len)
{
    size_t at = 0;
    for (size_t step = 0; at < len; step++) {
        uint8_t word =
            step < 2 * script_len ? script[step % script_len] : (uint8_t)(step % 64 + 1) & 0x1F;
        size_t piece = cut_len(word);
        if (step >= 2 * script_len && piece == 0)
            piece = 1;
        if (piece > len - at)
            piece = len - at;

        size_t consumed;
        uint32_t held = pt_ingest_partial_len(ingest);
        uint32_t frames = seen->frame_count;
        dry = (word & 0x20) != 0;
        if (dry)
            pt_pool_trim(pool);
        seen->stop_next = (word & 0x40) != 0;
        int code = feed(ingest, seen, stream + at, piece, &consumed, NULL);
        dry = 0;
        if (code == PT_ERR_BACKPRESSURE) {
            EXPECT((word & 0x20) != 0 && ingest->staging == NULL);
            EXPECT(consumed > 0 || pt_ingest_partial_len(ingest) == held);
            if (word & 0x80) {
                uint8_t *spare = pt_pool_acquire(pool, MAX_PAYLOAD + PT_FRAME_OVERHEAD);
                EXPECT(spare != NULL);
                dry = 1; /* one buffer must be enough for all frames that are cut */
                seen->stop_next = 0;
                at += consumed;
                piece -= consumed;
                frames = seen->frame_count;
                code = feed(ingest, seen, stream + at, piece, &consumed, &spare);
                EXPECT(code != PT_ERR_BACKPRESSURE);
                if (spare != NULL)
                    EXPECT(pt_pool_release(pool, spare, 0) == PT_OK);
                dry = 0;
            }
        }
        at += consumed;
        if (code == PT_OK) {
            EXPECT(consumed == piece);
        } else if (code == PT_ERR_WOULD_BLOCK) {
            EXPECT(seen->frame_count > frames);
        } else if (code != PT_ERR_BACKPRESSURE) {
            seen->code = code;
            seen->end = at;
            return;
        }
        EXPECT(ingest->state == PT_INGEST_WAIT_HEADER || ingest->state == PT_INGEST_WAIT_PAYLOAD);
        EXPECT((ingest->state == PT_INGEST_WAIT_PAYLOAD) == (ingest->staging != NULL));
    }
    seen->code = PT_OK;
    seen->end = at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t script_len = size != 0 ? data[0] & 0x7F : 0;
    if (script_len == 0 || script_len + 1 > size)
        return 0;
    const uint8_t *script = data + 1;
    int is_named = data[0] >> 7;
    const pt_format *format = is_named ? &form_a : pt_message_format(0);
    uint32_t max_payload = is_named ? MAX_NAMED : MAX_PAYLOAD;
    size_t len = size - 1 - script_len;
    if (len > MAX_STREAM)
        len = MAX_STREAM;
    static uint8_t stream[MAX_STREAM];
    memcpy(stream, script + script_len, len);
    if (!is_named)
        mend_checksums(stream, len);

    static const pt_pool_class classes[] = {
        {32, 2, 0}, {PT_FORMAT_MAX_HEADER + 2, 2, 0}, {MAX_PAYLOAD + PT_FRAME_OVERHEAD, 2, 0}};
    static const pt_memory source = {allocate, release, NULL};
    void *memory = malloc(pt_pool_size(classes, 3));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 3, 0, &source);
    pt_ingest ingest = {0};
    size_t consumed;

    forget_all(&whole);
    pt_ingest_init(&ingest, format, pool, max_payload, 7);
    whole.code = feed(&ingest, &whole, stream, len, &consumed, NULL);
    whole.end = consumed;
    EXPECT(whole.code != PT_ERR_BACKPRESSURE && whole.code != PT_ERR_WOULD_BLOCK);
    EXPECT(whole.code != PT_OK || consumed == len);
    EXPECT(ingest.frames == whole.frame_count && ingest.payload_bytes == whole.payload_len);
    uint32_t partial_len = pt_ingest_partial_len(&ingest);
    if (whole.code != PT_OK) {
        EXPECT(ingest.state == PT_INGEST_INIT && partial_len == 0 && ingest.staging == NULL);
        EXPECT(feed(&ingest, &whole, stream, len, &consumed, NULL) == PT_ERR_INVALID_STATE &&
               consumed == 0);
    }
    pt_ingest_cleanup(&ingest);
    pt_ingest_cleanup(&ingest);

    forget_all(&pieces);
    pt_ingest_init(&ingest, format, pool, max_payload, 7);
    feed_in_pieces(&ingest, pool, &pieces, stream, len, script, script_len);
    EXPECT(pieces.code == whole.code);
    EXPECT(pieces.code != PT_OK || pt_ingest_partial_len(&ingest) == partial_len);
    EXPECT(pieces.code == PT_OK ||
           pieces.end >=
               whole.end); /* the start of the bad frame, or of the call that showed it to be bad */
    EXPECT(pieces.frame_count == whole.frame_count && pieces.payload_len == whole.payload_len);
    for (uint32_t index = 0; index < whole.frame_count; index++) {
        EXPECT(pieces.frames[index].type == whole.frames[index].type &&
               pieces.frames[index].flags == whole.frames[index].flags);
        EXPECT(pieces.frames[index].sequence == whole.frames[index].sequence &&
               pieces.frames[index].len == whole.frames[index].len);
    }
    EXPECT(memcmp(pieces.payloads, whole.payloads, whole.payload_len) == 0);
    pt_ingest_cleanup(&ingest);

    EXPECT(pt_pool_cleanup(pool) == 0);
    free(memory);
    return 0;
}
