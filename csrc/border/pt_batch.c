#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_batch.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_loop.h"
#include "pt_pure.h"
#include "pt_reader.h"

#define FIRST_PAYLOADS 256
#define FIRST_ITEMS    32
#define KEPT_PAYLOADS  16384 /* longer arrays are given back when what filled them was told */
#define KEPT_ITEMS     4096

/* A link with its memory. */
typedef struct native_link {
    PyObject_HEAD pt_context *context;
    PyObject *owner; /* keeps the memory of the context, and of slots that are not borrowed */
    pt_link link;
} native_link;

/* One tuple to be: a frame, or consecutive plain DATA frames of one link. */
typedef struct item {
    uint64_t a;   /* BATCH: payload bytes; FRAME: type, flags and sequence */
    size_t first; /* index of its first payload */
    size_t count; /* of its payloads */
    uint32_t kind;
    uint32_t tag;
    uint32_t is_empty; /* FRAME: 1 without payload */
} item;

/* What turn is bound to. What a turn brings is first collected here and then told to Python, so
 * that a lack of memory on the way loses nothing: what was not told stays for the next turn. */
typedef struct bound_loop {
    pt_context *context;
    PyObject *owner;
    pt_event *events;
    PyObject **payloads; /* bytes objects, one reference each until they are told */
    item *items;
    PyObject *told; /* list of final length that is being filled; NULL between turns */
    size_t payload_count;
    size_t payload_capacity;
    size_t item_count;
    size_t item_capacity;
    size_t told_count; /* items, then events, already in told */
    int capacity;
    int event_count;
    int busy; /* 1: a turn runs; a finalizer that calls it again is refused */
} bound_loop;

/* -------------------------------------------------------------------------------------- sending */

/* Two threads that send would write into one slot, and tear each other's frames. */
static int is_owner(const pt_context *context)
{
    return context->owner == PyThread_get_thread_ident();
}

/* A Py_ssize_t may be longer than what a frame can say. */
static inline int send_bytes(native_link *bound, uint8_t type, uint8_t flags, const void *data,
                             Py_ssize_t len)
{
    PT_ASSERT(is_owner(bound->context));
    PT_ASSERT(len >= 0 && (data != NULL || len == 0));

    if ((uint64_t)len > UINT32_MAX)
        return bound->link.state == PT_LINK_OPEN ? PT_ERR_MESSAGE_TOO_LARGE : PT_ERR_NOT_CONNECTED;
    return pt_link_send(bound->context, &bound->link, type, flags, data, (uint32_t)len);
}

/* Send a bytes object, which runs no code. */
static inline int send_plain(native_link *bound, PyObject *payload)
{
    char *data = NULL;
    Py_ssize_t len = 0;
    (void)PyBytes_AsStringAndSize(payload, &data, &len);
    return send_bytes(bound, PT_FRAME_DATA, 0, data, len);
}

/* Code that gives a buffer may have handed the node to another thread, so the owner is asked after
 * it. *raised: Python refused. */
static int send_buffer(native_link *bound, uint8_t type, uint8_t flags, PyObject *payload,
                       int *raised)
{
    Py_buffer view;
    if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) != 0) {
        if (PyErr_ExceptionMatches(PyExc_BufferError)) {
            PyErr_Clear();
            PyErr_SetString(PyExc_TypeError, "payload must be bytes or a contiguous buffer");
        }
        *raised = 1;
        return PT_ERR_INVALID_PARAM;
    }
    int code = is_owner(bound->context) ? send_bytes(bound, type, flags, view.buf, view.len)
                                        : PT_ERR_INVALID_STATE;
    PyBuffer_Release(&view);
    return code;
}

static PyObject *link_send(PyObject *self, PyObject *payload)
{
    native_link *bound = (native_link *)self;
    int raised = 0;
    int code = PT_ERR_INVALID_STATE;
    if (is_owner(bound->context))
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

/* 1 when so many messages like the first are more than one small slot holds. */
static int is_more(const pt_send_pipeline *pipeline, PyObject *payloads, Py_ssize_t start)
{
    Py_ssize_t count = PyList_Size(payloads) - start;
    if (count <= 0 || !PyBytes_CheckExact(PyList_GetItem(payloads, start)))
        return 0;
    size_t frame = (size_t)PyBytes_Size(PyList_GetItem(payloads, start)) + PT_FRAME_OVERHEAD;
    return (size_t)count > pipeline->small_size / frame;
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
    int is_ours = is_owner(bound->context);
    Py_ssize_t index = start;
    bound->link.pipeline.more = is_ours && is_more(&bound->link.pipeline, payloads, start);
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
            is_ours = is_owner(bound->context);
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
        bound->link.pipeline.more = 0;
    return Py_BuildValue("(ni)", index > start ? index - start : 0, code);
}

/* ------------------------------------------------------------------------------------ receiving */

/* Twice as large each time, so that a burst costs few copies. NULL: no memory, and nothing has
 * changed. */
static void *grow(void *array, size_t *capacity, size_t first, size_t element_size)
{
    PT_ASSERT(array != NULL || *capacity == 0);

    size_t wanted = *capacity ? *capacity * 2 : first;
    void *larger = PyMem_Realloc(array, wanted * element_size);
    if (larger != NULL)
        *capacity = wanted;
    return larger;
}

static int grow_payloads(bound_loop *bound)
{
    PT_ASSERT(bound->payload_count == bound->payload_capacity);

    PyObject **larger =
        grow(bound->payloads, &bound->payload_capacity, FIRST_PAYLOADS, sizeof *larger);
    if (larger != NULL)
        bound->payloads = larger;
    return larger != NULL;
}

static int grow_items(bound_loop *bound)
{
    PT_ASSERT(bound->item_count == bound->item_capacity);

    item *larger = grow(bound->items, &bound->item_capacity, FIRST_ITEMS, sizeof *larger);
    if (larger != NULL)
        bound->items = larger;
    return larger != NULL;
}

/* After a burst the arrays begin anew: a node must not keep what its busiest turn needed. */
static void shrink(bound_loop *bound)
{
    PT_ASSERT(bound->payload_count == 0 && bound->item_count == 0);

    if (bound->payload_capacity > KEPT_PAYLOADS) {
        PyMem_Free(bound->payloads);
        bound->payloads = NULL;
        bound->payload_capacity = 0;
    }
    if (bound->item_capacity > KEPT_ITEMS) {
        PyMem_Free(bound->items);
        bound->items = NULL;
        bound->item_capacity = 0;
    }
}

/* 1 when a control frame without payload repeats the one before it: said again it means no more,
 * and a flood of them costs its receiver. */
static int says_nothing_more(const item *last, uint32_t tag, const pt_frame *frame)
{
    return last != NULL && last->kind == PT_EVENT_FRAME && last->tag == tag && last->is_empty &&
           frame->payload_len == 0 && frame->type != PT_FRAME_DATA &&
           (last->a & 0xFFFF) == (frame->type | (uint64_t)frame->flags << 8);
}

/* The border's sink: payloads become bytes where they lie, and join the batch of their link. */
static int collect(void *sink_context, uint32_t tag, const pt_frame *frame)
{
    bound_loop *bound = sink_context;
    PT_ASSERT(bound->busy && bound->told == NULL);

    if (bound->payload_count == bound->payload_capacity && !grow_payloads(bound))
        return PT_ERR_NO_MEMORY;
    int plain =
        frame->type == PT_FRAME_DATA && (frame->flags & (PT_FLAG_FRAGMENT | PT_FLAG_BATCH)) == 0;
    item *last = bound->item_count ? &bound->items[bound->item_count - 1] : NULL;
    int joins = plain && last != NULL && last->kind == PT_EVENT_BATCH && last->tag == tag;
    if (!joins) {
        if (says_nothing_more(last, tag, frame))
            return PT_OK;
        if (bound->item_count == bound->item_capacity && !grow_items(bound))
            return PT_ERR_NO_MEMORY;
    }
    PT_ASSERT(bound->payloads != NULL && bound->items != NULL);
    PyObject *payload =
        PyBytes_FromStringAndSize((const char *)frame->payload, (Py_ssize_t)frame->payload_len);
    if (payload == NULL) {
        PyErr_Clear();
        return PT_ERR_NO_MEMORY;
    }

    if (joins) {
        last->a += frame->payload_len;
        last->count++;
    } else {
        item *fresh = &bound->items[bound->item_count++];
        fresh->kind = plain ? PT_EVENT_BATCH : PT_EVENT_FRAME;
        fresh->tag = tag;
        fresh->first = bound->payload_count;
        fresh->count = 1;
        fresh->is_empty = frame->payload_len == 0;
        fresh->a =
            plain ? frame->payload_len
                  : frame->type | (uint64_t)frame->flags << 8 | (uint64_t)frame->sequence << 16;
    }
    PT_ASSERT(bound->payload_count < bound->payload_capacity);
    bound->payloads[bound->payload_count++] = payload;
    return PT_OK;
}

/* Payloads change hands only when nothing can fail any more. */
static PyObject *tell_item(bound_loop *bound, const item *one)
{
    PT_ASSERT(one->count != 0 && one->first + one->count <= bound->payload_count);
    PT_ASSERT(one->kind == PT_EVENT_BATCH || (one->kind == PT_EVENT_FRAME && one->count == 1));

    if (one->kind == PT_EVENT_FRAME) {
        PyObject *payload = bound->payloads[one->first];
        Py_INCREF(payload);
        PyObject *tuple = pt_make_tuple(one->kind, one->tag, (long long)one->a, payload);
        if (tuple != NULL)
            Py_CLEAR(bound->payloads[one->first]);
        return tuple;
    }
    PyObject *list = PyList_New((Py_ssize_t)one->count);
    Py_XINCREF(list);
    PyObject *tuple = pt_make_tuple(one->kind, one->tag, (long long)one->a, list);
    if (tuple != NULL) {
        for (size_t index = 0; index < one->count; index++) {
            (void)PyList_SetItem(list, (Py_ssize_t)index, bound->payloads[one->first + index]);
            bound->payloads[one->first + index] = NULL;
        }
    }
    Py_XDECREF(list);
    return tuple;
}

static PyObject *tell_event(const pt_event *event)
{
    PT_ASSERT(event->kind != PT_EVENT_FRAME && event->kind != PT_EVENT_BATCH);

    long long a = 0;
    long b = 0;
    if (event->kind == PT_EVENT_SENT) {
        a = event->count;
        b = event->code;
    } else if (event->kind == PT_EVENT_CLOSED) {
        a = event->code;
        b = event->system_error;
    } else if (event->kind == PT_EVENT_READY || event->kind == PT_EVENT_STILL) {
        a = event->count;
    }
    return pt_make_tuple(event->kind, event->tag, a, PyLong_FromLong(b));
}

/* Append what was collected to a list, all of it or nothing. -1 with MemoryError: what is missing
 * is told by the next call. */
static int tell(bound_loop *bound, PyObject *events)
{
    size_t total = bound->item_count + (size_t)bound->event_count;
    if (bound->told == NULL) {
        bound->told_count = 0;
        bound->told = PyList_New((Py_ssize_t)total);
        if (bound->told == NULL)
            return -1;
    }
    PT_ASSERT(bound->told_count <= total);
    PT_ASSERT(PyList_Size(bound->told) == (Py_ssize_t)total);
    while (bound->told_count < total) {
        size_t index = bound->told_count;
        PyObject *tuple = index < bound->item_count
                              ? tell_item(bound, &bound->items[index])
                              : tell_event(&bound->events[index - bound->item_count]);
        if (tuple == NULL)
            return -1;
        (void)PyList_SetItem(bound->told, (Py_ssize_t)index, tuple);
        bound->told_count++;
    }
    Py_ssize_t end = PyList_Size(events);
    if (PyList_SetSlice(events, end, end, bound->told) != 0)
        return -1;
    Py_CLEAR(bound->told);
    bound->payload_count = 0;
    bound->item_count = 0;
    bound->event_count = 0;
    shrink(bound);
    return 0;
}

/* turn(events) -> how many there are now, or a negative code. The list is the caller's and has them
 * before anything else can happen there: a signal handler that raises as soon as this function has
 * returned would take a list that was returned with it. */
static PyObject *loop_turn(PyObject *self, PyObject *events)
{
    bound_loop *bound = PyCapsule_GetPointer(self, NULL);
    if (bound == NULL)
        return NULL;
    if (!PyList_Check(events)) {
        PyErr_SetString(PyExc_TypeError, "turn(events): events must be a list");
        return NULL;
    }
    if (!is_owner(bound->context))
        return PyLong_FromLong(PT_ERR_INVALID_STATE);
    if (bound->busy)
        return PyLong_FromLong(PT_ERR_BUSY);
    bound->busy = 1;
    if (bound->item_count == 0 &&
        bound->event_count == 0) { /* else memory ran out before all was told */
        PT_ASSERT(bound->told == NULL && bound->payload_count == 0);
        pt_sink sink = {collect, bound, PT_TURN_MAX_READ};
        int count = pt_loop_turn(bound->context, 0, bound->events, bound->capacity, &sink);
        if (count < 0) { /* before anything was read */
            bound->busy = 0;
            return PyLong_FromLong(count);
        }
        PT_ASSERT(count <= bound->capacity);
        bound->event_count = count;
    }
    int code = tell(bound, events);
    PT_ASSERT(code == 0 || PyErr_Occurred());
    PT_ASSERT(code != 0 || (bound->told == NULL && bound->payload_count == 0));
    bound->busy = 0;
    return code != 0 ? NULL : PyLong_FromSsize_t(PyList_Size(events));
}

static void free_loop(PyObject *capsule)
{
    bound_loop *bound = PyCapsule_GetPointer(capsule, NULL);
    if (bound == NULL)
        return;
    PT_ASSERT(!bound->busy);
    for (size_t index = 0; index < bound->payload_count; index++)
        Py_XDECREF(bound->payloads[index]);
    PyMem_Free(bound->payloads);
    PyMem_Free(bound->items);
    Py_XDECREF(bound->told);
    Py_XDECREF(bound->owner);
    PyMem_Free(bound);
}

/* -------------------------------------------------------------------------------------- binding */

static PyMethodDef turn_method = {
    "turn", loop_turn, METH_O,
    "One turn without waiting, its events appended; their number, or a negative code."};

/* An address that came from Python. NULL with an exception set. */
static void *address(PyObject *number)
{
    void *pointer = PyLong_AsVoidPtr(number);
    if (pointer == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "an address is 0");
    return pointer;
}

static PyObject *new_link(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    if (PyTuple_Size(arguments) != 2 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "Link(context_addr, owner)");
        return NULL;
    }
    pt_context *context = address(PyTuple_GetItem(arguments, 0));
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

static PyMethodDef link_methods[] = {
    {"send", link_send, METH_O, "Send one payload; hints, or a negative code."},
    {"send_frame", (PyCFunction)(void (*)(void))link_send_frame, METH_FASTCALL,
     "Send one frame of any type; hints, or a negative code."},
    {"send_many", (PyCFunction)(void (*)(void))link_send_many, METH_FASTCALL,
     "Send payloads[start:]; (accepted, code)."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef link_values[] = {
    {"address", tell_address, NULL, "Of the pt_link.", NULL},
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

static PyObject *bind_loop(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)self;
    if (argument_count != 4) {
        PyErr_SetString(PyExc_TypeError, "bind_loop(context_addr, events_addr, capacity, owner)");
        return NULL;
    }
    bound_loop *bound = PyMem_Calloc(1, sizeof *bound);
    if (bound == NULL)
        return PyErr_NoMemory();
    bound->context = address(arguments[0]);
    bound->events = bound->context != NULL ? address(arguments[1]) : NULL;
    if (bound->events != NULL)
        bound->capacity = (int)PyLong_AsLong(arguments[2]);
    PyObject *capsule = PyErr_Occurred() ? NULL : PyCapsule_New(bound, NULL, free_loop);
    if (capsule == NULL) {
        PyMem_Free(bound);
        return NULL;
    }
    bound->owner = arguments[3];
    Py_INCREF(bound->owner);
    PyObject *turn = PyCFunction_New(&turn_method, capsule);
    Py_DECREF(capsule);
    return turn;
}

static PyMethodDef module_methods[] = {
    {"bind_loop", (PyCFunction)(void (*)(void))bind_loop, METH_FASTCALL, "Bind turn to a loop."},
    {NULL, NULL, 0, NULL},
};

int pt_border_attach(void *module)
{
    PyGILState_STATE state = PyGILState_Ensure();
    int result = PyModule_AddFunctions(module, module_methods);
    PyObject *link = result == 0 ? PyType_FromSpec(&link_spec) : NULL;
    result = link != NULL ? PyModule_AddObjectRef(module, "Link", link) : -1;
    Py_XDECREF(link);
    if (result == 0)
        result = pt_pure_attach(module);
    if (result == 0)
        result = pt_reader_attach(module);
    if (result != 0)
        PyErr_Clear();
    PT_ASSERT(!PyErr_Occurred());
    PyGILState_Release(state);
    return result;
}
