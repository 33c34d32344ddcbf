/* The Open Transport world: our port to its provider. Each link has an endpoint; a slot is done
 * when T_MEMORYRELEASED has named its bytes. */
#ifndef PT_OT_H
#define PT_OT_H

#include "pt_classic.h"

/* What a result means to the core: PT_OT_FLOW, PT_OT_OUT_OF_MEMORY (of a send) and PT_OT_NO_DATA
 * are PT_ERR_WOULD_BLOCK. */
int pt_ot_code(int32_t result);

/* The world with its three asynchronous entries, and without: each slot by a synchronous send. */
const pt_platform_ops *pt_ot_ops(void);
const pt_platform_ops *pt_ot_sync_ops(void);

#endif
