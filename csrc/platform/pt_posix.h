/* The POSIX world: non-blocking sockets that the caller opened, waited for with epoll, or with poll
 * where there is no epoll. A tick is 1 ms. */
#ifndef PT_POSIX_H
#define PT_POSIX_H

#include <stddef.h>
#include <stdint.h>

#include "pt_link.h"

/* Asynchronous: slots are gathered into as few writes as possible and owned by the pipeline until
 * their last byte is taken. */
const pt_platform_ops *pt_posix_ops(void);

/* The table as the source of the pipeline has it: tcp_send_async, poll_send_completions and
 * send_slots_available are NULL, each slot is written by the blocking tcp_send. */
const pt_platform_ops *pt_posix_plain_ops(void);

/* Bytes of platform data for a context with up to max_sources sources (used by poll only). */
size_t pt_posix_size(uint32_t max_sources);

/* Make platform data ready in memory of that size. use_epoll 0 forces poll(2). Returns PT_OK, or
 * PT_ERR_PLATFORM with *system_error set (out of descriptors). */
int pt_posix_init(void *platform_data, uint32_t max_sources, int use_epoll, int32_t *system_error);
void pt_posix_cleanup(void *platform_data);

/* The descriptor to watch for reading in another loop: readable whenever a turn has something to
 * do. -1 with poll: watch each source's handle. */
int pt_posix_fd(const void *platform_data);

/* The descriptor that a wake makes readable: to be watched too where pt_posix_fd() is -1. */
int pt_posix_wake_fd(const void *platform_data);

/* Memory from the C library, counted, with a limit and a fault to inject. Thread-safe. */
typedef struct pt_posix_memory {
    uint64_t bytes; /* held now */
    uint64_t peak_bytes;
    uint64_t allocations; /* that succeeded */
    uint64_t limit;       /* bytes; 0: none */
    uint64_t attempts;    /* allocations tried since fail_at was set */
    uint64_t fail_at;     /* the attempt with this number (from 1) and all after it fail; 0: none */
} pt_posix_memory;

/* A source for pt_pool_init() that counts in account, which must live as long as it is used. */
void pt_posix_memory_source(pt_posix_memory *account, pt_memory *source);

#endif
