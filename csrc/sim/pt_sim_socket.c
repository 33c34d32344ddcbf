/* Sockets of the simulated network: the table of all, their ports and owners, listeners and
 * datagrams. Streams are in pt_sim_stream.c. */
#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

#define HANDLE_PLACES 0xFFFFU
#define GENERATIONS   0x3FFFU

/* -------------------------------------------------------------------------------------- sockets */

sim_socket *sim_find(const pt_sim *sim, int32_t handle)
{
    if (handle <= 0)
        return NULL;
    uint32_t place = ((uint32_t)handle & HANDLE_PLACES) - 1;
    if (place >= sim->socket_size || sim->sockets[place] == NULL ||
        sim->sockets[place]->handle != handle)
        return NULL;
    return sim->sockets[place];
}

/* A socket that its owner still holds. */
sim_socket *sim_held(const pt_sim *sim, int32_t handle)
{
    sim_socket *socket = sim_find(sim, handle);
    return socket != NULL && !socket->released ? socket : NULL;
}

/* Places for sockets; each array keeps its own size, so that one may grow though memory ends before
 * the other. */
static int widen_sockets(pt_sim *sim, uint32_t wanted)
{
    void *sockets = sim->sockets, *generations = sim->generations;
    int wide =
        sim_widen(sim, &generations, &sim->generation_size, wanted, sizeof *sim->generations);
    sim->generations = generations;
    wide = wide && sim_widen(sim, &sockets, &sim->socket_size, wanted, sizeof *sim->sockets);
    sim->sockets = sockets;
    PT_ASSERT(!wide || sim->socket_size >= wanted);
    PT_ASSERT(!wide || sim->generation_size >= wanted);
    return wide;
}

sim_socket *sim_make_socket(pt_sim *sim, sim_host *host, int kind, uint16_t port, int *code)
{
    PT_ASSERT(kind >= SIM_LISTENER && kind <= SIM_PORT);
    PT_ASSERT(port != 0);

    uint32_t place = sim->first_unused;
    while (place < sim->socket_size && sim->sockets[place] != NULL)
        place++;
    if (place >= PT_SIM_SOCKETS_MAX) {
        *code = PT_ERR_RESOURCE;
        return NULL;
    }
    *code = PT_ERR_NO_MEMORY;
    if (!widen_sockets(sim, place + 1))
        return NULL;
    sim_socket *socket = sim_take(sim, sizeof *socket);
    if (socket == NULL)
        return NULL;
    sim->first_unused = place + 1;
    sim->sockets[place] = socket;
    sim->generations[place] = (uint16_t)((sim->generations[place] + 1U) & GENERATIONS);
    socket->handle = (int32_t)((uint32_t)sim->generations[place] << 16 | (place + 1));
    socket->number = ++sim->sockets_made;
    socket->kind = (uint8_t)kind;
    socket->host = host;
    socket->port = port;
    socket->queue_end = &socket->queue;
    socket->next = host->sockets;
    host->sockets = socket;
    PT_ASSERT(socket->handle > 0 && sim_find(sim, socket->handle) == socket);
    *code = PT_OK;
    return socket;
}

static void drop_packets(pt_sim *sim, sim_packet *first)
{
    while (first != NULL) {
        sim_packet *next = first->next;
        sim_drop_packet(sim, first);
        first = next;
    }
}

void sim_destroy_socket(pt_sim *sim, sim_socket *socket)
{
    PT_ASSERT(socket->pieces == NULL && socket->done == NULL && socket->timer == NULL);
    PT_ASSERT(socket->first_waiting == NULL && !socket->waiting);
    drop_packets(sim, socket->queue);
    drop_packets(sim, socket->early);
    sim_socket **link = &socket->host->sockets;
    while (*link != socket)
        link = &(*link)->next;
    *link = socket->next;
    uint32_t place = ((uint32_t)socket->handle & HANDLE_PLACES) - 1;
    PT_ASSERT(sim->sockets[place] == socket);
    sim->sockets[place] = NULL;
    if (place < sim->first_unused)
        sim->first_unused = place;
    sim_give(sim, socket, sizeof *socket);
}

/* Listeners and datagram sockets by port; a stream that was dialled occupies its port too. */
sim_socket *sim_find_port(sim_host *host, int kind, uint16_t port)
{
    for (sim_socket *socket = host->sockets; socket != NULL; socket = socket->next) {
        if (socket->port == port && socket->kind == kind && !socket->released)
            return socket;
    }
    return NULL;
}

uint16_t sim_free_port(sim_host *host, int kind)
{
    PT_ASSERT(host->next_port >= SIM_FIRST_FREE_PORT);

    for (uint32_t tries = 0; tries < 65536U - SIM_FIRST_FREE_PORT; tries++) {
        uint16_t port = host->next_port;
        host->next_port = (uint16_t)(port == 65535U ? SIM_FIRST_FREE_PORT : port + 1U);
        if (sim_find_port(host, kind, port) == NULL &&
            (kind == SIM_PORT || sim_find_port(host, SIM_LISTENER, port) == NULL))
            return port;
    }
    return 0;
}

void sim_tell(pt_sim *sim, sim_socket *socket, int news)
{
    if (socket->notify == NULL)
        return;
    PT_ASSERT(news >= PT_SIM_NEWS_DATA && news <= PT_SIM_NEWS_UNREACHABLE);
    PT_ASSERT(!sim->notifying);
    sim->notifying = 1;
    socket->notify(socket->owner, socket->handle, news);
    PT_ASSERT(sim->notifying); /* none ran inside */
    sim->notifying = 0;
}

int pt_sim_is_notifying(const pt_sim *sim)
{
    return sim->notifying;
}

int pt_sim_attach(pt_sim *sim, int32_t handle, pt_sim_notify notify, void *owner)
{
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    sim_socket *socket =
        sim_find(sim, handle); /* a released stream too: its pieces may still be somebody's */
    if (socket == NULL)
        return PT_ERR_INVALID_PARAM;
    socket->notify = notify;
    socket->owner = owner;
    return PT_OK;
}

int pt_sim_get_name(const pt_sim *sim, int32_t handle, int remote, uint32_t *address,
                    uint16_t *port)
{
    const sim_socket *socket = sim_find(sim, handle);
    if (socket == NULL)
        return PT_ERR_INVALID_PARAM;
    if (remote && socket->kind != SIM_STREAM)
        return PT_ERR_NOT_CONNECTED;
    PT_ASSERT((uint32_t)socket->peer_host < sim->host_count);
    *address = remote ? sim->hosts[socket->peer_host]->address : socket->host->address;
    *port = remote ? socket->peer_port : socket->port;
    return PT_OK;
}

int32_t pt_sim_listen(pt_sim *sim, int host, uint16_t port)
{
    sim_host *here = sim_host_of(sim, host);
    if (here == NULL)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (port == 0)
        port = sim_free_port(here, SIM_LISTENER);
    if (port == 0 || sim_find_port(here, SIM_LISTENER, port) != NULL)
        return PT_ERR_BUSY;
    int code;
    sim_socket *socket = sim_make_socket(sim, here, SIM_LISTENER, port, &code);
    if (socket == NULL)
        return code;
    sim_trace(sim, PT_SIM_OPEN, host, -1, (uint32_t)socket->handle, port);
    return socket->handle;
}

/* ------------------------------------------------------------------------------------ datagrams */

int32_t pt_sim_datagram(pt_sim *sim, int host, uint16_t port)
{
    sim_host *here = sim_host_of(sim, host);
    if (here == NULL)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (port == 0)
        port = sim_free_port(here, SIM_PORT);
    if (port == 0)
        return PT_ERR_BUSY;
    int code;
    sim_socket *socket = sim_make_socket(sim, here, SIM_PORT, port, &code);
    return socket != NULL ? socket->handle : code;
}

static sim_packet *make_datagram(pt_sim *sim, const sim_socket *socket, const uint8_t *data,
                                 uint32_t len, int32_t target, uint16_t port)
{
    PT_ASSERT(socket->kind == SIM_PORT && !socket->released);
    PT_ASSERT(len <= PT_SIM_DATAGRAM_MAX && port != 0);

    sim_packet *packet = sim_make_packet(sim, SIM_DATAGRAM, len);
    if (packet == NULL)
        return NULL;
    if (len != 0)
        memcpy(packet->data, data, len);
    packet->source = socket->handle;
    packet->source_host = socket->host->number;
    packet->target_host = target;
    packet->address = socket->host->address;
    packet->source_port = socket->port;
    packet->port = port;
    return packet;
}

static int is_broadcast(uint32_t own, uint32_t address)
{
    return address == 0xFFFFFFFFU || address == (own | 0xFFFFFFU) || address == (own | 0xFFU);
}

int pt_sim_send_to(pt_sim *sim, int32_t handle, const uint8_t *data, uint32_t len, uint32_t address,
                   uint16_t port)
{
    sim_socket *socket = sim_held(sim, handle);
    if (socket == NULL || socket->kind != SIM_PORT || port == 0)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (len > PT_SIM_DATAGRAM_MAX)
        return PT_ERR_MESSAGE_TOO_LARGE;
    sim_host *host = socket->host;
    int all = is_broadcast(host->address, address);
    int only = address >> 24 == 127 ? host->number : pt_sim_find_host(sim, address);
    if (!all && only < 0)
        return PT_ERR_NETWORK;
    /* The processor works once; a broadcast is one packet on the wire, and here one for each host.
     */
    uint64_t left_ns =
        sim_occupy(sim, host, host->costs.send_fixed_ns + host->costs.send_byte_ns * len);
    for (uint32_t target = 0; target < sim->host_count; target++) {
        if (!all && target != (uint32_t)only)
            continue;
        sim_packet *packet = make_datagram(sim, socket, data, len, (int32_t)target, port);
        if (packet == NULL)
            return PT_ERR_NO_MEMORY;
        packet->target = all;
        sim_plan_packet(sim, SIM_LEAVE, left_ns, packet);
    }
    return PT_OK;
}

int pt_sim_receive_from(pt_sim *sim, int32_t handle, uint8_t *buffer, uint32_t size,
                        uint32_t *address, uint16_t *port)
{
    sim_socket *socket = sim_held(sim, handle);
    if (socket == NULL || socket->kind != SIM_PORT)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    sim_packet *packet = socket->queue;
    if (packet == NULL)
        return PT_ERR_WOULD_BLOCK;
    uint32_t len = packet->len < size ? packet->len : size;
    if (len != 0)
        memcpy(buffer, packet->data, len);
    *address = packet->address;
    *port = packet->source_port;
    socket->queue = packet->next;
    if (socket->queue == NULL)
        socket->queue_end = &socket->queue;
    PT_ASSERT(socket->queue_len >= packet->len);
    socket->queue_len -= packet->len;
    PT_ASSERT(socket->queue != NULL || socket->queue_len == 0);
    sim_drop_packet(sim, packet);
    return (int)len;
}

static void hear(pt_sim *sim, sim_socket *socket, const sim_packet *heard)
{
    PT_ASSERT(heard->kind == SIM_DATAGRAM && heard->port == socket->port);
    PT_ASSERT(socket->queue_len <= PT_SIM_DATAGRAM_QUEUE);

    if (socket->queue_len + heard->len > PT_SIM_DATAGRAM_QUEUE) {
        sim_trace(sim, PT_SIM_OVERFLOW, heard->source_host, heard->target_host, heard->len,
                  heard->port);
        return;
    }
    sim_packet *copy = sim_make_packet(sim, SIM_DATAGRAM, heard->len);
    if (copy == NULL)
        return;
    memcpy(copy, heard, offsetof(sim_packet, data) + heard->len);
    copy->next = NULL;
    *socket->queue_end = copy;
    socket->queue_end = &copy->next;
    socket->queue_len += copy->len;
    sim_tell(sim, socket, PT_SIM_NEWS_DATA);
}

void sim_datagram_arrived(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT(packet->kind == SIM_DATAGRAM);
    PT_ASSERT(packet->len <= PT_SIM_DATAGRAM_MAX);

    int heard = 0;
    sim_trace(sim, PT_SIM_DATAGRAM, packet->source_host, packet->target_host, packet->len,
              packet->port);
    for (sim_socket *socket = sim->hosts[packet->target_host]->sockets; socket != NULL;
         socket = socket->next) {
        if (socket->kind == SIM_PORT && socket->port == packet->port &&
            socket->handle != packet->source) {
            hear(sim, socket, packet);
            heard = 1;
        }
    }
    if (!heard && !packet->target) {
        sim_packet *answer = sim_make_packet(sim, SIM_UNREACHABLE, 0);
        if (answer != NULL) {
            answer->source_host = packet->target_host;
            answer->target_host = packet->source_host;
            answer->target = packet->source;
            sim_transmit(sim, answer);
        }
    }
    sim_drop_packet(sim, packet);
}
