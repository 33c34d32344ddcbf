/* libFuzzer: a UDP message from anyone, the other two headers without a checksum (compact and
 * fragment), and a whole frame, also with a true one.
 *
 * Input: the datagram. What is accepted is made again byte for byte (as far as the format keeps
 * it); what is refused leaves the output alone. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pt_crc.h"
#include "pt_wire.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

static void check_datagram(const uint8_t *data, size_t size)
{
    static uint8_t again[PT_DATAGRAM_HEADER_SIZE + PT_DATAGRAM_MAX_PAYLOAD];
    static const uint8_t nothing;
    pt_datagram datagram = {.payload = &nothing, .payload_len = 0xA5A5, .port = 0xA5A5};

    int len = pt_datagram_decode(data, size, &datagram);
    if (len < 0) {
        EXPECT(len == PT_ERR_TRUNCATED || len == PT_ERR_MAGIC);
        EXPECT(datagram.payload == &nothing && datagram.payload_len == 0xA5A5 &&
               datagram.port == 0xA5A5);
        return;
    }
    EXPECT((size_t)len <= size && len == PT_DATAGRAM_HEADER_SIZE + datagram.payload_len);
    EXPECT(datagram.payload == data + PT_DATAGRAM_HEADER_SIZE);
    if (datagram.payload_len > PT_DATAGRAM_MAX_PAYLOAD) {
        EXPECT(pt_datagram_encode(&datagram, again, sizeof again) == PT_ERR_MESSAGE_TOO_LARGE);
        return;
    }
    memset(again, 0, sizeof again);
    EXPECT(pt_datagram_encode(&datagram, again, (size_t)len - 1) == PT_ERR_BUFFER_FULL &&
           again[0] == 0);
    EXPECT(pt_datagram_encode(&datagram, again, (size_t)len) == len);
    EXPECT(memcmp(again, data, (size_t)len) == 0);
}

static void check_compact(const uint8_t *data, size_t size)
{
    pt_frame frame;
    int len = pt_compact_decode(data, size, &frame);
    EXPECT(size >= 2 || !pt_is_compact(data, size));
    if (len < 0) {
        EXPECT(len == PT_ERR_TRUNCATED || len == PT_ERR_MAGIC || len == PT_ERR_INVALID_PARAM);
        return;
    }
    uint8_t again[PT_COMPACT_HEADER_SIZE];
    EXPECT(len == PT_COMPACT_HEADER_SIZE);
    EXPECT(pt_compact_encode(&frame, again, PT_COMPACT_HEADER_SIZE - 1) == PT_ERR_BUFFER_FULL);
    EXPECT(pt_compact_encode(&frame, again, sizeof again) == len &&
           memcmp(again, data, sizeof again) == 0);
}

static void check_fragment(const uint8_t *data, size_t size)
{
    pt_fragment fragment;
    int len = pt_fragment_decode(data, size, &fragment);
    if (len < 0) {
        EXPECT(len == PT_ERR_TRUNCATED && size < PT_FRAGMENT_HEADER_SIZE);
        return;
    }
    uint8_t again[PT_FRAGMENT_HEADER_SIZE];
    EXPECT(len == PT_FRAGMENT_HEADER_SIZE);
    EXPECT(pt_fragment_encode(&fragment, again, PT_FRAGMENT_HEADER_SIZE - 1) == PT_ERR_BUFFER_FULL);
    EXPECT(pt_fragment_encode(&fragment, again, sizeof again) == len);
    EXPECT(memcmp(again, data, PT_FRAGMENT_HEADER_SIZE - 1) == 0 &&
           again[PT_FRAGMENT_HEADER_SIZE - 1] == 0);
}

static void check_frame(const uint8_t *data, size_t size)
{
    static const uint8_t nothing;
    pt_frame frame = {.payload = &nothing, .payload_len = 0xA5A5};
    int len = pt_frame_decode(data, size, &frame);
    if (len < 0) {
        EXPECT(len >= PT_ERR_VERSION && len <= PT_ERR_INVALID_PARAM);
        EXPECT(frame.payload == &nothing && frame.payload_len == 0xA5A5);
        return;
    }
    static uint8_t again[PT_FRAME_MAX_PAYLOAD + PT_FRAME_OVERHEAD];
    EXPECT((size_t)len <= size && (size_t)len == PT_FRAME_OVERHEAD + (size_t)frame.payload_len &&
           frame.payload == data + PT_HEADER_SIZE);
    EXPECT(pt_frame_encode(&frame, again, (size_t)len - 1) == PT_ERR_BUFFER_FULL);
    EXPECT(pt_frame_encode(&frame, again, (size_t)len) == len &&
           memcmp(again, data, (size_t)len) == 0);
}

static void check_mended_frame(const uint8_t *data, size_t size)
{
    if (size < PT_FRAME_OVERHEAD)
        return;
    size_t covered = PT_HEADER_SIZE + ((size_t)data[8] << 8 | data[9]);
    if (covered + PT_TRAILER_SIZE > size)
        return;
    uint8_t *mended = malloc(covered + PT_TRAILER_SIZE);
    EXPECT(mended != NULL);
    memcpy(mended, data, covered);
    uint16_t crc = pt_crc16(0, mended, covered);
    mended[covered] = (uint8_t)(crc >> 8);
    mended[covered + 1] = (uint8_t)crc;
    check_frame(mended, covered + PT_TRAILER_SIZE);
    free(mended);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_frame(data, size);
    check_mended_frame(data, size);
    check_datagram(data, size);
    check_compact(data, size);
    check_fragment(data, size);
    return 0;
}
