/* What the targets share that read wide frames: the other side, which says full, compact and wide
 * frames with true lengths and checksums, and lies about them; the sink; and a model, which reads
 * the same stream from its own copy, one frame after the other, and knows nothing of pieces,
 * buffers and memory.
 *
 * Whoever includes this defines LIMIT (bytes of a payload in a full or compact frame), TOTAL_LIMIT
 * (of a message that is offered), SLICE (of a slice), UNASKED (of a message that is not offered)
 * and STREAM (of all that is said).
 */
#ifndef WIDE_STREAM_H
#define WIDE_STREAM_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pt_crc32c.h"
#include "pt_ingest.h"
#include "pt_wire.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

#define STEM 16u
#define IDS  4u /* 1 .. IDS */
#define TAG  7u

/* What came out, or must come out. */
typedef struct record_book {
    size_t len;
    uint8_t bytes[STREAM * 2];
} record_book;

static uint8_t stream[STREAM];
static size_t said, fed; /* bytes of the stream */
static record_book came, due;
static size_t held;      /* bytes lent by the source of the pool */
static size_t landings;  /* that are alive */
static int sink_answers; /* what the sink returns */

static inline void note(record_book *book, uint8_t what, uint8_t flags, const uint8_t *bytes,
                        size_t len)
{
    EXPECT(sizeof book->bytes - book->len >= len + 4);
    uint8_t *out = book->bytes + book->len;
    out[0] = what;
    out[1] = flags;
    out[2] = (uint8_t)(len >> 8);
    out[3] = (uint8_t)len;
    if (len != 0)
        memcpy(out + 4, bytes, len);
    book->len += len + 4;
}

/* -------------------------------------------------------------------------------------- memory */

static inline void *allocate(void *context, size_t size)
{
    (void)context;
    held += size;
    return aligned_alloc(16, (size + 15) / 16 * 16);
}

static inline void release(void *context, void *memory, size_t size)
{
    (void)context;
    held -= size;
    free(memory);
}

typedef struct ground {
    pt_landing base;
    uint8_t *bytes; /* what base.memory was when the ground was made */
} ground;

static inline void drop(pt_landing *landing)
{
    ground *all = (ground *)landing;
    EXPECT(landings > 0);
    landings--;
    free(all->bytes);
    free(all);
}

static inline pt_landing *make_landing(uint32_t id, uint32_t total)
{
    ground *all = calloc(1, sizeof *all);
    EXPECT(all != NULL);
    all->bytes = malloc(total);
    EXPECT(all->bytes != NULL);
    all->base = (pt_landing){.memory = all->bytes, .drop = drop, .id = id, .total = total};
    landings++;
    return &all->base;
}

/* ---------------------------------------------------------------------------------------- sink */

static inline int take_frame(void *context, uint32_t tag, const pt_frame *frame)
{
    (void)context;
    EXPECT(tag == TAG);
    note(&came, frame->type, frame->flags, frame->payload, frame->payload_len);
    return sink_answers;
}

static inline pt_landing *land(void *context, uint32_t tag, uint32_t total)
{
    (void)context;
    EXPECT(tag == TAG && total != 0 && total <= PT_WIDE_MAX_PAYLOAD);
    return total <= UNASKED ? make_landing(0, total) : NULL;
}

static inline int landed(void *context, uint32_t tag, pt_landing *landing)
{
    (void)context;
    EXPECT(tag == TAG && landing->memory != NULL && landing->received == landing->total);
    note(&came, 'L', (uint8_t)landing->id, landing->memory, landing->total);
    drop(landing);
    return sink_answers;
}

static const pt_sink sink = {
    .frame = take_frame, .room = UINT32_MAX, .land = land, .landed = landed};

/* --------------------------------------------------------------------------------------- model */

enum target { NOWHERE, OFFERED, NOT_OFFERED, FORGOTTEN };

typedef struct promise {
    uint32_t total; /* 0: the id is not expected */
    uint32_t received;
    int is_forgone;
    uint8_t bytes[TOTAL_LIMIT];
} promise;

static struct {
    size_t at;          /* where the frame begins that is not whole */
    int code;           /* why the stream was given up */
    enum target target; /* where the payload goes, when that frame is a wide one whose header is
                           there, */
    pt_wide wide;       /* which says this */
    promise promises[IDS + 1];
} model;

/* A full or compact frame of which left bytes are there. Returns its length; 0: it is not whole, or
 * model.code says why it is wrong. */
static inline size_t read_classic(const uint8_t *start, size_t left)
{
    pt_frame frame;
    int compact = pt_is_compact(start, left);
    size_t header = compact ? PT_COMPACT_HEADER_SIZE : PT_HEADER_SIZE;
    if (left < header)
        return 0;
    int code =
        compact ? pt_compact_decode(start, left, &frame) : pt_header_decode(start, left, &frame);
    if (code >= 0 && frame.payload_len > LIMIT)
        code = PT_ERR_MESSAGE_TOO_LARGE;
    size_t size = header + (compact || code < 0 ? 0 : PT_TRAILER_SIZE);
    if (code >= 0 && left < (size += frame.payload_len))
        return 0;
    if (code >= 0 && !compact)
        code = pt_frame_decode(start, left, &frame);
    if (code < 0) {
        model.code = code;
        return 0;
    }
    note(&due, frame.type, frame.flags, start + header, frame.payload_len);
    return size;
}

/* Where the payload of a wide header goes; NOWHERE: model.code says why. */
static inline enum target judge_wide(const uint8_t *start)
{
    const pt_wide *wide = &model.wide;
    model.code = pt_wide_decode(start, &model.wide);
    if (model.code != PT_OK)
        return NOWHERE;
    if (wide->id == 0) {
        model.code = wide->total <= UNASKED ? PT_OK : PT_ERR_NO_MEMORY;
        return wide->total <= UNASKED ? NOT_OFFERED : NOWHERE;
    }
    model.code = PT_ERR_INVALID_PARAM;
    if (wide->id > IDS)
        return NOWHERE;
    const promise *promised = &model.promises[wide->id];
    if (promised->total != wide->total || promised->received != wide->offset)
        return NOWHERE;
    model.code = PT_OK;
    return OFFERED;
}

/* The payload of a wide frame is there, and its CRC is right. */
static inline void land_slice(const uint8_t *payload)
{
    uint32_t len = model.wide.payload_len;
    if (model.target == NOT_OFFERED) {
        note(&due, 'L', 0, payload, len);
    } else if (model.target == FORGOTTEN) {
        model.code = PT_ERR_INVALID_PARAM;
    } else {
        promise *promised = &model.promises[model.wide.id];
        memcpy(promised->bytes + promised->received, payload, len);
        promised->received += len;
        if (promised->received == promised->total && !promised->is_forgone) {
            note(&due, 'L', (uint8_t)model.wide.id, promised->bytes, promised->total);
            promised->total = 0;
        }
    }
}

/* As read_classic(), for a wide frame. */
static inline size_t read_wide(const uint8_t *start, size_t left)
{
    if (left < PT_WIDE_HEADER_SIZE)
        return 0;
    const uint8_t *payload = start + PT_WIDE_HEADER_SIZE;
    pt_wide wide;
    if (model.target == NOWHERE && pt_wide_decode(start, &wide) == PT_OK && wide.payload_len == 0) {
        model.code = pt_wide_start_crc(start) == wide.crc ? PT_OK : PT_ERR_CRC;
        if (model.code == PT_OK)
            note(&due, wide.type, wide.reason, start + 8, 12);
        return model.code == PT_OK ? PT_WIDE_HEADER_SIZE : 0;
    }
    if (model.target == NOWHERE)
        model.target = judge_wide(start);
    size_t size = PT_WIDE_HEADER_SIZE + model.wide.payload_len;
    if (model.target == NOWHERE || left < size)
        return 0;
    if (pt_crc32c(pt_wide_start_crc(start), payload, model.wide.payload_len) == model.wide.crc)
        land_slice(payload);
    else
        model.code = PT_ERR_CRC;
    model.target = NOWHERE;
    return model.code == PT_OK ? size : 0;
}

/* All that was fed, as far as it goes. */
static inline void read_stream(void)
{
    size_t size = 1;
    while (model.code == PT_OK && size != 0) {
        const uint8_t *start = stream + model.at;
        size_t left = fed - model.at;
        int wide = left >= 2 && pt_is_wide(start);
        size = wide ? read_wide(start, left) : read_classic(start, left);
        model.at += size;
    }
    if (model.code != PT_OK)
        model.target = NOWHERE;
}

static inline void expect(pt_ingest *ingest, uint32_t id, uint32_t total)
{
    promise *promised = &model.promises[id];
    pt_landing *landing = make_landing(id, total);
    int code = pt_ingest_expect(ingest, landing);
    EXPECT(code == (promised->total == 0 ? PT_OK : PT_ERR_INVALID_STATE));
    if (code == PT_OK)
        *promised = (promise){.total = total};
    else
        drop(landing);
}

static inline void forgo(const pt_ingest *ingest, uint32_t id)
{
    ground *all = (ground *)pt_ingest_landing(ingest, id);
    if (all == NULL)
        return;
    all->base.memory = NULL;
    free(all->bytes);
    all->bytes = NULL;
    model.promises[id].is_forgone = 1;
}

static inline void forget(pt_ingest *ingest, uint32_t id)
{
    pt_ingest_forget(ingest, id);
    if (model.promises[id].total != 0 && model.target == OFFERED && model.wide.id == id)
        model.target = FORGOTTEN;
    model.promises[id] = (promise){.total = 0};
}

/* What was handed on, and which landings are alive, is what the model says. */
static inline void compare_stream(const pt_ingest *ingest)
{
    size_t alive = model.target == NOT_OFFERED || model.target == FORGOTTEN;
    for (uint32_t id = 1; id <= IDS; id++) {
        const promise *promised = &model.promises[id];
        const pt_landing *landing = pt_ingest_landing(ingest, id);
        EXPECT((landing != NULL) == (promised->total != 0));
        alive += landing != NULL;
        EXPECT(landing == NULL ||
               (landing->total == promised->total && landing->received == promised->received &&
                (landing->memory == NULL) == promised->is_forgone));
    }
    EXPECT(landings == alive);
    EXPECT(came.len == due.len && memcmp(came.bytes, due.bytes, due.len) == 0);
}

/* ----------------------------------------------------------------------------- the other side */

/* How far it is with each message, as it believes. */
static uint32_t sent[IDS + 1];

static inline size_t say_wide(const pt_wide *wide, const uint8_t *stem, size_t len, uint8_t *out)
{
    uint8_t *payload = out + PT_WIDE_HEADER_SIZE;
    for (uint32_t at = 0; at < wide->payload_len; at++)
        payload[at] = (uint8_t)((len != 0 ? stem[at % len] : 0) + at / 16);
    pt_wide_put(out, wide, wide->payload_len != 0 ? payload : NULL);
    return PT_WIDE_HEADER_SIZE + wide->payload_len;
}

/* The next slice of a message that is expected, as true as it can be. */
static inline pt_wide next_slice(uint8_t flags, uint16_t number)
{
    uint32_t id = flags % IDS + 1, total = model.promises[id].total;
    if (model.promises[id].received == 0 && model.target == NOWHERE && fed == said)
        sent[id] = 0; /* it is a new one */
    uint32_t offset = sent[id] < total ? sent[id] : 0;
    uint32_t left = total > offset ? total - offset : 1;
    uint32_t len = number % SLICE + 1;
    len = len < left ? len : left;
    sent[id] = offset + len;
    return (pt_wide){
        .type = PT_FRAME_DATA, .payload_len = len, .id = id, .offset = offset, .total = total};
}

/* A wide frame with a lie: in a field, with a CRC that is right for it, or behind the CRC. */
static inline size_t lie(uint8_t flags, uint16_t number, const uint8_t *stem, size_t len,
                         uint8_t *out)
{
    pt_wide wide = next_slice(flags, number);
    uint8_t bit = (uint8_t)(number >> 10 & 31);
    switch (flags >> 2 & 7) {
    case 0:
        wide.type ^= (uint8_t)(1u << (bit & 7));
        break;
    case 1:
        wide.id ^= 1u << bit;
        break;
    case 2:
        wide.offset ^= 1u << bit;
        break;
    case 3:
        wide.total ^= 1u << bit;
        break;
    case 4:
        wide.reason = (uint8_t)number; /* which DATA does not look at */
        break;
    default:
        break;
    }
    size_t size = say_wide(&wide, stem, len, out);
    if ((flags >> 2 & 7) == 5) /* the length, or another byte of it */
        out[4 + (bit & 3)] ^= (uint8_t)(1u << (bit >> 2));
    else if ((flags >> 2 & 7) >= 6)
        out[number % size] ^= (uint8_t)(1u << (bit & 7));
    return size;
}

/* What a record adds to the stream. Returns its length; at most len bytes of body and a header, or
 * a wide frame. */
static inline size_t say(uint8_t kind, uint8_t flags, uint16_t number, const uint8_t *body,
                         size_t len, uint8_t *out)
{
    pt_wide wide = {.type = PT_FRAME_DATA};
    pt_frame frame = {.payload = body,
                      .payload_len = (uint32_t)len,
                      .type = (uint8_t)(flags % 7 + 1),
                      .flags = flags >> 3};
    switch (kind & 7) {
    case 1:
        EXPECT(pt_frame_encode(&frame, out, len + PT_FRAME_OVERHEAD) > 0);
        return len + PT_FRAME_OVERHEAD;
    case 2: /* a compact frame, whose length is a lie when the number is odd */
        frame.flags &= 0x0F;
        frame.payload_len = number & 1 ? number : frame.payload_len;
        EXPECT(pt_compact_encode(&frame, out, PT_COMPACT_HEADER_SIZE) > 0);
        out += PT_COMPACT_HEADER_SIZE;
        memcpy(out, body, len);
        return PT_COMPACT_HEADER_SIZE + len;
    case 3:
        wide = next_slice(flags, number);
        return say_wide(&wide, body, len, out);
    case 4:
        wide.total = wide.payload_len = number % (UNASKED + 16) + 1;
        return say_wide(&wide, body, len, out);
    case 5:
        wide.type = (uint8_t)(PT_FRAME_OFFER + flags % 3);
        wide.reason = flags >> 2;
        wide.id = number % (IDS + 2);
        wide.total = number;
        return say_wide(&wide, body, 0, out);
    case 6:
        return lie(flags, number, body, len, out);
    default: /* the bytes as they are */
        memcpy(out, body, len);
        return len;
    }
}

static inline int is_wide_kind(uint8_t kind)
{
    return (kind & 7) >= 3 && (kind & 7) <= 6;
}

#endif
