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

/* The same for a context that a worker turns (pt_worker.h). */
const pt_platform_ops *pt_posix_worker_ops(void);

/* The table as the source of the pipeline has it: tcp_send_async, poll_send_completions and
 * send_slots_available are NULL, each slot is written by the blocking tcp_send. */
const pt_platform_ops *pt_posix_plain_ops(void);

/* Memory from the C library, counted, with a limit and a fault to inject. Thread-safe. */
typedef struct pt_posix_memory {
    uint64_t bytes; /* held now */
    uint64_t peak_bytes;
    uint64_t allocations; /* that succeeded */
    uint64_t limit;       /* bytes; 0: none */
    uint64_t attempts;    /* allocations tried since fail_at was set */
    uint64_t fail_at;     /* the attempt with this number (from 1) and all after it fail; 0: none */
} pt_posix_memory;

/* From now on the attempt with this number, counted from 1, fails, and all after it; 0: none. */
void pt_posix_memory_fail_at(pt_posix_memory *account, uint64_t attempt);

/* A source for pt_pool_init() that counts in account, which must live as long as it is used. */
void pt_posix_memory_source(pt_posix_memory *account, pt_memory *source);

#endif
