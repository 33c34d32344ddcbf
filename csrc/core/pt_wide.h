/* Wide frames: large messages, whole or in slices, and what two sides say about them
 * (docs/protocol.md, "Large messages"); and the memory where such messages land. Sans-I/O.
 */
#ifndef PT_WIDE_H
#define PT_WIDE_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"
#include "pt_wire.h"

/* Why an offer is refused, or a grant is over. */
enum pt_refuse_reason {
    PT_REFUSE_UNSPECIFIED = 0,
    PT_REFUSE_TOO_LARGE = 1, /* the receiver takes no message of that length */
    PT_REFUSE_LOST = 2,      /* nothing moved for too long: the grant is taken back */
    PT_REFUSE_WITHDRAWN = 3  /* by the sender: nothing more of it will come */
};

/* A wide header. DATA: payload_len bytes of the message id from offset on, which has total bytes
 * in all; id 0: the message that lies in this frame whole, and was not offered. Others carry no
 * payload: OFFER says id and total, GRANT the id, REFUSE the id and a reason. */
typedef struct pt_wide {
    uint32_t payload_len;
    uint32_t id;
    uint32_t offset;
    uint32_t total;
    uint32_t crc;   /* CRC-32C of the header before it and of the payload; as decoded */
    uint8_t type;   /* PT_FRAME_DATA, _OFFER, _GRANT or _REFUSE */
    uint8_t reason; /* enum pt_refuse_reason, of REFUSE; of others not looked at */
} pt_wide;

/* Memory of the caller's for one message that comes in wide frames. It is made for an offer that
 * is granted, or by the sink for a message that was not offered, and belongs to the receiving half
 * of the link from then on, until that hands it to the sink whole, or drops it. */
typedef struct pt_landing {
    struct pt_landing *next;
    uint8_t *memory;                          /* total bytes; NULL: what comes is dropped */
    void (*drop)(struct pt_landing *landing); /* it is not needed any more */
    uint32_t id;                              /* 0: it was not offered */
    uint32_t total;
    uint32_t received; /* bytes of whole slices */
} pt_landing;

/* 1 when the two bytes begin a wide frame, else 0. */
int pt_is_wide(const uint8_t *start);

/* The CRC of a header as far as it counts: the CRC of the frame begins with it. */
uint32_t pt_wide_start_crc(const uint8_t *header);

/* Write the header of PT_WIDE_HEADER_SIZE bytes that stands before a payload of wide->payload_len
 * bytes (NULL with 0), its CRC included; wide->crc is not looked at. */
void pt_wide_put(uint8_t *out, const pt_wide *wide, const uint8_t *payload);

/* Read a header of PT_WIDE_HEADER_SIZE bytes. PT_OK, or the first that applies, with *out
 * untouched: PT_ERR_MAGIC; PT_ERR_INVALID_PARAM (type); PT_ERR_MESSAGE_TOO_LARGE (more than
 * PT_WIDE_MAX_PAYLOAD); PT_ERR_INVALID_PARAM (DATA without payload, others with one, a slice that
 * ends behind the total, id 0 with less than the whole message). The CRC is not judged. */
int pt_wide_decode(const uint8_t *header, pt_wide *out);

#endif
