#include "pt_posix_bytes.h"

#include <errno.h>
#include <sys/socket.h>

#include "pt_assert.h"

#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0 /* there the caller's program ignores SIGPIPE, as Python does */
#endif

static size_t bounded(size_t size)
{
    return size < PT_BYTES_MAX ? size : PT_BYTES_MAX;
}

/* Minus the number of the failure that has just been met. Systems that tell "not now" by another
 * number than EAGAIN are told apart nowhere else. */
static intptr_t failure(void)
{
    PT_ASSERT(errno > 0);
    return errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

int pt_posix_is_not_now(intptr_t count)
{
    PT_ASSERT(EAGAIN > 0);
    return count == -EAGAIN;
}

intptr_t pt_posix_receive_bytes(int descriptor, void *buffer, size_t size)
{
    PT_ASSERT(buffer != NULL || size == 0);
    if (size == 0)
        return 0; /* a Unix socket would say "not now" where others say 0 */
    ssize_t count;
    do
        count = recv(descriptor, buffer, bounded(size), MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    return count < 0 ? failure() : count;
}

intptr_t pt_posix_send_bytes(int descriptor, const void *data, size_t size)
{
    PT_ASSERT(data != NULL || size == 0);
    ssize_t count;
    do
        count = send(descriptor, data, bounded(size), MSG_DONTWAIT | MSG_NOSIGNAL);
    while (count < 0 && errno == EINTR);
    return count < 0 ? failure() : count;
}
