/* What the programs about the simulated network share: a check that says where it failed, memory
 * that is counted, and nodes on a network. */
#ifndef SIM_CHECK_H
#define SIM_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pt_loop.h"
#include "pt_mactcp.h"
#include "pt_mactcp_driver.h"
#include "pt_ot.h"
#include "pt_ot_provider.h"
#include "pt_sim.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define MS     UINT64_C(1000000)
#define SECOND UINT64_C(1000000000)
#define EVENTS 128

/* Memory that is counted. */
static size_t memory_held;

static void *counted_allocate(void *context, size_t size)
{
    (void)context;
    memory_held += size;
    return aligned_alloc(16, (size + 15) / 16 * 16);
}

static void counted_release(void *context, void *memory, size_t size)
{
    (void)context;
    memory_held -= size;
    free(memory);
}

static const pt_memory counted = {counted_allocate, counted_release, NULL};

/* The same for drivers and providers, where it can run out. */
static uint32_t allocations_left = UINT32_MAX;

static void *scarce_allocate(void *context, size_t size)
{
    if (allocations_left == 0)
        return NULL;
    allocations_left--;
    return counted_allocate(context, size);
}

static const pt_memory scarce = {scarce_allocate, counted_release, NULL};

/* A node: one loop on one host, with one link. */
typedef struct node {
    pt_context context;
    pt_link link;
    pt_send_slot slots[8];
    pt_pool *pool;
    void *pool_memory;
    void *platform;
    uint8_t *receive_buffer;
    uint8_t *frames;
    pt_event frame_events[512];
    pt_event events[EVENTS];
    pt_source *ready[PT_IO_BUDGET];
    int32_t handle;
    int host;
    const pt_platform_ops *ops;
    uint32_t sent, failed, received, wrong, closed;
    int32_t close_code, close_error, sent_code;
} node;

static void make_node(node *made, pt_sim *sim, const pt_platform_ops *ops, uint32_t address,
                      int push, uint32_t send_limit)
{
    static const pt_pool_class classes[] = {
        {256, 64, 0}, {1040, 64, 0}, {4112, 64, 0}, {8320, 64, 0}};
    memset(made, 0, sizeof *made);
    made->host = pt_sim_add_host(sim, address);
    CHECK(made->host >= 0);
    made->ops = ops;
    made->pool_memory = malloc(pt_pool_size(classes, 4));
    made->pool = pt_pool_init(made->pool_memory, classes, 4, 0, &counted);
    pt_setup setup = {.network = sim,
                      .host = made->host,
                      .memory = &scarce,
                      .push = (uint8_t)push,
                      .send_limit = send_limit};
    int32_t unused;
    made->platform = malloc(ops->size(&setup));
    CHECK(ops->init(made->platform, &setup, &unused) == PT_OK);
    made->receive_buffer = malloc(PT_RECEIVE_BUFFER_SIZE);
    made->frames = malloc(1 << 19);
    CHECK(pt_context_init(&made->context, ops, made->platform, made->pool, made->receive_buffer,
                          PT_RECEIVE_BUFFER_SIZE, made->ready, PT_IO_BUDGET) == PT_OK);
}

static void open_link(node *of, int32_t handle, uint8_t depth, int packing)
{
    of->handle = handle;
    CHECK(pt_link_open(&of->context, &of->link, handle, 1, of->slots, depth, PT_SLOT_BUFFER_SIZE,
                       packing, PT_MESSAGE_MAX_PAYLOAD, pt_message_format(0)) == PT_OK);
}

/* Two nodes with a connection between them; the first dials. */
static void connect_nodes(pt_sim *sim, node *one, node *other, uint8_t depth, int packing)
{
    int32_t listener = pt_sim_listen(sim, other->host, 7354);
    uint32_t address;
    uint16_t port;
    CHECK(pt_sim_get_name(sim, listener, 0, &address, &port) == PT_OK);
    int32_t dialled = pt_sim_dial(sim, one->host, address, port), accepted;
    CHECK(listener > 0 && dialled > 0);
    while ((accepted = pt_sim_accept(sim, listener)) == PT_ERR_WOULD_BLOCK ||
           pt_sim_get_outcome(sim, dialled) == PT_ERR_WOULD_BLOCK) {
        if (accepted > 0)
            break;
        CHECK(pt_sim_step(sim, UINT64_MAX) == 1);
    }
    while (pt_sim_get_outcome(sim, dialled) == PT_ERR_WOULD_BLOCK)
        CHECK(pt_sim_step(sim, UINT64_MAX) == 1);
    pt_sim_release(sim, listener);
    open_link(one, dialled, depth, packing);
    open_link(other, accepted, depth, packing);
}

/* One turn. DATA payloads begin with their number, which must be the next one. */
static int turn(node *of, int timeout_ms)
{
    pt_plain_sink plain = {of->frame_events, of->frames, 512, 0, 1 << 19, 0};
    pt_sink sink;
    pt_plain_sink_init(&plain, &sink, 5000);
    int count = pt_loop_turn(&of->context, timeout_ms, of->events, EVENTS, &sink);
    CHECK(count >= 0);
    for (uint32_t index = 0; index < plain.count; index++) {
        const uint8_t *payload = of->frames + plain.events[index].offset;
        uint32_t number = (uint32_t)payload[0] << 24 | (uint32_t)payload[1] << 16 |
                          (uint32_t)payload[2] << 8 | payload[3];
        of->wrong += number != of->received;
        of->received++;
    }
    for (int index = 0; index < count; index++) {
        const pt_event *event = &of->events[index];
        if (event->kind == PT_EVENT_SENT) {
            if (event->code == PT_OK)
                of->sent += event->count;
            else
                of->failed += event->count, of->sent_code = event->code;
        } else if (event->kind == PT_EVENT_CLOSED) {
            of->closed = 1;
            of->close_code = event->code;
            of->close_error = event->system_error;
        }
    }
    return count + (int)plain.count;
}

static int has_work(node *of)
{
    return pt_loop_next_timeout(&of->context) == 0 || pt_classic_is_ready(&of->context);
}

static int send_number(node *of, uint32_t number, uint32_t size)
{
    static uint8_t payload[PT_MESSAGE_MAX_PAYLOAD];
    payload[0] = (uint8_t)(number >> 24);
    payload[1] = (uint8_t)(number >> 16);
    payload[2] = (uint8_t)(number >> 8);
    payload[3] = (uint8_t)number;
    int result = pt_link_send(&of->context, &of->link, PT_FRAME_DATA, 0, payload, size);
    memset(payload, 0xEE, sizeof payload); /* the caller's again at once */
    return result;
}

/* Both nodes work until neither has any; then the network's next event. 0: nothing more will happen
 * by limit_ns. */
static int go_on(pt_sim *sim, node *one, node *other, uint64_t limit_ns)
{
    int worked;
    do {
        worked = 0;
        if (one != NULL && has_work(one))
            worked += 1 + turn(one, 0);
        if (other != NULL && has_work(other))
            worked += 1 + turn(other, 0);
    } while (worked);
    int result = pt_sim_step(sim, limit_ns);
    CHECK(result >= 0 || result == PT_ERR_NO_MEMORY);
    return result != 0;
}

static const pt_classic *world_of(const node *of)
{
    return of->platform;
}

__attribute__((unused)) static int has_violation(const node *of, const char *words)
{
    for (uint32_t index = 0; index < world_of(of)->violation_count && index < PT_CLASSIC_VIOLATIONS;
         index++) {
        if (strstr(&world_of(of)->violations[(size_t)index * PT_CLASSIC_VIOLATION_SIZE], words) !=
            NULL)
            return 1;
    }
    return 0;
}

/* Everything goes back; slots that the driver still has are let go of by its cleanup. */
static void end_node(node *of)
{
    (void)pt_link_close(&of->context, &of->link);
    of->ops->cleanup(of->platform);
    CHECK(pt_context_cleanup(&of->context) == PT_OK);
    CHECK(pt_pool_cleanup(of->pool) == 0);
    free(of->pool_memory);
    free(of->platform);
    free(of->receive_buffer);
    free(of->frames);
}

#endif
