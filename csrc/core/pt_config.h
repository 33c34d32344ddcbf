/* Every compile-time limit of peertalk, in one place.
 *
 * PT_LOWMEM picks the numbers of a small machine (a Mac SE with 4 MB of memory). It is said here
 * and nowhere else: code tests the limits, never the switch, so both ways are always compiled.
 * Sizes are bytes unless the name says otherwise.
 */
#ifndef PT_CONFIG_H
#define PT_CONFIG_H

/* The shape of the wire (docs/protocol.md): the same in every build. */
#define PT_PROTOCOL_VERSION     1
#define PT_HEADER_SIZE          10     /* full frame header */
#define PT_TRAILER_SIZE         2      /* CRC-16 behind the payload */
#define PT_FRAME_OVERHEAD       12     /* header and trailer */
#define PT_COMPACT_HEADER_SIZE  4      /* compact header; no trailer */
#define PT_WIDE_HEADER_SIZE     24     /* wide header; no trailer */
#define PT_WIDE_MAX_PAYLOAD     262144 /* of one wide frame */
#define PT_FRAGMENT_HEADER_SIZE 8      /* in front of a fragment's data */
#define PT_DATAGRAM_HEADER_SIZE 8
#define PT_DATAGRAM_MAX_PAYLOAD 1392 /* 1,400-byte datagram less its header */
#define PT_DISCOVERY_MIN_SIZE   14   /* discovery packet without a name */
#define PT_DISCOVERY_MAX_SIZE   45   /* with the longest name */
#define PT_NAME_MAX             31   /* peer name, no terminator on the wire */
#define PT_CAPABILITY_SIZE      15   /* the four TLVs of the original */
#define PT_MESSAGE_LIMIT_MIN    256  /* what a peer may announce as its MAX_MESSAGE: */
#define PT_MESSAGE_LIMIT_MAX    8192 /* ... values outside are clamped */

/* Default ports: discovery (UDP), messages (TCP), datagrams (UDP). */
#define PT_PORT_DISCOVERY 7353
#define PT_PORT_MESSAGES  7354
#define PT_PORT_DATAGRAMS 7355

/* A slot is one write in flight. The classic worlds use a slot for one message of
 * PT_MESSAGE_MAX_PAYLOAD; its buffer is payload + 10 header + 2 CRC, rounded up to 16. POSIX packs
 * many frames into a larger one, borrowed while the link is busy; it stays under 65,536 because
 * slot lengths are 16-bit. */
#ifdef PT_LOWMEM
#define PT_IS_LOWMEM            1
#define PT_SEND_PIPELINE_DEPTH  2
#define PT_MAX_PEERS            4
#define PT_MESSAGE_MAX_PAYLOAD  1024
#define PT_SLOT_BUFFER_SIZE     1040
#define PT_FRAME_MAX_PAYLOAD    1024 /* largest payload that is sent or received */
#define PT_PIPELINE_LAZY        1
#define PT_POSIX_SLOT_SIZE      4096
#define PT_POSIX_PIPELINE_DEPTH 2
#define PT_LINK_NOTES           4 /* of writes that may not be acknowledged: see pt_notes.h */
#define PT_RECEIVE_BUFFER_SIZE  8192
#define PT_FORMAT_MAX_HEADER    24 /* of a frame of any format: see pt_ingest.h */
/* Bytes that the table way of the CRC takes at a time, 1 or 16; each has a table of 512 bytes. */
#define PT_CRC_SLICES 1
#else
#define PT_IS_LOWMEM            0
#define PT_SEND_PIPELINE_DEPTH  4
#define PT_MAX_PEERS            8
#define PT_MESSAGE_MAX_PAYLOAD  4096
#define PT_SLOT_BUFFER_SIZE     4112
#define PT_FRAME_MAX_PAYLOAD    8192
#define PT_PIPELINE_LAZY        0
#define PT_POSIX_SLOT_SIZE      65520
#define PT_POSIX_PIPELINE_DEPTH 8 /* one write of half a megabyte: see docs/performance.md */
#define PT_LINK_NOTES           16
#define PT_RECEIVE_BUFFER_SIZE  524288
#define PT_FORMAT_MAX_HEADER    64
#define PT_CRC_SLICES           16
#endif

#define PT_PIPELINE_MAX_DEPTH 64 /* slots of one link; bounds the gathered write too */
#define PT_IO_BUDGET          16 /* ready links served in one turn, unless a loop has another ... */
#define PT_IO_BUDGET_MAX      1024 /* ... of at most so many */
#define PT_REST_MS       50   /* a link that sent nothing for so long gives its slot buffers back */
#define PT_NOTES_REST_MS 1000 /* ... and after so long the memory of its notes */
#define PT_SLOT_SHARE    2    /* slot buffers of one whole frame that each link may always have */
#define PT_STILL_MS     1000 /* a link whose bytes have not moved for so long gets no larger ones */
#define PT_POOL_REST_MS 1000 /* free buffers that nobody needed for so long go back */
/* A turn is bounded by work: a message is one unit, and what costs its receiver much for the few
 * bytes it cost its sender is more. */
#define PT_TINY_PAYLOAD  16      /* bytes; a message with less ... */
#define PT_WORK_TINY     16      /* ... is so many units */
#define PT_WORK_CONTROL  256     /* units of a frame that is no plain DATA: it joins no batch */
#define PT_TURN_MAX_WORK 200000  /* units of all links in one turn ... */
#define PT_TURN_MAX_READ 8388608 /* ... and bytes */
#define PT_LINK_MAX_READ 65520   /* bytes of such a link: what is left of them fits a slot buffer */
#define PT_LINK_MAX_WORK 1024    /* units of a link that is not alone in having been sent some */
#define PT_TURN_MAX_MESSAGES 256 /* a sender yields to its loop after so many messages ... */
#define PT_TURN_MAX_BYTES    131072 /* ... or so many payload bytes, whichever comes first; ... */
#define PT_TURN_MANY_BYTES   65536  /* ... of many in one call: the next finds all slots free */
#define PT_PROMPT_FRAMES     4      /* after a burst of more, a first frame waits for the turn */
#define PT_TELL_MS           50     /* what has left by itself is told within this time */
#define PT_PUSH_SLICES       4      /* of a departing message that move before others have a turn */
#define PT_REFERRED_PART     8      /* what a slot refers to counts so much less there: no copy */
#define PT_ROOM_MS   10  /* a sender waits so long for slots before it sees to other things */
#define PT_LEAD_MS   2   /* a thread that has the turns of a worker waits so long in one of them */
#define PT_LINGER_US 100 /* a worker that has pushed waits so long for more before it sleeps */
#define PT_PARTIAL_FRAME_MS 5000   /* a frame that has begun must be whole within this time, */
                                   /* unless a link has another: pt_link_set_frame_timeout() */
#define PT_DRAIN_TIMEOUT_TICKS 300 /* 5 s: how long a close waits for slots in flight */
#define PT_TICKS_PER_SECOND    60  /* the classic Mac's clock; POSIX counts milliseconds */
#define PT_NOWHERE             255 /* where a step leads that a state does not take */
#define PT_POOL_MAX_CLASSES    16
#define PT_POOL_CONTEXTS       16 /* that have free buffers of one pool for themselves, and ... */
#define PT_POOL_OWN            8  /* ... how many of each class */
#define PT_WHEEL_LEVELS        4
#define PT_WHEEL_LEVEL_SLOTS   64
#define PT_WHEEL_SLOTS         256 /* PT_WHEEL_LEVELS x PT_WHEEL_LEVEL_SLOTS */

/* 0 builds the core single-threaded, for processors without compare-and-swap (a 68000). */
#ifndef PT_ATOMICS
#define PT_ATOMICS 1
#endif

/* 0 leaves out the notes of what is not acknowledged, for builds with classic worlds only. */
#ifndef PT_NOTES
#define PT_NOTES 1
#endif

/* 0 leaves out what a pool counts for each class, likewise. */
#ifndef PT_POOL_COUNTS
#define PT_POOL_COUNTS 1
#endif

/* 0 leaves out wide frames, likewise. */
#ifndef PT_WIDE
#define PT_WIDE 1
#endif

/* 0 leaves out frames that are written as soon as they are sent, likewise. */
#ifndef PT_PROMPT
#define PT_PROMPT 1
#endif

/* 0 leaves out what a context shares with a worker, likewise. */
#ifndef PT_WORKERS
#define PT_WORKERS 1
#endif

/* 0 leaves out slots that a pipeline borrows, likewise: there they are the caller's. */
#ifndef PT_BORROWED_SLOTS
#define PT_BORROWED_SLOTS 1
#endif

#endif
