/* What is ready in the POSIX world: epoll, or poll where there is no epoll, and the descriptor that
 * ends a wait. Platform data is this file's alone. */
#ifndef PT_POSIX_READY_H
#define PT_POSIX_READY_H

#include "pt_platform.h"

/* Entries of pt_platform_ops (pt_platform.h), which says what each may return. */
size_t pt_posix_size(const pt_setup *setup);
int pt_posix_init(void *platform_data, const pt_setup *setup, int32_t *system_error);
void pt_posix_cleanup(void *platform_data);
int pt_posix_descriptor(const void *platform_data);
int pt_posix_wake_descriptor(const void *platform_data);
int pt_posix_watch(pt_context *context, pt_source *source);
int pt_posix_wait(pt_context *context, int timeout_ms);
void pt_posix_wake(pt_context *context);

/* Entries for a context that a worker turns, too. */
void pt_posix_lock(pt_context *context);
/* 1: it is held; 0: another thread holds it. */
int pt_posix_try_lock(pt_context *context);
/* Whoever settles looks again. */
void pt_posix_unlock(pt_context *context);
/* The lock is held before and after. */
void pt_posix_settle(pt_context *context, uint32_t ms);
void pt_posix_doze(pt_context *context, uint32_t ms);

/* Forget a source, of which a forked child may have nothing to forget. */
void pt_posix_unwatch(pt_context *context, pt_source *source);

#endif
