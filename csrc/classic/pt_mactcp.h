/* The MacTCP world: our port to its driver. Each slot has a parameter block and a write list, and
 * its result is polled. */
#ifndef PT_MACTCP_H
#define PT_MACTCP_H

#include "pt_classic.h"

#define PT_ASYNC_SEND_PUSH_FLAG 0 /* sends may be merged on the wire */

/* The world with its three asynchronous entries, and without: each slot by a synchronous send. */
const pt_platform_ops *pt_mactcp_ops(void);
const pt_platform_ops *pt_mactcp_sync_ops(void);

#endif
