/* The Open Transport world: our port to its provider. Each link has an endpoint; a slot is done
 * when T_MEMORYRELEASED has named its bytes. */
#ifndef PT_OT_H
#define PT_OT_H

#include "pt_classic.h"

/* Bytes of platform data; bytes that the platform keeps for a link with so many slots, without its
 * sends in flight. */
size_t pt_ot_size(void);
size_t pt_ot_port_size(uint8_t depth);

/* Make platform data ready: a provider on a host of a network, whose table this is. source: memory
 * for endpoints, links and sends; push: nothing is merged; send_limit: bytes, 0: PT_OT_SEND_LIMIT.
 */
void pt_ot_init(void *platform_data, pt_sim *sim, const pt_sim_table *net, int host,
                const pt_memory *source, int push, uint32_t send_limit);

/* Make the provider let go of everything: connections of links that were closed are broken, their
 * slots completed; endpoints are closed. */
void pt_ot_cleanup(void *platform_data);

/* Slots of closed links that the provider has not let go of. */
uint32_t pt_ot_abandoned(const void *platform_data);

/* What a result means to the core: PT_OT_FLOW, PT_OT_OUT_OF_MEMORY (of a send) and PT_OT_NO_DATA
 * are PT_ERR_WOULD_BLOCK. */
int pt_ot_code(int32_t result);

/* The world with its three asynchronous entries, and without: each slot by a synchronous send. */
const pt_platform_ops *pt_ot_ops(void);
const pt_platform_ops *pt_ot_sync_ops(void);

#endif
