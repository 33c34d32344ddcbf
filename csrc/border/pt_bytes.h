/* Bytes of a socket for CPython: one native call tries once. */
#ifndef PT_BYTES_H
#define PT_BYTES_H

#include <Python.h>

#include <stddef.h>
#include <stdint.h>

/* The buffer that receive() reads by way of, and who keeps it. */
typedef struct pt_shared_buffer {
    uint8_t *memory;
    size_t size;
    PyObject *owner;
} pt_shared_buffer;

/* What a receive() is bound to, for as long as that lives. NULL with an exception: it is none. */
pt_shared_buffer *pt_shared_buffer_of(PyObject *receive);

/* Add bind_receive(), receive_into() and send_bytes() to a module object, with the GIL held.
 * Returns 0, or -1 with an exception. All three keep the GIL, since none waits, and return minus
 * the system's number where the system refuses: -EAGAIN: not now.
 *
 *   bind_receive(buffer_addr, buffer_size, owner) -> receive
 *
 * receive(descriptor, size) -> bytes, or a negative int: up to size bytes, and never more than the
 * buffer takes, read by way of that buffer, so that the bytes object has the length of what came
 * and no more. b"": the stream has ended. The owner keeps the buffer, which is for the calls of one
 * thread.
 *
 * receive_into(descriptor, buffer) -> int: likewise, straight into a writable contiguous buffer.
 *
 * send_bytes(descriptor, data) -> int: how many bytes of a contiguous buffer the system took.
 *
 * Wrong types raise TypeError, numbers beyond an int OverflowError, a negative size ValueError. */
int pt_bytes_attach(void *module);

#endif
