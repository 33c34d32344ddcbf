/* Wide frames on their way into the memory where their messages land: the receiving machine of
 * pt_ingest.c with other rules, since a message may have many frames, and others stand between
 * them.
 *
 * Invariant: into is the landing of the frame that is cut, and of no other time; an offered one
 * stands in landings as long as slices of it may come, one that was not offered never does. */
#include <string.h>

#include "pt_assert.h"
#include "pt_crc32c.h"
#include "pt_ingest_inside.h"

#if PT_WIDE

#define FIELDS_AT   8 /* id, offset and total, in a wide header */
#define FIELDS_SIZE 12

/* It is expected no more. */
static void unlink_landing(pt_ingest *ingest, const pt_landing *landing)
{
    PT_ASSERT(landing->id != 0);

    pt_landing **place = &ingest->landings;
    while (*place != landing) {
        PT_ASSERT(*place != NULL);
        place = &(*place)->next;
    }
    *place = landing->next;
}

/* Where the slice of a header lands; NULL with *code: it is a fault of the frame. */
static pt_landing *find_landing(pt_ingest *ingest, const pt_sink *sink, const pt_wide *wide,
                                int *code)
{
    PT_ASSERT(wide->type == PT_FRAME_DATA);
    PT_ASSERT(wide->payload_len != 0);

    pt_landing *landing = NULL;
    *code = PT_ERR_NO_MEMORY;
    if (wide->id == 0) {
        if (sink->land != NULL)
            landing = sink->land(sink->context, ingest->tag, wide->total);
        PT_ASSERT(landing == NULL || (landing->total == wide->total && landing->id == 0));
        return landing;
    }
    *code = PT_ERR_INVALID_PARAM;
    landing = pt_ingest_landing(ingest, wide->id);
    if (landing == NULL || landing->total != wide->total || landing->received != wide->offset)
        return NULL;
    return landing;
}

/* All bytes of a wide frame with payload are where they land. */
static int finish_wide(pt_ingest *ingest, const pt_sink *sink)
{
    PT_ASSERT(pt_ingest_into(ingest) != NULL && ingest->staged_len == ingest->frame_len);
    pt_ingest_move(ingest, PT_INGEST_STEP_FILL, PT_INGEST_COMPLETE);
    if (ingest->wide.crcs[0] != ingest->wide.crcs[1])
        return pt_ingest_fail(ingest, PT_ERR_CRC);

    pt_landing *landing = pt_ingest_into(ingest);
    if (landing->id == 0 && landing->memory == NULL) /* it was forgotten meanwhile */
        return pt_ingest_fail(ingest, PT_ERR_INVALID_PARAM);
    uint32_t payload_len = ingest->frame_len - PT_WIDE_HEADER_SIZE;
    landing->received += payload_len;
    ingest->wide.into = NULL; /* it is the sink's, or waits for its next slice */
    ingest->frames++;
    ingest->payload_bytes += payload_len;
    ingest->work++;
    pt_ingest_start_over(ingest, PT_INGEST_STEP_HAND_ON, PT_INGEST_WAIT_HEADER);
    if (landing->received < landing->total || landing->memory == NULL)
        return pt_ingest_busy_or(ingest, PT_OK);
    if (landing->id != 0)
        unlink_landing(ingest, landing);
    return pt_ingest_busy_or(ingest, sink->landed(sink->context, ingest->tag, landing));
}

/* So many bytes more of the cut wide frame, at data, or already where they belong. */
static void land(pt_ingest *ingest, const uint8_t *data, uint32_t len)
{
    PT_ASSERT(len <= ingest->frame_len - ingest->staged_len);

    uint32_t unused = 0;
    uint8_t *place = pt_ingest_place(ingest, &unused);
    if (place != NULL && place != data)
        memcpy(place, data, len);
    ingest->wide.crcs[0] = pt_crc32c(ingest->wide.crcs[0], data, len);
    ingest->staged_len += len;
}

/* The header of a wide frame is whole: judge it, and find out where its payload lands; hand it on
 * when it has none. *is_over: nothing more of this frame comes. */
static int begin_wide(pt_ingest *ingest, const pt_sink *sink, const uint8_t *header, int *is_over)
{
    PT_ASSERT(ingest->state == PT_INGEST_WAIT_HEADER);

    *is_over = 1;
    pt_wide wide;
    int code = pt_wide_decode(header, &wide);
    uint32_t crc = code == PT_OK ? pt_wide_start_crc(header) : 0;
    if (code == PT_OK && wide.payload_len == 0 && crc != wide.crc)
        code = PT_ERR_CRC;
    if (code != PT_OK)
        return pt_ingest_fail(ingest, code);
    if (wide.payload_len == 0) {
        ingest->staged_len = 0;
        pt_frame frame = {.type = wide.type,
                          .flags = wide.reason,
                          .payload = header + FIELDS_AT,
                          .payload_len = FIELDS_SIZE};
        ingest->payload_bytes -= FIELDS_SIZE; /* they are the header's */
        return pt_ingest_hand_on(ingest, sink, &frame);
    }
    pt_landing *landing = find_landing(ingest, sink, &wide, &code);
    if (landing == NULL)
        return pt_ingest_fail(ingest, code);
    ingest->wide.into = landing; /* in the place of the header */
    ingest->wide.crcs[0] = crc;
    ingest->wide.crcs[1] = wide.crc;
    ingest->frame_len = PT_WIDE_HEADER_SIZE + wide.payload_len;
    ingest->staged_len = PT_WIDE_HEADER_SIZE;
    pt_ingest_move(ingest, PT_INGEST_STEP_STAGE, PT_INGEST_WAIT_PAYLOAD);
    *is_over = 0;
    return PT_OK;
}

/* Go on with the cut wide frame. Returns as pt_ingest_feed(); *taken says how many bytes. */
static int go_on_wide(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                      size_t *taken)
{
    PT_ASSERT(pt_ingest_into(ingest) != NULL);
    PT_ASSERT(ingest->staged_len < ingest->frame_len);

    uint32_t rest = ingest->frame_len - ingest->staged_len;
    uint32_t count = len < rest ? (uint32_t)len : rest;
    if (count != 0)
        land(ingest, data, count);
    *taken = count;
    return count == rest ? finish_wide(ingest, sink) : PT_OK;
}

int pt_landing_take(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                    size_t *offset)
{
    PT_ASSERT(*offset < len);

    const uint8_t *whole = data + *offset;
    size_t left = len - *offset;
    if (left < PT_WIDE_HEADER_SIZE) {
        pt_ingest_stage(ingest, ingest->header, PT_WIDE_HEADER_SIZE, whole, left);
        *offset = len;
        return PT_OK;
    }
    int is_over;
    size_t taken = 0;
    int code = begin_wide(ingest, sink, whole, &is_over);
    if (!is_over)
        code = go_on_wide(ingest, whole + PT_WIDE_HEADER_SIZE, left - PT_WIDE_HEADER_SIZE, sink,
                          &taken);
    if (ingest->state != PT_INGEST_INIT)
        *offset += PT_WIDE_HEADER_SIZE + taken;
    return code;
}

int pt_landing_go_on(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                     size_t taken, size_t *offset)
{
    PT_ASSERT(taken <= len);

    int is_over = 0;
    size_t landed = 0;
    int code = PT_OK;
    if (pt_ingest_into(ingest) == NULL)
        code = begin_wide(ingest, sink, ingest->header, &is_over);
    if (!is_over)
        code = go_on_wide(ingest, data + taken, len - taken, sink, &landed);
    if (ingest->state != PT_INGEST_INIT)
        *offset = taken + landed;
    return code;
}

int pt_ingest_expect(pt_ingest *ingest, pt_landing *landing)
{
    PT_ASSERT(landing->id != 0 && landing->total != 0 && landing->received == 0);
    PT_ASSERT(landing->drop != NULL);

    if (ingest->state == PT_INGEST_INIT || pt_ingest_landing(ingest, landing->id) != NULL)
        return PT_ERR_INVALID_STATE;
    landing->next = ingest->landings;
    ingest->landings = landing;
    return PT_OK;
}

pt_landing *pt_ingest_landing(const pt_ingest *ingest, uint32_t id)
{
    pt_landing *landing = ingest->landings;
    while (landing != NULL && landing->id != id)
        landing = landing->next;
    return landing;
}

void pt_ingest_forget(pt_ingest *ingest, uint32_t id)
{
    pt_landing *landing = pt_ingest_landing(ingest, id);
    if (landing == NULL)
        return;
    unlink_landing(ingest, landing);
    if (landing == pt_ingest_into(ingest)) { /* the slice goes nowhere, and its landing with it */
        landing->memory = NULL;
        landing->id = 0;
    } else {
        landing->drop(landing);
    }
}

uint32_t pt_ingest_unasked(const pt_ingest *ingest)
{
    const pt_landing *landing = pt_ingest_into(ingest);
    if (landing == NULL || landing->id != 0 || landing->memory == NULL)
        return 0;
    return ingest->frame_len - PT_WIDE_HEADER_SIZE;
}

uint8_t *pt_ingest_place(const pt_ingest *ingest, uint32_t *len)
{
    const pt_landing *landing = pt_ingest_into(ingest);
    if (landing == NULL || landing->memory == NULL)
        return NULL;
    PT_ASSERT(ingest->state == PT_INGEST_WAIT_PAYLOAD && ingest->staged_len < ingest->frame_len);
    PT_ASSERT(landing->received + (ingest->frame_len - PT_WIDE_HEADER_SIZE) <= landing->total);
    *len = ingest->frame_len - ingest->staged_len;
    return landing->memory + landing->received + (ingest->staged_len - PT_WIDE_HEADER_SIZE);
}

int pt_ingest_placed(pt_ingest *ingest, uint32_t len, const pt_sink *sink)
{
    uint32_t room = 0;
    const uint8_t *place = pt_ingest_place(ingest, &room);
    PT_ASSERT(place != NULL && len != 0 && len <= room);

    land(ingest, place, len);
    return len == room ? finish_wide(ingest, sink) : PT_OK;
}

#endif
