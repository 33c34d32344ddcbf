#include "pt_ot_provider.h"

#include <string.h>

#include "pt_assert.h"

/* Bytes that the provider has taken and not released. */
typedef struct taken taken;
struct taken {
    taken *next;
    pt_sim_piece piece;
    uint32_t sum;
};

struct pt_ot_endpoint {
    pt_ot_endpoint *next;
    pt_ot *provider;
    pt_ot_notifier notifier;
    void *user;
    taken *sends;        /* oldest first */
    taken own;           /* a record that costs no memory; data NULL: free */
    uint32_t queued_len; /* bytes of these */
    uint32_t pending;    /* enum pt_ot_event: to be taken */
    int32_t handle;      /* 0: none */
    uint8_t state;
    uint8_t non_blocking;
    uint8_t asynchronous;
    uint8_t listens;
    uint8_t datagrams;
    uint8_t stopped;   /* the flow is: T_GODATA is owed */
    uint8_t data_told; /* no other T_DATA before PT_OT_NO_DATA was heard */
};

/* ------------------------------------------------------------------------- the provider: events */

static int32_t violated(pt_ot *provider, const char *call, int32_t code, const char *rule)
{
    PT_ASSERT(code < 0);

    pt_classic_violated(&provider->world, call, code, rule);
    return code;
}

int pt_ot_is_notifying(const pt_ot *provider)
{
    return provider->notifying || pt_sim_is_notifying(provider->world.sim);
}

/* FNV-1a 32: whether bytes that are not their owner's now were changed all the same. */
static uint32_t sum_of(const pt_sim_piece *piece)
{
    uint32_t sum = 0x811C9DC5U;
    for (uint32_t index = 0; index < piece->len; index++)
        sum = (sum ^ piece->data[index]) * 0x01000193U;
    return sum;
}

/* Tell the notifier. Without one, or before asynchronous mode, the event is lost: only look() finds
 * it. */
static void notify(pt_ot_endpoint *endpoint, uint32_t event, int32_t result, const void *cookie)
{
    PT_ASSERT((event == PT_OT_MEMORYRELEASED) == (cookie != NULL));
    PT_ASSERT((result != 0) == (cookie != NULL));

    if (endpoint->notifier == NULL || !endpoint->asynchronous)
        return;
    uint8_t before = endpoint->provider->notifying;
    endpoint->provider->notifying = 1;
    endpoint->notifier(endpoint->user, event, result, cookie);
    endpoint->provider->notifying = before;
}

static void happen(pt_ot_endpoint *endpoint, uint32_t event)
{
    PT_ASSERT(event != 0 && event <= 0xFFFFU);

    endpoint->pending |= event;
    notify(endpoint, event, 0, NULL);
}

/* A record for one more send. The endpoint's own comes first: so where there is no memory for
 * another, a send is out whose T_MEMORYRELEASED tells when to try again. NULL: no memory. */
static taken *make_record(pt_ot_endpoint *endpoint)
{
    const pt_memory *memory = &endpoint->provider->world.memory;
    taken *made = endpoint->own.piece.data == NULL
                      ? &endpoint->own
                      : memory->allocate(memory->context, sizeof *made);
    if (made != NULL)
        memset(made, 0, sizeof *made);
    return made;
}

static void end_record(pt_ot_endpoint *endpoint, taken *ended)
{
    PT_ASSERT(ended->piece.result != 1);

    const pt_memory *memory = &endpoint->provider->world.memory;
    if (ended == &endpoint->own)
        ended->piece.data = NULL;
    else
        memory->release(memory->context, ended, sizeof *ended);
}

/* Give back what has been acknowledged, or never will be. */
static void release_sends(pt_ot_endpoint *endpoint)
{
    pt_ot *provider = endpoint->provider;
    taken **link = &endpoint->sends;
    while (*link != NULL) {
        taken *send = *link;
        if (send->piece.result == 1) {
            link = &send->next;
            continue;
        }
        *link = send->next;
        PT_ASSERT(send->piece.len != 0 && endpoint->queued_len >= send->piece.len);
        endpoint->queued_len -= send->piece.len;
        if (sum_of(&send->piece) != send->sum)
            violated(provider, "opentransport: OTSnd", PT_OT_ACCESS,
                     "the buffer was changed before T_MEMORYRELEASED gave it back");
        int32_t len = (int32_t)send->piece.len;
        notify(endpoint, PT_OT_MEMORYRELEASED, send->piece.result == PT_OK ? len : -len,
               send->piece.data);
        end_record(endpoint, send);
    }
    PT_ASSERT((endpoint->sends == NULL) == (endpoint->queued_len == 0));
    if (endpoint->stopped && endpoint->queued_len <= provider->send_limit / 2) {
        endpoint->stopped = 0;
        notify(endpoint, PT_OT_GODATA, 0, NULL);
    }
}

/* At interrupt time. */
static void interrupted(void *owner, int32_t handle, int news)
{
    static const uint16_t events[] = {
        [PT_SIM_NEWS_CLOSING] = PT_OT_ORDREL,    [PT_SIM_NEWS_TERMINATED] = PT_OT_DISCONNECT,
        [PT_SIM_NEWS_OPENED] = PT_OT_CONNECT,    [PT_SIM_NEWS_INCOMING] = PT_OT_LISTEN,
        [PT_SIM_NEWS_UNREACHABLE] = PT_OT_UDERR,
    };
    pt_ot_endpoint *endpoint = owner;
    PT_ASSERT(news > 0 && (size_t)news < sizeof events / sizeof events[0]);
    PT_ASSERT(endpoint->handle == handle);
    (void)handle;
    release_sends(endpoint);
    if (news == PT_SIM_NEWS_DATA) {
        endpoint->pending |= PT_OT_DATA;
        if (!endpoint->data_told) {
            endpoint->data_told = 1;
            notify(endpoint, PT_OT_DATA, 0, NULL);
        }
    } else if (events[news] != 0) {
        happen(endpoint, events[news]);
    }
}

/* ---------------------------------------------------------------------- the provider: endpoints */

pt_ot_endpoint *pt_ot_open(pt_ot *provider)
{
    if (pt_ot_is_notifying(provider)) {
        violated(provider, "opentransport: OTOpenEndpoint", PT_OT_BAD_SYNC,
                 "called at notifier time; the notifier may only set flags");
        return NULL;
    }
    pt_ot_endpoint *endpoint =
        provider->world.memory.allocate(provider->world.memory.context, sizeof *endpoint);
    if (endpoint == NULL)
        return NULL;
    memset(endpoint, 0, sizeof *endpoint);
    endpoint->provider = provider;
    endpoint->state = PT_OT_UNBND;
    endpoint->next = provider->endpoints;
    provider->endpoints = endpoint;
    return endpoint;
}

/* Every call but look() begins here. 0, or why it is refused. */
static int32_t refused(pt_ot_endpoint *endpoint, const char *call)
{
    if (pt_ot_is_notifying(endpoint->provider))
        return violated(endpoint->provider, call, PT_OT_BAD_SYNC,
                        "called at notifier time; the notifier may only set flags");
    return 0;
}

/* ... and those that move data or connections also ask for the right mode. */
static int32_t refused_in_mode(pt_ot_endpoint *endpoint, const char *call)
{
    int32_t code = refused(endpoint, call);
    if (code == 0 && !endpoint->asynchronous)
        code = violated(endpoint->provider, call, PT_OT_BAD_SYNC,
                        "the endpoint is not asynchronous yet; it would block the machine");
    return code;
}

int32_t pt_ot_install_notifier(pt_ot_endpoint *endpoint, pt_ot_notifier notifier, void *user)
{
    static const char call[] = "opentransport: OTInstallNotifier";
    int32_t code = refused(endpoint, call);
    if (code != 0)
        return code;
    if (endpoint->notifier != NULL)
        return violated(endpoint->provider, call, PT_OT_ACCESS, "there is a notifier already");
    if (endpoint->asynchronous)
        return violated(endpoint->provider, call, PT_OT_BAD_SYNC,
                        "the endpoint is asynchronous already: events were lost");
    endpoint->notifier = notifier;
    endpoint->user = user;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_set_non_blocking(pt_ot_endpoint *endpoint)
{
    static const char call[] = "opentransport: OTSetNonBlocking";
    int32_t code = refused(endpoint, call);
    if (code != 0)
        return code;
    if (endpoint->notifier == NULL)
        return violated(endpoint->provider, call, PT_OT_BAD_SYNC, "the notifier comes first");
    endpoint->non_blocking = 1;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_set_asynchronous(pt_ot_endpoint *endpoint)
{
    static const char call[] = "opentransport: OTSetAsynchronous";
    int32_t code = refused(endpoint, call);
    if (code != 0)
        return code;
    if (endpoint->notifier == NULL)
        return violated(endpoint->provider, call, PT_OT_BAD_SYNC, "the notifier comes first");
    if (!endpoint->non_blocking)
        return violated(endpoint->provider, call, PT_OT_BAD_SYNC, "non-blocking mode comes first");
    endpoint->asynchronous = 1;
    return PT_OT_NO_ERROR;
}

int pt_ot_get_state(const pt_ot_endpoint *endpoint)
{
    return endpoint->state;
}

uint32_t pt_ot_look(const pt_ot_endpoint *endpoint)
{
    static const uint32_t order[] = {PT_OT_DISCONNECT, PT_OT_UDERR, PT_OT_LISTEN,
                                     PT_OT_CONNECT,    PT_OT_DATA,  PT_OT_ORDREL};
    for (size_t index = 0; index < sizeof order / sizeof order[0]; index++) {
        if (endpoint->pending & order[index])
            return order[index];
    }
    return 0;
}

int32_t pt_ot_bind(pt_ot_endpoint *endpoint, uint16_t port, int listens, int datagrams)
{
    PT_ASSERT(!listens || !datagrams);

    int32_t code = refused(endpoint, "opentransport: OTBind");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_UNBND)
        return PT_OT_OUT_STATE;
    pt_classic *world = &endpoint->provider->world;
    if (listens || datagrams) {
        int32_t handle = listens ? pt_sim_listen(world->sim, world->host, port)
                                 : pt_sim_datagram(world->sim, world->host, port);
        if (handle <= 0)
            return handle == PT_ERR_NO_MEMORY ? PT_OT_OUT_OF_MEMORY : PT_OT_BAD_ADDRESS;
        endpoint->handle = handle;
        (void)pt_sim_attach(world->sim, handle, interrupted, endpoint);
    }
    endpoint->listens = listens != 0;
    endpoint->datagrams = datagrams != 0;
    endpoint->state = PT_OT_IDLE;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_connect(pt_ot_endpoint *endpoint, uint32_t address, uint16_t port)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTConnect");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_IDLE || endpoint->listens || endpoint->datagrams)
        return PT_OT_OUT_STATE;
    pt_classic *world = &endpoint->provider->world;
    int32_t handle = pt_sim_dial(world->sim, world->host, address, port);
    if (handle <= 0)
        return handle == PT_ERR_NO_MEMORY ? PT_OT_OUT_OF_MEMORY : PT_OT_BAD_ADDRESS;
    endpoint->handle = handle;
    endpoint->state = PT_OT_OUTCON;
    (void)pt_sim_attach(world->sim, handle, interrupted, endpoint);
    return PT_OT_NO_DATA;
}

int32_t pt_ot_receive_connect(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcvConnect");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_OUTCON)
        return PT_OT_OUT_STATE;
    PT_ASSERT(endpoint->handle > 0);
    if (endpoint->pending & PT_OT_DISCONNECT)
        return PT_OT_LOOK;
    if (!(endpoint->pending & PT_OT_CONNECT))
        return PT_OT_NO_DATA;
    endpoint->pending &= ~(uint32_t)PT_OT_CONNECT;
    endpoint->state = PT_OT_DATAXFER;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_listen(pt_ot_endpoint *endpoint, pt_ot_call *call)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTListen");
    if (code != 0)
        return code;
    if (!endpoint->listens || endpoint->state != PT_OT_IDLE)
        return PT_OT_OUT_STATE;
    pt_classic *world = &endpoint->provider->world;
    int32_t handle = pt_sim_accept(world->sim, endpoint->handle);
    if (handle <= 0)
        return PT_OT_NO_DATA;
    PT_ASSERT(handle != endpoint->handle);
    call->handle = handle;
    (void)pt_sim_get_name(world->sim, handle, 1, &call->address, &call->port);
    if (!(pt_sim_ready(world->sim, endpoint->handle) & PT_READY_READ))
        endpoint->pending &= ~(uint32_t)PT_OT_LISTEN;
    endpoint->state = PT_OT_INCON;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_adopt(pt_ot_endpoint *endpoint, int32_t handle)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTAccept");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_UNBND && endpoint->state != PT_OT_IDLE)
        return PT_OT_OUT_STATE;
    pt_classic *world = &endpoint->provider->world;
    for (const pt_ot_endpoint *other = endpoint->provider->endpoints; other != NULL;
         other = other->next) {
        if (other->handle == handle)
            return PT_OT_ACCESS;
    }
    if (pt_sim_attach(world->sim, handle, interrupted, endpoint) != PT_OK)
        return PT_OT_BAD_ADDRESS;
    endpoint->handle = handle;
    endpoint->state = PT_OT_DATAXFER;
    notify(endpoint, PT_OT_PASSCON, 0, NULL);
    int ready = pt_sim_ready(world->sim, handle); /* what came before us */
    if (ready & PT_READY_HANGUP)
        happen(endpoint, PT_OT_DISCONNECT);
    else if (ready & PT_READY_READ)
        interrupted(endpoint, handle, PT_SIM_NEWS_DATA);
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_accept(pt_ot_endpoint *listener, pt_ot_endpoint *endpoint, const pt_ot_call *call)
{
    int32_t code = refused_in_mode(listener, "opentransport: OTAccept");
    if (code != 0)
        return code;
    if (listener->state != PT_OT_INCON)
        return PT_OT_OUT_STATE;
    PT_ASSERT(listener->listens && listener->handle > 0);
    code = pt_ot_adopt(endpoint, call->handle);
    if (code != 0)
        return code;
    listener->state = PT_OT_IDLE;
    notify(listener, PT_OT_ACCEPTCOMPLETE, 0, NULL);
    if (listener->pending & PT_OT_LISTEN)
        notify(listener, PT_OT_LISTEN, 0, NULL);
    return PT_OT_NO_ERROR;
}

/* --------------------------------------------------------------------------- the provider: data */

int32_t pt_ot_send(pt_ot_endpoint *endpoint, const uint8_t *data, uint32_t len)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTSnd");
    if (code != 0)
        return code;
    if (endpoint->pending & PT_OT_DISCONNECT)
        return PT_OT_LOOK;
    if (endpoint->state != PT_OT_DATAXFER && endpoint->state != PT_OT_INREL)
        return PT_OT_OUT_STATE;
    pt_ot *provider = endpoint->provider;
    PT_ASSERT(endpoint->queued_len <= provider->send_limit);
    PT_ASSERT(endpoint->handle > 0);
    uint32_t room = provider->send_limit > endpoint->queued_len
                        ? provider->send_limit - endpoint->queued_len
                        : 0;
    if (endpoint->stopped || room == 0) {
        endpoint->stopped = 1;
        return PT_OT_FLOW;
    }
    if (len == 0)
        return 0;
    taken *send = make_record(endpoint);
    if (send == NULL)
        return PT_OT_OUT_OF_MEMORY;
    send->piece.data = data;
    send->piece.len = len < room ? len : room;
    send->piece.push = provider->push;
    send->sum = sum_of(&send->piece);
    int32_t taken_len = (int32_t)send->piece.len;
    PT_ASSERT(taken_len > 0);
    if (pt_sim_send_piece(provider->world.sim, endpoint->handle, &send->piece) != PT_OK) {
        end_record(endpoint, send);
        return PT_OT_OUT_STATE;
    }
    taken **link = &endpoint->sends;
    while (*link != NULL)
        link = &(*link)->next;
    *link = send;
    endpoint->queued_len += (uint32_t)taken_len;
    endpoint->stopped |= (uint32_t)taken_len < len;
    return taken_len;
}

int32_t pt_ot_receive(pt_ot_endpoint *endpoint, uint8_t *buffer, uint32_t size)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcv");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_DATAXFER && endpoint->state != PT_OT_OUTREL)
        return PT_OT_OUT_STATE;
    int broken;
    int count =
        pt_sim_receive(endpoint->provider->world.sim, endpoint->handle, buffer, size, &broken);
    PT_ASSERT(count <= 0 || (uint32_t)count <= size);
    if (count > 0)
        return count;
    endpoint->pending &= ~(uint32_t)PT_OT_DATA;
    endpoint->data_told = 0;
    if (count == PT_ERR_WOULD_BLOCK)
        return PT_OT_NO_DATA;
    endpoint->pending |= broken ? PT_OT_DISCONNECT : PT_OT_ORDREL;
    return PT_OT_LOOK;
}

int32_t pt_ot_send_release(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTSndOrderlyDisconnect");
    if (code != 0)
        return code;
    if (endpoint->pending & PT_OT_DISCONNECT)
        return PT_OT_LOOK;
    if (endpoint->state != PT_OT_DATAXFER && endpoint->state != PT_OT_INREL)
        return PT_OT_OUT_STATE;
    (void)pt_sim_finish(endpoint->provider->world.sim, endpoint->handle);
    endpoint->state = endpoint->state == PT_OT_DATAXFER ? PT_OT_OUTREL : PT_OT_IDLE;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_receive_release(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcvOrderlyDisconnect");
    if (code != 0)
        return code;
    if (!(endpoint->pending & PT_OT_ORDREL))
        return PT_OT_NO_RELEASE;
    if (endpoint->state != PT_OT_DATAXFER && endpoint->state != PT_OT_OUTREL)
        return PT_OT_OUT_STATE;
    endpoint->pending &= ~(uint32_t)PT_OT_ORDREL;
    endpoint->state = endpoint->state == PT_OT_DATAXFER ? PT_OT_INREL : PT_OT_IDLE;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_send_disconnect(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTSndDisconnect");
    if (code != 0)
        return code;
    if (endpoint->handle == 0 || endpoint->state < PT_OT_OUTCON)
        return PT_OT_OUT_STATE;
    (void)pt_sim_reset(endpoint->provider->world.sim, endpoint->handle);
    release_sends(endpoint);
    PT_ASSERT(endpoint->sends == NULL && !endpoint->stopped);
    endpoint->state = PT_OT_IDLE;
    endpoint->pending = 0;
    notify(endpoint, PT_OT_DISCONNECTCOMPLETE, 0, NULL);
    return PT_OT_NO_ERROR;
}

void pt_ot_break(pt_ot_endpoint *endpoint)
{
    (void)pt_ot_send_disconnect(endpoint);
    endpoint->pending |= PT_OT_DISCONNECT;
}

int32_t pt_ot_receive_disconnect(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcvDisconnect");
    if (code != 0)
        return code;
    if (!(endpoint->pending & PT_OT_DISCONNECT))
        return PT_OT_NO_DISCONNECT;
    endpoint->pending = 0;
    endpoint->state = PT_OT_IDLE;
    return PT_OT_NO_ERROR;
}

int32_t pt_ot_send_datagram(pt_ot_endpoint *endpoint, const uint8_t *data, uint32_t len,
                            uint32_t address, uint16_t port)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTSndUData");
    if (code != 0)
        return code;
    if (!endpoint->datagrams)
        return PT_OT_OUT_STATE;
    if (endpoint->pending & PT_OT_UDERR)
        return PT_OT_LOOK;
    pt_classic *world = &endpoint->provider->world;
    return pt_sim_send_to(world->sim, endpoint->handle, data, len, address, port) == PT_OK
               ? PT_OT_NO_ERROR
               : PT_OT_BAD_ADDRESS;
}

int32_t pt_ot_receive_datagram(pt_ot_endpoint *endpoint, uint8_t *buffer, uint32_t size,
                               uint32_t *address, uint16_t *port)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcvUData");
    if (code != 0)
        return code;
    if (!endpoint->datagrams)
        return PT_OT_OUT_STATE;
    if (endpoint->pending & PT_OT_UDERR)
        return PT_OT_LOOK;
    pt_classic *world = &endpoint->provider->world;
    int count = pt_sim_receive_from(world->sim, endpoint->handle, buffer, size, address, port);
    PT_ASSERT(count == PT_ERR_WOULD_BLOCK || (count >= 0 && (uint32_t)count <= size));
    if (count >= 0)
        return count;
    endpoint->pending &= ~(uint32_t)PT_OT_DATA;
    endpoint->data_told = 0;
    return PT_OT_NO_DATA;
}

int32_t pt_ot_receive_uderr(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcvUDErr");
    if (code != 0)
        return code;
    if (!(endpoint->pending & PT_OT_UDERR))
        return PT_OT_NO_UDERR;
    endpoint->pending &= ~(uint32_t)PT_OT_UDERR;
    return PT_OT_NO_ERROR;
}

size_t pt_ot_endpoint_size(void)
{
    return sizeof(pt_ot_endpoint);
}

void pt_ot_drop_sends(pt_ot_endpoint *endpoint)
{
    pt_classic *world = &endpoint->provider->world;
    (void)pt_sim_reset(world->sim, endpoint->handle);
    release_sends(endpoint);
    PT_ASSERT(endpoint->sends == NULL && endpoint->queued_len == 0);
}

/* What is left is broken off; a socket that the endpoint opened itself is closed. */
static void close_endpoint(pt_ot_endpoint *endpoint, int owns)
{
    pt_ot *provider = endpoint->provider;
    pt_classic *world = &provider->world;
    if (endpoint->sends != NULL)
        pt_ot_drop_sends(endpoint);
    PT_ASSERT(endpoint->sends == NULL);
    if (endpoint->handle != 0) {
        (void)pt_sim_attach(world->sim, endpoint->handle, NULL, NULL);
        if (owns)
            pt_sim_release(world->sim, endpoint->handle);
    }
    pt_ot_endpoint **link = &provider->endpoints;
    while (*link != endpoint)
        link = &(*link)->next;
    *link = endpoint->next;
    provider->world.memory.release(provider->world.memory.context, endpoint, sizeof *endpoint);
}

void pt_ot_close(pt_ot_endpoint *endpoint)
{
    if (refused(endpoint, "opentransport: OTCloseProvider") == 0)
        close_endpoint(endpoint, 1);
}

void pt_ot_close_adopted(pt_ot_endpoint *endpoint)
{
    close_endpoint(endpoint, 0);
}
