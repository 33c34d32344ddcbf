#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_border.h"

#include "pt_again.h"
#include "pt_assert.h"
#include "pt_batch.h"
#include "pt_bytes.h"
#include "pt_channel.h"
#include "pt_futures.h"
#include "pt_layouts.h"
#include "pt_numbered.h"
#include "pt_pure.h"
#include "pt_reader.h"
#include "pt_sender.h"
#include "pt_taker.h"
#include "pt_turn.h"
#include "pt_waker.h"

int pt_border_attach(void *module)
{
    PyGILState_STATE state = PyGILState_Ensure();
    int result = pt_batch_attach(module);
    if (result == 0)
        result = pt_sender_attach(module);
    if (result == 0)
        result = pt_numbered_attach(module);
    if (result == 0)
        result = pt_taker_attach(module);
    if (result == 0)
        result = pt_bytes_attach(module);
    if (result == 0)
        result = pt_waker_attach(module);
    if (result == 0)
        result = pt_layouts_attach(module);
    if (result == 0)
        result = pt_channel_attach(module);
    if (result == 0)
        result = pt_turn_attach(module);
    if (result == 0)
        result = pt_futures_attach(module);
    if (result == 0)
        result = pt_pure_attach(module);
    if (result == 0)
        result = pt_reader_attach(module);
    if (result == 0)
        result = pt_again_attach(module);
    if (result != 0)
        PyErr_Clear();
    PT_ASSERT(!PyErr_Occurred());
    PyGILState_Release(state);
    return result;
}
