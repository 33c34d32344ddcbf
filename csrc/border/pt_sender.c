#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_sender.h"

#include "pt_assert.h"
#include "pt_large.h"
#include "pt_native.h"

/* A Py_ssize_t may be longer than what a frame can say. */
static inline int send_bytes(native_link *bound, uint8_t type, uint8_t flags, const void *data,
                             Py_ssize_t len)
{
    PT_ASSERT(pt_is_owner(bound->context));
    PT_ASSERT(len >= 0 && (data != NULL || len == 0));

    if ((uint64_t)len > UINT32_MAX)
        return bound->link.state == PT_LINK_OPEN ? PT_ERR_MESSAGE_TOO_LARGE : PT_ERR_NOT_CONNECTED;
    (void)pt_take_link(bound);
    int code = pt_link_send(bound->context, &bound->link, type, flags, data, (uint32_t)len);
    pt_context_unlock(bound->context);
    return code;
}

/* Send a wide DATA frame with size bytes of a bytes object, which is kept until they have left. */
static int send_slice(native_link *bound, uint8_t flags, PyObject *payload, uint32_t id,
                      uint32_t offset, uint32_t size)
{
    PT_ASSERT(pt_is_owner(bound->context));
    PT_ASSERT((uint64_t)offset + size <= (uint64_t)PyBytes_Size(payload));

    const pt_platform_ops *ops = bound->context->ops;
    pt_hold *hold = NULL;
    if (ops != NULL && ops->refers) {
        hold = pt_large_hold(payload, bound->context->worker);
        if (hold == NULL)
            return PT_ERR_NO_MEMORY;
    }
    pt_wide wide = {.type = PT_FRAME_DATA,
                    .payload_len = size,
                    .id = id,
                    .offset = offset,
                    .total = (uint32_t)PyBytes_Size(payload)};
    const uint8_t *data = (const uint8_t *)PyBytes_AsString(payload) + offset;
    (void)pt_take_link(bound);
    int code = pt_link_send_wide(bound->context, &bound->link, &wide, flags, data, hold);
    if (code < 0 && hold != NULL)
        hold->let_go(hold);
    pt_context_unlock(bound->context);
    return code;
}

/* 1 for what is too long for a full frame and not for a wide one, which has no flags. */
static inline int is_large(const pt_link *link, uint8_t type, uint8_t flags, Py_ssize_t len)
{
    return type == PT_FRAME_DATA && (flags & ~PT_FLAG_NO_DELAY) == 0 &&
           (size_t)len > link->max_message && (size_t)len <= link->wide_max;
}

/* Send a bytes object, which runs no code. */
static inline int send_plain(native_link *bound, PyObject *payload)
{
    char *data = NULL;
    Py_ssize_t len = 0;
    (void)PyBytes_AsStringAndSize(payload, &data, &len);
    if (is_large(&bound->link, PT_FRAME_DATA, 0, len))
        return send_slice(bound, 0, payload, 0, 0, (uint32_t)len);
    return send_bytes(bound, PT_FRAME_DATA, 0, data, len);
}

/* A large buffer may change when the call is over, so its bytes are copied once. */
static int send_copy(native_link *bound, uint8_t flags, const Py_buffer *view)
{
    PT_ASSERT(view->len > 0);

    PyObject *copy = PyBytes_FromStringAndSize(view->buf, view->len);
    if (copy == NULL) {
        PyErr_Clear();
        return PT_ERR_NO_MEMORY;
    }
    int code = send_slice(bound, flags, copy, 0, 0, (uint32_t)view->len);
    Py_DECREF(copy);
    return code;
}

/* Code that gives a buffer may have handed the node to another thread, so the owner is asked after
 * it. *raised: Python refused. */
static int send_buffer(native_link *bound, uint8_t type, uint8_t flags, PyObject *payload,
                       int *raised)
{
    PT_ASSERT(*raised == 0);

    Py_buffer view;
    if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) != 0) {
        if (PyErr_ExceptionMatches(PyExc_BufferError)) {
            PyErr_Clear();
            PyErr_SetString(PyExc_TypeError, "payload must be bytes or a contiguous buffer");
        }
        *raised = 1;
        return PT_ERR_INVALID_PARAM;
    }
    int code = PT_ERR_INVALID_STATE;
    if (pt_is_owner(bound->context)) {
        if (!is_large(&bound->link, type, flags, view.len))
            code = send_bytes(bound, type, flags, view.buf, view.len);
        else if (PyBytes_CheckExact(payload))
            code = send_slice(bound, flags, payload, 0, 0, (uint32_t)view.len);
        else
            code = send_copy(bound, flags, &view);
    }
    PyBuffer_Release(&view);
    return code;
}

static PyObject *link_send(PyObject *self, PyObject *payload)
{
    native_link *bound = (native_link *)self;
    int raised = 0;
    int code = PT_ERR_INVALID_STATE;
    if (pt_is_owner(bound->context))
        code = PyBytes_CheckExact(payload) ? send_plain(bound, payload)
                                           : send_buffer(bound, PT_FRAME_DATA, 0, payload, &raised);
    return raised ? NULL : PyLong_FromLong(code);
}

static PyObject *link_send_frame(PyObject *self, PyObject *const *arguments,
                                 Py_ssize_t argument_count)
{
    if (argument_count != 3) {
        PyErr_SetString(PyExc_TypeError, "send_frame(type, payload, flags)");
        return NULL;
    }
    int overflow = 0; /* a number that long is -1 */
    long type = PyLong_AsLongAndOverflow(arguments[0], &overflow);
    long flags = PyErr_Occurred() ? -1 : PyLong_AsLongAndOverflow(arguments[2], &overflow);
    if (PyErr_Occurred())
        return NULL;
    if (type < 0 || type > UINT8_MAX || flags < 0 || flags > UINT8_MAX)
        type = flags = 0; /* which no frame has */
    int raised = 0;
    int code =
        send_buffer((native_link *)self, (uint8_t)type, (uint8_t)flags, arguments[1], &raised);
    return raised ? NULL : PyLong_FromLong(code);
}

/* Numbers that came from Python. 0: one is none of 32 bits, or an exception is set. */
static int read_numbers(PyObject *const *arguments, Py_ssize_t count, uint32_t *numbers)
{
    for (Py_ssize_t index = 0; index < count; index++) {
        int overflow = 0;
        long long number = PyLong_AsLongLongAndOverflow(arguments[index], &overflow);
        if (overflow != 0 || number < 0 || number > UINT32_MAX)
            return 0;
        numbers[index] = (uint32_t)number;
    }
    return 1;
}

/* PT_ERR_INVALID_PARAM as a number; NULL: an exception is set, which says more. */
static PyObject *tell_invalid(void)
{
    return PyErr_Occurred() ? NULL : PyLong_FromLong(PT_ERR_INVALID_PARAM);
}

static PyObject *link_send_slice(PyObject *self, PyObject *const *arguments,
                                 Py_ssize_t argument_count)
{
    native_link *bound = (native_link *)self;
    uint32_t numbers[3];
    if (argument_count != 4 || !PyBytes_CheckExact(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "send_slice(payload, id, offset, size): payload is bytes");
        return NULL;
    }
    if (!read_numbers(arguments + 1, 3, numbers))
        return tell_invalid();
    Py_ssize_t total = PyBytes_Size(arguments[0]);
    int code = PT_ERR_INVALID_STATE;
    if (total > UINT32_MAX || numbers[2] == 0 ||
        (uint64_t)numbers[1] + numbers[2] > (uint64_t)total ||
        (numbers[0] == 0 && numbers[2] != (uint64_t)total))
        code = PT_ERR_INVALID_PARAM;
    else if (pt_is_owner(bound->context))
        code = send_slice(bound, 0, arguments[0], numbers[0], numbers[1], numbers[2]);
    return PyLong_FromLong(code);
}

static PyObject *link_depart(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    native_link *bound = (native_link *)self;
    uint32_t numbers[2];
    if (argument_count != 3 || !PyBytes_CheckExact(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "depart(payload, id, offset): payload is bytes");
        return NULL;
    }
    if (!read_numbers(arguments + 1, 2, numbers))
        return tell_invalid();
    Py_ssize_t total = PyBytes_Size(arguments[0]);
    if (total > UINT32_MAX || numbers[0] == 0 || numbers[1] >= (uint64_t)total)
        return PyLong_FromLong(PT_ERR_INVALID_PARAM);
    if (!pt_is_owner(bound->context))
        return PyLong_FromLong(PT_ERR_INVALID_STATE);
    pt_departure *departure =
        pt_large_departure(arguments[0], numbers[0], numbers[1], bound->context->worker);
    int code = PT_ERR_NO_MEMORY;
    if (departure != NULL) {
        (void)pt_take_link(bound);
        code = pt_link_depart(bound->context, &bound->link, departure);
        if (code < 0)
            departure->drop(departure);
        pt_context_unlock(bound->context);
    }
    return PyLong_FromLong(code);
}

static PyObject *link_recall(PyObject *self, PyObject *unused)
{
    native_link *bound = (native_link *)self;
    (void)unused;
    uint32_t left = 0;
    if (pt_is_owner(bound->context)) {
        (void)pt_take_link(bound);
        left = pt_link_departing(&bound->link);
        pt_link_recall(&bound->link);
        pt_context_unlock(bound->context);
    }
    return PyLong_FromUnsignedLong(left);
}

static PyObject *link_send_wide(PyObject *self, PyObject *const *arguments,
                                Py_ssize_t argument_count)
{
    native_link *bound = (native_link *)self;
    uint32_t numbers[4];
    if (argument_count != 4) {
        PyErr_SetString(PyExc_TypeError, "send_wide(type, id, total, reason)");
        return NULL;
    }
    if (!read_numbers(arguments, 4, numbers))
        return tell_invalid();
    int code = PT_ERR_INVALID_STATE;
    if (numbers[0] < PT_FRAME_OFFER || numbers[0] > PT_FRAME_REFUSE || numbers[3] > UINT8_MAX) {
        code = PT_ERR_INVALID_PARAM;
    } else if (pt_is_owner(bound->context)) {
        pt_wide wide = {.type = (uint8_t)numbers[0],
                        .id = numbers[1],
                        .total = numbers[2],
                        .reason = (uint8_t)numbers[3]};
        (void)pt_take_link(bound);
        code = pt_link_send_wide(bound->context, &bound->link, &wide, 0, NULL, NULL);
        pt_context_unlock(bound->context);
    }
    return PyLong_FromLong(code);
}

static PyObject *link_expect(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    native_link *bound = (native_link *)self;
    uint32_t numbers[2];
    if (argument_count != 2) {
        PyErr_SetString(PyExc_TypeError, "expect(id, total)");
        return NULL;
    }
    if (!read_numbers(arguments, 2, numbers))
        return tell_invalid();
    if (numbers[0] == 0 || numbers[1] == 0 || numbers[1] > INT32_MAX)
        return PyLong_FromLong(PT_ERR_INVALID_PARAM);
    if (!pt_is_owner(bound->context))
        return PyLong_FromLong(PT_ERR_INVALID_STATE);
    pt_landing *landing = pt_large_landing(numbers[0], numbers[1], bound->context->worker);
    int code = PT_ERR_NO_MEMORY;
    (void)pt_take_link(bound);
    if (bound->link.ingest.state == PT_INGEST_INIT)
        code = PT_ERR_NOT_CONNECTED;
    else if (landing != NULL)
        code = pt_ingest_expect(&bound->link.ingest, landing);
    if (code != PT_OK && landing != NULL)
        landing->drop(landing);
    pt_context_unlock(bound->context);
    return PyLong_FromLong(code);
}

/* What is expected under an id that came from Python; NULL: nothing is, or an exception is set. */
static pt_landing *landing_of(const native_link *bound, PyObject *number, uint32_t *id)
{
    if (!read_numbers(&number, 1, id) || !pt_is_owner(bound->context))
        return NULL;
    return pt_ingest_landing(&bound->link.ingest, *id);
}

static PyObject *link_forgo(PyObject *self, PyObject *number)
{
    const native_link *bound = (native_link *)self;
    uint32_t id = 0;
    (void)pt_take_settled(bound);
    pt_landing *landing = landing_of(bound, number, &id);
    if (landing != NULL)
        pt_large_forgo(landing);
    pt_context_unlock(bound->context);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *link_forget(PyObject *self, PyObject *number)
{
    native_link *bound = (native_link *)self;
    uint32_t id = 0;
    (void)pt_take_settled(bound);
    pt_landing *landing = landing_of(bound, number, &id);
    if (landing != NULL) {
        pt_large_forgo(landing);
        pt_ingest_forget(&bound->link.ingest, id);
    }
    pt_context_unlock(bound->context);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *link_landed(PyObject *self, PyObject *number)
{
    const native_link *bound = (native_link *)self;
    uint32_t id = 0;
    long long bytes = -1;
    (void)pt_take_link(bound);
    const pt_landing *landing = landing_of(bound, number, &id);
    if (landing != NULL && landing->memory != NULL)
        bytes = (long long)landing->received +
                (pt_ingest_into(&bound->link.ingest) == landing
                     ? bound->link.ingest.staged_len - PT_WIDE_HEADER_SIZE
                     : 0);
    pt_context_unlock(bound->context);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(bytes);
}

/* 1 when so many messages like the first are more than one small slot holds. */
static int is_more(const pt_send_pipeline *pipeline, PyObject *payloads, Py_ssize_t start)
{
    Py_ssize_t count = PyList_Size(payloads) - start;
    if (count <= 0 || !PyBytes_CheckExact(PyList_GetItem(payloads, start)))
        return 0;
    size_t frame = (size_t)PyBytes_Size(PyList_GetItem(payloads, start)) + PT_FRAME_OVERHEAD;
    return frame <= pipeline->small_size && (size_t)count > pipeline->small_size / frame;
}

/* Tell the link what payloads[start:] are, which come next. */
static void expect_many(native_link *bound, PyObject *payloads, Py_ssize_t start)
{
    PT_ASSERT(start >= 0);

    (void)pt_take_link(bound); /* a worker has flags beside these */
    bound->link.pipeline.more = is_more(&bound->link.pipeline, payloads, start) != 0;
    bound->link.pipeline.many = PyList_Size(payloads) - start > 1;
    pt_context_unlock(bound->context);
}

static PyObject *link_send_many(PyObject *self, PyObject *const *arguments,
                                Py_ssize_t argument_count)
{
    native_link *bound = (native_link *)self;
    if (argument_count < 1 || argument_count > 2 || !PyList_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "send_many(payloads, start=0): payloads must be a list");
        return NULL;
    }
    PyObject *payloads = arguments[0];
    Py_ssize_t start = 0;
    if (argument_count == 2) {
        start = PyLong_AsSsize_t(arguments[1]);
        if (start == -1 && PyErr_Occurred())
            return NULL;
        if (start < 0) {
            PyErr_SetString(PyExc_ValueError, "send_many: start must not be negative");
            return NULL;
        }
    }

    /* What code a buffer has may change the list and whose the node is, so both are asked for each
     * time, and the buffer is held. */
    int code = 0;
    int is_ours = pt_is_owner(bound->context);
    Py_ssize_t index = start;
    if (is_ours)
        expect_many(bound, payloads, start);
    for (; index < PyList_Size(payloads); index++) {
        PyObject *payload = PyList_GetItem(payloads, index);
        int raised = 0;
        int result = PT_ERR_INVALID_STATE;
        if (is_ours && PyBytes_CheckExact(payload)) {
            result = send_plain(bound, payload);
        } else if (is_ours) {
            Py_INCREF(payload);
            result = send_buffer(bound, PT_FRAME_DATA, 0, payload, &raised);
            Py_DECREF(payload);
            is_ours = pt_is_owner(bound->context);
        }
        if (raised) {
            if (index == start)
                return NULL;
            PyErr_Clear();
        }
        if (result < 0) {
            code = result;
            break;
        }
        code |= result;
    }
    if (is_ours)
        expect_many(bound, payloads, PyList_Size(payloads));
    return Py_BuildValue("(ni)", index > start ? index - start : 0, code);
}

static PyObject *new_link(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    if (PyTuple_Size(arguments) != 2 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "Link(context_addr, owner)");
        return NULL;
    }
    pt_context *context = pt_address(PyTuple_GetItem(arguments, 0));
    native_link *fresh = context != NULL ? (native_link *)PyType_GenericAlloc(type, 0) : NULL;
    if (fresh == NULL)
        return NULL;
    PT_ASSERT(fresh->link.state == PT_LINK_NONE); /* pt_link_open() wants zeros */
    fresh->context = context;
    fresh->owner = PyTuple_GetItem(arguments, 1);
    Py_INCREF(fresh->owner);
    return (PyObject *)fresh;
}

static void free_link(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)(uintptr_t)PyType_GetSlot(type, Py_tp_free);
    Py_XDECREF(((native_link *)self)->owner);
    release(self);
    Py_DECREF(type);
}

static PyObject *tell_address(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromVoidPtr(&((native_link *)self)->link);
}

static PyObject *tell_max_message(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((native_link *)self)->link.max_message);
}

static PyObject *tell_wide_max(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((native_link *)self)->link.wide_max);
}

static PyObject *tell_slice_max(PyObject *self, void *closure)
{
    const native_link *bound = (native_link *)self;
    (void)closure;
    return PyLong_FromUnsignedLong(pt_link_slice_max(bound->context, &bound->link));
}

static PyObject *tell_departing(PyObject *self, void *closure)
{
    const native_link *bound = (native_link *)self;
    (void)closure;
    (void)pt_take_link(bound);
    uint32_t left = pt_link_departing(&bound->link);
    pt_context_unlock(bound->context);
    return PyLong_FromUnsignedLong(left);
}

static PyObject *tell_referred(PyObject *self, void *closure)
{
    const native_link *bound = (native_link *)self;
    (void)closure;
    (void)pt_take_link(bound);
    uint32_t bytes = pt_pipeline_referred(&bound->link.pipeline);
    pt_context_unlock(bound->context);
    return PyLong_FromUnsignedLong(bytes);
}

static PyMethodDef link_methods[] = {
    {"send", link_send, METH_O, "Send one payload; hints, or a negative code."},
    {"send_frame", (PyCFunction)(void (*)(void))link_send_frame, METH_FASTCALL,
     "Send one frame of any type; hints, or a negative code."},
    {"send_many", (PyCFunction)(void (*)(void))link_send_many, METH_FASTCALL,
     "Send payloads[start:]; (accepted, code)."},
    {"send_slice", (PyCFunction)(void (*)(void))link_send_slice, METH_FASTCALL,
     "Send a part of a large message; hints, or a negative code."},
    {"depart", (PyCFunction)(void (*)(void))link_depart, METH_FASTCALL,
     "Send a large message from an offset on as there is room; hints, or a negative code."},
    {"recall", link_recall, METH_NOARGS, "Send no more of it; bytes that were left."},
    {"send_wide", (PyCFunction)(void (*)(void))link_send_wide, METH_FASTCALL,
     "Send one OFFER, GRANT or REFUSE; hints, or a negative code."},
    {"expect", (PyCFunction)(void (*)(void))link_expect, METH_FASTCALL,
     "Make memory for a large message that comes in slices; a code."},
    {"forgo", link_forgo, METH_O, "Give that memory back; what still comes is dropped."},
    {"forget", link_forget, METH_O, "Nothing of a large message may come any more."},
    {"landed", link_landed, METH_O, "Bytes of a large message that have come, or -1."},
    {"count", pt_native_count, METH_O, "Fill in a pt_link_counts."},
    {"move", (PyCFunction)(void (*)(void))pt_native_move, METH_FASTCALL,
     "Be another worker's; a code."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef link_values[] = {
    {"address", tell_address, NULL, "Of the pt_link.", NULL},
    {"wide_max", tell_wide_max, NULL, "Of the pt_link, as it is now.", NULL},
    {"slice_max", tell_slice_max, NULL, "Of the pt_link.", NULL},
    {"departing", tell_departing, NULL, "Bytes of what departs that no slot has taken.", NULL},
    {"referred", tell_referred, NULL, "Bytes of payloads that slots refer to.", NULL},
    {"max_message", tell_max_message, NULL, "Of the pt_link, as it is now.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* Slots have no type but a data pointer, and ISO C casts no function to that but by a number. */
static PyType_Slot link_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)new_link},
    {Py_tp_dealloc, (void *)(uintptr_t)free_link},
    {Py_tp_methods, link_methods},
    {Py_tp_getset, link_values},
    {0, NULL},
};

static PyType_Spec link_spec = {
    .name = "peertalk._core.Link",
    .basicsize = (int)sizeof(native_link),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = link_slots,
};

int pt_sender_attach(PyObject *module)
{
    PyObject *link = PyType_FromSpec(&link_spec);
    int result = link != NULL ? PyModule_AddObjectRef(module, "Link", link) : -1;
    Py_XDECREF(link);
    return result;
}
