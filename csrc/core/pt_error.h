/* Result codes: 0 or a count is success, negative is one of these. The numbers are those of the
 * original PeerTalk C SDK. */
#ifndef PT_ERROR_H
#define PT_ERROR_H

enum pt_error {
    PT_OK = 0,
    PT_ERR_INVALID_PARAM = -1,       /* bad argument, type or length field */
    PT_ERR_NO_MEMORY = -2,           /* the pool or the platform has no memory to lend */
    PT_ERR_NOT_INITIALIZED = -3,     /* used before its init */
    PT_ERR_ALREADY_INITIALIZED = -4, /* init of something in use */
    PT_ERR_NETWORK = -5,             /* a network call failed; the system's number is beside it */
    PT_ERR_TIMEOUT = -6,             /* not done in time */
    PT_ERR_CONNECTION_REFUSED = -7,  /* nobody listens there */
    PT_ERR_CONNECTION_CLOSED = -8,   /* the other side closed, or the connection broke */
    PT_ERR_BUFFER_FULL = -9,         /* output buffer or queue too small for this */
    PT_ERR_INVALID_STATE = -10,      /* not allowed in this state */
    PT_ERR_PEER_NOT_FOUND = -11,     /* no such peer */
    PT_ERR_DISCOVERY_ACTIVE = -12,   /* discovery already runs */
    PT_ERR_NO_NETWORK = -13,         /* no usable interface */
    PT_ERR_PLATFORM = -14,           /* a platform call failed in an unexpected way */
    PT_ERR_QUEUE_EMPTY = -15,        /* nothing there (polled mode) */
    PT_ERR_MESSAGE_TOO_LARGE = -16,  /* longer than the limit that holds here */
    PT_ERR_NOT_SUPPORTED = -17,      /* this platform or peer cannot */
    PT_ERR_NOT_CONNECTED = -18,      /* no open link to the peer */
    PT_ERR_WOULD_BLOCK = -19,        /* no slot now: poll completions, then retry */
    PT_ERR_CRC = -20,                /* checksum mismatch */
    PT_ERR_MAGIC = -21,              /* not the expected first bytes */
    PT_ERR_TRUNCATED = -22,          /* shorter than its own length says */
    PT_ERR_VERSION = -23,            /* a protocol version that we do not speak */
    PT_ERR_NOT_POWER2 = -24,         /* a capacity that must be a power of two is not */
    PT_ERR_BACKPRESSURE = -25,       /* no buffer now: what was read stays where it is */
    PT_ERR_RESOURCE = -26,           /* no free stream (classic Mac) */
    PT_ERR_BUSY = -27,               /* already at it */
    PT_ERR_CANCELLED = -28,          /* an outcome, never an error of a call */
    PT_ERR_INTERNAL = -99            /* we were wrong */
};

/* A short English text for a code, without the code's name; "unknown error" for a number that is
 * none. Static memory. */
const char *pt_strerror(int code);

/* The name of a code as it stands above ("PT_ERR_CRC", "PT_OK"); "PT_ERR_UNKNOWN" for a number that
 * is none. Static memory. */
const char *pt_error_name(int code);

#endif
