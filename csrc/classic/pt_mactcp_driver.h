/* The driver of MacTCP, simulated: it is asked with parameter blocks, and its answers are polled.
 *
 * A block belongs to the driver from the call until its io_result is not 1 any more: 1 in progress,
 * 0 done, negative failed. The driver tells of arrivals and ends through a notification routine, at
 * interrupt time: it may set flags and nothing else. The simulated driver refuses what the real one
 * refuses, also where the real one would just crash, and remembers which rule was broken
 * (pt_classic.violations).
 */
#ifndef PT_MACTCP_DRIVER_H
#define PT_MACTCP_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "pt_classic.h"

/* Bytes of a parameter block as the source of the pipeline has it */
#define PT_MACTCP_BLOCK_DOCUMENTED 108
#define PT_MACTCP_BLOCK_SIZE       92 /* as the maker's header has it */
#define PT_MACTCP_ULP_TIMEOUT      30 /* seconds without an acknowledgement ... */
#define PT_MACTCP_ULP_ABORT     1 /* ... and what then: the connection is broken (0: only told) */
#define PT_MACTCP_VALID_TIMEOUT 0x80 /* in validity_flags: ulp_timeout_value counts */
#define PT_MACTCP_VALID_ACTION  0x40 /* ... ulp_timeout_action counts */

enum pt_mactcp_call {
    PT_MACTCP_SEND = 34,
    PT_MACTCP_RECEIVE = 37,
    PT_MACTCP_CLOSE = 38,
    PT_MACTCP_ABORT = 39,
    PT_MACTCP_STATUS = 40,
    PT_MACTCP_RELEASE = 42
};

/* The maker's numbers. */
enum pt_mactcp_result {
    PT_MACTCP_IN_PROGRESS = 1,
    PT_MACTCP_NO_ERROR = 0,
    PT_MACTCP_BAD_PARAMETER = -50,
    PT_MACTCP_BAD_REFNUM = -51,
    PT_MACTCP_CONNECTION_CLOSING = -23005,
    PT_MACTCP_INVALID_LENGTH = -23006,
    PT_MACTCP_NO_CONNECTION = -23008,
    PT_MACTCP_NO_RESOURCES = -23009,
    PT_MACTCP_INVALID_STREAM = -23010,
    PT_MACTCP_TERMINATED = -23012,
    PT_MACTCP_INVALID_BUFFER = -23013,
    PT_MACTCP_INVALID_WDS = -23014,
    PT_MACTCP_COMMAND_TIMEOUT = -23016
};

/* What a notification routine is told. */
enum pt_mactcp_event {
    PT_MACTCP_DATA_ARRIVAL = 1,
    PT_MACTCP_CLOSING = 2,
    PT_MACTCP_TERMINATE = 4,
    PT_MACTCP_SENT = 8,
    PT_MACTCP_ULP_LATE = 16
};

/* A piece of a write: the list ends with length 0 and no pointer. */
typedef struct pt_mactcp_wds {
    uint16_t length;
    const uint8_t *ptr;
} pt_mactcp_wds;

typedef struct pt_mactcp_block pt_mactcp_block;
struct pt_mactcp_block {
    pt_mactcp_block *q_link;                       /* the driver's queue */
    void (*io_completion)(pt_mactcp_block *block); /* must be NULL: results are polled */
    int16_t io_result;
    int16_t io_c_ref_num; /* the driver's */
    int16_t cs_code;      /* enum pt_mactcp_call */
    int32_t tcp_stream;
    uint8_t ulp_timeout_value; /* SEND, CLOSE */
    uint8_t ulp_timeout_action;
    uint8_t validity_flags;
    uint8_t push_flag; /* SEND */
    uint8_t urgent_flag;
    const pt_mactcp_wds *wds; /* SEND */
    uint32_t send_free;       /* out, SEND */
    uint16_t send_length;     /* out, SEND: bytes that were sent */
    uint8_t *receive_buffer;  /* RECEIVE */
    uint32_t receive_length;  /* RECEIVE: in: bytes of room, out: bytes */
    uint32_t unread_len;      /* out, STATUS: 1 when there is something to read */

    pt_sim_piece piece; /* from here on the driver's */
    pt_mactcp_wds seen; /* of wds[0] when it was called */
    uint32_t sum;       /* of the bytes then */
};

typedef struct pt_mactcp_stream pt_mactcp_stream; /* opaque */

/* The driver of one machine, and what its port keeps beside it. */
typedef struct pt_mactcp {
    pt_classic world;
    pt_mactcp_stream *streams;
    uint8_t push; /* the port's: what push_flag says */
} pt_mactcp;

/* A notification routine: at interrupt time. */
typedef void (*pt_mactcp_routine)(void *user, int event);

/* Bytes of a stream. */
size_t pt_mactcp_stream_size(void);

/* The number that io_c_ref_num must have. */
int16_t pt_mactcp_ref_num(const pt_mactcp *driver);

/* Give the driver a connection of the network as a stream (what creating and opening one does).
 * Returns PT_OK or PT_ERR_NO_MEMORY, PT_ERR_INVALID_PARAM. */
int pt_mactcp_adopt(pt_mactcp *driver, int32_t handle, pt_mactcp_routine routine, void *user);

/* Call the driver. Returns io_result as it is afterwards: PT_MACTCP_IN_PROGRESS for a SEND that was
 * taken over, else the result. SEND, CLOSE: the block is the driver's until then. */
int16_t pt_mactcp_control(pt_mactcp *driver, pt_mactcp_block *block);

/* Release every stream. Nothing may be in progress. */
void pt_mactcp_release_all(pt_mactcp *driver);

#endif
