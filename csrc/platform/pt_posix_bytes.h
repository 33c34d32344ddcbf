/* What one call reads and writes of a socket that carries bytes and no frames, straight from and to
 * the caller's memory. Nothing waits: the turn says when a try makes sense (PT_WANT_EDGE).
 */
#ifndef PT_POSIX_BYTES_H
#define PT_POSIX_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* The most that one call reads or writes: Linux takes no more (read(2), write(2)). */
#define PT_BYTES_MAX 0x7FFFF000

/* Read up to size bytes of a socket, or receive one datagram. Returns their number, 0: the stream
 * has ended, or size is 0, or minus the system's number: -EAGAIN: nothing is there. */
intptr_t pt_posix_receive_bytes(int descriptor, void *buffer, size_t size);

/* 1 when this is what the two calls here return for "not now". */
int pt_posix_is_not_now(intptr_t count);

/* Write up to size bytes to a socket, or send one datagram. Returns how many the system took, or
 * minus its number: -EAGAIN: there is no room. */
intptr_t pt_posix_send_bytes(int descriptor, const void *data, size_t size);

#endif
