/* One header, and the rules that a single one must keep. What several mean together is judged where
 * their bytes land (pt_ingest.c). */
#include "pt_wide.h"

#include "pt_assert.h"
#include "pt_crc32c.h"

#if PT_WIDE

#define MAGIC_FIRST  0x57 /* 'W' */
#define MAGIC_SECOND 0x4D /* 'M' */
#define CRC_AT       20

static uint32_t get32(const uint8_t *data)
{
    return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
}

static void put32(uint8_t *out, uint32_t value)
{
    out[0] = (uint8_t)(value >> 24);
    out[1] = (uint8_t)(value >> 16);
    out[2] = (uint8_t)(value >> 8);
    out[3] = (uint8_t)value;
}

int pt_is_wide(const uint8_t *start)
{
    PT_ASSERT(start != NULL);

    return start[0] == MAGIC_FIRST && start[1] == MAGIC_SECOND;
}

uint32_t pt_wide_start_crc(const uint8_t *header)
{
    PT_ASSERT(pt_is_wide(header));

    return pt_crc32c(0, header, CRC_AT);
}

void pt_wide_put(uint8_t *out, const pt_wide *wide, const uint8_t *payload)
{
    PT_ASSERT(wide->payload_len <= PT_WIDE_MAX_PAYLOAD);
    PT_ASSERT((payload != NULL) == (wide->payload_len != 0));

    out[0] = MAGIC_FIRST;
    out[1] = MAGIC_SECOND;
    out[2] = wide->type;
    out[3] = wide->reason;
    put32(out + 4, wide->payload_len);
    put32(out + 8, wide->id);
    put32(out + 12, wide->offset);
    put32(out + 16, wide->total);
    uint32_t crc = pt_wide_start_crc(out);
    if (payload != NULL)
        crc = pt_crc32c(crc, payload, wide->payload_len);
    put32(out + CRC_AT, crc);
}

/* The rules of one header. */
static int judge(const pt_wide *wide)
{
    int is_data = wide->type == PT_FRAME_DATA;
    if (!is_data && (wide->type < PT_FRAME_OFFER || wide->type > PT_FRAME_REFUSE))
        return PT_ERR_INVALID_PARAM;
    if (wide->payload_len > PT_WIDE_MAX_PAYLOAD)
        return PT_ERR_MESSAGE_TOO_LARGE;
    if (is_data != (wide->payload_len != 0))
        return PT_ERR_INVALID_PARAM;
    if (is_data && (wide->offset > wide->total || wide->payload_len > wide->total - wide->offset))
        return PT_ERR_INVALID_PARAM;
    if (is_data && wide->id == 0 && wide->payload_len != wide->total)
        return PT_ERR_INVALID_PARAM;
    return PT_OK;
}

int pt_wide_decode(const uint8_t *header, pt_wide *out)
{
    PT_ASSERT(header != NULL && out != NULL);

    if (!pt_is_wide(header))
        return PT_ERR_MAGIC;
    pt_wide wide = {.type = header[2],
                    .reason = header[3],
                    .payload_len = get32(header + 4),
                    .id = get32(header + 8),
                    .offset = get32(header + 12),
                    .total = get32(header + 16),
                    .crc = get32(header + CRC_AT)};
    int code = judge(&wide);
    if (code == PT_OK)
        *out = wide;
    return code;
}

#endif
