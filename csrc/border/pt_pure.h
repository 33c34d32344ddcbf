/* Functions for CPython that know bytes and small numbers only. */
#ifndef PT_PURE_H
#define PT_PURE_H

#include <Python.h>

/* (a, b, c, d); the reference to d is taken over, also on failure. NULL: no memory. Here, because
 * each message that is told goes through it. */
static inline PyObject *pt_make_tuple(uint32_t a, uint32_t b, long long c, PyObject *d)
{
    PyObject *tuple = PyTuple_New(4);
    PyObject *parts[3] = {PyLong_FromUnsignedLong(a), PyLong_FromUnsignedLong(b),
                          PyLong_FromLongLong(c)};
    if (tuple == NULL || d == NULL || parts[0] == NULL || parts[1] == NULL || parts[2] == NULL) {
        Py_XDECREF(tuple);
        Py_XDECREF(d);
        for (int index = 0; index < 3; index++)
            Py_XDECREF(parts[index]);
        return NULL;
    }
    for (int index = 0; index < 3; index++)
        (void)PyTuple_SetItem(tuple, index, parts[index]);
    (void)PyTuple_SetItem(tuple, 3, d);
    return tuple;
}

/* Add them to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   crc16(data, start), crc32c(data, start), encode_frame(type, payload, flags, sequence),
 *   decode_frame(data), put_frame(pipeline_addr, type, payload, flags), all_bytes(list)
 *
 * They answer None to what is out of range and to every fault: the codec then says what is wrong.
 */
int pt_pure_attach(void *module);

#endif
