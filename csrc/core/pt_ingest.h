/* The receiving half of a link: bytes in, cut anywhere, whole frames out. Knows no format: a
 * pt_format tells it headers from payloads.
 *
 * A frame that lies whole in the bytes given is checked and handed on where it lies. Only one that
 * is cut by their end borrows a staging buffer of its exact class; a cut header waits in the
 * struct. A cut header of a form whose headers do not fit there (more than PT_INGEST_HEADER_ROOM
 * bytes) borrows a staging buffer at once, for the largest frame of that form. So an idle link
 * holds no receive memory.
 *
 * The payload of a wide frame goes straight to where its message lands: memory that the sink makes
 * for it, or that pt_ingest_expect() was given.
 */
#ifndef PT_INGEST_H
#define PT_INGEST_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"
#include "pt_pool.h"
#include "pt_wide.h"
#include "pt_wire.h"

#define PT_INGEST_HEADER_ROOM 24 /* bytes of a cut header that fit into the struct */

/* Where frames go. frame->payload is valid during the call only (receive buffer or staging buffer).
 * Return PT_OK, or a negative PT_ERR_* to stop: pt_ingest_feed() returns it and counts the frame as
 * consumed. */
typedef struct pt_sink {
    int (*frame)(void *context, uint32_t tag, const pt_frame *frame);
    void *context;
    uint32_t room; /* stream bytes that a turn may still read into this sink; the loop counts it
                      down. UINT32_MAX: no bound */
    /* Memory for a message of so many bytes that was not offered; NULL: there is none. Only
     * formats with wide frames ask. */
    pt_landing *(*land)(void *context, uint32_t tag, uint32_t total);
    /* A message is whole; its landing is the sink's now, whatever this returns. As frame. */
    int (*landed)(void *context, uint32_t tag, pt_landing *landing);
    /* Where a buffer of the pool lies for the largest frame, or NULL: a cut frame is staged there
     * when the pool lends nothing. It comes back when that frame is whole within the same feed;
     * else it is the ingest's. NULL: there is no such place. */
    uint8_t **spare;
} pt_sink;

/* A wire format. header: header_size bytes. read_header fills everything of frame but the payload
 * pointer, or returns PT_ERR_*. verify judges the whole frame, which lies in one piece: header_size
 * bytes, payload, trailer_size bytes.
 *
 * Frames of other forms may stand between those of the first: form tells them by start_size
 * bytes, at most what any of the headers has, and at most PT_INGEST_HEADER_ROOM. read_header of
 * each form then answers PT_ERR_MAGIC to a header of another. The others name no further ones, and
 * have no larger framing than the first, but for wide frames (is_wide), which are read by their own
 * rules. */
typedef struct pt_format {
    int (*read_header)(const uint8_t *header, pt_frame *frame);
    int (*verify)(const uint8_t *whole, const pt_frame *frame);
    uint8_t header_size; /* 1 .. PT_FORMAT_MAX_HEADER */
    uint8_t trailer_size;
    uint8_t start_size; /* 0: all frames have one form */
    uint8_t is_wide;
    /* The form of a frame that starts so, this one among them. NULL with start_size 0. */
    const struct pt_format *(*form)(const uint8_t *start);
} pt_format;

enum pt_ingest_state {
    PT_INGEST_INIT = 0,         /* not ready, or ended by a fault */
    PT_INGEST_WAIT_HEADER = 1,  /* between frames, or a header is not yet whole */
    PT_INGEST_WAIT_PAYLOAD = 2, /* header read, payload or trailer not yet whole; or a long header
                                   not yet whole, in staging memory */
    PT_INGEST_COMPLETE = 3      /* a staged frame is being handed on; never seen between calls */
};

/* What moves an ingest from state to state. */
enum pt_ingest_step {
    PT_INGEST_STEP_INIT = 0,
    PT_INGEST_STEP_STAGE = 1,   /* the header of a cut frame is whole, or long; and memory found */
    PT_INGEST_STEP_FILL = 2,    /* the last byte of that frame is there */
    PT_INGEST_STEP_HAND_ON = 3, /* to the sink */
    PT_INGEST_STEP_FAIL = 4,    /* a fault of the frame */
    PT_INGEST_STEP_CLEANUP = 5
};

typedef struct pt_ingest {
    const pt_format *format;
    pt_pool *pool;
    uint8_t *staging;     /* borrowed while a frame is cut behind its header or in a long one; else
                             NULL, as of a wide frame */
    pt_landing *landings; /* that are expected */
    uint32_t staged_len;  /* bytes of the current frame held: in header while PT_INGEST_WAIT_HEADER,
                             else in staging, or where it lands */
    uint32_t frame_len;   /* of the whole current frame; while its header is not whole: 0, or of a
                             long header its size */
    uint32_t max_payload; /* a longer one is PT_ERR_MESSAGE_TOO_LARGE, judged on the header */
    uint32_t tag;         /* handed to the sink with each frame */
    uint8_t state;        /* enum pt_ingest_state */
    uint8_t lands;        /* the caller's; 1: wide frames followed each other in the last read */
    uint8_t is_spare;     /* 1 during a feed: staging is the sink's spare buffer */
    union {
        uint8_t header[PT_INGEST_HEADER_ROOM]; /* PT_INGEST_WAIT_HEADER: as far as it is there */
        struct {
            pt_landing *into;
            uint32_t crcs[2]; /* of the frame as far as it is there, and as it must be */
        } wide; /* of a wide frame that is cut behind its header: see pt_ingest_into() */
    };
    uint32_t work;       /* units of the frames handed on: see PT_TURN_MAX_WORK */
    uint32_t work_limit; /* the caller's, as is setting work: where to stop; 0: nowhere */
    uint64_t frames;     /* handed on */
    uint64_t payload_bytes;
} pt_ingest;

/* The state that a step leads to; PT_NOWHERE: no ingest takes that step in that state. */
uint8_t pt_ingest_next(uint8_t state, uint8_t step);

/* Message frames (docs/protocol.md, "Frames"): full ones, CRC checked, and compact ones between
 * them, which have no CRC. wide: and wide ones, too. */
const pt_format *pt_message_format(int wide);

/* Make ready, in memory that is zeroed or was cleaned up. pool lends staging buffers; its largest
 * class must hold header + max_payload + trailer. */
void pt_ingest_init(pt_ingest *ingest, const pt_format *format, pt_pool *pool, uint32_t max_payload,
                    uint32_t tag);

/* Give staging memory back and return to INIT. May be called twice, and never by a sink. */
void pt_ingest_cleanup(pt_ingest *ingest);

/* Take len bytes of the stream. *consumed is always set.
 *
 * Returns
 * - PT_OK: all bytes were taken.
 * - PT_ERR_MAGIC, _VERSION, _INVALID_PARAM, _MESSAGE_TOO_LARGE, _CRC: a fault of the frame. Frames
 *   before it were handed on; *consumed is where the bad one starts in data (0 also when it began
 *   in an earlier call). The state is INIT, and nothing more is taken. PT_ERR_NO_MEMORY likewise:
 *   the sink has none for a wide frame.
 * - PT_ERR_BACKPRESSURE: no staging buffer for a cut frame, and none to spare; *consumed is where
 *   that frame starts (0 also when its header was cut by an earlier call). Nothing is lost: give
 *   the same bytes again from there, after room was made. With a spare buffer it never comes.
 * - PT_ERR_BUSY (work_limit was reached), or what the sink returned: *consumed is behind that
 *   frame; give the rest again.
 * - PT_ERR_INVALID_STATE: in INIT; nothing was consumed.
 */
int pt_ingest_feed(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                   size_t *consumed);

/* Bytes of an unfinished frame that are held now; 0 between frames. */
uint32_t pt_ingest_partial_len(const pt_ingest *ingest);

/* A message of landing->id, not 0, comes in slices, and lands there. landing is the ingest's from
 * now on. PT_OK; PT_ERR_INVALID_STATE, and it is not: the id is expected already, or in INIT. */
int pt_ingest_expect(pt_ingest *ingest, pt_landing *landing);

/* What is expected under an id; NULL: nothing is. */
pt_landing *pt_ingest_landing(const pt_ingest *ingest, uint32_t id);

/* No slice of an id is right any more: its landing is dropped. Nothing happens for others. */
void pt_ingest_forget(pt_ingest *ingest, uint32_t id);

/* Where the wide frame lands that is cut behind its header; NULL: none is. */
pt_landing *pt_ingest_into(const pt_ingest *ingest);

/* Bytes of the cut wide frame that was not offered; 0: there is none. */
uint32_t pt_ingest_unasked(const pt_ingest *ingest);

/* Where the next bytes of the stream can be put at once, without pt_ingest_feed(), and how many at
 * most; NULL: nowhere. */
uint8_t *pt_ingest_place(const pt_ingest *ingest, uint32_t *len);

/* So many bytes, at least one, have been put there. Returns as pt_ingest_feed(), which has consumed
 * them. */
int pt_ingest_placed(pt_ingest *ingest, uint32_t len, const pt_sink *sink);

#endif
