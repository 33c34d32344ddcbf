/* How the receiving machine works.
 *
 * In WAIT_HEADER ingest->header holds staged_len bytes of a header, less than its size, and
 * frame_len is 0; whole frames are handed on from here, where they lie. In WAIT_PAYLOAD
 * ingest->staging, which is borrowed, holds staged_len bytes of a frame, at least its header and
 * less than frame_len. In COMPLETE it holds all of them. A wide frame passes the same states, but
 * its payload lies where it lands (into), and its header nowhere.
 *
 * Of a long header, one that does not fit into ingest->header, only the bytes that tell its form
 * wait there. As soon as the form is known the header is staged as a frame is: WAIT_PAYLOAD, with
 * the header's size as frame_len until the header is whole and says how long the frame is.
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
#include "pt_ingest_inside.h"

#define FORM_START   2 /* bytes that tell compact and wide headers from full ones */
#define LONG_HEADERS (PT_FORMAT_MAX_HEADER > PT_INGEST_HEADER_ROOM)
#define INIT         PT_INGEST_INIT
#define HEADER       PT_INGEST_WAIT_HEADER
#define PAYLOAD      PT_INGEST_WAIT_PAYLOAD
#define COMPLETE     PT_INGEST_COMPLETE

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

static const pt_format compact_format = {
    .read_header = read_compact_header,
    .verify = verify_nothing,
    .header_size = PT_COMPACT_HEADER_SIZE,
};

static const pt_format wide_format = {
    .header_size = PT_WIDE_HEADER_SIZE,
    .is_wide = 1,
};

static const pt_format message_format, message_or_wide_format;

static const pt_format *full_or_compact(const uint8_t *start)
{
    return pt_is_compact(start, FORM_START) ? &compact_format : &message_format;
}

static const pt_format *any_form(const uint8_t *start)
{
    if (pt_is_compact(start, FORM_START))
        return &compact_format;
    return PT_WIDE && pt_is_wide(start) ? &wide_format : &message_or_wide_format;
}

static const pt_format message_format = {
    .read_header = read_message_header,
    .verify = verify_message,
    .header_size = PT_HEADER_SIZE,
    .trailer_size = PT_TRAILER_SIZE,
    .start_size = FORM_START,
    .form = full_or_compact,
};

static const pt_format message_or_wide_format = {
    .read_header = read_message_header,
    .verify = verify_message,
    .header_size = PT_HEADER_SIZE,
    .trailer_size = PT_TRAILER_SIZE,
    .start_size = FORM_START,
    .form = any_form,
};

const pt_format *pt_message_format(int wide)
{
    return PT_WIDE && wide ? &message_or_wide_format : &message_format;
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
    return format->start_size != 0 && len >= format->start_size ? format->form(start) : format;
}

/* 1 when headers of this form are long: a cut one does not wait in the struct. */
static inline int is_long(const pt_format *form)
{
    return LONG_HEADERS && form->header_size > PT_INGEST_HEADER_ROOM;
}

/* Move the first held bytes of a cut frame into staging memory of size bytes, where frame_len bytes
 * are waited for at first. PT_ERR_BACKPRESSURE changes nothing. */
static inline int begin_staging(pt_ingest *ingest, const pt_sink *sink, const uint8_t *start,
                                uint32_t held, uint32_t frame_len, uint32_t size)
{
    PT_ASSERT(ingest->staging == NULL);
    ingest->staging = pt_pool_acquire_share(ingest->pool, size);
    if (ingest->staging == NULL && sink->spare != NULL) {
        ingest->staging = *sink->spare;
        *sink->spare = NULL;
        ingest->is_spare = 1;
    }
    if (ingest->staging == NULL)
        return PT_ERR_BACKPRESSURE;
    PT_ASSERT(held <= frame_len && frame_len <= size);
    PT_ASSERT(pt_pool_buffer_size(ingest->staging) >= size);

    memcpy(ingest->staging, start, held);
    ingest->frame_len = frame_len;
    ingest->staged_len = held;
    pt_ingest_move(ingest, PT_INGEST_STEP_STAGE, PAYLOAD);
    return PT_OK;
}

/* The header of a cut frame is whole: judge it, and stage it. */
static inline int stage_frame(pt_ingest *ingest, const pt_sink *sink, const pt_format *form,
                              const uint8_t *header)
{
    pt_frame frame;
    int code = judge_header(ingest, form, header, &frame);
    if (code != PT_OK)
        return pt_ingest_fail(ingest, code);
    uint32_t frame_len = whole_len(form, &frame);
    return begin_staging(ingest, sink, header, form->header_size, frame_len, frame_len);
}

/* A long header is cut behind held bytes. It does not say yet how long its frame is, so there must
 * be memory for the longest. */
static int stage_long_header(pt_ingest *ingest, const pt_sink *sink, const pt_format *form,
                             const uint8_t *start, uint32_t held)
{
    PT_ASSERT(is_long(form) && held < form->header_size);
    PT_ASSERT(held >= ingest->format->start_size);

    const pt_frame longest = {.payload_len = ingest->max_payload};
    return begin_staging(ingest, sink, start, held, form->header_size, whole_len(form, &longest));
}

/* Fill up a cut header from data as far as it goes: at first the bytes that tell its form, then,
 * unless it is a long one, the rest of it. Returns how many were taken. */
static size_t stage_header(pt_ingest *ingest, const uint8_t *data, size_t len)
{
    const pt_format *format = ingest->format;
    size_t taken = 0;
    if (ingest->staged_len < format->start_size)
        taken = pt_ingest_stage(ingest, ingest->header, format->start_size - ingest->staged_len,
                                data, len);
    if (ingest->staged_len >= format->start_size) {
        const pt_format *form = form_of(format, ingest->header, ingest->staged_len);
        if (!is_long(form))
            taken += pt_ingest_stage(ingest, ingest->header, form->header_size - ingest->staged_len,
                                     data + taken, len - taken);
    }
    return taken;
}

/* A staged long header is whole: now it is known how long its frame is. */
static int read_long_header(pt_ingest *ingest, const pt_format *form)
{
    pt_frame frame;
    int code = judge_header(ingest, form, ingest->staging, &frame);
    if (code != PT_OK)
        return pt_ingest_fail(ingest, code);
    ingest->frame_len = whole_len(form, &frame);
    PT_ASSERT(ingest->frame_len <= pt_pool_buffer_size(ingest->staging));
    return PT_OK;
}

/* The frame that lay in the sink's spare buffer was handed on within one feed: the buffer goes back
 * to the sink, which needs it again, and not to the pool, where it would be lost to others. It is
 * wiped as the pool wipes. */
static void return_spare(pt_ingest *ingest, const pt_sink *sink)
{
    PT_ASSERT(ingest->staging != NULL);
    PT_ASSERT(*sink->spare == NULL);

    memset(ingest->staging, 0, ingest->staged_len);
    *sink->spare = ingest->staging;
    ingest->staging = NULL;
    ingest->is_spare = 0;
    ingest->staged_len = 0;
    ingest->frame_len = 0;
    pt_ingest_move(ingest, PT_INGEST_STEP_HAND_ON, HEADER);
}

/* Go on with a frame that is staged, behind the first taken bytes of data. As finish_cut_frame().
 */
static int finish_staged(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                         size_t taken, size_t *offset)
{
    PT_ASSERT(ingest->state == PT_INGEST_WAIT_PAYLOAD && ingest->staging != NULL);

    const pt_format *form;
    int code = PT_OK;
    do { /* a second time when a long header has become whole */
        taken += pt_ingest_stage(ingest, ingest->staging, ingest->frame_len - ingest->staged_len,
                                 data + taken, len - taken);
        if (ingest->staged_len < ingest->frame_len) {
            *offset = taken;
            return PT_OK;
        }
        form = form_of(ingest->format, ingest->staging, ingest->staged_len);
        if (is_long(form) && ingest->staged_len == form->header_size)
            code = read_long_header(ingest, form);
        if (code != PT_OK)
            return code;
    } while (LONG_HEADERS && ingest->staged_len < ingest->frame_len);
    pt_frame frame;
    (void)form->read_header(ingest->staging, &frame); /* it was judged */
    pt_ingest_move(ingest, PT_INGEST_STEP_FILL, COMPLETE);
    frame.payload = ingest->staging + form->header_size;
    code = form->verify(ingest->staging, &frame);
    if (code != PT_OK)
        return pt_ingest_fail(ingest, code);
    *offset = taken;
    code = pt_ingest_hand_on(ingest, sink, &frame);
    if (ingest->is_spare)
        return_spare(ingest, sink);
    else
        pt_ingest_start_over(ingest, PT_INGEST_STEP_HAND_ON, HEADER);
    return code;
}

/* Go on with a frame that was cut before data. *offset is moved behind its bytes, and stays when
 * the frame is bad or finds no memory. */
static int finish_cut_frame(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                            size_t *offset)
{
    size_t taken = 0;
    if (PT_WIDE && pt_ingest_into(ingest) != NULL)
        return pt_landing_go_on(ingest, data, len, sink, 0, offset);
    if (ingest->state == PT_INGEST_WAIT_HEADER) {
        uint32_t held = ingest->staged_len;
        taken = stage_header(ingest, data, len);
        const pt_format *form = form_of(ingest->format, ingest->header, ingest->staged_len);
        if (ingest->staged_len < (is_long(form) ? ingest->format->start_size : form->header_size)) {
            *offset = taken;
            return PT_OK;
        }
        if (PT_WIDE && form->is_wide)
            return pt_landing_go_on(ingest, data, len, sink, taken, offset);
        int code = is_long(form)
                       ? stage_long_header(ingest, sink, form, ingest->header, ingest->staged_len)
                       : stage_frame(ingest, sink, form, ingest->header);
        if (ingest->state == PT_INGEST_WAIT_HEADER)
            ingest->staged_len = held;
        if (code != PT_OK)
            return code;
    }
    return finish_staged(ingest, data, len, sink, taken, offset);
}

/* Hand on the frames of one form that lie whole in data from *offset on; *offset is moved behind
 * the last of them. PT_OK: what is left begins with a frame that is not whole, or has another form.
 * form: how they are read; own: which form of the format that is.
 */
static inline int take_whole_frames(pt_ingest *ingest, const pt_format *form, const pt_format *own,
                                    const uint8_t *data, size_t len, const pt_sink *sink,
                                    size_t *offset)
{
    while (len - *offset >= form->header_size) {
        const uint8_t *whole = data + *offset;
        pt_frame frame;
        int code = judge_header(ingest, form, whole, &frame);
        if (code == PT_ERR_MAGIC && form_of(ingest->format, whole, form->header_size) != own)
            return PT_OK;
        if (code != PT_OK)
            return pt_ingest_fail(ingest, code);
        uint32_t frame_len = whole_len(form, &frame);
        if (len - *offset < frame_len)
            break;
        code = form->verify(whole, &frame);
        if (code != PT_OK)
            return pt_ingest_fail(ingest, code);
        frame.payload = whole + form->header_size;
        *offset += frame_len;
        code = pt_ingest_hand_on(ingest, sink, &frame);
        if (code != PT_OK)
            return code;
    }
    return PT_OK;
}

/* Keep the cut frame at the end: len bytes, less than a whole one. Its header, if that is all
 * there, was judged. */
static int keep_cut_frame(pt_ingest *ingest, const pt_sink *sink, const pt_format *form,
                          const uint8_t *data, size_t len)
{
    PT_ASSERT(ingest->state == HEADER && ingest->staged_len == 0);
    if (len < form->header_size) {
        if (is_long(form) && len >= ingest->format->start_size)
            return stage_long_header(ingest, sink, form, data, (uint32_t)len);
        pt_ingest_stage(ingest, ingest->header, PT_INGEST_HEADER_ROOM, data, len);
        return PT_OK;
    }
    int code = stage_frame(ingest, sink, form, data);
    PT_ASSERT(code == PT_OK || code == PT_ERR_BACKPRESSURE);
    if (code == PT_OK)
        pt_ingest_stage(ingest, ingest->staging, ingest->frame_len - ingest->staged_len,
                        data + form->header_size, len - form->header_size);
    return code;
}

/* What is left begins with no whole frame of the first form: go on with frames of the other forms
 * and the first in turn, and keep the cut one. */
static int take_rest(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                     size_t *offset)
{
    for (const pt_format *last = ingest->format;;) {
        PT_ASSERT(*offset < len);
        const pt_format *form = form_of(ingest->format, data + *offset, len - *offset);
        if (PT_WIDE && form->is_wide) {
            int code = pt_landing_take(ingest, data, len, sink, offset);
            if (code != PT_OK || *offset == len)
                return code;
            last = form;
            continue;
        }
        if (form == last) {
            int code = keep_cut_frame(ingest, sink, form, data + *offset, len - *offset);
            if (code == PT_OK)
                *offset = len;
            return code;
        }
        int code = take_whole_frames(ingest, form, form, data, len, sink, offset);
        if (code != PT_OK || *offset == len)
            return code;
        last = form;
    }
}

void pt_ingest_init(pt_ingest *ingest, const pt_format *format, pt_pool *pool, uint32_t max_payload,
                    uint32_t tag)
{
    PT_ASSERT(format->header_size >= 1 && format->header_size <= PT_FORMAT_MAX_HEADER);
    PT_ASSERT((format->start_size != 0) == (format->form != NULL) &&
              format->start_size <= format->header_size &&
              format->start_size <= PT_INGEST_HEADER_ROOM);

    PT_ASSERT(ingest->state == INIT && ingest->staging == NULL); /* else memory would be lost */
    PT_ASSERT(ingest->landings == NULL);

    memset(ingest, 0, sizeof *ingest);
    uint32_t largest = UINT32_MAX - format->header_size -
                       format->trailer_size; /* so that a frame's length fits 32 bits */
    ingest->format = format;
    ingest->pool = pool;
    ingest->max_payload = max_payload <= largest ? max_payload : largest;
    ingest->tag = tag;
    pt_ingest_move(ingest, PT_INGEST_STEP_INIT, HEADER);
}

void pt_ingest_cleanup(pt_ingest *ingest)
{
    pt_ingest_start_over(ingest, PT_INGEST_STEP_CLEANUP, INIT);
    while (PT_WIDE && ingest->landings != NULL) {
        pt_landing *landing = ingest->landings;
        ingest->landings = landing->next;
        landing->drop(landing);
    }
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
        const pt_format *format = ingest->format;
        code = format->read_header == read_message_header
                   ? take_whole_frames(ingest, &message_format, format, data, len, sink, &offset)
                   : take_whole_frames(ingest, format, format, data, len, sink, &offset);
    }
    if (code == PT_OK && offset < len)
        code = take_rest(ingest, data, len, sink, &offset);
    ingest->is_spare = 0; /* what still lies there is the ingest's */
    PT_ASSERT(offset <= len);
    PT_ASSERT(code != PT_OK || offset == len);
    *consumed = offset;
    return code;
}

uint32_t pt_ingest_partial_len(const pt_ingest *ingest)
{
    return ingest->staged_len;
}

#if PT_ASSERTIONS
void pt_ingest_check(const pt_ingest *ingest)
{
    PT_ASSERT(ingest->state <= PT_INGEST_WAIT_PAYLOAD); /* COMPLETE is never seen between calls */
    PT_ASSERT((ingest->staging != NULL || pt_ingest_into(ingest) != NULL) ==
              (ingest->state == PT_INGEST_WAIT_PAYLOAD));
    if (ingest->state == PT_INGEST_WAIT_PAYLOAD) {
        PT_ASSERT(ingest->staged_len < ingest->frame_len);
        PT_ASSERT(ingest->staging == NULL ||
                  ingest->frame_len <= pt_pool_buffer_size(ingest->staging));
        const pt_format *form = ingest->staging != NULL
                                    ? form_of(ingest->format, ingest->staging, ingest->staged_len)
                                    : ingest->format;
        PT_ASSERT(ingest->staged_len >= form->header_size ||
                  (is_long(form) && ingest->frame_len == form->header_size));
    } else {
        PT_ASSERT(ingest->frame_len == 0);
        PT_ASSERT(ingest->staged_len < PT_INGEST_HEADER_ROOM);
    }
}
#endif
