#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_pure.h"

#include "pt_assert.h"
#include "pt_crc.h"
#include "pt_crc32c.h"
#include "pt_pipeline.h"
#include "pt_wire.h"

static PyObject *none(void)
{
    PyErr_Clear();
    Py_INCREF(Py_None);
    return Py_None;
}

/* A number from 0 to limit, or -1. */
static long small(PyObject *number, long limit)
{
    long value = PyLong_Check(number) ? PyLong_AsLong(number) : -1;
    return value > limit ? -1 : value;
}

/* The bytes of an object that is exactly that; NULL otherwise. */
static const uint8_t *plain_bytes(PyObject *object, Py_ssize_t *len)
{
    char *data = NULL;
    if (!PyBytes_CheckExact(object) || PyBytes_AsStringAndSize(object, &data, len) != 0)
        return NULL;
    PT_ASSERT(data != NULL && *len >= 0);
    return (const uint8_t *)data;
}

static PyObject *crc16(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    Py_ssize_t len = 0;
    const uint8_t *data = argument_count == 2 ? plain_bytes(arguments[0], &len) : NULL;
    long start = data != NULL ? small(arguments[1], UINT16_MAX) : -1;
    return start < 0 ? none() : PyLong_FromLong(pt_crc16((uint16_t)start, data, (size_t)len));
}

static PyObject *crc32c(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    Py_ssize_t len = 0;
    const uint8_t *data = argument_count == 2 ? plain_bytes(arguments[0], &len) : NULL;
    if (data == NULL || !PyLong_Check(arguments[1]))
        return none();
    long long start = PyLong_AsLongLong(arguments[1]);
    if (start < 0 || start > UINT32_MAX)
        return none();
    return PyLong_FromUnsignedLong(pt_crc32c((uint32_t)start, data, (size_t)len));
}

/* encode_frame(type, payload, flags, sequence) -> bytes */
static PyObject *encode_frame(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    if (argument_count != 4)
        return none();
    Py_ssize_t len = 0;
    const uint8_t *payload = plain_bytes(arguments[1], &len);
    long type = small(arguments[0], UINT8_MAX), flags = small(arguments[2], UINT8_MAX),
         sequence = small(arguments[3], UINT8_MAX);
    if (payload == NULL || len > PT_FRAME_MAX_PAYLOAD || type < 0 || flags < 0 || sequence < 0)
        return none();
    pt_frame frame = {payload, (uint32_t)len, (uint8_t)type, (uint8_t)flags, (uint8_t)sequence};
    PyObject *whole = PyBytes_FromStringAndSize(NULL, len + PT_FRAME_OVERHEAD);
    char *out = whole != NULL ? PyBytes_AsString(whole) : NULL;
    int written = -1;
    if (out != NULL)
        written = pt_frame_encode(&frame, (uint8_t *)out, (size_t)len + PT_FRAME_OVERHEAD);
    if (written < 0) {
        Py_XDECREF(whole);
        return none();
    }
    PT_ASSERT(written == len + PT_FRAME_OVERHEAD); /* no byte of it is memory of someone else's */
    return whole;
}

/* decode_frame(data) -> (type, flags, sequence, payload) */
static PyObject *decode_frame(PyObject *self, PyObject *data)
{
    (void)self;
    Py_ssize_t len = 0;
    const uint8_t *bytes = plain_bytes(data, &len);
    pt_frame frame;
    if (bytes == NULL || pt_frame_decode(bytes, (size_t)len, &frame) < 0)
        return none();
    PT_ASSERT(frame.payload >= bytes);
    PT_ASSERT(frame.payload + frame.payload_len <= bytes + len);
    PyObject *tuple = pt_make_tuple(
        frame.type, frame.flags, frame.sequence,
        PyBytes_FromStringAndSize((const char *)frame.payload, (Py_ssize_t)frame.payload_len));
    return tuple != NULL ? tuple : none();
}

/* all_bytes(list) -> bool: whether each of it is a bytes object, of no other class. */
static PyObject *all_bytes(PyObject *self, PyObject *items)
{
    (void)self;
    if (!PyList_Check(items))
        return none();
    Py_ssize_t index = 0, count = PyList_Size(items);
    while (index < count && PyBytes_CheckExact(PyList_GetItem(items, index)))
        index++;
    return PyBool_FromLong(index == count);
}

/* put_frame(pipeline_addr, type, payload, flags) -> code: pt_pipeline_send() */
static PyObject *put_frame(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    if (argument_count != 4)
        return none();
    Py_ssize_t len = 0;
    pt_send_pipeline *pipeline = PyLong_AsVoidPtr(arguments[0]);
    const uint8_t *payload = plain_bytes(arguments[2], &len);
    long type = small(arguments[1], UINT8_MAX), flags = small(arguments[3], UINT8_MAX);
    if (pipeline == NULL || payload == NULL || len > UINT16_MAX || type < 0 || flags < 0)
        return none();
    PT_ASSERT((uintptr_t)pipeline % _Alignof(pt_send_pipeline) == 0);
    return PyLong_FromLong(
        pt_pipeline_send(pipeline, (uint8_t)type, (uint8_t)flags, payload, (uint32_t)len));
}

static PyMethodDef methods[] = {
    {"crc16", (PyCFunction)(void (*)(void))crc16, METH_FASTCALL, "crc16(data, start)"},
    {"crc32c", (PyCFunction)(void (*)(void))crc32c, METH_FASTCALL, "crc32c(data, start)"},
    {"encode_frame", (PyCFunction)(void (*)(void))encode_frame, METH_FASTCALL,
     "encode_frame(type, payload, flags, sequence)"},
    {"decode_frame", decode_frame, METH_O, "decode_frame(data)"},
    {"all_bytes", all_bytes, METH_O, "all_bytes(list)"},
    {"put_frame", (PyCFunction)(void (*)(void))put_frame, METH_FASTCALL,
     "put_frame(pipeline_addr, type, payload, flags)"},
    {NULL, NULL, 0, NULL},
};

int pt_pure_attach(void *module)
{
    return PyModule_AddFunctions(module, methods);
}
