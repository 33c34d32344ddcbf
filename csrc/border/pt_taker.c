#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_taker.h"

#include "pt_assert.h"
#include "pt_batch.h"
#include "pt_large.h"
#include "pt_sender.h"

#define BRISK_MS 1 /* an answer that came so soon: the next one is worth to wait for */

#define ARGUMENTS 4 /* of bind_taker() */

/* What a bound function keeps: a capsule of this. */
typedef struct taker {
    PyObject *arguments[ARGUMENTS]; /* which have all that follows */
    bound_loop *bound;
    PyObject *message, *open;                        /* kinds */
    PyObject *direct, *came, *inbox, *totals, *lock; /* values */
    PyObject *state, *held, *total, *queues, *received, *received_bytes;
    long long taken; /* messages that had come when nothing was there last ... */
    uint32_t missed; /* ... and when that was, by the clock of the context */
} taker;

enum { NOTHING, SOMETHING, ERROR };

/* An attribute, without a reference: its holder keeps it while this thread has the GIL. NULL: an
 * exception is set. */
static PyObject *look_at(PyObject *holder, PyObject *name)
{
    PT_ASSERT(PyUnicode_Check(name));

    PyObject *value = PyObject_GetAttr(holder, name);
    Py_XDECREF(value);
    return value;
}

/* SOMETHING: what comes next is whoever's takes it; NOTHING: not so. */
static int may_take(const taker *self)
{
    if (self->bound->busy || self->bound->told != NULL || PyDict_Size(self->direct) == 0 ||
        PyList_Size(self->came) != 0)
        return NOTHING;
    PyObject *total = look_at(self->inbox, self->total);
    PyObject *queues = total != NULL ? look_at(self->inbox, self->queues) : NULL;
    if (queues == NULL)
        return ERROR;
    int is_empty = PyLong_AsLong(total) == 0 && PyDict_Size(queues) == 0;
    if (PyErr_Occurred())
        return ERROR;
    return is_empty ? SOMETHING : NOTHING;
}

/* (connection, peer, view) of the link whose message is next; NULL: of none, or an exception. */
static PyObject *receiver_of(const taker *self)
{
    const bound_loop *bound = self->bound;
    if (bound->item_count == 0 || bound->items[0].kind != PT_EVENT_BATCH)
        return NULL;
    PyObject *tag = PyLong_FromUnsignedLong(bound->items[0].tag);
    PyObject *found = tag != NULL ? PyDict_GetItemWithError(self->direct, tag) : NULL;
    Py_XDECREF(tag);
    if (found == NULL)
        return NULL;
    PyObject *connection = PyTuple_GetItem(found, 0);
    if (look_at(connection, self->state) != self->open ||
        look_at(connection, self->held) != Py_None)
        return NULL;
    return found;
}

/* number + more, of an attribute; NULL with an exception. */
static PyObject *sum(PyObject *holder, PyObject *name, Py_ssize_t more)
{
    PyObject *number = look_at(holder, name);
    long long value = number != NULL ? PyLong_AsLongLong(number) : -1;
    PT_ASSERT(value >= 0 || PyErr_Occurred());
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(value + more);
}

/* Count a message of so many bytes. 0, or -1 with an exception and nothing counted. */
static int count(const taker *self, PyObject *peer, Py_ssize_t bytes)
{
    PyObject *received = sum(peer, self->received, 1);
    PyObject *received_bytes = received != NULL ? sum(peer, self->received_bytes, bytes) : NULL;
    PyObject *all = received_bytes != NULL ? sum(self->totals, self->received, 1) : NULL;
    if (all != NULL) {
        (void)PyObject_SetAttr(peer, self->received, received);
        (void)PyObject_SetAttr(peer, self->received_bytes, received_bytes);
        (void)PyObject_SetAttr(self->totals, self->received, all);
        PT_ASSERT(!PyErr_Occurred());
    }
    Py_XDECREF(all);
    Py_XDECREF(received_bytes);
    Py_XDECREF(received);
    return all != NULL ? 0 : -1;
}

/* The first payload of the first item has a new owner. */
static void drop_first(bound_loop *bound)
{
    item *first = &bound->items[0];
    PT_ASSERT(first->kind == PT_EVENT_BATCH && first->count != 0);
    PyObject *payload = bound->payloads[first->first];
    bound->payloads[first->first] = NULL;
    first->a -= (uint64_t)PyBytes_Size(payload);
    first->first++;
    first->count--;
    Py_DECREF(payload);
    if (first->count != 0)
        return;
    bound->item_count--;
    for (size_t index = 0; index < bound->item_count; index++)
        bound->items[index] = bound->items[index + 1];
    if (bound->item_count == 0 && bound->event_count == 0)
        pt_batch_clear(bound);
}

/* The first message of what was noted; NULL with an exception, or without one if it is not
 * whoever's takes it. */
static PyObject *take_first(const taker *self, int alone)
{
    bound_loop *bound = self->bound;
    PT_ASSERT(bound->busy && bound->told == NULL);
    PyObject *receiver = receiver_of(self);
    if (alone && (bound->item_count != 1 || bound->items[0].count != 1))
        return NULL;
    if (receiver == NULL)
        return NULL;
    PyObject *peer = PyTuple_GetItem(receiver, 1);
    PyObject *payload = bound->payloads[bound->items[0].first];
    PyObject *message =
        PyObject_CallFunctionObjArgs(self->message, PyTuple_GetItem(receiver, 2), payload, NULL);
    if (message != NULL && count(self, peer, PyBytes_Size(payload)) != 0)
        Py_CLEAR(message);
    if (message != NULL)
        drop_first(bound);
    return message;
}

/* Note what a worker has kept, or what a turn brings. alone: if one message is kept at most, else
 * PT_ERR_WOULD_BLOCK. PT_ERR_BUSY: another thread has the lock. */
static int gather(bound_loop *bound, int alone)
{
    pt_context *context = bound->context;
    if (context->worker == NULL)
        return pt_batch_gather(bound);
    if (!context->ops->try_lock(context))
        return PT_ERR_BUSY;
    if (alone && !pt_worker_keeps_one(context->worker)) {
        pt_context_unlock(context);
        return PT_ERR_WOULD_BLOCK;
    }
    bound->worker = context->worker;
    pt_block *blocks = pt_worker_take_frames(context->worker);
    pt_block *rest = pt_batch_collect(bound, blocks);
    if (rest == NULL)
        pt_worker_give_back(context->worker, blocks);
    else
        pt_worker_put_back(context->worker, blocks);
    pt_context_unlock(context);
    return PT_OK;
}

/* 1 when something is noted. If so whoever turns the engine hears of that: nobody may ask here
 * again. */
static int leaves_some(const bound_loop *bound)
{
    PT_ASSERT(bound->told == NULL);

    if (bound->item_count == 0 && bound->event_count == 0)
        return 0;
    pt_context *home = bound->worker != NULL ? bound->worker->home : bound->context;
    if (home->ops != NULL)
        home->ops->wake(home);
    return 1;
}

/* Wait for the lock of a worker, which may have ended when that has come. */
static void await_lock(pt_context *context)
{
    const pt_platform_ops *ops = context->ops;
    PT_ASSERT(context->worker != NULL);
    PyThreadState *state = PyEval_SaveThread();
    ops->lock(context);
    ops->unlock(context);
    PyEval_RestoreThread(state);
}

/* Nothing is there. 1: a moment ago that was so too, and one message has come since. */
static int is_brisk(taker *self, uint32_t now)
{
    PyObject *number = look_at(self->totals, self->received);
    long long taken = number != NULL ? PyLong_AsLongLong(number) : 0;
    PyErr_Clear();
    int answer = taken - self->taken == 1 && now - self->missed <= BRISK_MS;
    self->taken = taken;
    self->missed = now;
    PT_ASSERT(answer == 0 || taken > 0);
    return answer;
}

/* Have the turns of a worker until something comes. 0: nothing did, or another thread has them. */
static int lead(taker *self, pt_context *context)
{
    PT_ASSERT(PyDict_Size(self->direct) != 0); /* so the worker has not ended */
    if (!context->ops->try_lock(context))
        return 0;
    if (!is_brisk(self, context->ops->clock(context))) {
        pt_context_unlock(context);
        return 0;
    }
    PyThreadState *state = PyEval_SaveThread();
    int has_come = pt_worker_lead(context->worker);
    context->ops->unlock(context); /* what has come is no news for who is about to take it */
    PyEval_RestoreThread(state);
    if (may_take(self) == SOMETHING)
        return has_come;
    while (context->worker != NULL && !context->ops->try_lock(context))
        await_lock(context);
    pt_context_unlock(context);
    return 0;
}

/* 1 when the lock of the node has done what it was asked for. */
static int lock_does(const taker *self, const char *what, PyObject *argument)
{
    PT_ASSERT(!PyErr_Occurred());

    PyObject *name = PyUnicode_InternFromString(what);
    PyObject *answer =
        name != NULL ? PyObject_CallMethodObjArgs(self->lock, name, argument, NULL) : NULL;
    int does = answer != NULL && answer != Py_False;
    Py_XDECREF(answer);
    Py_XDECREF(name);
    return does;
}

/* Wait for a message without the GIL, on a loop that is its owner's: with the lock of the node, or
 * another thread could own and turn it meanwhile. 0: there is none, or an exception. */
static int await_own(const taker *self, pt_context *context)
{
    PT_ASSERT(pt_is_owner(context));
    if (!lock_does(self, "acquire", Py_False))
        return 0;
    PyThreadState *state = PyEval_SaveThread();
    int code = pt_loop_wait(context, PT_LEAD_MS);
    PyEval_RestoreThread(state);
    return lock_does(self, "release", NULL) && code == PT_OK;
}

/* Wait for a message. 0: there is none, or another thread is about that, or an exception. */
static int await_one(taker *self)
{
    pt_context *context = self->bound->context;
    PT_ASSERT(context->ops != NULL);
    return context->worker != NULL ? lead(self, context) : await_own(self, context);
}

static PyObject *take_next(taker *self, int waits, int alone)
{
    bound_loop *bound = self->bound;
    int answer;
    while ((answer = may_take(self)) == SOMETHING) {
        bound->busy = 1;
        int code = PT_OK;
        if (bound->item_count == 0 && bound->event_count == 0)
            code = gather(bound, alone);
        PyObject *message = take_first(self, alone);
        int has_more = leaves_some(bound);
        pt_batch_rest(bound);
        if (message != NULL)
            return message;
        if (PyErr_Occurred())
            return NULL;
        if (code == PT_ERR_BUSY) {
            await_lock(bound->context);
            continue;
        }
        if (code != PT_OK || has_more || !waits || !await_one(self))
            break;
        waits = 0;
    }
    return answer == ERROR || PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *take(PyObject *capsule, PyObject *const *arguments, Py_ssize_t argument_count)
{
    taker *self = PyCapsule_GetPointer(capsule, NULL);
    if (self == NULL)
        return NULL;
    int has_place =
        argument_count == 3 && PyList_Check(arguments[2]) && PyList_Size(arguments[2]) == 1;
    if (argument_count != 2 && !has_place) {
        PyErr_SetString(PyExc_TypeError, "take(waits, alone) or take(waits, alone, [None])");
        return NULL;
    }
    int may = self->bound->context->worker != NULL || pt_is_owner(self->bound->context);
    PyObject *message = may ? take_next(self, arguments[0] == Py_True, arguments[1] == Py_True)
                            : Py_NewRef(Py_None);
    if (message == NULL || !has_place)
        return message;
    int is_there = message != Py_None;
    (void)PyList_SetItem(arguments[2], 0, message);
    return PyBool_FromLong(is_there);
}

static void free_taker(PyObject *capsule)
{
    taker *self = PyCapsule_GetPointer(capsule, NULL);
    if (self == NULL)
        return;
    for (int index = 0; index < ARGUMENTS; index++)
        Py_XDECREF(self->arguments[index]);
    PyMem_Free(self);
}

static PyMethodDef take_method = {"take", (PyCFunction)(void (*)(void))take, METH_FASTCALL,
                                  "Take the next message, or None."};

/* Fill in what the function is bound to; 0 with an exception. */
static int fill(taker *self, PyObject *const *arguments)
{
    self->bound = pt_batch_of(arguments[0]);
    if (self->bound == NULL || !PyArg_ParseTuple(arguments[1], "OO", &self->message, &self->open) ||
        !PyArg_ParseTuple(arguments[2], "O!O!OOO", &PyDict_Type, &self->direct, &PyList_Type,
                          &self->came, &self->inbox, &self->totals, &self->lock) ||
        !PyArg_ParseTuple(arguments[3], "UUUUUU", &self->state, &self->held, &self->total,
                          &self->queues, &self->received, &self->received_bytes))
        return 0;
    for (int index = 0; index < ARGUMENTS; index++)
        self->arguments[index] = Py_NewRef(arguments[index]);
    return 1;
}

static PyObject *bind_taker(PyObject *module, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)module;
    if (argument_count != ARGUMENTS) {
        PyErr_SetString(PyExc_TypeError, "bind_taker(turn, kinds, values, names)");
        return NULL;
    }
    taker *self = PyMem_Calloc(1, sizeof *self);
    if (self == NULL)
        return PyErr_NoMemory();
    PyObject *capsule = fill(self, arguments) ? PyCapsule_New(self, NULL, free_taker) : NULL;
    if (capsule == NULL) {
        PyMem_Free(self);
        return NULL;
    }
    PyObject *bound = PyCFunction_New(&take_method, capsule);
    Py_DECREF(capsule);
    return bound;
}

static PyMethodDef bind_method[] = {
    {"bind_taker", (PyCFunction)(void (*)(void))bind_taker, METH_FASTCALL, "Bind take to a loop."},
    {NULL, NULL, 0, NULL},
};

int pt_taker_attach(void *module)
{
    return PyModule_AddFunctions(module, bind_method);
}
