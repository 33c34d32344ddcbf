/* libFuzzer: a discovery packet from anyone. What is accepted is made again byte for byte; what is
 * refused leaves the output alone.
 *
 * Input: the packet. It is read as it is, and once more with a true CRC, so that the fuzzer need
 * not guess checksums. */
#include <stdint.h>
#include <string.h>

#include "pt_crc.h"
#include "pt_wire.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

static void check(const uint8_t *data, size_t size)
{
    pt_discovery packet, untouched;
    memset(&packet, 0xA5, sizeof packet);
    memset(&untouched, 0xA5, sizeof untouched);

    int len = pt_discovery_decode(data, size, &packet);
    if (len < 0) {
        EXPECT(len >= PT_ERR_VERSION && len <= PT_ERR_INVALID_PARAM);
        EXPECT(memcmp(&packet, &untouched, sizeof packet) == 0);
        return;
    }
    EXPECT((size_t)len <= size && len == PT_DISCOVERY_MIN_SIZE + packet.name_len &&
           packet.name_len <= PT_NAME_MAX);

    uint8_t again[PT_DISCOVERY_MAX_SIZE] = {0};
    static const uint8_t blank[PT_DISCOVERY_MAX_SIZE];
    EXPECT(pt_discovery_encode(&packet, again, (size_t)len - 1) == PT_ERR_BUFFER_FULL);
    EXPECT(memcmp(again, blank, sizeof again) == 0);
    EXPECT(pt_discovery_encode(&packet, again, (size_t)len) == len);
    EXPECT(memcmp(again, data, (size_t)len) == 0);

    pt_discovery twice;
    memset(&twice, 0, sizeof twice);
    EXPECT(pt_discovery_decode(again, (size_t)len, &twice) == len);
    EXPECT(twice.flags == packet.flags && twice.port == packet.port && twice.type == packet.type &&
           twice.transports == packet.transports);
    EXPECT(twice.name_len == packet.name_len &&
           memcmp(twice.name, packet.name, packet.name_len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check(data, size);

    uint8_t mended[PT_DISCOVERY_MAX_SIZE];
    if (size < PT_DISCOVERY_MIN_SIZE || size < PT_DISCOVERY_MIN_SIZE + (size_t)data[11] ||
        data[11] > PT_NAME_MAX)
        return 0;
    size_t covered = 12 + (size_t)data[11];
    memcpy(mended, data, covered);
    uint16_t crc = pt_crc16(0, mended, covered);
    mended[covered] = (uint8_t)(crc >> 8);
    mended[covered + 1] = (uint8_t)crc;
    check(mended, covered + 2);
    return 0;
}
