/* How the receiving machine works.
 *
 * In WAIT_HEADER ingest->header holds staged_len bytes of a header, less than its size, and
 * frame_len is 0; whole frames are handed on from here, where they lie. In WAIT_PAYLOAD
 * ingest->staging, which is borrowed, holds staged_len bytes of a frame, at least its header and
 * less than frame_len. In COMPLETE it holds all of them.
 *
 * A call finishes the frame that was cut before it, hands on the frames that lie whole in its
 * bytes, and keeps what is left.
 *
 * Nearly every frame has the format's first form: each is read as one, and only where that fails,
 * or nothing whole is left, the other is thought of.
 */
#include "pt_ingest.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"
#include "pt_crc.h"

#define COMPACT_START 2 /* bytes that tell a compact header from a full one */
#define NOWHERE       PT_NOWHERE
#define INIT          PT_INGEST_INIT
#define HEADER        PT_INGEST_WAIT_HEADER
#define PAYLOAD       PT_INGEST_WAIT_PAYLOAD
#define COMPLETE      PT_INGEST_COMPLETE

/* Following state, by state and step: init, stage, fill, hand on, fail, cleanup. */
static const uint8_t NEXT[][6] = {
    [INIT] = {HEADER, NOWHERE, NOWHERE, NOWHERE, NOWHERE, INIT},
    [HEADER] = {NOWHERE, PAYLOAD, NOWHERE, NOWHERE, INIT, INIT},
    [PAYLOAD] = {NOWHERE, NOWHERE, COMPLETE, NOWHERE, NOWHERE, INIT},
    [COMPLETE] = {NOWHERE, NOWHERE, NOWHERE, HEADER, INIT, NOWHERE},
};

uint8_t pt_ingest_next(uint8_t state, uint8_t step)
{
    PT_ASSERT(state <= COMPLETE);
    PT_ASSERT(step <= PT_INGEST_STEP_CLEANUP);

    return NEXT[state][step];
}

/* The table checks each move and drives none: a cut frame moves three times, and would pay for
 * looking up what is known where it moves. */
static inline void move(pt_ingest *ingest, enum pt_ingest_step step, enum pt_ingest_state state)
{
    PT_ASSERT(pt_ingest_next(ingest->state, (uint8_t)step) == state);
    (void)step;
    ingest->state = (uint8_t)state;
}

static int read_message_header(const uint8_t *header, pt_frame *frame)
{
    int size = pt_header_decode(header, PT_HEADER_SIZE, frame);
    PT_ASSERT(size < 0 || size == PT_HEADER_SIZE);
    return size < 0 ? size : PT_OK;
}

static int verify_message(const uint8_t *whole, const pt_frame *frame)
{
    size_t covered = PT_HEADER_SIZE + (size_t)frame->payload_len;
    uint16_t crc = (uint16_t)(whole[covered] << 8 | whole[covered + 1]);
    return pt_crc16(0, whole, covered) == crc ? PT_OK : PT_ERR_CRC;
}

static int read_compact_header(const uint8_t *header, pt_frame *frame)
{
    if (!pt_is_compact(header, PT_COMPACT_HEADER_SIZE))
        return PT_ERR_MAGIC;
    int size = pt_compact_decode(header, PT_COMPACT_HEADER_SIZE, frame);
    return size < 0 ? size : PT_OK;
}

static int verify_nothing(const uint8_t *whole, const pt_frame *frame)
{
    (void)whole;
    (void)frame;
    return PT_OK;
}

static int is_compact(const uint8_t *start)
{
    return pt_is_compact(start, COMPACT_START);
}

static const pt_format compact_format = {
    .read_header = read_compact_header,
    .verify = verify_nothing,
    .header_size = PT_COMPACT_HEADER_SIZE,
};

static const pt_format message_format = {
    .read_header = read_message_header,
    .verify = verify_message,
    .header_size = PT_HEADER_SIZE,
    .trailer_size = PT_TRAILER_SIZE,
    .start_size = COMPACT_START,
    .has_other_form = is_compact,
    .other_form = &compact_format,
};

const pt_format *pt_message_format(void)
{
    return &message_format;
}

static void give_back_staging(pt_ingest *ingest, uint32_t used)
{
    uint8_t *buffer = ingest->staging;
    ingest->staging = NULL;
    if (buffer != NULL)
        pt_pool_release(ingest->pool, buffer, used);
}

/* Hold nothing of any frame. */
static void start_over(pt_ingest *ingest, enum pt_ingest_step step, enum pt_ingest_state state)
{
    give_back_staging(ingest, ingest->state == PT_INGEST_WAIT_HEADER ? 0 : ingest->staged_len);
    ingest->staged_len = 0;
    ingest->frame_len = 0;
    move(ingest, step, state);
}

/* The stream is of no more use. */
static int fail(pt_ingest *ingest, int code)
{
    start_over(ingest, PT_INGEST_STEP_FAIL, INIT);
    return code;
}

/* A frame that is too long is refused before memory is looked for. */
static int judge_header(const pt_ingest *ingest, const pt_format *format, const uint8_t *header,
                        pt_frame *frame)
{
    int code = format->read_header(header, frame);
    if (code != PT_OK)
        return code;
    return frame->payload_len <= ingest->max_payload ? PT_OK : PT_ERR_MESSAGE_TOO_LARGE;
}

static inline uint32_t whole_len(const pt_format *format, const pt_frame *frame)
{
    return (uint32_t)format->header_size + frame->payload_len + format->trailer_size;
}

/* The form of the frame that starts with these bytes; the first form while they are too few to
 * tell. */
static const pt_format *form_of(const pt_format *format, const uint8_t *start, size_t len)
{
    return format->start_size != 0 && len >= format->start_size && format->has_other_form(start)
               ? format->other_form
               : format;
}

/* The header of a cut frame is whole: move it into staging memory. PT_ERR_BACKPRESSURE changes
 * nothing. */
static int begin_staging(pt_ingest *ingest, const pt_format *form, const uint8_t *header,
                         const pt_frame *frame)
{
    uint32_t frame_len = whole_len(form, frame);
    if (ingest->staging == NULL)
        ingest->staging = pt_pool_acquire_share(ingest->pool, frame_len);
    if (ingest->staging == NULL)
        return PT_ERR_BACKPRESSURE;
    PT_ASSERT(pt_pool_buffer_size(ingest->staging) >= frame_len);

    memcpy(ingest->staging, header, form->header_size);
    ingest->frame_len = frame_len;
    ingest->staged_len = form->header_size;
    move(ingest, PT_INGEST_STEP_STAGE, PAYLOAD);
    return PT_OK;
}

/* Up to want bytes of data behind the staged ones. Returns how many there were. */
static uint32_t stage(pt_ingest *ingest, uint8_t *target, uint32_t want, const uint8_t *data,
                      size_t len)
{
    uint32_t taken = len < want ? (uint32_t)len : want;
    memcpy(target + ingest->staged_len, data, taken);
    ingest->staged_len += taken;
    return taken;
}

/* Units of work: a plain message joins a batch, anything else is looked at by itself. */
static inline uint32_t work_of(const pt_frame *frame)
{
    if (frame->type != PT_FRAME_DATA || (frame->flags & (PT_FLAG_FRAGMENT | PT_FLAG_BATCH)) != 0)
        return PT_WORK_CONTROL;
    return frame->payload_len < PT_TINY_PAYLOAD ? PT_WORK_TINY : 1;
}

static inline int hand_on(pt_ingest *ingest, const pt_sink *sink, const pt_frame *frame)
{
    ingest->frames++;
    ingest->payload_bytes += frame->payload_len;
    ingest->work += work_of(frame);
    int code = sink->frame(sink->context, ingest->tag, frame);
    /* One comparison for both: a limit of 0 is none. */
    return ingest->work - 1 >= ingest->work_limit - 1 && code == PT_OK ? PT_ERR_BUSY : code;
}

/* Fill up a cut header from data as far as it goes: at first the bytes that tell its form, then the
 * rest of it. Returns how many were taken. */
static size_t stage_header(pt_ingest *ingest, const uint8_t *data, size_t len)
{
    const pt_format *format = ingest->format;
    size_t taken = 0;
    if (ingest->staged_len < format->start_size)
        taken = stage(ingest, ingest->header, format->start_size - ingest->staged_len, data, len);
    if (ingest->staged_len >= format->start_size) {
        const pt_format *form = form_of(format, ingest->header, ingest->staged_len);
        taken += stage(ingest, ingest->header, form->header_size - ingest->staged_len, data + taken,
                       len - taken);
    }
    return taken;
}

/* Go on with a frame that was cut before data. *offset is moved behind its bytes, and stays when
 * the frame is bad or finds no memory. */
static int finish_cut_frame(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                            size_t *offset)
{
    size_t taken = 0;
    if (ingest->state == PT_INGEST_WAIT_HEADER) {
        uint32_t held = ingest->staged_len;
        taken = stage_header(ingest, data, len);
        const pt_format *form = form_of(ingest->format, ingest->header, ingest->staged_len);
        if (ingest->staged_len < form->header_size) {
            *offset = taken;
            return PT_OK;
        }
        pt_frame frame;
        int code = judge_header(ingest, form, ingest->header, &frame);
        if (code != PT_OK)
            return fail(ingest, code);
        code = begin_staging(ingest, form, ingest->header, &frame);
        if (code != PT_OK) {
            ingest->staged_len = held;
            return code;
        }
    }

    PT_ASSERT(ingest->state == PT_INGEST_WAIT_PAYLOAD && ingest->staging != NULL);
    taken += stage(ingest, ingest->staging, ingest->frame_len - ingest->staged_len, data + taken,
                   len - taken);
    if (ingest->staged_len < ingest->frame_len) {
        *offset = taken;
        return PT_OK;
    }
    const pt_format *form = form_of(ingest->format, ingest->staging, ingest->staged_len);
    pt_frame frame;
    (void)form->read_header(ingest->staging, &frame); /* it was judged */
    move(ingest, PT_INGEST_STEP_FILL, COMPLETE);
    frame.payload = ingest->staging + form->header_size;
    int code = form->verify(ingest->staging, &frame);
    if (code != PT_OK)
        return fail(ingest, code);
    *offset = taken;
    code = hand_on(ingest, sink, &frame);
    start_over(ingest, PT_INGEST_STEP_HAND_ON, HEADER);
    return code;
}

/* Hand on the frames of one form that lie whole in data from *offset on; *offset is moved behind
 * the last of them. PT_OK: what is left begins with a frame that is not whole, or has another form.
 */
static inline int take_whole_frames(pt_ingest *ingest, const pt_format *form, const uint8_t *data,
                                    size_t len, const pt_sink *sink, size_t *offset)
{
    while (len - *offset >= form->header_size) {
        const uint8_t *whole = data + *offset;
        pt_frame frame;
        int code = judge_header(ingest, form, whole, &frame);
        if (code == PT_ERR_MAGIC && form_of(ingest->format, whole, form->header_size) != form)
            return PT_OK;
        if (code != PT_OK)
            return fail(ingest, code);
        uint32_t frame_len = whole_len(form, &frame);
        if (len - *offset < frame_len)
            break;
        code = form->verify(whole, &frame);
        if (code != PT_OK)
            return fail(ingest, code);
        frame.payload = whole + form->header_size;
        *offset += frame_len;
        code = hand_on(ingest, sink, &frame);
        if (code != PT_OK)
            return code;
    }
    return PT_OK;
}

/* Keep the cut frame at the end: len bytes, less than a whole one. Its header, if that is all
 * there, was judged. */
static int keep_cut_frame(pt_ingest *ingest, const pt_format *form, const uint8_t *data, size_t len)
{
    PT_ASSERT(ingest->state == HEADER && ingest->staged_len == 0);
    if (len < form->header_size) {
        stage(ingest, ingest->header, form->header_size, data, len);
        return PT_OK;
    }
    pt_frame frame;
    int code = form->read_header(data, &frame);
    PT_ASSERT(code == PT_OK && frame.payload_len <= ingest->max_payload);
    if (code == PT_OK)
        code = begin_staging(ingest, form, data, &frame);
    if (code == PT_OK)
        stage(ingest, ingest->staging, ingest->frame_len - ingest->staged_len,
              data + form->header_size, len - form->header_size);
    return code;
}

/* What is left begins with no whole frame of the first form: go on with frames of the other form
 * and the first in turn, and keep the cut one. */
static int take_rest(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                     size_t *offset)
{
    for (const pt_format *last = ingest->format;;) {
        PT_ASSERT(*offset < len);
        const pt_format *form = form_of(ingest->format, data + *offset, len - *offset);
        if (form == last) {
            int code = keep_cut_frame(ingest, form, data + *offset, len - *offset);
            if (code == PT_OK)
                *offset = len;
            return code;
        }
        int code = take_whole_frames(ingest, form, data, len, sink, offset);
        if (code != PT_OK || *offset == len)
            return code;
        last = form;
    }
}

void pt_ingest_init(pt_ingest *ingest, const pt_format *format, pt_pool *pool, uint32_t max_payload,
                    uint32_t tag)
{
    PT_ASSERT(format->header_size >= 1 && format->header_size <= PT_FORMAT_MAX_HEADER);
    const pt_format *other = format->other_form;
    (void)other; /* asserted alone */
    PT_ASSERT((format->start_size != 0) == (other != NULL) &&
              format->start_size <= format->header_size);
    PT_ASSERT(other == NULL ||
              (other->start_size == 0 && format->start_size <= other->header_size));
    PT_ASSERT(other == NULL || (other->header_size <= format->header_size &&
                                other->trailer_size <= format->trailer_size));

    PT_ASSERT(ingest->state == INIT && ingest->staging == NULL); /* else memory would be lost */

    memset(ingest, 0, sizeof *ingest);
    uint32_t largest = UINT32_MAX - format->header_size -
                       format->trailer_size; /* so that a frame's length fits 32 bits */
    ingest->format = format;
    ingest->pool = pool;
    ingest->max_payload = max_payload <= largest ? max_payload : largest;
    ingest->tag = tag;
    move(ingest, PT_INGEST_STEP_INIT, HEADER);
}

void pt_ingest_cleanup(pt_ingest *ingest)
{
    start_over(ingest, PT_INGEST_STEP_CLEANUP, INIT);
}

int pt_ingest_feed(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                   size_t *consumed)
{
    *consumed = 0;
    if (ingest->state == PT_INGEST_INIT)
        return PT_ERR_INVALID_STATE;
    PT_ASSERT(ingest->state != PT_INGEST_COMPLETE); /* a sink does not feed its own link */

    size_t offset = 0;
    int code = PT_OK;
    if (ingest->staged_len > 0 && len > 0)
        code = finish_cut_frame(ingest, data, len, sink, &offset);
    if (code == PT_OK && offset < len) {
        /* Full message frames get a loop of their own, without indirect calls. */
        code = ingest->format == &message_format
                   ? take_whole_frames(ingest, &message_format, data, len, sink, &offset)
                   : take_whole_frames(ingest, ingest->format, data, len, sink, &offset);
    }
    if (code == PT_OK && offset < len)
        code = take_rest(ingest, data, len, sink, &offset);
    if (ingest->state == PT_INGEST_WAIT_HEADER)
        give_back_staging(ingest, 0); /* it was lent, and not needed */
    PT_ASSERT(offset <= len);
    PT_ASSERT(code != PT_OK || offset == len);
    *consumed = offset;
    return code;
}

void pt_ingest_lend(pt_ingest *ingest, uint8_t *buffer)
{
    PT_ASSERT(ingest->state == PT_INGEST_WAIT_HEADER && ingest->staging == NULL);
    PT_ASSERT(pt_pool_buffer_size(buffer) >=
              ingest->format->header_size + ingest->max_payload + ingest->format->trailer_size);

    ingest->staging = buffer;
}

uint32_t pt_ingest_partial_len(const pt_ingest *ingest)
{
    return ingest->staged_len;
}

#if PT_ASSERTIONS
void pt_ingest_check(const pt_ingest *ingest)
{
    PT_ASSERT(ingest->state <= PT_INGEST_WAIT_PAYLOAD); /* COMPLETE is never seen between calls */
    PT_ASSERT((ingest->staging != NULL) == (ingest->state == PT_INGEST_WAIT_PAYLOAD));
    if (ingest->state == PT_INGEST_WAIT_PAYLOAD) {
        PT_ASSERT(ingest->staged_len < ingest->frame_len);
        PT_ASSERT(ingest->frame_len <= pt_pool_buffer_size(ingest->staging));
    } else {
        PT_ASSERT(ingest->frame_len == 0);
        PT_ASSERT(ingest->staged_len < PT_FORMAT_MAX_HEADER);
    }
}
#endif
