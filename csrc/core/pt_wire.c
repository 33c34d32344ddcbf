/* The encodings of the original protocol. Every decoder reads a field only after the length that
 * covers it was checked; every encoder refuses before it writes. Numbers are big-endian and put
 * together from bytes, so that neither alignment nor the machine's order matters. */
#include "pt_wire.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_crc.h"

#define FRAME_MAGIC     0x50544D47u /* "PTMG" */
#define DISCOVERY_MAGIC 0x50544C4Bu /* "PTLK" */
#define DATAGRAM_MAGIC  0x50545544u /* "PTUD" */
#define COMPACT_MAGIC   0x50        /* 'P' */

/* CRC of the first six bytes of a full header ("PTMG", version, type), by type. */
static const uint16_t HEADER_CRC_START[8] = {0x1680, 0x0709, 0x3592, 0x241b,
                                             0x50a4, 0x412d, 0x73b6, 0x623f};

/* TLVs of a CAPABILITY: type 1, length 1, value. */
enum { TLV_MAX_MESSAGE = 1, TLV_PREFERRED_CHUNK = 2, TLV_PRESSURE = 3, TLV_FLAGS = 4 };

/* What a peer is taken to want when its CAPABILITY does not say. */
static const pt_capability UNSAID = {
    .max_message = 512, .preferred_chunk = 256, .flags = 0, .pressure = 50};

static uint16_t get16(const uint8_t *data)
{
    return (uint16_t)(data[0] << 8 | data[1]);
}

static uint32_t get32(const uint8_t *data)
{
    return (uint32_t)get16(data) << 16 | get16(data + 2);
}

static void put16(uint8_t *out, unsigned value)
{
    PT_ASSERT(value <= UINT16_MAX);

    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
}

static void put32(uint8_t *out, uint32_t value)
{
    put16(out, value >> 16);
    put16(out + 2, value & 0xFFFF);
}

static int is_frame_type(unsigned type)
{
    return type >= PT_FRAME_DATA && type <= PT_FRAME_CAPABILITY;
}

static int is_discovery_type(unsigned type)
{
    return type >= PT_DISCOVERY_ANNOUNCE && type <= PT_DISCOVERY_GOODBYE;
}

static void put_header(uint8_t *out, uint8_t type, uint8_t flags, uint8_t sequence,
                       uint32_t payload_len)
{
    PT_ASSERT(is_frame_type(type));
    PT_ASSERT(payload_len <= UINT16_MAX);

    put32(out, FRAME_MAGIC);
    out[4] = PT_PROTOCOL_VERSION;
    out[5] = type;
    out[6] = flags;
    out[7] = sequence;
    put16(out + 8, payload_len);
}

int pt_header_encode(const pt_frame *frame, uint8_t *out, size_t size)
{
    if (!is_frame_type(frame->type) || frame->payload_len > UINT16_MAX)
        return PT_ERR_INVALID_PARAM;
    if (size < PT_HEADER_SIZE)
        return PT_ERR_BUFFER_FULL;

    put_header(out, frame->type, frame->flags, frame->sequence, frame->payload_len);
    return PT_HEADER_SIZE;
}

int pt_header_decode(const uint8_t *data, size_t len, pt_frame *out)
{
    PT_ASSERT(data != NULL || len == 0);

    if (len < PT_HEADER_SIZE)
        return PT_ERR_TRUNCATED;
    if (get32(data) != FRAME_MAGIC)
        return PT_ERR_MAGIC;
    if (data[4] != PT_PROTOCOL_VERSION)
        return PT_ERR_VERSION;
    if (!is_frame_type(data[5]))
        return PT_ERR_INVALID_PARAM;

    *out = (pt_frame){.payload = NULL,
                      .payload_len = get16(data + 8),
                      .type = data[5],
                      .flags = data[6],
                      .sequence = data[7]};
    return PT_HEADER_SIZE;
}

void pt_frame_put(uint8_t *out, uint8_t type, uint8_t flags, uint8_t sequence,
                  const uint8_t *payload, uint32_t payload_len)
{
    PT_ASSERT(is_frame_type(type) && type < sizeof HEADER_CRC_START / sizeof HEADER_CRC_START[0]);
    PT_ASSERT(payload_len <= UINT16_MAX);
    PT_ASSERT(payload != NULL || payload_len == 0);

    /* The CRC is taken from registers and from the source of the payload: reading back what was
     * just stored would stall. */
    put_header(out, type, flags, sequence, payload_len);
    uint16_t crc = pt_crc16_word(HEADER_CRC_START[type],
                                 (uint32_t)flags << 24 | (uint32_t)sequence << 16 | payload_len);
    if (payload_len > 0) {
        crc = pt_crc16(crc, payload, payload_len);
        memcpy(out + PT_HEADER_SIZE, payload, payload_len);
    }
    put16(out + PT_HEADER_SIZE + payload_len, crc);
}

int pt_frame_encode(const pt_frame *frame, uint8_t *out, size_t size)
{
    PT_ASSERT(frame->payload != NULL || frame->payload_len == 0);

    if (!is_frame_type(frame->type))
        return PT_ERR_INVALID_PARAM;
    if (frame->payload_len > PT_FRAME_MAX_PAYLOAD)
        return PT_ERR_MESSAGE_TOO_LARGE;
    size_t whole = PT_FRAME_OVERHEAD + (size_t)frame->payload_len;
    if (size < whole)
        return PT_ERR_BUFFER_FULL;

    pt_frame_put(out, frame->type, frame->flags, frame->sequence, frame->payload,
                 frame->payload_len);
    return (int)whole;
}

int pt_frame_decode(const uint8_t *data, size_t len, pt_frame *out)
{
    pt_frame frame;
    int header = pt_header_decode(data, len, &frame);
    if (header < 0)
        return header;
    if (frame.payload_len > PT_FRAME_MAX_PAYLOAD)
        return PT_ERR_MESSAGE_TOO_LARGE;
    PT_ASSERT(header == PT_HEADER_SIZE && is_frame_type(frame.type));
    size_t covered = PT_HEADER_SIZE + (size_t)frame.payload_len;
    if (len < covered + PT_TRAILER_SIZE)
        return PT_ERR_TRUNCATED;
    if (pt_crc16(0, data, covered) != get16(data + covered))
        return PT_ERR_CRC;

    frame.payload = data + PT_HEADER_SIZE;
    *out = frame;
    return (int)(covered + PT_TRAILER_SIZE);
}

int pt_compact_encode(const pt_frame *frame, uint8_t *out, size_t size)
{
    if (!is_frame_type(frame->type) || frame->payload_len > UINT16_MAX)
        return PT_ERR_INVALID_PARAM;
    if (size < PT_COMPACT_HEADER_SIZE)
        return PT_ERR_BUFFER_FULL;

    out[0] = COMPACT_MAGIC;
    out[1] = (uint8_t)(frame->type << 4 | (frame->flags & 0x0F));
    put16(out + 2, frame->payload_len);
    return PT_COMPACT_HEADER_SIZE;
}

int pt_compact_decode(const uint8_t *data, size_t len, pt_frame *out)
{
    PT_ASSERT(data != NULL || len == 0);

    if (len < PT_COMPACT_HEADER_SIZE)
        return PT_ERR_TRUNCATED;
    if (data[0] != COMPACT_MAGIC)
        return PT_ERR_MAGIC;
    if (!is_frame_type(data[1] >> 4))
        return PT_ERR_INVALID_PARAM;

    *out = (pt_frame){.payload = NULL,
                      .payload_len = get16(data + 2),
                      .type = data[1] >> 4,
                      .flags = data[1] & 0x0F,
                      .sequence = 0};
    return PT_COMPACT_HEADER_SIZE;
}

int pt_is_compact(const uint8_t *data, size_t len)
{
    return len >= 2 && data[0] == COMPACT_MAGIC && data[1] != (FRAME_MAGIC >> 16 & 0xFF);
}

int pt_discovery_encode(const pt_discovery *packet, uint8_t *out, size_t size)
{
    if (!is_discovery_type(packet->type) || packet->name_len > PT_NAME_MAX)
        return PT_ERR_INVALID_PARAM;
    size_t whole = PT_DISCOVERY_MIN_SIZE + (size_t)packet->name_len;
    if (size < whole)
        return PT_ERR_BUFFER_FULL;

    put32(out, DISCOVERY_MAGIC);
    out[4] = PT_PROTOCOL_VERSION;
    out[5] = packet->type;
    put16(out + 6, packet->flags);
    put16(out + 8, packet->port);
    out[10] = packet->transports;
    out[11] = packet->name_len;
    memcpy(out + 12, packet->name, packet->name_len);
    PT_ASSERT(whole <= PT_DISCOVERY_MAX_SIZE);
    PT_ASSERT(12 + (size_t)packet->name_len == whole - PT_TRAILER_SIZE);
    put16(out + whole - PT_TRAILER_SIZE, pt_crc16(0, out, whole - PT_TRAILER_SIZE));
    return (int)whole;
}

int pt_discovery_decode(const uint8_t *data, size_t len, pt_discovery *out)
{
    PT_ASSERT(data != NULL || len == 0);

    if (len < PT_DISCOVERY_MIN_SIZE)
        return PT_ERR_TRUNCATED;
    if (get32(data) != DISCOVERY_MAGIC)
        return PT_ERR_MAGIC;
    if (data[4] != PT_PROTOCOL_VERSION)
        return PT_ERR_VERSION;
    uint8_t name_len = data[11];
    if (!is_discovery_type(data[5]) || name_len > PT_NAME_MAX)
        return PT_ERR_INVALID_PARAM;
    size_t covered = PT_DISCOVERY_MIN_SIZE - PT_TRAILER_SIZE + (size_t)name_len;
    if (len < covered + PT_TRAILER_SIZE)
        return PT_ERR_TRUNCATED;
    if (pt_crc16(0, data, covered) != get16(data + covered))
        return PT_ERR_CRC;

    *out = (pt_discovery){.flags = get16(data + 6),
                          .port = get16(data + 8),
                          .type = data[5],
                          .transports = data[10],
                          .name_len = name_len};
    PT_ASSERT(name_len <= sizeof out->name);
    PT_ASSERT(12 + (size_t)name_len == covered);
    memcpy(out->name, data + 12, name_len);
    return (int)(covered + PT_TRAILER_SIZE);
}

static uint8_t *put_tlv16(uint8_t *out, uint8_t type, uint16_t value)
{
    out[0] = type;
    out[1] = 2;
    put16(out + 2, value);
    return out + 4;
}

int pt_capability_encode(const pt_capability *capability, uint8_t *out, size_t size)
{
    if (size < PT_CAPABILITY_SIZE)
        return PT_ERR_BUFFER_FULL;

    uint8_t *end = put_tlv16(out, TLV_MAX_MESSAGE, capability->max_message);
    end = put_tlv16(end, TLV_PREFERRED_CHUNK, capability->preferred_chunk);
    *end++ = TLV_PRESSURE;
    *end++ = 1;
    *end++ = capability->pressure;
    end = put_tlv16(end, TLV_FLAGS, capability->flags);
    PT_ASSERT(end == out + PT_CAPABILITY_SIZE);
    (void)end;
    return PT_CAPABILITY_SIZE;
}

/* One TLV, whose value has value_len bytes: more than it needs is fine, less means that it is not
 * there. */
static void apply_tlv(pt_capability *capability, unsigned type, const uint8_t *value,
                      size_t value_len)
{
    PT_ASSERT(capability->pressure <= 100);
    PT_ASSERT(capability->max_message >= PT_MESSAGE_LIMIT_MIN &&
              capability->max_message <= PT_MESSAGE_LIMIT_MAX);

    if (type == TLV_PRESSURE && value_len >= 1)
        capability->pressure = value[0] > 100 ? 100 : value[0];
    if (value_len < 2)
        return;

    uint16_t number = get16(value);
    if (type == TLV_MAX_MESSAGE)
        capability->max_message = number < PT_MESSAGE_LIMIT_MIN   ? PT_MESSAGE_LIMIT_MIN
                                  : number > PT_MESSAGE_LIMIT_MAX ? PT_MESSAGE_LIMIT_MAX
                                                                  : number;
    else if (type == TLV_PREFERRED_CHUNK)
        capability->preferred_chunk = number;
    else if (type == TLV_FLAGS)
        capability->flags = number;
}

int pt_capability_decode(const uint8_t *data, size_t len, pt_capability *out)
{
    PT_ASSERT(data != NULL || len == 0);

    if (len > UINT16_MAX) /* no frame carries more, and the result is an int */
        return PT_ERR_INVALID_PARAM;

    pt_capability capability = UNSAID;
    size_t at = 0;
    while (len - at >= 2) {
        size_t value_len = data[at + 1];
        if (len - at - 2 < value_len)
            return PT_ERR_TRUNCATED;
        apply_tlv(&capability, data[at], data + at + 2, value_len);
        at += 2 + value_len;
        PT_ASSERT(at <= len);
    }
    *out = capability;
    return (int)len;
}

int pt_datagram_encode(const pt_datagram *datagram, uint8_t *out, size_t size)
{
    PT_ASSERT(datagram->payload != NULL || datagram->payload_len == 0);

    if (datagram->payload_len > PT_DATAGRAM_MAX_PAYLOAD)
        return PT_ERR_MESSAGE_TOO_LARGE;
    size_t whole = PT_DATAGRAM_HEADER_SIZE + (size_t)datagram->payload_len;
    if (size < whole)
        return PT_ERR_BUFFER_FULL;

    put32(out, DATAGRAM_MAGIC);
    put16(out + 4, datagram->port);
    put16(out + 6, datagram->payload_len);
    if (datagram->payload_len > 0)
        memcpy(out + PT_DATAGRAM_HEADER_SIZE, datagram->payload, datagram->payload_len);
    return (int)whole;
}

int pt_datagram_decode(const uint8_t *data, size_t len, pt_datagram *out)
{
    PT_ASSERT(data != NULL || len == 0);

    if (len < PT_DATAGRAM_HEADER_SIZE)
        return PT_ERR_TRUNCATED;
    if (get32(data) != DATAGRAM_MAGIC)
        return PT_ERR_MAGIC;
    uint16_t payload_len = get16(data + 6);
    if (len - PT_DATAGRAM_HEADER_SIZE < payload_len)
        return PT_ERR_TRUNCATED;

    *out = (pt_datagram){.payload = data + PT_DATAGRAM_HEADER_SIZE,
                         .payload_len = payload_len,
                         .port = get16(data + 4)};
    return PT_DATAGRAM_HEADER_SIZE + payload_len;
}

int pt_fragment_encode(const pt_fragment *fragment, uint8_t *out, size_t size)
{
    if (size < PT_FRAGMENT_HEADER_SIZE)
        return PT_ERR_BUFFER_FULL;

    put16(out, fragment->message_id);
    put16(out + 2, fragment->total_len);
    put16(out + 4, fragment->offset);
    out[6] = fragment->flags;
    out[7] = 0;
    return PT_FRAGMENT_HEADER_SIZE;
}

int pt_fragment_decode(const uint8_t *data, size_t len, pt_fragment *out)
{
    PT_ASSERT(data != NULL || len == 0);

    if (len < PT_FRAGMENT_HEADER_SIZE)
        return PT_ERR_TRUNCATED;

    *out = (pt_fragment){.message_id = get16(data),
                         .total_len = get16(data + 2),
                         .offset = get16(data + 4),
                         .flags = data[6]};
    return PT_FRAGMENT_HEADER_SIZE;
}
