/* One message of 1,024 bytes on a 68000, for counting: from pt_link_send() to the report that it
 * has left, on a platform that takes each write at once. Each part is a function of its own, so
 * that a trace can be cut there. What is counted is the last message: those before it chose the way
 * of the CRC and made the buffer of each slot. Prints the bytes of stack that all of it used. */
#include "pt_loop.h"

void *memcpy(void *to, const void *from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int value, size_t len);
int memcmp(const void *a, const void *b, size_t len);
void bare_write(const char *text, uint32_t len);
int main(void);
void part_send(void);
void part_turn(void);

extern uint32_t bare_stack[4096];

/* Four bytes at a time where both addresses are even, as a 68000 demands. */
void *memcpy(void *to, const void *from, size_t len)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((((uintptr_t)to | (uintptr_t)from) & 1) == 0) {
        uint32_t *long_out = to;
        const uint32_t *long_in = from;
        for (; len >= 16; len -= 16) {
            *long_out++ = *long_in++;
            *long_out++ = *long_in++;
            *long_out++ = *long_in++;
            *long_out++ = *long_in++;
        }
        out = (uint8_t *)long_out;
        in = (const uint8_t *)long_in;
    }
    while (len-- > 0)
        *out++ = *in++;
    return to;
}

void *memmove(void *to, const void *from, size_t len)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((uintptr_t)to <= (uintptr_t)from)
        return memcpy(to, from, len);
    while (len-- > 0)
        out[len] = in[len];
    return to;
}

void *memset(void *to, int value, size_t len)
{
    uint8_t *out = to;
    uint32_t four = (uint8_t)value;
    four |= four << 8;
    four |= four << 16;
    if (((uintptr_t)to & 1) == 0) {
        uint32_t *long_out = to;
        for (; len >= 16; len -= 16) {
            *long_out++ = four;
            *long_out++ = four;
            *long_out++ = four;
            *long_out++ = four;
        }
        out = (uint8_t *)long_out;
    }
    while (len-- > 0)
        *out++ = (uint8_t)four;
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *left = a, *right = b;
    for (; len > 0; len--, left++, right++) {
        if (*left != *right)
            return *left < *right ? -1 : 1;
    }
    return 0;
}

static _Alignas(16) uint8_t arena[16384];
static size_t arena_used;

static void *allocate(void *context, size_t size)
{
    (void)context;
    void *memory = arena + arena_used;
    arena_used += (size + 15) & ~(size_t)15;
    return memory;
}

static void release(void *context, void *memory, size_t size)
{
    (void)context;
    (void)memory;
    (void)size;
}

/* ---- A platform that takes every write at once. */

static int take(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    (void)link;
    (void)data;
    (void)len;
    return PT_OK;
}

static int let_go(pt_context *context, pt_link *link)
{
    (void)context;
    pt_send_pipeline *pipeline = &link->pipeline;
    for (uint8_t index = 0; index < pipeline->depth; index++) {
        if (pipeline->slots[index].state == PT_SLOT_IN_FLIGHT)
            pt_pipeline_complete(pipeline, index, PT_OK);
    }
    return PT_OK;
}

static int receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    (void)context;
    (void)link;
    (void)buffer;
    (void)size;
    return PT_ERR_WOULD_BLOCK;
}

static int watch(pt_context *context, pt_source *source)
{
    (void)context;
    (void)source;
    return PT_OK;
}

static void forget(pt_context *context, pt_source *source)
{
    (void)context;
    (void)source;
}

static int wait(pt_context *context, int timeout_ms)
{
    (void)context;
    (void)timeout_ms;
    return 0;
}

static uint32_t clock(pt_context *context)
{
    (void)context;
    return 1000;
}

static const pt_platform_ops ops = {
    .name = "counting",
    .tcp_send_async = take,
    .poll_send_completions = let_go,
    .tcp_receive = receive,
    .watch = watch,
    .forget = forget,
    .wait = wait,
    .clock = clock,
    .ticks_per_second = PT_TICKS_PER_SECOND,
};

#define EVENTS (4 * PT_IO_BUDGET + 4)

static pt_context context;
static pt_link link;
static pt_send_slot slots[PT_SEND_PIPELINE_DEPTH];
static uint8_t receive_buffer[PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD];
static uint8_t payload[1024];
static pt_event events[EVENTS], frames[1];
static pt_source *ready[1];
static pt_plain_sink plain = {.events = frames, .capacity = 1};
static pt_sink sink;
static int result, count;

__attribute__((noinline)) void part_send(void)
{
    result = pt_link_send(&context, &link, PT_FRAME_DATA, 0, payload, sizeof payload);
}

__attribute__((noinline)) void part_turn(void)
{
    count = pt_loop_turn(&context, 0, events, EVENTS, &sink);
}

static void write_number(uint32_t number)
{
    char text[10];
    uint32_t at = sizeof text;
    text[--at] = '\n';
    do
        text[--at] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    bare_write(text + at, (uint32_t)(sizeof text - at));
}

int main(void)
{
    static const pt_pool_class classes[] = {{PT_SLOT_BUFFER_SIZE, 4, 0}};
    static const pt_memory source = {allocate, release, NULL};
    static _Alignas(8) uint8_t pool_memory[1024];
    if (pt_pool_size(classes, 1) > sizeof pool_memory)
        return 1;
    uint8_t *top = (uint8_t *)__builtin_frame_address(0);
    for (uint32_t *place = bare_stack; place < (uint32_t *)(void *)(top - 64); place++)
        *place = 0xDEADBEEF;

    pt_pool *pool = pt_pool_init(pool_memory, classes, 1, 0, &source);
    if (pool == NULL || pt_context_init(&context, &ops, NULL, pool, receive_buffer,
                                        sizeof receive_buffer, ready, 1) != PT_OK)
        return 2;
    if (pt_link_open(&context, &link, 0, 0, slots, PT_SEND_PIPELINE_DEPTH, PT_SLOT_BUFFER_SIZE, 0,
                     PT_FRAME_MAX_PAYLOAD, pt_message_format(0)) != PT_OK)
        return 3;
    for (unsigned at = 0; at < sizeof payload; at++)
        payload[at] = (uint8_t)(at * 7 + 3);
    for (int message = 0; message <= PT_SEND_PIPELINE_DEPTH; message++) {
        pt_plain_sink_init(&plain, &sink, 0);
        part_send();
        part_turn();
        if (result < 0 || count != 1 || events[0].kind != PT_EVENT_SENT ||
            events[0].code != PT_OK || events[0].count != 1)
            return 4;
    }
    if (pt_link_close(&context, &link) != 0 || pt_context_cleanup(&context) != PT_OK ||
        pt_pool_cleanup(pool) != 0)
        return 5;

    const uint32_t *used = bare_stack;
    while (*used == 0xDEADBEEF)
        used++;
    write_number((uint32_t)(top - (const uint8_t *)used));
    return 0;
}
