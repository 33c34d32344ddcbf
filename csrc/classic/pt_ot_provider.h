/* The provider of Open Transport, simulated: endpoints that tell of events through a notifier.
 *
 * An endpoint is opened, gets its notifier, becomes non-blocking and then asynchronous, in this
 * order: an event that comes before the notifier is lost. The notifier runs at interrupt time and
 * only sets flags. A send is taken in part when there is not room for all, and refused with
 * PT_OT_FLOW until T_GODATA, or with PT_OT_OUT_OF_MEMORY until T_MEMORYRELEASED. Sends are
 * acknowledged ones: the bytes stay the caller's memory and are the provider's until
 * T_MEMORYRELEASED names them. The simulated provider refuses what the real one refuses, also where
 * the real one would just go wrong, and remembers which rule was broken (pt_classic.violations).
 */
#ifndef PT_OT_PROVIDER_H
#define PT_OT_PROVIDER_H

#include <stddef.h>
#include <stdint.h>

#include "pt_classic.h"

/* Bytes of one endpoint that wait for acknowledgement; beyond it the flow is stopped */
#define PT_OT_SEND_LIMIT 32768

/* The maker's numbers. */
enum pt_ot_event {
    PT_OT_LISTEN = 0x0001,
    PT_OT_CONNECT = 0x0002,
    PT_OT_DATA = 0x0004,
    PT_OT_DISCONNECT = 0x0010,
    PT_OT_UDERR = 0x0040,
    PT_OT_ORDREL = 0x0080,
    PT_OT_GODATA = 0x0100,
    PT_OT_PASSCON = 0x1000,
    PT_OT_ACCEPTCOMPLETE = 0x20000003,
    PT_OT_DISCONNECTCOMPLETE = 0x20000005,
    PT_OT_MEMORYRELEASED = 0x2000000C
};

enum pt_ot_state {
    PT_OT_UNBND = 1,
    PT_OT_IDLE = 2,
    PT_OT_OUTCON = 3, /* a connection is being opened */
    PT_OT_INCON = 4,  /* a connection waits to be accepted */
    PT_OT_DATAXFER = 5,
    PT_OT_OUTREL = 6, /* our half is ended */
    PT_OT_INREL = 7   /* the other half is ended */
};

enum pt_ot_result {
    PT_OT_NO_ERROR = 0,
    PT_OT_ACCESS = -3152,
    PT_OT_OUT_STATE = -3155,
    PT_OT_LOOK = -3158, /* an event has to be taken first: pt_ot_look() says which */
    PT_OT_FLOW = -3161, /* no room: T_GODATA will tell */
    PT_OT_NO_DATA = -3162,
    PT_OT_NO_DISCONNECT = -3163,
    PT_OT_NO_UDERR = -3164,
    PT_OT_NO_RELEASE = -3166,
    PT_OT_BAD_SYNC = -3179,      /* not in this mode, or not now */
    PT_OT_OUT_OF_MEMORY = -3211, /* of a send: T_MEMORYRELEASED will tell */
    PT_OT_BAD_ADDRESS = -3150
};

typedef struct pt_ot_endpoint pt_ot_endpoint; /* opaque */

/* The provider of one machine. */
typedef struct pt_ot {
    pt_classic world;
    pt_ot_endpoint *endpoints;
    uint32_t send_limit;
    uint8_t push;
    uint8_t notifying;
} pt_ot;

/* At interrupt time. cookie: PT_OT_MEMORYRELEASED: the bytes; result: their number, negative when
 * they were not delivered. */
typedef void (*pt_ot_notifier)(void *user, uint32_t event, int32_t result, const void *cookie);

/* A connection that was listened for. */
typedef struct pt_ot_call {
    int32_t handle;
    uint32_t address;
    uint16_t port;
} pt_ot_call;

/* 1 while a notifier runs. */
int pt_ot_is_notifying(const pt_ot *provider);

/* Bytes of an endpoint. */
size_t pt_ot_endpoint_size(void);

/* An endpoint, unbound. NULL: no memory. Close it: a connection is broken, sends are released. */
pt_ot_endpoint *pt_ot_open(pt_ot *provider);
void pt_ot_close(pt_ot_endpoint *endpoint);

/* In this order. PT_OT_NO_ERROR, or PT_OT_BAD_SYNC, PT_OT_ACCESS. */
int32_t pt_ot_install_notifier(pt_ot_endpoint *endpoint, pt_ot_notifier notifier, void *user);
int32_t pt_ot_set_non_blocking(pt_ot_endpoint *endpoint);
int32_t pt_ot_set_asynchronous(pt_ot_endpoint *endpoint);

/* enum pt_ot_state, and the event that has to be taken next (0: none). */
int pt_ot_get_state(const pt_ot_endpoint *endpoint);
uint32_t pt_ot_look(const pt_ot_endpoint *endpoint);

/* Bind: to wait for connections (listens 1), or for datagrams (datagrams 1), or for neither. */
int32_t pt_ot_bind(pt_ot_endpoint *endpoint, uint16_t port, int listens, int datagrams);

/* Open a connection: PT_OT_NO_DATA, then T_CONNECT, then receive_connect; or T_DISCONNECT, then
 * receive_disconnect. */
int32_t pt_ot_connect(pt_ot_endpoint *endpoint, uint32_t address, uint16_t port);
int32_t pt_ot_receive_connect(pt_ot_endpoint *endpoint);

/* T_LISTEN, then listen; accept hands the call to another endpoint, which hears T_PASSCON.
 * PT_OT_NO_DATA: nobody calls. */
int32_t pt_ot_listen(pt_ot_endpoint *endpoint, pt_ot_call *call);
int32_t pt_ot_accept(pt_ot_endpoint *listener, pt_ot_endpoint *endpoint, const pt_ot_call *call);

/* Take over a connection that the network has already opened, as accept does. */
int32_t pt_ot_adopt(pt_ot_endpoint *endpoint, int32_t handle);

/* Send: the number of bytes that were taken, or PT_OT_FLOW, PT_OT_LOOK, PT_OT_OUT_STATE,
 * PT_OT_OUT_OF_MEMORY (try again at T_MEMORYRELEASED: an endpoint is refused memory only while an
 * earlier send of its own is out). Receive: their number, or PT_OT_NO_DATA (only then comes another
 * T_DATA), PT_OT_LOOK, PT_OT_OUT_STATE. */
int32_t pt_ot_send(pt_ot_endpoint *endpoint, const uint8_t *data, uint32_t len);
int32_t pt_ot_receive(pt_ot_endpoint *endpoint, uint8_t *buffer, uint32_t size);

/* End our half; take T_ORDREL. */
int32_t pt_ot_send_release(pt_ot_endpoint *endpoint);
int32_t pt_ot_receive_release(pt_ot_endpoint *endpoint);

/* Break the connection (T_DISCONNECTCOMPLETE follows); take T_DISCONNECT. */
int32_t pt_ot_send_disconnect(pt_ot_endpoint *endpoint);
int32_t pt_ot_receive_disconnect(pt_ot_endpoint *endpoint);

/* Datagrams: 0 or the number of bytes. After T_UDERR both say PT_OT_LOOK until it is taken. */
int32_t pt_ot_send_datagram(pt_ot_endpoint *endpoint, const uint8_t *data, uint32_t len,
                            uint32_t address, uint16_t port);
int32_t pt_ot_receive_datagram(pt_ot_endpoint *endpoint, uint8_t *buffer, uint32_t size,
                               uint32_t *address, uint16_t *port);
int32_t pt_ot_receive_uderr(pt_ot_endpoint *endpoint);

/* Break the connection and leave T_DISCONNECT to be taken, as the network does when it breaks it.
 */
void pt_ot_break(pt_ot_endpoint *endpoint);

/* Break the connection below, whatever the state, so that every send comes back. */
void pt_ot_drop_sends(pt_ot_endpoint *endpoint);

/* Close an endpoint and leave the socket that it adopted to whoever opened it. */
void pt_ot_close_adopted(pt_ot_endpoint *endpoint);

#endif
