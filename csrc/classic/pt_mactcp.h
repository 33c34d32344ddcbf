/* The MacTCP world: our port to its driver. Each slot has a parameter block and a write list, and
 * its result is polled. */
#ifndef PT_MACTCP_H
#define PT_MACTCP_H

#include "pt_classic.h"

#define PT_ASYNC_SEND_PUSH_FLAG 0 /* sends may be merged on the wire */

/* Bytes of platform data. */
size_t pt_mactcp_size(void);

/* Bytes that the platform keeps for a link with so many slots, blocks and lists included. */
size_t pt_mactcp_port_size(uint8_t depth);

/* Make platform data ready: a driver on a host of a network, whose table this is. source: where
 * memory for links comes from. push: what push_flag says. */
void pt_mactcp_init(void *platform_data, pt_sim *sim, const pt_sim_table *net, int host,
                    const pt_memory *source, int push);

/* Make the driver let go of everything: connections of links that were closed are broken, their
 * slots completed. */
void pt_mactcp_cleanup(void *platform_data);

/* Slots of closed links that the driver has not let go of. */
uint32_t pt_mactcp_abandoned(const void *platform_data);

/* The world with its three asynchronous entries, and without: each slot by a synchronous send. */
const pt_platform_ops *pt_mactcp_ops(void);
const pt_platform_ops *pt_mactcp_sync_ops(void);

#endif
