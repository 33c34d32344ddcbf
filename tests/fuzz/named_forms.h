/* A format with long headers among short ones, for programs that cut a stream of its frames. */
#ifndef NAMED_FORMS_H
#define NAMED_FORMS_H

#include <string.h>

#include "pt_ingest.h"

/* Three forms, told by their second byte: ":A" begins the largest header there is, ":B" one of
 * MIDDLE bytes, ":C" one of 3. The last byte of each is the length, 0xFF is a fault, and each byte
 * of the trailer repeats it. */
#define MIDDLE (PT_FORMAT_MAX_HEADER * 5 / 8)

static const pt_format *named_form(const uint8_t *start);

static int read_named(const uint8_t *header, char name, size_t size, pt_frame *frame)
{
    if (header[0] != ':' || header[1] != name)
        return PT_ERR_MAGIC;
    memset(frame, 0, sizeof *frame);
    frame->payload_len = header[size - 1];
    return header[size - 1] == 0xFF ? PT_ERR_INVALID_PARAM : PT_OK;
}

static int read_a(const uint8_t *header, pt_frame *frame)
{
    return read_named(header, 'A', PT_FORMAT_MAX_HEADER, frame);
}

static int read_b(const uint8_t *header, pt_frame *frame)
{
    return read_named(header, 'B', MIDDLE, frame);
}

static int read_c(const uint8_t *header, pt_frame *frame)
{
    return read_named(header, 'C', 3, frame);
}

static int verify_named(const uint8_t *whole, const pt_frame *frame)
{
    const pt_format *form = named_form(whole);
    for (size_t index = 0; index < form->trailer_size; index++) {
        if (whole[form->header_size + frame->payload_len + index] != frame->payload_len)
            return PT_ERR_CRC;
    }
    return PT_OK;
}

static const pt_format form_a = {.read_header = read_a,
                                 .verify = verify_named,
                                 .header_size = PT_FORMAT_MAX_HEADER,
                                 .trailer_size = 2,
                                 .start_size = 2,
                                 .form = named_form};
static const pt_format form_b = {
    .read_header = read_b, .verify = verify_named, .header_size = MIDDLE, .trailer_size = 1};
static const pt_format form_c = {.read_header = read_c, .verify = verify_named, .header_size = 3};

static const pt_format *named_form(const uint8_t *start)
{
    return start[1] == 'B' ? &form_b : start[1] == 'C' ? &form_c : &form_a;
}

#endif
