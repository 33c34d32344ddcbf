/* The core without a C library: every header stands alone, and what the sources need beside the
 * compiler is in this file. main returns 0, or the number of the check that failed. */
#include "pt_assert.h"
#include "pt_config.h"
#include "pt_crc.h"
#include "pt_crc32c.h"
#include "pt_error.h"
#include "pt_ingest.h"
#include "pt_loop.h"
#include "pt_pipeline.h"
#include "pt_platform.h"
#include "pt_pool.h"
#include "pt_reassembly.h"
#include "pt_wheel.h"
#include "pt_wire.h"

void *memcpy(void *to, const void *from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int value, size_t len);
int memcmp(const void *a, const void *b, size_t len);
int main(void);

/* volatile: or the compiler would see memcpy in the loop and call it. */
void *memmove(void *to, const void *from, size_t len)
{
    volatile uint8_t *out = to;
    const volatile uint8_t *in = from;
    if ((uintptr_t)to <= (uintptr_t)from)
        for (size_t i = 0; i < len; i++)
            out[i] = in[i];
    else
        for (size_t i = len; i > 0; i--)
            out[i - 1] = in[i - 1];
    return to;
}

void *memcpy(void *to, const void *from, size_t len)
{
    return memmove(to, from, len);
}

void *memset(void *to, int value, size_t len)
{
    volatile uint8_t *out = to;
    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const volatile uint8_t *left = a, *right = b;
    for (size_t i = 0; i < len; i++) {
        uint8_t one = left[i], other = right[i];
        if (one != other)
            return one < other ? -1 : 1;
    }
    return 0;
}

static uint8_t arena[1 << 16];
static size_t arena_used;

static void *allocate(void *context, size_t size)
{
    (void)context;
    size = (size + 63) & ~(size_t)63;
    if (size > sizeof arena - arena_used)
        return NULL;
    void *memory = arena + arena_used;
    arena_used += size;
    return memory;
}

static void release(void *context, void *memory, size_t size)
{
    (void)context;
    (void)memory;
    (void)size;
}

static int check_wire(void)
{
    static const uint8_t hello[] = {'h', 'e', 'l', 'l', 'o'};
    static const uint8_t whole[] = {0x50, 0x54, 0x4d, 0x47, 1,   1,   0,    0,   0,
                                    5,    'h',  'e',  'l',  'l', 'o', 0x41, 0x74};
    const pt_frame frame = {.payload = hello, .payload_len = sizeof hello, .type = PT_FRAME_DATA};
    uint8_t out[sizeof whole] = {0};
    pt_frame back;

    if (pt_frame_encode(&frame, out, sizeof out - 1) != PT_ERR_BUFFER_FULL || out[0] != 0)
        return 1;
    if (pt_header_encode(&frame, out, PT_HEADER_SIZE - 1) != PT_ERR_BUFFER_FULL || out[0] != 0)
        return 2;
    if (pt_frame_encode(&frame, out, sizeof out) != (int)sizeof whole ||
        memcmp(out, whole, sizeof whole) != 0)
        return 3;
    if (pt_frame_decode(out, sizeof out, &back) != (int)sizeof whole ||
        memcmp(back.payload, hello, sizeof hello) != 0)
        return 4;
    if (pt_crc16_table(0, whole, 15) != 0x4174 || pt_crc16(0, NULL, 0) != 0 ||
        pt_crc16(7, NULL, 0) != 7)
        return 5;
    return pt_strerror(PT_ERR_CRC)[0] != 't' ? 6 : 0;
}

static int check_pool(void)
{
    static const pt_pool_class classes[] = {{256, 2, 0}};
    const pt_memory source = {allocate, release, NULL};
    static _Alignas(8) uint8_t memory[4096];
    if (pt_pool_size(classes, 1) > sizeof memory)
        return 7;
    pt_pool *pool = pt_pool_init(memory, classes, 1, 0, &source);
    uint8_t *buffer = pool == NULL ? NULL : pt_pool_acquire(pool, 100);
    if (buffer == NULL)
        return 8;
    pt_pool_release(pool, buffer, 100);
    return pt_pool_cleanup(pool) != 0 ? 9 : 0;
}

static int check_reassembly(void)
{
    static const pt_pool_class classes[] = {{256, 1, 0}};
    const pt_memory source = {allocate, release, NULL};
    static _Alignas(8) uint8_t memory[4096];
    static const uint8_t first[] = {0, 1, 0, 4, 0, 0, PT_FRAGMENT_FIRST, 0, 'a', 'b'},
                         last[] = {0, 1, 0, 4, 0, 2, PT_FRAGMENT_LAST, 0, 'c', 'd'};
    const uint8_t *message;
    uint16_t message_len;
    pt_reassembly reassembly;
    pt_pool *pool = pt_pool_init(memory, classes, 1, 0, &source);
    if (pool == NULL)
        return 10;
    pt_reassembly_init(&reassembly, pool, 4);
    if (pt_reassembly_feed(&reassembly, first, sizeof first, &message, &message_len) != PT_OK)
        return 11;
    if (pt_reassembly_feed(&reassembly, last, sizeof last, &message, &message_len) !=
            PT_REASSEMBLY_COMPLETE ||
        memcmp(message, "abcd", 4) != 0)
        return 12;
    pt_reassembly_cleanup(&reassembly);
    return pt_pool_cleanup(pool) != 0 ? 13 : 0;
}

int main(void)
{
    int failed = check_wire();
    if (failed == 0)
        failed = check_pool();
    return failed != 0 ? failed : check_reassembly();
}
