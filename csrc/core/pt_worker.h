/* A thread that moves the bytes of its links: it turns a context of its own, and keeps what its
 * links bring until the thread that decides takes it. Needs no Python, so a program that computes
 * keeps no link waiting.
 *
 * The context and its links are shared by two threads: the worker, and the one that the owner of
 * the links has for all its calls. Functions of pt_link.h take the lock by themselves, but those
 * that send or depart, pt_link_recall(), pt_link_count() and the ingest's, whose caller has it. The
 * worker has the lock through its turn and lets go of it around each wait, read and write. A link
 * whose bytes are in a system call is busy: pt_link_close() waits for that.
 *
 * What the links bring lies in blocks of the pool, frame behind frame; beyond limit bytes they are
 * not read until some of it was taken. An empty message takes three times the room of its frame, so
 * all that lies here is at most three times limit, and a frame for each link; and what the first
 * link brought along that was moved here before any of it was taken. A PING on a link that answers
 * is answered here.
 */
#ifndef PT_WORKER_H
#define PT_WORKER_H

#include "pt_link.h"
#include "pt_loop.h"

/* What whoever takes from a worker should hear of. */
#define PT_NEWS_FRAMES 0x01 /* something was kept */
#define PT_NEWS_LINKS  0x02 /* and of links themselves */

/* One frame as it was kept; len bytes of payload follow, and as many as make that divisible by 4.
 * about: type | flags << 8 | sequence << 16. With PT_RECORD_LANDED, which no frame can say, the
 * payload is the pt_landing * of a message that is whole, which is the taker's. */
#define PT_RECORD_LANDED 0x40000000
#define PT_RECORD_GONE   0x20000000 /* it was moved with its link, and is given out there */
typedef struct pt_record {
    uint32_t tag;
    uint32_t about;
    uint32_t len;
} pt_record;

/* Frames that were kept: used bytes behind this header, in a buffer of the pool. */
typedef struct pt_block {
    struct pt_block *next;
    uint32_t taken; /* of the used ones, bytes that pt_block_next() has given out */
    uint32_t used;
    uint32_t room;
} pt_block;

/* Memory is the caller's, and must not move. */
struct pt_worker {
    pt_context *context;
    pt_context *home;        /* whose wait ends when there is something to take */
    const pt_memory *memory; /* for large messages that were not offered */
    pt_block *first;         /* what was kept, in order */
    pt_block *last;
    pt_record *newest; /* record in last; NULL: none */
    pt_link *reading;  /* whose bytes are being taken apart */
    void **dead;       /* the border's: what it must let go of when it has the interpreter, of all
                          workers of a home, on whichever thread it was last needed */
    uint32_t kept;     /* bytes of records that are not taken, and of what they lead to */
    uint32_t limit;    /* of them */
    uint32_t awaiting; /* threads in pt_worker_await_room() */
    uint32_t given;    /* links that went to other workers, which such a thread must not touch */
    uint32_t leads;    /* times that another thread had the turns */
    pt_event still;    /* PT_EVENT_STILL, or kind 0 */
    uint64_t turns_waited;  /* waits that took time */
    uint64_t pongs;         /* answers that left, and ... */
    uint64_t pongs_dropped; /* ... that found no room */
    uint8_t is_running;     /* pt_worker_run() is under way */
    uint8_t is_stopped;
    uint8_t is_asleep;    /* it waits: a call that sends may write by itself, or must wake it */
    uint8_t is_lingering; /* it has just pushed, and waits for a moment only: what is sent next need
                             not wake it, unless that fills two slots */
    uint8_t is_given;     /* a call has left a frame to this worker, who then lingers */
    uint8_t is_full;      /* links are not read */
    uint8_t is_asked;     /* home's wait is to end when there is news */
    uint8_t has_news;     /* a sum of PT_NEWS_* */
    uint8_t is_wanted;    /* a thread that takes wants to have the turns itself */
    uint8_t is_parked;    /* it leaves them to such a thread */
    uint8_t is_led;       /* which has them now */
    uint8_t may_write;    /* the next call that sends on an idle link writes by itself: one in a row
                             does, and the worker takes over from the second */
    uint8_t is_pinged;    /* a PING of the link that is read is to be answered */
    uint8_t tells_sent;   /* 1: what has left is news; 0, at first: it is told with other news */
    uint8_t is_untold;    /* the taker's; 1: some of what it took last is still to be told */
};

/* Make ready: context was initialised with ops that have a lock, and holds no link. home: another
 * context, of the thread that takes. limit: bytes, at least those of a slot. memory: for what
 * lands. PT_OK or PT_ERR_INVALID_PARAM. */
int pt_worker_init(pt_worker *worker, pt_context *context, pt_context *home,
                   const pt_memory *memory, uint32_t limit);

/* Turn the context until pt_worker_stop(): on a thread of its own, which this blocks. PT_OK or
 * PT_ERR_PLATFORM. */
int pt_worker_run(pt_worker *worker);

/* Wait until pt_worker_run() has begun, which another thread is about to call. */
void pt_worker_await(pt_worker *worker);

/* Wait until half of the slots of an open link of this worker are free: at most PT_ROOM_MS, and
 * until the link is not open any more, or a link goes from here. The caller has the lock, which
 * others have meanwhile, and the worker has not stopped. 1 if they are free, else 0. */
int pt_worker_await_room(pt_worker *worker, pt_link *link);

/* Have one turn, in place of the worker's thread, which waits up to PT_LEAD_MS: a thread that takes
 * one message after the other, each as an answer, hears of the next one with no other thread in
 * between. The caller has the lock, which others have meanwhile. 0: nothing came, or the worker's
 * thread still has the turns, which it leaves to the callers of this soon after the first call; it
 * has them again when none calls for PT_LEAD_MS, or nothing came. 1: something was kept. */
int pt_worker_lead(pt_worker *worker);

/* Have pt_worker_run() return, and wait for that: no longer than a system call that does not block.
 * Any other thread. */
void pt_worker_stop(pt_worker *worker);

/* Give back what was kept and nobody took; the worker has stopped. */
void pt_worker_cleanup(pt_worker *worker);

/* Take all that was kept, and what has become of links, as pt_loop_turn() reports it: events belong
 * after the frames. The caller has the lock. Returns the first block, NULL: nothing was kept; the
 * blocks are given back by pt_worker_give_back(). *count: events, at most capacity, which is 8 or
 * more; home's wait ends when some are left. events NULL: none are reported, nor counted. */
pt_block *pt_worker_take(pt_worker *worker, pt_event *events, int capacity, int *count);

/* Likewise, frames alone: what has become of links is told by the next pt_worker_take(). The
 * worker's thread leaves the turns where they are, which it takes back with pt_worker_take(). */
pt_block *pt_worker_take_frames(pt_worker *worker);

/* Make what has left news, or not. Takes the lock. */
void pt_worker_set_tells_sent(pt_worker *worker, int tells);

/* How many frames of the link with this tag were kept and not taken. Takes the lock. */
uint32_t pt_worker_keeps(const pt_worker *worker, uint32_t tag);

/* Have a link at another worker of the same home and memory, with all that it is, owes and has
 * brought: what nobody has taken of that comes before what it brings there. Tags of links of one
 * home differ. The caller has both locks, of which none is let go of meanwhile.
 *
 * PT_OK, or with nothing changed
 * - PT_ERR_BUSY: it is in a system call; or what has been brought must be taken first: it would be
 *   overtaken, or finds no room there.
 * - PT_ERR_NOT_CONNECTED: it has ended, which is told where it is.
 * - PT_ERR_NO_MEMORY, PT_ERR_PLATFORM: the system's.
 * - PT_ERR_INVALID_PARAM: the homes differ, or the workers do not. */
int pt_worker_move(pt_worker *from, pt_worker *to, pt_link *link);

/* The next record of a block; NULL: there is none. */
const pt_record *pt_block_next(pt_block *block);

/* The record that pt_block_next() gave last was not seen to: it comes again. */
void pt_block_again(pt_block *block, const pt_record *record);

/* Give blocks back, under the lock; what their records led to was seen to. Or put blocks of which
 * some records were not before all that was kept since. */
void pt_worker_give_back(pt_worker *worker, pt_block *blocks);
void pt_worker_put_back(pt_worker *worker, pt_block *blocks);

#endif
