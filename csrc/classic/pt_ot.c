#include "pt_ot.h"

#include <string.h>

#include "pt_assert.h"

#define DRAIN_NS (UINT64_C(1000000000) * PT_DRAIN_TIMEOUT_TICKS / PT_TICKS_PER_SECOND)

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

/* A link's side of an endpoint. */
typedef struct ot_port {
    pt_sim_port base; /* events: enum pt_ot_event */
    pt_ot_endpoint *endpoint;
    uint8_t synchronous;               /* the bytes being sent are of no slot */
    volatile uint8_t undelivered;      /* bytes came back that were not delivered */
    volatile uint32_t alone_len;       /* of such bytes, how many were released */
    volatile uint32_t released_len[1]; /* of each slot */
} ot_port;

struct pt_ot {
    pt_sim_world world;
    pt_ot_endpoint *endpoints;
    uint32_t send_limit;
    uint8_t push;
    uint8_t notifying;
};

static pt_ot *ot_of(const pt_context *context)
{
    return context->platform_data;
}

/* ------------------------------------------------------------------------- the provider: events */

static int32_t violated(pt_ot *provider, const char *call, int32_t code, const char *rule)
{
    pt_sim_world_violated(&provider->world, call, code, rule);
    return code;
}

static int is_notifying(const pt_ot *provider)
{
    return provider->notifying || provider->world.net->is_notifying(provider->world.sim);
}

/* FNV-1a 32. */
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
    if (endpoint->notifier == NULL || !endpoint->asynchronous)
        return;
    uint8_t before = endpoint->provider->notifying;
    endpoint->provider->notifying = 1;
    endpoint->notifier(endpoint->user, event, result, cookie);
    endpoint->provider->notifying = before;
}

static void happen(pt_ot_endpoint *endpoint, uint32_t event)
{
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
        endpoint->queued_len -= send->piece.len;
        if (sum_of(&send->piece) != send->sum)
            violated(provider, "opentransport: OTSnd", PT_OT_ACCESS,
                     "the buffer was changed before T_MEMORYRELEASED gave it back");
        int32_t len = (int32_t)send->piece.len;
        notify(endpoint, PT_OT_MEMORYRELEASED, send->piece.result == PT_OK ? len : -len,
               send->piece.data);
        end_record(endpoint, send);
    }
    if (endpoint->stopped && endpoint->queued_len <= provider->send_limit / 2) {
        endpoint->stopped = 0;
        notify(endpoint, PT_OT_GODATA, 0, NULL);
    }
}

/* At interrupt time. */
static void interrupted(void *owner, int32_t handle, int news)
{
    pt_ot_endpoint *endpoint = owner;
    (void)handle;
    release_sends(endpoint);
    switch (news) {
    case PT_SIM_NEWS_DATA:
        endpoint->pending |= PT_OT_DATA;
        if (!endpoint->data_told) {
            endpoint->data_told = 1;
            notify(endpoint, PT_OT_DATA, 0, NULL);
        }
        break;
    case PT_SIM_NEWS_CLOSING:
        happen(endpoint, PT_OT_ORDREL);
        break;
    case PT_SIM_NEWS_TERMINATED:
        happen(endpoint, PT_OT_DISCONNECT);
        break;
    case PT_SIM_NEWS_OPENED:
        happen(endpoint, PT_OT_CONNECT);
        break;
    case PT_SIM_NEWS_INCOMING:
        happen(endpoint, PT_OT_LISTEN);
        break;
    case PT_SIM_NEWS_UNREACHABLE:
        happen(endpoint, PT_OT_UDERR);
        break;
    default:
        break;
    }
}

/* ---------------------------------------------------------------------- the provider: endpoints */

pt_ot_endpoint *pt_ot_open(pt_ot *provider)
{
    if (is_notifying(provider)) {
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
    if (is_notifying(endpoint->provider))
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
    int32_t code = refused(endpoint, "opentransport: OTBind");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_UNBND)
        return PT_OT_OUT_STATE;
    pt_sim_world *world = &endpoint->provider->world;
    if (listens || datagrams) {
        int32_t handle = listens ? world->net->listen(world->sim, world->host, port)
                                 : world->net->datagram(world->sim, world->host, port);
        if (handle <= 0)
            return handle == PT_ERR_NO_MEMORY ? PT_OT_OUT_OF_MEMORY : PT_OT_BAD_ADDRESS;
        endpoint->handle = handle;
        (void)world->net->attach(world->sim, handle, interrupted, endpoint);
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
    pt_sim_world *world = &endpoint->provider->world;
    int32_t handle = world->net->dial(world->sim, world->host, address, port);
    if (handle <= 0)
        return handle == PT_ERR_NO_MEMORY ? PT_OT_OUT_OF_MEMORY : PT_OT_BAD_ADDRESS;
    endpoint->handle = handle;
    endpoint->state = PT_OT_OUTCON;
    (void)world->net->attach(world->sim, handle, interrupted, endpoint);
    return PT_OT_NO_DATA;
}

int32_t pt_ot_receive_connect(pt_ot_endpoint *endpoint)
{
    int32_t code = refused_in_mode(endpoint, "opentransport: OTRcvConnect");
    if (code != 0)
        return code;
    if (endpoint->state != PT_OT_OUTCON)
        return PT_OT_OUT_STATE;
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
    pt_sim_world *world = &endpoint->provider->world;
    int32_t handle = world->net->accept(world->sim, endpoint->handle);
    if (handle <= 0)
        return PT_OT_NO_DATA;
    call->handle = handle;
    (void)world->net->get_name(world->sim, handle, 1, &call->address, &call->port);
    if (!(world->net->ready(world->sim, endpoint->handle) & PT_READY_READ))
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
    pt_sim_world *world = &endpoint->provider->world;
    for (const pt_ot_endpoint *other = endpoint->provider->endpoints; other != NULL;
         other = other->next) {
        if (other->handle == handle)
            return PT_OT_ACCESS;
    }
    if (world->net->attach(world->sim, handle, interrupted, endpoint) != PT_OK)
        return PT_OT_BAD_ADDRESS;
    endpoint->handle = handle;
    endpoint->state = PT_OT_DATAXFER;
    notify(endpoint, PT_OT_PASSCON, 0, NULL);
    int ready = world->net->ready(world->sim, handle); /* what came before us */
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
    if (provider->world.net->send_piece(provider->world.sim, endpoint->handle, &send->piece) !=
        PT_OK) {
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
    int count = endpoint->provider->world.net->receive(endpoint->provider->world.sim,
                                                       endpoint->handle, buffer, size, &broken);
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
    (void)endpoint->provider->world.net->finish(endpoint->provider->world.sim, endpoint->handle);
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
    (void)endpoint->provider->world.net->reset(endpoint->provider->world.sim, endpoint->handle);
    release_sends(endpoint);
    endpoint->state = PT_OT_IDLE;
    endpoint->pending = 0;
    notify(endpoint, PT_OT_DISCONNECTCOMPLETE, 0, NULL);
    return PT_OT_NO_ERROR;
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
    pt_sim_world *world = &endpoint->provider->world;
    return world->net->send_to(world->sim, endpoint->handle, data, len, address, port) == PT_OK
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
    pt_sim_world *world = &endpoint->provider->world;
    int count = world->net->receive_from(world->sim, endpoint->handle, buffer, size, address, port);
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

/* What is left is broken off; a socket that the endpoint opened itself is closed. */
static void close_endpoint(pt_ot_endpoint *endpoint, int owns)
{
    pt_ot *provider = endpoint->provider;
    pt_sim_world *world = &provider->world;
    if (endpoint->sends != NULL) {
        (void)world->net->reset(world->sim, endpoint->handle);
        release_sends(endpoint);
    }
    PT_ASSERT(endpoint->sends == NULL);
    if (endpoint->handle != 0) {
        (void)world->net->attach(world->sim, endpoint->handle, NULL, NULL);
        if (owns)
            world->net->release(world->sim, endpoint->handle);
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

/* ---------------------------------------------------------------------------------------- ports */

size_t pt_ot_size(void)
{
    return sizeof(pt_ot);
}

static size_t port_size(uint8_t depth)
{
    return sizeof(ot_port) + (size_t)(depth - 1U) * sizeof(uint32_t);
}

size_t pt_ot_port_size(uint8_t depth)
{
    return port_size(depth) + sizeof(pt_ot_endpoint);
}

int pt_ot_code(int32_t result)
{
    switch (result) {
    case PT_OT_NO_ERROR:
        return PT_OK;
    case PT_OT_FLOW:
    case PT_OT_OUT_OF_MEMORY:
    case PT_OT_NO_DATA:
        return PT_ERR_WOULD_BLOCK;
    case PT_OT_LOOK:
    case PT_OT_OUT_STATE:
        return PT_ERR_CONNECTION_CLOSED;
    default:
        return PT_ERR_NETWORK;
    }
}

/* The notifier: sets flags and counts, nothing else. */
static void note_event(void *user, uint32_t event, int32_t result, const void *cookie)
{
    ot_port *noted = user;
    if (event != PT_OT_MEMORYRELEASED) {
        noted->base.events |= event & 0xFFFFU;
        return;
    }
    noted->base.events |= PT_OT_GODATA; /* either way sending can go on */
    if (result < 0)
        noted->undelivered = 1;
    uint32_t len = (uint32_t)(result < 0 ? -result : result);
    if (noted->synchronous) {
        noted->alone_len += len;
        return;
    }
    uintptr_t place = (uintptr_t)cookie;
    for (uint8_t index = 0; index < noted->base.depth; index++) {
        const pt_send_slot *slot = &noted->base.pipeline->slots[index];
        if (slot->buffer != NULL && place >= (uintptr_t)slot->buffer &&
            place < (uintptr_t)slot->buffer + slot->message_len)
            noted->released_len[index] += len;
    }
}

static ot_port *port_of(const pt_context *context, const pt_link *link)
{
    return (ot_port *)pt_sim_world_port(context, link);
}

static int open_port(pt_sim_world *world, pt_sim_port *opened)
{
    pt_ot_endpoint *endpoint = pt_ot_open((pt_ot *)world);
    int32_t code = endpoint != NULL ? pt_ot_install_notifier(endpoint, note_event, opened)
                                    : PT_OT_OUT_OF_MEMORY;
    if (code == 0)
        code = pt_ot_set_non_blocking(endpoint);
    if (code == 0)
        code = pt_ot_set_asynchronous(endpoint);
    if (code == 0)
        code = pt_ot_adopt(endpoint, opened->handle);
    ((ot_port *)opened)->endpoint = endpoint;
    if (code == 0)
        return PT_OK;
    if (endpoint != NULL)
        close_endpoint(endpoint, 0);
    return code == PT_OT_OUT_OF_MEMORY ? PT_ERR_NO_MEMORY : PT_ERR_INVALID_PARAM;
}

static void close_port(pt_sim_world *world, pt_sim_port *closed)
{
    (void)world;
    close_endpoint(((ot_port *)closed)->endpoint, 0);
}

static void reset_port(pt_sim_world *world, pt_sim_port *of)
{
    (void)world->net->reset(world->sim, of->handle);
    release_sends(((ot_port *)of)->endpoint);
}

static int is_taken(const pt_send_slot *slot)
{
    return slot->state == PT_SLOT_IN_FLIGHT || slot->state == PT_SLOT_ABANDONED;
}

/* Slots of which the provider holds bytes. */
static uint32_t held_slots(const pt_sim_port *of)
{
    uint32_t count = 0;
    for (uint8_t index = 0; index < of->depth; index++)
        count += is_taken(&of->pipeline->slots[index]) &&
                 ((const ot_port *)of)->released_len[index] < of->pipeline->slots[index].sent_len;
    return count;
}

/* Complete the slots of which the provider holds nothing any more: all of them when the connection
 * is over. Returns their number. */
static int complete_slots(ot_port *of, int over)
{
    int count = 0;
    for (uint8_t index = 0; index < of->base.depth; index++) {
        const pt_send_slot *slot = &of->base.pipeline->slots[index];
        if (!is_taken(slot) || of->released_len[index] < slot->sent_len)
            continue;
        if (slot->sent_len < slot->message_len && !over)
            continue;
        int delivered = slot->sent_len == slot->message_len && !of->undelivered;
        pt_pipeline_complete(of->base.pipeline, index,
                             delivered ? PT_OK : PT_ERR_CONNECTION_CLOSED);
        count++;
    }
    return count;
}

static void complete_port(pt_sim_port *of)
{
    (void)complete_slots((ot_port *)of, 1);
}

/* -------------------------------------------------------------------------------------- sending */

/* Give the provider what it takes of the slots in flight, oldest first. PT_OK (perhaps
 * link->blocked), or PT_ERR_*. */
static int offer_slots(ot_port *from, pt_link *link)
{
    pt_send_pipeline *pipeline = &link->pipeline;
    for (uint8_t place = 0; place < pipeline->pending_count; place++) {
        uint8_t index = (uint8_t)((pipeline->head + place) % pipeline->depth);
        pt_send_slot *slot = &pipeline->slots[index];
        if (slot->state != PT_SLOT_IN_FLIGHT || slot->sent_len == slot->message_len)
            continue;
        while (slot->sent_len < slot->message_len) {
            int32_t count = pt_ot_send(from->endpoint, slot->buffer + slot->sent_len,
                                       (uint32_t)(slot->message_len - slot->sent_len));
            link->write_calls++;
            if (count <= 0) {
                int code = pt_ot_code(count);
                if (code == PT_ERR_WOULD_BLOCK) {
                    link->blocked = 1;
                    return PT_OK;
                }
                link->system_error = count;
                return code;
            }
            slot->sent_len = (uint16_t)(slot->sent_len + count);
            link->sent_bytes += (uint64_t)count;
        }
    }
    return PT_OK;
}

static int ot_send_async(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)len;
    ot_port *from = port_of(context, link);
    if (from == NULL)
        return PT_ERR_NOT_CONNECTED;
    for (uint8_t index = 0; index < link->pipeline.depth; index++) {
        pt_send_slot *slot = &link->pipeline.slots[index];
        if (slot->state == PT_SLOT_IN_FLIGHT && slot->buffer == data) {
            slot->platform_data = from;
            from->released_len[index] = 0;
        }
    }
    return offer_slots(from, link);
}

static int ot_poll_send_completions(pt_context *context, pt_link *link)
{
    ot_port *of = port_of(context, link);
    if (of == NULL || link->pipeline.pending_count == 0)
        return 0;
    of->base.events &= ~(uint32_t)PT_OT_GODATA;
    int over = (of->endpoint->pending & PT_OT_DISCONNECT) != 0;
    int count = complete_slots(of, over);
    if (over) {
        link->system_error = PT_OT_LOOK;
        return PT_ERR_CONNECTION_CLOSED;
    }
    int code = offer_slots(of, link);
    return code == PT_OK ? count : code;
}

/* Serve one event of the network. 0: none before the end, and time is there. */
static int pass_time(pt_ot *ot, uint64_t end_ns)
{
    int served = ot->world.net->step(ot->world.sim, end_ns);
    if (served == 1 || served == PT_ERR_NO_MEMORY)
        return 1;
    uint64_t unused;
    (void)ot->world.net->advance(ot->world.sim, end_ns, &unused);
    return 0;
}

/* Send all and wait until it is released, or the time has come. PT_OK, PT_ERR_TIMEOUT, or the
 * result as a code. */
static int send_alone(pt_ot *ot, ot_port *from, pt_link *link, const uint8_t *data, uint16_t len,
                      uint64_t end_ns)
{
    uint32_t sent_len = 0;
    from->synchronous = 1;
    from->alone_len = 0;
    while (sent_len < len) {
        int32_t count = pt_ot_send(from->endpoint, data + sent_len, len - sent_len);
        if (count > 0) {
            sent_len += (uint32_t)count;
            link->write_calls++;
        } else if (pt_ot_code(count) != PT_ERR_WOULD_BLOCK) {
            link->system_error = count;
            break;
        } else if (!pass_time(ot, end_ns)) {
            break;
        }
    }
    while (from->alone_len < sent_len && pass_time(ot, end_ns)) {
    }
    if (from->alone_len < sent_len || (sent_len < len && link->system_error == 0)) {
        (void)pt_ot_send_disconnect(from->endpoint); /* the provider must let go of the bytes before
                                                        their owner hears of it */
        from->base.events |= PT_OT_DISCONNECT;
        from->endpoint->pending |= PT_OT_DISCONNECT;
        link->system_error = PT_OT_FLOW;
    }
    from->synchronous = 0;
    if (link->system_error == PT_OT_FLOW)
        return PT_ERR_TIMEOUT;
    if (sent_len == len && !from->undelivered)
        return PT_OK;
    return PT_ERR_CONNECTION_CLOSED;
}

static int ot_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    pt_ot *ot = ot_of(context);
    ot_port *from = port_of(context, link);
    if (from == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (is_notifying(ot)) {
        violated(ot, "opentransport: OTSnd", PT_OT_BAD_SYNC, "a synchronous call at notifier time");
        return PT_ERR_PLATFORM;
    }
    /* Nothing overtakes: what is in flight goes first, all within the drain time-out. */
    uint64_t end_ns = ot->world.net->now(ot->world.sim) + DRAIN_NS;
    while (held_slots(&from->base) != 0) {
        if (!pass_time(ot, end_ns)) {
            (void)pt_ot_send_disconnect(from->endpoint);
            from->base.events |= PT_OT_DISCONNECT;
            from->endpoint->pending |= PT_OT_DISCONNECT;
            link->system_error = PT_OT_FLOW;
            return PT_ERR_TIMEOUT;
        }
    }
    link->system_error = 0;
    int code = send_alone(ot, from, link, data, len, end_ns);
    if (code == PT_OK)
        link->sent_bytes += len;
    return code;
}

/* ------------------------------------------------------------------------------------ receiving */

/* Read until there is no more: only then comes another T_DATA. */
static int ot_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    ot_port *to = port_of(context, link);
    if (to == NULL)
        return PT_ERR_NETWORK;
    uint32_t len = 0;
    int32_t count = 0;
    while (len < size && (count = pt_ot_receive(to->endpoint, buffer + len, size - len)) > 0) {
        len += (uint32_t)count;
        link->read_calls++;
    }
    if (count == PT_OT_NO_DATA)
        to->base.events &= ~(uint32_t)PT_OT_DATA;
    else if (count == PT_OT_LOOK)
        to->base.events |= PT_OT_ORDREL; /* or worse: the next read finds out */
    if (len != 0)
        return (int)len;
    if (count == PT_OT_NO_DATA)
        return PT_ERR_WOULD_BLOCK;
    if (pt_ot_look(to->endpoint) == PT_OT_DISCONNECT || count != PT_OT_LOOK) {
        link->system_error = count;
        return PT_ERR_CONNECTION_CLOSED;
    }
    link->system_error = 0;
    (void)pt_ot_receive_release(to->endpoint);
    return PT_ERR_CONNECTION_CLOSED;
}

static int ot_finish(pt_context *context, pt_link *link)
{
    ot_port *of = port_of(context, link);
    if (of == NULL)
        return PT_ERR_NETWORK;
    int32_t result = pt_ot_send_release(of->endpoint);
    if (result == PT_OT_NO_ERROR || result == PT_OT_LOOK)
        return PT_OK; /* broken: reading tells why */
    link->system_error = result;
    return PT_ERR_NETWORK;
}

/* ------------------------------------------------------------------------------ the loop's side */

void pt_ot_init(void *platform_data, pt_sim *sim, const pt_sim_table *net, int host,
                const pt_memory *source, int push, uint32_t send_limit)
{
    pt_ot *ot = platform_data;
    static const pt_sim_port_ops ops = {
        .size = port_size,
        .open = open_port,
        .close = close_port,
        .reset = reset_port,
        .held = held_slots,
        .complete = complete_port,
        .read_events = PT_OT_DATA | PT_OT_ORDREL | PT_OT_DISCONNECT,
        .write_events = PT_OT_GODATA | PT_OT_DISCONNECT,
    };
    memset(ot, 0, sizeof *ot);
    pt_sim_world_init(&ot->world, sim, net, host, source, &ops);
    ot->push = push != 0;
    ot->send_limit = send_limit ? send_limit : PT_OT_SEND_LIMIT;
}

void pt_ot_cleanup(void *platform_data)
{
    pt_ot *ot = platform_data;
    pt_sim_world_cleanup(&ot->world);
    while (ot->endpoints != NULL)
        close_endpoint(ot->endpoints, 1);
}

uint32_t pt_ot_abandoned(const void *platform_data)
{
    return pt_sim_world_abandoned(&((const pt_ot *)platform_data)->world);
}

/* --------------------------------------------------------------------------------------- tables */

const pt_platform_ops *pt_ot_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "opentransport",
        .tcp_send = ot_send,
        .tcp_send_async = ot_send_async,
        .poll_send_completions = ot_poll_send_completions,
        .wait_send_completions = pt_sim_world_wait_completions,
        .send_slots_available = pt_sim_world_slots_available,
        .tcp_receive = ot_receive,
        .tcp_finish = ot_finish,
        .watch = pt_sim_world_watch,
        .forget = pt_sim_world_forget,
        .wait = pt_sim_world_wait,
        .wake = pt_sim_world_wake,
        .clock = pt_sim_world_clock,
        .ticks_per_second = PT_TICKS_PER_SECOND,
        .classic = 1,
    };
    return &ops;
}

const pt_platform_ops *pt_ot_sync_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "opentransport_sync",
        .tcp_send = ot_send,
        .tcp_receive = ot_receive,
        .tcp_finish = ot_finish,
        .watch = pt_sim_world_watch,
        .forget = pt_sim_world_forget,
        .wait = pt_sim_world_wait,
        .wake = pt_sim_world_wake,
        .clock = pt_sim_world_clock,
        .ticks_per_second = PT_TICKS_PER_SECOND,
        .classic = 1,
    };
    return &ops;
}
