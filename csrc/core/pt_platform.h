/* The port to fill in: how bytes move in one world. A world is one pt_platform_ops; links and
 * contexts are the same in all of them.
 *
 * Entries may be NULL: "this world does not need it", and the core takes the plain way. All are
 * called on the worker's thread but wake. The core calls the first ones; those from size on
 * describe the world to whoever makes a context in it.
 */
#ifndef PT_PLATFORM_H
#define PT_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"
#include "pt_pool.h"
#include "pt_wheel.h"

typedef struct pt_context pt_context;
typedef struct pt_link pt_link;
typedef struct pt_source pt_source;
typedef struct pt_worker pt_worker;

/* PT_WANT_EDGE, of a watch alone: tell each change to ready once, and not that it still is; whoever
 * is told tries until the system says "not now". Worlds that wait with epoll can; others take it
 * for nothing. */
enum pt_interest { PT_WANT_READ = 1, PT_WANT_WRITE = 2, PT_WANT_EDGE = 4 };

/* What a platform reports of a source, in ready. A hang-up is reported as PT_READY_READ |
 * PT_READY_HANGUP: what is left is read first. */
enum pt_ready { PT_READY_READ = 1, PT_READY_WRITE = 2, PT_READY_HANGUP = 4 };

enum pt_source_kind { PT_SOURCE_LINK = 1, PT_SOURCE_WATCH = 2 };

/* Something that can become ready: the first member of a link, and of a watch. */
struct pt_source {
    intptr_t handle;    /* POSIX: descriptor, owned by the caller */
    pt_source *next;    /* all sources of a context */
    pt_source **place;  /* what points at this source; NULL when it is not in a context */
    uint32_t tag;       /* the caller's number; comes back in every event */
    uint8_t kind;       /* enum pt_source_kind */
    uint8_t interest;   /* enum pt_interest, as wanted */
    uint8_t registered; /* as the platform has it; the platform's to keep (0xFF: not registered) */
    uint8_t ready;      /* enum pt_ready, set by wait, cleared by the turn */
    uint8_t edge;       /* 1: report changes only (a paused link, whose hang-up would spin) */
    uint8_t queued;     /* 1: in the ready list of this turn; the loop's to keep */
};

/* A foreign descriptor (a listener, a datagram socket, a connection being opened): the turn reports
 * when it is ready. */
typedef struct pt_watch {
    pt_source source;
} pt_watch;

/* What a context is to be in its world. Each world reads what it has a use for. */
typedef struct pt_setup {
    uint32_t max_sources; /* POSIX: of poll(2); 0: there is epoll */
    uint32_t send_limit;  /* Open Transport: bytes of a link that wait for acknowledgement; beyond
                             it the flow is stopped; 0: the platform's own */
    void *network;        /* simulated: the pt_sim */
    const pt_memory *memory; /* simulated: for links and their sends */
    int32_t host;            /* simulated: of the network */
    uint8_t push;            /* simulated: 1: small writes are not merged on the wire */
} pt_setup;

typedef struct pt_platform_ops {
    const char *name;

    /* Send all of data before returning: blocks up to the drain time-out. Used where tcp_send_async
     * is NULL, and by pt_link_send_sync(). PT_OK, or, and the link is over: PT_ERR_TIMEOUT,
     * PT_ERR_CONNECTION_CLOSED, PT_ERR_NETWORK. */
    int (*tcp_send)(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len);

    /* Take over one IN_FLIGHT slot, whose bytes these are; never blocks. PT_OK, or PT_ERR_* that
     * ends the link. Completion comes through poll_send_completions. NULL: this world sends
     * synchronously. */
    int (*tcp_send_async)(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len);

    /* Move what can be moved and call pt_pipeline_complete() for what is done. Sets link->blocked
     * when the system takes no more now. Returns the number of slots completed, or PT_ERR_*:
     * PT_ERR_CONNECTION_CLOSED when the connection is broken (what it received may still be read).
     */
    int (*poll_send_completions)(pt_context *context, pt_link *link);

    /* Wait up to timeout_ms until poll_send_completions of this link may find something. Serves
     * nobody and hears no wake: what other sources have become stays for the next turn. PT_OK, also
     * when nothing came or the wait was interrupted; PT_ERR_PLATFORM. NULL: this world cannot wait
     * for one link. */
    int (*wait_send_completions)(pt_context *context, pt_link *link, int timeout_ms);

    /* Slots that could take a send now: asked when a frame was refused, whether moving what is
     * there has made room for it. NULL: pt_pipeline_available() answers. */
    int (*send_slots_available)(pt_context *context, pt_link *link);

    /* Open a connection. NULL: the caller opened it and brings its handle. */
    int (*tcp_connect)(pt_context *context, pt_link *link, const char *address, uint16_t port);

    /* Read up to size bytes. Returns their number, PT_ERR_WOULD_BLOCK, PT_ERR_CONNECTION_CLOSED
     * (end of stream, link->system_error 0; broken: not 0) or PT_ERR_NETWORK. */
    int (*tcp_receive)(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size);

    /* No more will be sent: pass that on to the other side. PT_OK or PT_ERR_NETWORK. */
    int (*tcp_finish)(pt_context *context, pt_link *link);

    /* Bytes that the system took of this link and the other side's has not acknowledged: also after
     * a reset. NULL: a completed send is acknowledged here, or the system does not tell. */
    uint32_t (*unacknowledged)(pt_context *context, const pt_link *link);

    /* Make the platform's interest in a source what source->interest and source->edge say. PT_OK,
     * PT_ERR_NO_MEMORY or PT_ERR_PLATFORM. */
    int (*watch)(pt_context *context, pt_source *source);

    /* Forget a source, and let go of the slots of a link where that can be done at once. Its handle
     * stays the caller's. */
    void (*forget)(pt_context *context, pt_source *source);

    /* Wait up to timeout_ms (-1: without end, 0: not at all) until a source is ready or wake is
     * called; set ready of at most io_budget sources and hand each to pt_context_ready(). Returns
     * their number or PT_ERR_PLATFORM. An interrupted wait returns 0. */
    int (*wait)(pt_context *context, int timeout_ms);

    /* End a wait that runs, or the next one, which sets context->woken. Any thread. */
    void (*wake)(pt_context *context);

    /* Have a context for one thread, and let others have it. try_lock: 1 when that is so now, else
     * 0. In such a world wait, and of a busy link tcp_receive and poll_send_completions, let go of
     * the lock around their system call. NULL, all of these: one thread has the context anyway. */
    void (*lock)(pt_context *context);
    int (*try_lock)(pt_context *context);
    void (*unlock)(pt_context *context);
    /* Let others have the context until one of them lets go of it, or for so many ms, 0: however
     * long that takes. Something may be otherwise. */
    void (*settle)(pt_context *context, uint32_t ms);
    /* Let others have the context until wake is called, which the next wait hears of, or for so
     * many ms. */
    void (*doze)(pt_context *context, uint32_t ms);

    /* Ticks now, monotonic, may wrap. */
    uint32_t (*clock)(pt_context *context);

    /* Bytes of platform data (pt_context.platform_data). */
    size_t (*size)(const pt_setup *setup);

    /* Make platform data ready in memory of that size. PT_OK, or PT_ERR_PLATFORM with *system_error
     * set. */
    int (*init)(void *platform_data, const pt_setup *setup, int32_t *system_error);

    /* Let go of everything, once every link is closed: slots that were abandoned are completed. */
    void (*cleanup)(void *platform_data);

    /* Slots of closed links that the world has not let go of. NULL: it lets go at once. */
    uint32_t (*abandoned)(const void *platform_data);

    /* Bytes that the world keeps for a link with so many slots, without its sends in flight. NULL:
     * none. */
    size_t (*link_size)(uint8_t depth);

    /* 1 when a wait would end at once, else 0: asked by who drives a simulated network. Slots of
     * closed links are let go of where that can be done. NULL: nobody can ask. */
    int (*is_ready)(pt_context *context);

    /* The descriptor to watch for reading in another loop: readable whenever a turn has something
     * to do; -1: each source's handle is to be watched, and what wake_descriptor gives. Both NULL:
     * this world has no descriptors. */
    int (*descriptor)(const void *platform_data);
    int (*wake_descriptor)(const void *platform_data);

    uint32_t ticks_per_second;

    /* 1: the buffers of a link's slots are borrowed when it opens, unless PT_PIPELINE_LAZY; 0: at
     * first use. */
    uint8_t classic;
    uint8_t simulated; /* 1: lives on the network of its setup, and on its clock */
    uint8_t refers;    /* 1: it sends what slots refer to, too; 0: everything is copied into them */
    uint8_t prompt; /* 1: the first frame of a link at rest is written at once: see PT_SEND_LEFT */
} pt_platform_ops;

/* Links that wait for something, the first to be served first. */
typedef struct pt_line {
    pt_link *first; /* NULL: none */
    pt_link **end;  /* where the next one is put */
} pt_line;

enum pt_line_kind {
    PT_LINE_DIRTY = 0, /* with frames to push or, without a worker, results to report: a turn is
                          needed now */
    PT_LINE_HELD = 1,  /* with held bytes, and read: likewise */
    PT_LINE_LEFT = 2,  /* with PT_EVENT_SENT to report, which hurries nobody: see PT_SEND_LEFT; of a
                          worker: with anything to report */
    PT_LINES = 3
};

/* A worker's world: one loop, its timers, its links. Memory is the caller's. */
struct pt_context {
    const pt_platform_ops *ops;
    void *platform_data;
    pt_worker *worker; /* the thread that turns it; NULL: its owner does */
    uintptr_t owner;   /* the thread that may send and turn, by the number that the border knows it
                          by; kept by whoever made the context, looked at by the border alone */
    pt_pool *pool;
    uint8_t *receive_buffer;
    uint8_t *spare;         /* staging buffer in reserve, so that a cut frame always finds one */
    pt_timer pool_timer;    /* armed while the pool is in use or scarce */
    uint32_t pool_acquires; /* of the pool, when it was last looked at */
    pt_source *sources;
    pt_line lines[PT_LINES]; /* by enum pt_line_kind */
    pt_wheel wheel;
    uint32_t receive_buffer_size;
    uint32_t io_budget; /* sources served in one turn */
    uint32_t ready_count;
    pt_source **ready;      /* of this turn; io_budget places, the caller's */
    uint32_t turn_messages; /* accepted since the last turn, all links: see pt_link_send() */
    uint32_t turn_bytes;
    uint32_t work_left;     /* units that this turn may still bring: see PT_TURN_MAX_WORK */
    uint32_t step;          /* bytes of one read: what is left of it fits a buffer of the pool */
    uint32_t starved_count; /* links that wait for a staging buffer */
    uint32_t left_since;    /* tick at which the first of PT_LINE_LEFT came there */
    uint32_t link_count;
    uint32_t woken;         /* 1: this turn's wait, or the one before it, was ended by wake */
    uint32_t frame_size;    /* largest whole frame that a link may receive: the size of spare */
    uint8_t tells_late;     /* the caller's; 1: what is in PT_LINE_LEFT may wait for PT_TELL_MS */
    uint32_t landing;       /* bytes of the wide frames that land and were not offered, and ... */
    uint32_t landing_limit; /* ... how many may at once; one may always. The caller's to change */
    uint64_t turns;
    uint64_t wait_calls;
    uint64_t crc_errors; /* links ended by PT_ERR_CRC */
    uint64_t bad_frames; /* links ended by a fault of the frame, CRC included */
};

/* For platforms: a source has become ready (its ready bits are set). Ignored when io_budget sources
 * already are. */
void pt_context_ready(pt_context *context, pt_source *source);

#endif
