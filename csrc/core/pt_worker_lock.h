/* The lock of a context that a worker turns: for the core, and for the border, which waits for it
 * in its own way. */
#ifndef PT_WORKER_LOCK_H
#define PT_WORKER_LOCK_H

#include "pt_worker.h"

/* The worker of a context; NULL: it has none, or this build has none at all. */
static inline pt_worker *pt_worker_of(const pt_context *context)
{
    return PT_WORKERS ? context->worker : NULL;
}

/* End home's wait if there is news that it waits for. The caller has the lock. */
static inline void pt_worker_tell_news(pt_worker *worker)
{
    if (worker->has_news && worker->is_asked) {
        worker->is_asked = 0;
        if (worker->home->ops != NULL)
            worker->home->ops->wake(worker->home);
    }
}

/* 1 when one frame is kept at most. The caller has the lock. */
static inline int pt_worker_keeps_one(const pt_worker *worker)
{
    const pt_block *first = worker->first;
    return first == NULL || worker->newest == (const void *)(first + 1);
}

/* The lock of a context that a worker may have; where there is no worker nothing happens. Who lets
 * go of it has the news told that came meanwhile. */
static inline void pt_context_lock(pt_context *context)
{
    if (pt_worker_of(context) != NULL)
        context->ops->lock(context);
}

/* Let go of it. */
static inline void pt_context_unlock(pt_context *context)
{
    if (pt_worker_of(context) != NULL) {
        pt_worker_tell_news(pt_worker_of(context));
        context->ops->unlock(context);
    }
}

#endif
