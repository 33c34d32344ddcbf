/* Names and texts of the result codes: one row for each, in the order of the numbers, and two
 * behind them. One string is smaller than a table of pointers, and nothing of it is put right when
 * it is loaded. */
#include "pt_error.h"

#include "pt_assert.h"

static const char ROWS[] =
    "PT_OK\0success\0"
    "PT_ERR_INVALID_PARAM\0an argument, type or length field is out of range\0"
    "PT_ERR_NO_MEMORY\0no memory to lend\0"
    "PT_ERR_NOT_INITIALIZED\0used before it was made ready\0"
    "PT_ERR_ALREADY_INITIALIZED\0already made ready\0"
    "PT_ERR_NETWORK\0a network call failed\0"
    "PT_ERR_TIMEOUT\0not done in the time allowed\0"
    "PT_ERR_CONNECTION_REFUSED\0nobody listens at that address\0"
    "PT_ERR_CONNECTION_CLOSED\0the connection was closed or broke\0"
    "PT_ERR_BUFFER_FULL\0the buffer or queue has no room for this\0"
    "PT_ERR_INVALID_STATE\0not allowed in this state\0"
    "PT_ERR_PEER_NOT_FOUND\0no such peer\0"
    "PT_ERR_DISCOVERY_ACTIVE\0discovery already runs\0"
    "PT_ERR_NO_NETWORK\0no network interface can be used\0"
    "PT_ERR_PLATFORM\0the system refused unexpectedly\0"
    "PT_ERR_QUEUE_EMPTY\0nothing there now\0"
    "PT_ERR_MESSAGE_TOO_LARGE\0longer than the limit that holds here\0"
    "PT_ERR_NOT_SUPPORTED\0this platform or peer cannot do that\0"
    "PT_ERR_NOT_CONNECTED\0no open link to the peer\0"
    "PT_ERR_WOULD_BLOCK\0not now: retry when something has completed\0"
    "PT_ERR_CRC\0the checksum does not match\0"
    "PT_ERR_MAGIC\0not the first bytes of this format\0"
    "PT_ERR_TRUNCATED\0shorter than its own length says\0"
    "PT_ERR_VERSION\0a protocol version that is not spoken here\0"
    "PT_ERR_NOT_POWER2\0a capacity that must be a power of two is not\0"
    "PT_ERR_BACKPRESSURE\0no buffer now: what was read stays where it is\0"
    "PT_ERR_RESOURCE\0no free stream\0"
    "PT_ERR_BUSY\0already at it\0"
    "PT_ERR_CANCELLED\0cancelled\0"
    "PT_ERR_INTERNAL\0internal error\0"
    "PT_ERR_UNKNOWN\0unknown error";

#define CODES    29 /* that follow each other: 0, -1 .. */
#define INTERNAL CODES
#define UNKNOWN  (CODES + 1)

/* The name (0) or the text (1) of a code. */
static const char *find(int code, int which)
{
    int row = code == PT_ERR_INTERNAL ? INTERNAL : code <= 0 && code > -CODES ? -code : UNKNOWN;
    const char *found = ROWS;
    for (int skipped = 2 * row + which; skipped > 0; skipped--) {
        while (*found++ != 0) {
        }
    }
    PT_ASSERT(found < ROWS + sizeof ROWS - 1);
    PT_ASSERT(found == ROWS || found[-1] == 0);
    return found;
}

const char *pt_strerror(int code)
{
    return find(code, 1);
}

const char *pt_error_name(int code)
{
    return find(code, 0);
}
