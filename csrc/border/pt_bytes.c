#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_bytes.h"

#include "pt_assert.h"
#include "pt_posix_bytes.h"
#include "pt_sender.h"

/* A descriptor out of an argument; -1 with an exception. */
static int descriptor_of(PyObject *argument)
{
    long descriptor = PyLong_AsLong(argument);
    if (descriptor == -1 && PyErr_Occurred())
        return -1;
    if (descriptor >= 0 && descriptor <= INT_MAX)
        return (int)descriptor;
    PyErr_Format(PyExc_ValueError, "descriptor %ld: it is closed, or never was open", descriptor);
    return -1;
}

static PyObject *receive(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    const pt_shared_buffer *shared = PyCapsule_GetPointer(self, NULL);
    if (shared == NULL)
        return NULL;
    if (argument_count != 2) {
        PyErr_SetString(PyExc_TypeError, "receive(descriptor, size)");
        return NULL;
    }
    PT_ASSERT(shared->memory != NULL);
    int descriptor = descriptor_of(arguments[0]);
    Py_ssize_t size = descriptor < 0 ? -1 : PyLong_AsSsize_t(arguments[1]);
    if (size < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a negative number of bytes");
        return NULL;
    }
    size_t most = (size_t)size < shared->size ? (size_t)size : shared->size;
    intptr_t count = pt_posix_receive_bytes(descriptor, shared->memory, most);
    return count < 0 ? PyLong_FromSsize_t(count)
                     : PyBytes_FromStringAndSize((const char *)shared->memory, count);
}

static PyObject *receive_into(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    Py_buffer into;
    if (argument_count != 2) {
        PyErr_SetString(PyExc_TypeError, "receive_into(descriptor, buffer)");
        return NULL;
    }
    int descriptor = descriptor_of(arguments[0]);
    if (descriptor < 0 || PyObject_GetBuffer(arguments[1], &into, PyBUF_WRITABLE) != 0)
        return NULL;
    PT_ASSERT(into.len >= 0);
    intptr_t count = pt_posix_receive_bytes(descriptor, into.buf, (size_t)into.len);
    PyBuffer_Release(&into);
    return PyLong_FromSsize_t(count);
}

static PyObject *send_bytes(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    Py_buffer data;
    if (argument_count != 2) {
        PyErr_SetString(PyExc_TypeError, "send_bytes(descriptor, data)");
        return NULL;
    }
    int descriptor = descriptor_of(arguments[0]);
    if (descriptor < 0 || PyObject_GetBuffer(arguments[1], &data, PyBUF_SIMPLE) != 0)
        return NULL;
    PT_ASSERT(data.len >= 0);
    intptr_t count = pt_posix_send_bytes(descriptor, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(count);
}

static void free_shared(PyObject *capsule)
{
    pt_shared_buffer *shared = PyCapsule_GetPointer(capsule, NULL);
    if (shared == NULL)
        return;
    Py_XDECREF(shared->owner);
    PyMem_Free(shared);
}

static PyMethodDef receive_method = {
    "receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL,
    "Up to so many bytes of a socket, or minus the system's number."};

pt_shared_buffer *pt_shared_buffer_of(PyObject *receive_call)
{
    if (!PyCFunction_CheckExact(receive_call) ||
        PyCFunction_GetFunction(receive_call) != receive_method.ml_meth) {
        PyErr_SetString(PyExc_TypeError, "give what bind_receive() has given");
        return NULL;
    }
    return PyCapsule_GetPointer(PyCFunction_GetSelf(receive_call), NULL);
}

static PyObject *bind_receive(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    if (argument_count != 3) {
        PyErr_SetString(PyExc_TypeError, "bind_receive(buffer_addr, buffer_size, owner)");
        return NULL;
    }
    pt_shared_buffer *shared = PyMem_Calloc(1, sizeof *shared);
    if (shared == NULL)
        return PyErr_NoMemory();
    shared->memory = pt_address(arguments[0]);
    if (shared->memory != NULL)
        shared->size = PyLong_AsSize_t(arguments[1]);
    PyObject *capsule = PyErr_Occurred() ? NULL : PyCapsule_New(shared, NULL, free_shared);
    if (capsule == NULL) {
        PyMem_Free(shared);
        return NULL;
    }
    shared->owner = arguments[2];
    Py_INCREF(shared->owner);
    PyObject *bound = PyCFunction_New(&receive_method, capsule);
    Py_DECREF(capsule);
    return bound;
}

static PyMethodDef module_methods[] = {
    {"bind_receive", (PyCFunction)(void (*)(void))bind_receive, METH_FASTCALL,
     "Bind receive to a buffer."},
    {"receive_into", (PyCFunction)(void (*)(void))receive_into, METH_FASTCALL,
     "Read a socket into a buffer: how many bytes, or minus the system's number."},
    {"send_bytes", (PyCFunction)(void (*)(void))send_bytes, METH_FASTCALL,
     "Write to a socket: how many bytes were taken, or minus the system's number."},
    {NULL, NULL, 0, NULL},
};

int pt_bytes_attach(void *module)
{
    return PyModule_AddFunctions(module, module_methods);
}
