/* Names and texts of the result codes: one row for each, in the order of the numbers. */
#include "pt_error.h"

#include <stddef.h>

static const struct {
    const char *name;
    const char *text;
} ROWS[] = {
    {"PT_OK", "success"},
    {"PT_ERR_INVALID_PARAM", "an argument, type or length field is out of range"},
    {"PT_ERR_NO_MEMORY", "no memory to lend"},
    {"PT_ERR_NOT_INITIALIZED", "used before it was made ready"},
    {"PT_ERR_ALREADY_INITIALIZED", "already made ready"},
    {"PT_ERR_NETWORK", "a network call failed"},
    {"PT_ERR_TIMEOUT", "not done in the time allowed"},
    {"PT_ERR_CONNECTION_REFUSED", "nobody listens at that address"},
    {"PT_ERR_CONNECTION_CLOSED", "the connection was closed or broke"},
    {"PT_ERR_BUFFER_FULL", "the buffer or queue has no room for this"},
    {"PT_ERR_INVALID_STATE", "not allowed in this state"},
    {"PT_ERR_PEER_NOT_FOUND", "no such peer"},
    {"PT_ERR_DISCOVERY_ACTIVE", "discovery already runs"},
    {"PT_ERR_NO_NETWORK", "no network interface can be used"},
    {"PT_ERR_PLATFORM", "the system refused unexpectedly"},
    {"PT_ERR_QUEUE_EMPTY", "nothing there now"},
    {"PT_ERR_MESSAGE_TOO_LARGE", "longer than the limit that holds here"},
    {"PT_ERR_NOT_SUPPORTED", "this platform or peer cannot do that"},
    {"PT_ERR_NOT_CONNECTED", "no open link to the peer"},
    {"PT_ERR_WOULD_BLOCK", "not now: retry when something has completed"},
    {"PT_ERR_CRC", "the checksum does not match"},
    {"PT_ERR_MAGIC", "not the first bytes of this format"},
    {"PT_ERR_TRUNCATED", "shorter than its own length says"},
    {"PT_ERR_VERSION", "a protocol version that is not spoken here"},
    {"PT_ERR_NOT_POWER2", "a capacity that must be a power of two is not"},
    {"PT_ERR_BACKPRESSURE", "no buffer now: what was read stays where it is"},
    {"PT_ERR_RESOURCE", "no free stream"},
    {"PT_ERR_BUSY", "already at it"},
    {"PT_ERR_CANCELLED", "cancelled"},
};

#define ROW_COUNT ((int)(sizeof ROWS / sizeof ROWS[0]))

const char *pt_strerror(int code)
{
    if (code == PT_ERR_INTERNAL)
        return "internal error";
    return code <= 0 && code > -ROW_COUNT ? ROWS[-code].text : "unknown error";
}

const char *pt_error_name(int code)
{
    if (code == PT_ERR_INTERNAL)
        return "PT_ERR_INTERNAL";
    return code <= 0 && code > -ROW_COUNT ? ROWS[-code].name : "PT_ERR_UNKNOWN";
}
