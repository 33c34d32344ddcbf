/* libFuzzer: the payload of a CAPABILITY frame. What is accepted lies within its bounds, does not
 * depend on what stands behind it, and comes back the same after being encoded; what is refused
 * leaves the output alone.
 *
 * Input: the payload. */
#include <stdint.h>
#include <string.h>

#include "pt_wire.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

static int same(const pt_capability *a, const pt_capability *b)
{
    return a->max_message == b->max_message && a->preferred_chunk == b->preferred_chunk &&
           a->flags == b->flags && a->pressure == b->pressure;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pt_capability untouched = {
        .max_message = 1, .preferred_chunk = 2, .flags = 3, .pressure = 4};
    pt_capability capability = untouched;

    int len = pt_capability_decode(data, size, &capability);
    if (len < 0) {
        EXPECT(len == PT_ERR_TRUNCATED || (len == PT_ERR_INVALID_PARAM && size > UINT16_MAX));
        EXPECT(same(&capability, &untouched));
        return 0;
    }
    EXPECT((size_t)len == size);
    EXPECT(capability.max_message >= PT_MESSAGE_LIMIT_MIN &&
           capability.max_message <= PT_MESSAGE_LIMIT_MAX);
    EXPECT(capability.pressure <= 100);

    uint8_t again[PT_CAPABILITY_SIZE + 1] = {0};
    EXPECT(pt_capability_encode(&capability, again, PT_CAPABILITY_SIZE - 1) == PT_ERR_BUFFER_FULL &&
           again[0] == 0);
    EXPECT(pt_capability_encode(&capability, again, PT_CAPABILITY_SIZE) == PT_CAPABILITY_SIZE);
    pt_capability twice = untouched;
    EXPECT(pt_capability_decode(again, sizeof again, &twice) ==
           (int)sizeof again); /* the loose byte behind it is ignored */
    EXPECT(same(&capability, &twice));
    return 0;
}
