/* The state of a receiving machine, and the memory of the frame that is cut: what frames of every
 * form have in common. */
#include "pt_ingest_inside.h"

#define NOWHERE  PT_NOWHERE
#define INIT     PT_INGEST_INIT
#define HEADER   PT_INGEST_WAIT_HEADER
#define PAYLOAD  PT_INGEST_WAIT_PAYLOAD
#define COMPLETE PT_INGEST_COMPLETE

/* Following state, by state and step: init, stage, fill, hand on, fail, cleanup. */
static const uint8_t NEXT[][6] = {
    [INIT] = {HEADER, NOWHERE, NOWHERE, NOWHERE, NOWHERE, INIT},
    [HEADER] = {NOWHERE, PAYLOAD, NOWHERE, NOWHERE, INIT, INIT},
    [PAYLOAD] = {NOWHERE, NOWHERE, COMPLETE, NOWHERE, INIT, INIT},
    [COMPLETE] = {NOWHERE, NOWHERE, NOWHERE, HEADER, INIT, NOWHERE},
};

uint8_t pt_ingest_next(uint8_t state, uint8_t step)
{
    PT_ASSERT(state <= COMPLETE);
    PT_ASSERT(step <= PT_INGEST_STEP_CLEANUP);

    return NEXT[state][step];
}

pt_landing *pt_ingest_into(const pt_ingest *ingest)
{
    PT_ASSERT(ingest->state <= COMPLETE);

    int is_behind_header = ingest->state == PAYLOAD || ingest->state == COMPLETE;
    return is_behind_header && ingest->staging == NULL ? ingest->wide.into : NULL;
}

void pt_ingest_start_over(pt_ingest *ingest, enum pt_ingest_step step, enum pt_ingest_state state)
{
    pt_landing *into = PT_WIDE ? pt_ingest_into(ingest) : NULL;
    if (ingest->staging != NULL)
        pt_pool_release(ingest->pool, ingest->staging, ingest->staged_len);
    ingest->staging = NULL;
    if (into != NULL && into->id == 0)
        into->drop(into);
    ingest->staged_len = 0;
    ingest->frame_len = 0;
    pt_ingest_move(ingest, step, state);
}

int pt_ingest_fail(pt_ingest *ingest, int code)
{
    PT_ASSERT(code < 0);

    pt_ingest_start_over(ingest, PT_INGEST_STEP_FAIL, INIT);
    return code;
}
