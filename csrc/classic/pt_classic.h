/* What the classic worlds share: the ports of their links on the simulated network, waiting on its
 * clock, and the memory of rules of their makers that were broken. */
#ifndef PT_CLASSIC_H
#define PT_CLASSIC_H

#include <stddef.h>
#include <stdint.h>

#include "pt_link.h"
#include "pt_sim.h"

#define PT_CLASSIC_VIOLATIONS      32 /* texts kept; more are counted */
#define PT_CLASSIC_VIOLATION_SIZE  128
#define PT_CLASSIC_VIOLATION_BYTES 4096 /* of all of them */
/* What a synchronous send may take, and a closed link until the driver has let go of it. */
#define PT_CLASSIC_DRAIN_NS (UINT64_C(1000000000) * PT_DRAIN_TIMEOUT_TICKS / PT_TICKS_PER_SECOND)

typedef struct pt_classic pt_classic;

/* A link's side of its connection: the first member of what a classic world keeps for a link. Lives
 * on when the link is closed and the driver has its slots. */
typedef struct pt_classic_port pt_classic_port;
struct pt_classic_port {
    pt_classic_port *next;
    pt_link *link;              /* NULL: closed */
    pt_send_pipeline *pipeline; /* of that link: its memory stays while slots are abandoned */
    volatile uint32_t events;   /* the maker's; set at interrupt time, where nothing else is done */
    int32_t handle;
    uint8_t depth;
};

/* What a classic world does with its ports, and which events make a link ready. */
typedef struct pt_classic_port_ops {
    size_t (*size)(uint8_t depth); /* bytes of a port with so many slots */
    int (*open)(pt_classic *world,
                pt_classic_port *port); /* PT_OK, PT_ERR_NO_MEMORY or PT_ERR_INVALID_PARAM */
    void (*close)(pt_classic *world, pt_classic_port *port);
    void (*reset)(
        pt_classic *world,
        pt_classic_port *port); /* break the connection: the driver lets go of every slot */
    uint32_t (*held)(const pt_classic_port *port); /* slots that the driver has */
    void (*complete)(pt_classic_port *port);       /* complete the others */
    uint32_t read_events;
    uint32_t write_events;
} pt_classic_port_ops;

/* The first member of the platform data of a classic world. */
struct pt_classic {
    pt_sim *sim;
    const pt_classic_port_ops *ops;
    pt_classic_port *ports;
    pt_memory memory;
    uint32_t place; /* where the next look begins, so that all sources get their turn */
    int32_t host;
    uint8_t woken; /* written by any thread, a byte at a time */
    uint32_t violation_count;
    char violations[PT_CLASSIC_VIOLATION_BYTES]; /* each in PT_CLASSIC_VIOLATION_SIZE bytes, ended
                                                    by 0 */
};

/* Make ready; the rest of the platform data is its platform's. */
void pt_classic_init(pt_classic *world, const pt_setup *setup, const pt_classic_port_ops *ops);

/* Let go of everything: links are closed already, their connections are broken, their slots
 * completed. */
void pt_classic_cleanup(pt_classic *world);

/* Slots of closed links that the driver has not let go of: pt_platform_ops.abandoned. */
uint32_t pt_classic_abandoned(const void *platform_data);

/* The port of a link. NULL: it has none (any more). */
pt_classic_port *pt_classic_find_port(const pt_context *context, const pt_link *link);

/* Remember that a rule of the maker was broken: "call code: rule". */
void pt_classic_violated(pt_classic *world, const char *call, int code, const char *rule);

/* Serve one event of the network. 0: none is due before the end, and the clock is there. */
int pt_classic_pass_time(pt_classic *world, uint64_t end_ns);

/* Entries of pt_platform_ops (pt_platform.h), which says what each may return; here, what a classic
 * world makes of them. */

/* 1 when a wait would end at once, else 0. */
int pt_classic_is_ready(pt_context *context);

/* Free slots of the link's pipeline. */
int pt_classic_slots_available(pt_context *context, pt_link *link);

/* The first time, a link gets its port. Returns PT_OK, PT_ERR_INVALID_PARAM (no handle of the
 * network, or its maker refuses) or PT_ERR_NO_MEMORY. */
int pt_classic_watch(pt_context *context, pt_source *source);

/* A link's port is closed, at once or when the driver has let go of its slots, for which it has
 * PT_CLASSIC_DRAIN_NS. Nothing happens when the source was not watched. */
void pt_classic_forget(pt_context *context, pt_source *source);

/* Serve events of the network until a source is ready or wake is called, at most to the end of the
 * wait; ends early when the network has no event left. Returns how many are ready, or
 * PT_ERR_PLATFORM: called from a notification. */
int pt_classic_wait(pt_context *context, int timeout_ms);

/* End a wait that runs, or the next one. Any thread. */
void pt_classic_wake(pt_context *context);

/* Ticks of 1/60 s of the network's clock, which wrap. */
uint32_t pt_classic_clock(pt_context *context);

/* Serve events of the network until this link may go on sending, at most to the end of the wait.
 * Returns PT_OK, then too, or PT_ERR_PLATFORM: called from a notification. */
int pt_classic_wait_completions(pt_context *context, pt_link *link, int timeout_ms);

/* The entries that are the same in each classic world. */
#define PT_CLASSIC_OPS                                                                             \
    .watch = pt_classic_watch, .forget = pt_classic_forget, .wait = pt_classic_wait,               \
    .wake = pt_classic_wake, .clock = pt_classic_clock, .abandoned = pt_classic_abandoned,         \
    .is_ready = pt_classic_is_ready, .ticks_per_second = PT_TICKS_PER_SECOND, .classic = 1,        \
    .simulated = 1

#endif
