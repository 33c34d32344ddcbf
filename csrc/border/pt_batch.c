#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_batch.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_large.h"
#include "pt_pure.h"
#include "pt_sender.h"

#define FIRST_PAYLOADS 256
#define FIRST_ITEMS    32
#define KEPT_PAYLOADS  16384 /* longer arrays are given back when what filled them was told */
#define KEPT_ITEMS     4096

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

void pt_batch_clear(bound_loop *bound)
{
    bound->payload_count = 0;
    bound->item_count = 0;
    bound->event_count = 0;
    PT_ASSERT(bound->told == NULL);

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

/* Make room for one payload more, and for an item where it joins none. 0: no memory. */
static int make_room(bound_loop *bound, int joins)
{
    PT_ASSERT(bound->busy && bound->told == NULL);

    if (bound->payload_count == bound->payload_capacity && !grow_payloads(bound))
        return 0;
    return joins || bound->item_count < bound->item_capacity || grow_items(bound);
}

/* 1 when a message of a link joins what came before. */
static int joins_last(const item *last, uint32_t tag)
{
    return last != NULL && last->kind == PT_EVENT_BATCH && last->tag == tag;
}

/* There is room: note a payload, whose reference is taken over. a: as in item, of a new FRAME. */
static void note(bound_loop *bound, uint32_t tag, uint32_t kind, int joins, uint64_t a,
                 PyObject *payload)
{
    PT_ASSERT(bound->payload_count < bound->payload_capacity);
    PT_ASSERT(!joins || bound->item_count != 0);

    uint64_t len = (uint64_t)PyBytes_Size(payload);
    if (joins) {
        item *last = &bound->items[bound->item_count - 1];
        last->a += len;
        last->count++;
    } else {
        item *fresh = &bound->items[bound->item_count++];
        fresh->kind = kind;
        fresh->tag = tag;
        fresh->first = bound->payload_count;
        fresh->count = 1;
        fresh->is_empty = len == 0;
        fresh->a = kind == PT_EVENT_BATCH ? len : a;
    }
    bound->payloads[bound->payload_count++] = payload;
}

/* The border's sink: payloads become bytes where they lie, and join the batch of their link. */
static int collect(void *sink_context, uint32_t tag, const pt_frame *frame)
{
    bound_loop *bound = sink_context;
    int plain =
        frame->type == PT_FRAME_DATA && (frame->flags & (PT_FLAG_FRAGMENT | PT_FLAG_BATCH)) == 0;
    const item *last = bound->item_count ? &bound->items[bound->item_count - 1] : NULL;
    int joins = plain && joins_last(last, tag);
    if (!joins && says_nothing_more(last, tag, frame))
        return PT_OK;
    if (!make_room(bound, joins))
        return PT_ERR_NO_MEMORY;
    PyObject *payload =
        PyBytes_FromStringAndSize((const char *)frame->payload, (Py_ssize_t)frame->payload_len);
    if (payload == NULL) {
        PyErr_Clear();
        return PT_ERR_NO_MEMORY;
    }
    note(bound, tag, plain ? PT_EVENT_BATCH : PT_EVENT_FRAME, joins,
         frame->type | (uint64_t)frame->flags << 8 | (uint64_t)frame->sequence << 16, payload);
    return PT_OK;
}

static pt_landing *land(void *sink_context, uint32_t tag, uint32_t total)
{
    (void)sink_context;
    (void)tag;
    return pt_large_landing(0, total, NULL);
}

/* Note a message that lay somewhere else, whose reference is taken over. id: 0, or of one that was
 * offered. */
static int note_large(bound_loop *bound, uint32_t tag, uint32_t id, PyObject *payload)
{
    const item *last = bound->item_count ? &bound->items[bound->item_count - 1] : NULL;
    int joins = id == 0 && joins_last(last, tag);
    if (!make_room(bound, joins)) {
        Py_DECREF(payload);
        return PT_ERR_NO_MEMORY;
    }
    note(bound, tag, id == 0 ? PT_EVENT_BATCH : PT_EVENT_FRAME, joins,
         PT_FRAME_DATA | (uint64_t)PT_FLAG_LANDED << 8 | (uint64_t)id << 24, payload);
    return PT_OK;
}

/* A large message is whole: its bytes are there already. */
static int landed(void *sink_context, uint32_t tag, pt_landing *landing)
{
    uint32_t id = landing->id;
    return note_large(sink_context, tag, id, pt_large_bytes(landing));
}

/* What a worker has kept is told as if it had just come. PT_OK, or PT_ERR_NO_MEMORY: the record is
 * to come again. */
static int collect_record(bound_loop *bound, const pt_record *record)
{
    if (!(record->about & PT_RECORD_LANDED)) {
        pt_frame frame = {.payload = (const uint8_t *)(record + 1),
                          .payload_len = record->len,
                          .type = (uint8_t)record->about,
                          .flags = (uint8_t)(record->about >> 8),
                          .sequence = (uint8_t)(record->about >> 16)};
        return collect(bound, record->tag, &frame);
    }
    pt_landing *landing;
    PT_ASSERT(record->len == sizeof landing);
    memcpy((void *)&landing, record + 1, sizeof landing);
    if (!make_room(bound, 0))
        return PT_ERR_NO_MEMORY;
    if (landing->id != 0)
        return landed(bound, record->tag, landing);
    PyObject *payload =
        PyBytes_FromStringAndSize((const char *)landing->memory, (Py_ssize_t)landing->total);
    if (payload == NULL) {
        PyErr_Clear();
        return PT_ERR_NO_MEMORY;
    }
    landing->drop(landing);
    return note_large(bound, record->tag, 0, payload);
}

pt_block *pt_batch_collect(bound_loop *bound, pt_block *blocks)
{
    for (; blocks != NULL; blocks = blocks->next) {
        const pt_record *record;
        while ((record = pt_block_next(blocks)) != NULL) {
            if (collect_record(bound, record) != PT_OK) {
                pt_block_again(blocks, record);
                return blocks;
            }
        }
    }
    return NULL;
}

/* All that a worker has kept, and then what has become of links. PT_OK, or PT_ERR_NO_MEMORY: the
 * rest comes with the next turn, and the events behind it. */
static int collect_kept(bound_loop *bound)
{
    pt_worker *worker = bound->context->worker;
    PT_ASSERT(worker != NULL && bound->event_count == 0);
    pt_take(bound->context);
    pt_block *blocks = pt_worker_take(worker, bound->late_count ? NULL : bound->events,
                                      bound->capacity, &bound->late_count);
    pt_large_bury(worker);
    pt_context_unlock(bound->context);
    if (blocks != NULL) {
        pt_block *rest = pt_batch_collect(bound, blocks);
        pt_take(bound->context);
        if (rest == NULL)
            pt_worker_give_back(worker, blocks);
        else
            pt_worker_put_back(worker, blocks);
        pt_context_unlock(bound->context);
        if (rest != NULL)
            return PT_ERR_NO_MEMORY;
    }
    bound->event_count = bound->late_count;
    bound->late_count = 0;
    return PT_OK;
}

int pt_batch_gather(bound_loop *bound)
{
    PT_ASSERT(bound->told == NULL && bound->payload_count == 0);
    PT_ASSERT(bound->item_count == 0 && bound->event_count == 0);

    bound->worker = bound->context->worker;
    if (bound->worker != NULL)
        return collect_kept(bound);
    pt_sink sink = {.frame = collect,
                    .land = land,
                    .landed = landed,
                    .context = bound,
                    .room = PT_TURN_MAX_READ};
    int count = pt_loop_turn(bound->context, 0, bound->events, bound->capacity, &sink);
    if (count < 0)
        return count;
    PT_ASSERT(count <= bound->capacity);
    bound->event_count = count;
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
    pt_batch_clear(bound);
    return 0;
}

void pt_batch_rest(bound_loop *bound)
{
    PT_ASSERT(bound->busy);

    bound->busy = 0;
    if (bound->worker != NULL)
        bound->worker->is_untold =
            bound->item_count != 0 || bound->event_count != 0 || bound->late_count != 0;
}

/* What is served is told to nobody else. */
static void drop_served(bound_loop *bound, pt_batch_server *serve, void *server_context)
{
    PT_ASSERT(bound->busy && bound->event_count >= 0);
    int kept = 0;
    for (int index = 0; index < bound->event_count; index++) {
        if (!serve(server_context, &bound->events[index]))
            bound->events[kept++] = bound->events[index];
    }
    bound->event_count = kept;
}

PyObject *pt_batch_turn(bound_loop *bound, PyObject *events, pt_batch_server *serve,
                        void *server_context)
{
    if (!PyList_Check(events)) {
        PyErr_SetString(PyExc_TypeError, "turn(events): events must be a list");
        return NULL;
    }
    if (!pt_is_owner(bound->context))
        return PyLong_FromLong(PT_ERR_INVALID_STATE);
    if (bound->busy)
        return PyLong_FromLong(PT_ERR_BUSY);
    bound->busy = 1;
    int code = PT_OK;
    if (bound->item_count == 0 && bound->event_count == 0) /* else memory ran out before that */
        code = pt_batch_gather(bound);
    if (code != PT_OK && bound->item_count == 0) {
        pt_batch_rest(bound);
        return code == PT_ERR_NO_MEMORY ? PyErr_NoMemory() : PyLong_FromLong(code);
    }
    if (serve != NULL && bound->told == NULL)
        drop_served(bound, serve, server_context);
    code = tell(bound, events);
    PT_ASSERT(code == 0 || PyErr_Occurred());
    PT_ASSERT(code != 0 || (bound->told == NULL && bound->payload_count == 0));
    pt_batch_rest(bound);
    return code != 0 ? NULL : PyLong_FromSsize_t(PyList_Size(events));
}

/* turn(events) -> how many there are now, or a negative code. The list is the caller's and has them
 * before anything else can happen there: a signal handler that raises as soon as this function has
 * returned would take a list that was returned with it. */
static PyObject *loop_turn(PyObject *self, PyObject *events)
{
    bound_loop *bound = PyCapsule_GetPointer(self, NULL);
    return bound != NULL ? pt_batch_turn(bound, events, NULL, NULL) : NULL;
}

void *pt_batch_bound(PyObject *function, const char *otherwise)
{
    PyObject *capsule = PyCFunction_CheckExact(function) ? PyCFunction_GetSelf(function) : NULL;
    if (capsule == NULL || !PyCapsule_CheckExact(capsule)) {
        PyErr_SetString(PyExc_TypeError, otherwise);
        return NULL;
    }
    void *bound = PyCapsule_GetPointer(capsule, NULL);
    PT_ASSERT(bound != NULL || PyErr_Occurred());
    return bound;
}

bound_loop *pt_batch_of(PyObject *turn)
{
    return pt_batch_bound(turn, "give the turn of a loop");
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
    if (bound->worker != NULL) /* what its links needed until they were closed */
        pt_large_bury(bound->worker);
    Py_XDECREF(bound->told);
    Py_XDECREF(bound->owner);
    PyMem_Free(bound);
}

/* -------------------------------------------------------------------------------------- binding */

static PyMethodDef turn_method = {
    "turn", loop_turn, METH_O,
    "One turn without waiting, its events appended; their number, or a negative code."};

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
    bound->context = pt_address(arguments[0]);
    bound->events = bound->context != NULL ? pt_address(arguments[1]) : NULL;
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

int pt_batch_attach(PyObject *module)
{
    return PyModule_AddFunctions(module, module_methods);
}
