#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "pt_assert.h"
#include "pt_futures_inside.h"
#include "pt_posix_bytes.h"

/* As in Python: see peertalk/net/stream.py. */
#define AHEAD  16384
#define GATHER 16384
#define FULL   65536

/* ---------------------------------------------------------------------------- what was read ahead */

/* Keep bytes behind those that were read ahead. 0, or -1 with an exception. */
/* Bytes that are asked of the memory before any has come, at most: a length may be the other side's
 * word. What is longer grows as it comes. */
#define WHOLE_MAX ((size_t)16 << 20)

static int append(PyObject *left, const void *data, size_t size)
{
    Py_ssize_t before = PyByteArray_Size(left);
    PT_ASSERT(before >= 0 && size <= PT_BYTES_MAX);
    if (PyByteArray_Resize(left, before + (Py_ssize_t)size) != 0)
        return -1;
    memcpy(PyByteArray_AsString(left) + before, data, size);
    return 0;
}

/* The first bytes of those that were read ahead, which has so many. NULL with an exception. */
static PyObject *take(PyObject *left, size_t size)
{
    PT_ASSERT(size <= (size_t)PyByteArray_Size(left));
    PyObject *taken = PyBytes_FromStringAndSize(PyByteArray_AsString(left), (Py_ssize_t)size);
    if (taken != NULL && PySequence_DelSlice(left, 0, (Py_ssize_t)size) != 0)
        Py_CLEAR(taken);
    return taken;
}

int pt_future_put_back(pt_future *self)
{
    if (self->whole == NULL)
        return 0;
    PT_ASSERT(self->kind == PT_FUTURE_EXACTLY && PyByteArray_Size(self->channel->left) == 0);
    int result = append(self->channel->left, PyBytes_AsString(self->whole), self->done);
    self->done = 0;
    Py_CLEAR(self->whole);
    return result;
}

/* ---------------------------------------------------------------------------------------- trying */

static int wait(pt_future *self, PyObject **result)
{
    PT_ASSERT(self->waker == NULL);
    if (pt_channel_is_struck(self->channel))
        return PT_ASK;
    self->waker = pt_channel_wait(self->channel, pt_future_side(self));
    *result = Py_XNewRef((PyObject *)self->waker);
    return self->waker != NULL ? PT_WAIT : PT_FAIL;
}

/* PT_GO: a try makes sense, and may be made now. */
static int may_try(pt_future *self, PyObject **result)
{
    const pt_channel *channel = self->channel;
    PT_ASSERT(!PyErr_Occurred());
    if (!channel->flags->ready[pt_future_side(self)])
        return wait(self, result);
    if (channel->ticks->credit <= 0)
        return PT_ASK; /* others have a tick before that */
    channel->ticks->credit--;
    return PT_GO;
}

/* The system has refused. PT_GO: that was "not now". */
static int refused(const pt_future *self, intptr_t number, const char *doing)
{
    PT_ASSERT(number < 0);
    if (pt_posix_is_not_now(number)) {
        self->channel->flags->ready[pt_future_side(self)] = 0;
        return PT_GO;
    }
    PyObject *code = PyLong_FromSsize_t(number);
    PyObject *what = code != NULL ? PyUnicode_FromString(doing) : NULL;
    PyObject *answer = what != NULL ? pt_future_call(self, "_not_now", code, what) : NULL;
    Py_XDECREF(code);
    Py_XDECREF(what);
    Py_XDECREF(answer);
    return answer != NULL ? PT_GO : PT_FAIL;
}

/* Some bytes came, up to most. Fewer than that: it is empty, unless the other side hung up. */
static void note_short(const pt_future *self, size_t count, size_t most)
{
    PT_ASSERT(count <= most);
    pt_flags *flags = self->channel->flags;
    if (count != most && count != 0 && !flags->hung_up)
        flags->ready[PT_READS] = 0;
}

/* Straight to where the bytes are wanted. */
static int try_fill(pt_future *self, PyObject **result)
{
    PT_ASSERT(self->whole != NULL && self->done < self->size);
    size_t most = self->size - self->done;
    if (most > PT_BYTES_MAX)
        most = PT_BYTES_MAX;
    intptr_t count = pt_posix_receive_bytes(self->channel->descriptor,
                                            PyBytes_AsString(self->whole) + self->done, most);
    if (count < 0)
        return refused(self, count, "read");
    if (count == 0)
        return PT_ASK; /* and is told the same */
    self->done += (size_t)count;
    note_short(self, (size_t)count, most);
    if (self->done < self->size)
        return PT_GO;
    *result = self->whole;
    self->whole = NULL;
    return PT_DONE;
}

/* By way of the shared buffer: what comes with it is kept for the next read. */
static int try_take(pt_future *self, PyObject **result)
{
    pt_channel *channel = self->channel;
    const pt_shared_buffer *shared = channel->shared;
    size_t most = self->size > AHEAD ? self->size : AHEAD;
    if (most > shared->size)
        most = shared->size;
    intptr_t count = pt_posix_receive_bytes(channel->descriptor, shared->memory, most);
    if (count < 0)
        return refused(self, count, "read");
    if (count == 0)
        return PT_ASK; /* and is told the same: it knows whether the connection broke */
    note_short(self, (size_t)count, most);
    size_t had = (size_t)PyByteArray_Size(channel->left);
    PT_ASSERT(had == 0 || (self->kind == PT_FUTURE_EXACTLY && had < self->size));
    size_t given = had == 0 ? (size_t)count : 0;
    if (given > self->size)
        given = self->size;
    if (given < self->size && self->kind == PT_FUTURE_EXACTLY)
        given = 0;
    if (given < (size_t)count &&
        append(channel->left, shared->memory + given, (size_t)count - given) != 0)
        return PT_FAIL;
    if (given == 0 && self->kind == PT_FUTURE_EXACTLY) {
        if ((size_t)PyByteArray_Size(channel->left) < self->size)
            return PT_GO;
        *result = take(channel->left, self->size);
    } else {
        channel->was_full = given == self->size;
        *result = PyBytes_FromStringAndSize((const char *)shared->memory, (Py_ssize_t)given);
    }
    return *result != NULL ? PT_DONE : PT_FAIL;
}

/* Straight into the result, while reads are full: what is not copied costs a tenth less. */
static int try_full(const pt_future *self, PyObject **result)
{
    PT_ASSERT(self->kind == PT_FUTURE_READ && self->size >= AHEAD);
    pt_channel *channel = self->channel;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)self->size);
    if (bytes == NULL)
        return PT_FAIL;
    char *memory = PyBytes_AsString(bytes);
    intptr_t count = pt_posix_receive_bytes(channel->descriptor, memory, self->size);
    channel->was_full = count == (intptr_t)self->size;
    if (channel->was_full) {
        *result = bytes;
        return PT_DONE;
    }
    if (count == 0) {
        Py_DECREF(bytes);
        return PT_ASK; /* as above */
    }
    if (count > 0) {
        note_short(self, (size_t)count, self->size);
        *result = PyBytes_FromStringAndSize(memory, count);
    }
    Py_DECREF(bytes);
    return count < 0 ? refused(self, count, "read") : *result != NULL ? PT_DONE : PT_FAIL;
}

static int try_read(pt_future *self, PyObject **result)
{
    int code = may_try(self, result);
    if (code != PT_GO)
        return code;
    PT_ASSERT(pt_future_side(self) == PT_READS);
    const pt_channel *channel = self->channel;
    if (channel->was_full && self->kind == PT_FUTURE_READ && self->size >= AHEAD &&
        self->size <= channel->shared->size)
        return try_full(self, result);
    return self->whole != NULL ? try_fill(self, result) : try_take(self, result);
}

static int try_write(pt_future *self, PyObject **result)
{
    PT_ASSERT(pt_future_side(self) == PT_WRITES && self->done < self->size);
    pt_channel *channel = self->channel;
    if (PyByteArray_Size(channel->out) != 0)
        return PT_ASK;
    int code = may_try(self, result);
    if (code != PT_GO)
        return code;
    channel->side[PT_WRITES]->tick = channel->ticks->tick;
    intptr_t count = pt_posix_send_bytes(
        channel->descriptor, (const char *)self->view.buf + self->done, self->size - self->done);
    if (count < 0)
        return refused(self, count, "written");
    self->done += (size_t)count;
    if (self->done < self->size) {
        channel->flags->ready[PT_WRITES] = 0;
        return PT_GO;
    }
    *result = Py_NewRef(Py_None);
    return PT_DONE;
}

/* ------------------------------------------------------------------------------------- beginning */

/* 1: this thread may use the stream, which is open, and nobody is in the middle of something on
 * this side. */
static int is_free(const pt_future *self)
{
    const pt_channel *channel = self->channel;
    PT_ASSERT(channel->ticks != NULL && channel->flags != NULL);
    return channel->ticks->thread == (long long)PyThread_get_thread_ident() &&
           !channel->flags->closed && !channel->side[pt_future_side(self)]->busy;
}

static int begin_read(pt_future *self, PyObject **result)
{
    Py_ssize_t size = PyLong_Check(self->argument) ? PyLong_AsSsize_t(self->argument) : -1;
    if (size < 0) {
        PyErr_Clear();
        return PT_ASK;
    }
    self->size = (size_t)size;
    PyObject *left = self->channel->left;
    size_t had = (size_t)PyByteArray_Size(left);
    if (size == 0 || had >= self->size || (had != 0 && self->kind == PT_FUTURE_READ)) {
        *result = take(left, had < self->size ? had : self->size);
        return *result != NULL ? PT_DONE : PT_FAIL;
    }
    if (self->kind == PT_FUTURE_READ || self->size <= AHEAD)
        return PT_GO;
    if (self->size > WHOLE_MAX)
        return PT_ASK;
    self->whole = PyBytes_FromStringAndSize(NULL, size);
    if (self->whole == NULL)
        return PT_FAIL;
    memcpy(PyBytes_AsString(self->whole), PyByteArray_AsString(left), had);
    self->done = had;
    return PyByteArray_Resize(left, 0) == 0 ? PT_GO : PT_FAIL;
}

/* What is written again in a tick is put together with what waits for its end. */
static int gather(const pt_future *self, PyObject **result)
{
    PyObject *out = self->channel->out;
    size_t waits = (size_t)PyByteArray_Size(out);
    if (waits + self->size > FULL)
        return PT_ASK;
    if (waits != 0) {
        if (append(out, self->view.buf, self->size) != 0)
            return PT_FAIL;
        *result = Py_NewRef(Py_None);
    } else {
        *result = pt_future_call(self, "_gather", self->argument, NULL);
    }
    return *result != NULL ? PT_DONE : PT_FAIL;
}

static int begin_write(pt_future *self, PyObject **result)
{
    const pt_channel *channel = self->channel;
    if (channel->side[PT_WRITES]->ended || pt_channel_is_struck(channel))
        return PT_ASK;
    if (PyObject_GetBuffer(self->argument, &self->view, PyBUF_SIMPLE) != 0) {
        PT_ASSERT(self->view.obj == NULL);
        PyErr_Clear();
        return PT_ASK;
    }
    PT_ASSERT(self->view.len >= 0);
    self->size = (size_t)self->view.len;
    if (self->size == 0)
        return PT_ASK;
    if (self->size < GATHER && channel->side[PT_WRITES]->tick == channel->ticks->tick)
        return gather(self, result);
    return PT_GO;
}

int pt_future_begin(pt_future *self, PyObject **result)
{
    PT_ASSERT(self->waker == NULL && self->whole == NULL);
    if (!is_free(self))
        return PT_ASK;
    int code =
        self->kind == PT_FUTURE_WRITE_ALL ? begin_write(self, result) : begin_read(self, result);
    PT_ASSERT(code != PT_WAIT);
    return code;
}

int pt_future_try(pt_future *self, PyObject **result)
{
    PT_ASSERT(self->kind < PT_FUTURE_KINDS && self->waker == NULL);
    return self->kind == PT_FUTURE_WRITE_ALL ? try_write(self, result) : try_read(self, result);
}
