/* What the owner of a stream may ask of it: open, write, read, end, and look. */
#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

#define OWN_BUFFER 65536 /* bytes that pt_sim_send() copies at most */
#define LAST_WAIT_NS                                                                               \
    UINT64_C(60000000000) /* a stream that nobody holds waits so long for the other half's end */

/* A stream that is held, or NULL. */
static sim_socket *stream_of(const pt_sim *sim, int32_t handle)
{
    sim_socket *socket = sim_find(sim, handle);
    return socket != NULL && socket->kind == SIM_STREAM && !socket->released ? socket : NULL;
}

int32_t pt_sim_dial(pt_sim *sim, int host, uint32_t address, uint16_t port)
{
    if (host < 0 || (uint32_t)host >= sim->host_count || port == 0)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    int target = address >> 24 == 127 ? host : pt_sim_find_host(sim, address);
    if (target < 0)
        return PT_ERR_NETWORK;
    sim_host *here = sim->hosts[host];
    uint16_t own_port = sim_free_port(here, SIM_STREAM);
    if (own_port == 0)
        return PT_ERR_BUSY;
    int code;
    sim_socket *stream = sim_stream_make(sim, here, own_port, &code);
    if (stream == NULL)
        return code;
    stream->dialled = 1;
    stream->peer_host = target;
    stream->peer_port = port;
    sim_stream_control(sim, stream, SIM_SYN, 0);
    sim_stream_await_answer(sim, stream);
    sim_stream_set_timer(sim, stream);
    PT_ASSERT(stream->outcome == PT_ERR_WOULD_BLOCK && !stream->open);
    return stream->handle;
}

int32_t pt_sim_accept(pt_sim *sim, int32_t handle)
{
    sim_socket *listener = sim_find(sim, handle);
    if (listener == NULL || listener->kind != SIM_LISTENER)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    sim_socket *stream = listener->first_waiting;
    if (stream == NULL)
        return PT_ERR_WOULD_BLOCK;
    PT_ASSERT(stream->waiting && stream->parent == listener);
    PT_ASSERT(listener->waiting_count != 0);
    listener->first_waiting = stream->next_waiting;
    listener->waiting_count--;
    stream->waiting = 0;
    stream->parent = NULL;
    sim_trace(sim, PT_SIM_ACCEPT, stream->peer_host, stream->host->number, (uint32_t)stream->handle,
              stream->port);
    return stream->handle;
}

int pt_sim_get_outcome(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL ? PT_ERR_INVALID_PARAM : stream->outcome;
}

static int stream_ready(const sim_socket *stream)
{
    PT_ASSERT(stream->kind == SIM_STREAM && !stream->released);

    if (stream->outcome == PT_ERR_WOULD_BLOCK)
        return 0;
    int ready = stream->queue_len != 0 || stream->fin_told ? PT_READY_READ : 0;
    if (sim_stream_is_over(stream))
        return PT_READY_READ | PT_READY_WRITE | PT_READY_HANGUP;
    return ready | (stream->queued_end - stream->unacknowledged < OWN_BUFFER ? PT_READY_WRITE : 0);
}

int pt_sim_ready(const pt_sim *sim, int32_t handle)
{
    const sim_socket *socket = sim_held(sim, handle);
    if (socket == NULL)
        return 0;
    if (socket->kind == SIM_LISTENER)
        return socket->first_waiting != NULL ? PT_READY_READ : 0;
    if (socket->kind == SIM_PORT)
        return PT_READY_WRITE | (socket->queue != NULL ? PT_READY_READ : 0);
    return stream_ready(socket);
}

static int check_writable(const pt_sim *sim, const sim_socket *stream)
{
    if (stream == NULL)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (sim_stream_is_over(stream))
        return PT_ERR_CONNECTION_CLOSED;
    return !stream->open || stream->fin_wanted ? PT_ERR_NOT_CONNECTED : PT_OK;
}

int pt_sim_send_piece(pt_sim *sim, int32_t handle, pt_sim_piece *piece)
{
    sim_socket *stream = stream_of(sim, handle);
    int code = check_writable(sim, stream);
    if (code == PT_OK && (piece->len == 0 || piece->data == NULL))
        code = PT_ERR_INVALID_PARAM;
    if (code != PT_OK)
        return code;
    PT_ASSERT(stream->open && !stream->fin_sent);
    piece->next = NULL;
    piece->result = 1;
    stream->queued_end += piece->len;
    piece->end = stream->queued_end;
    *stream->pieces_end = piece;
    stream->pieces_end = &piece->next;
    sim_stream_pump(sim, stream);
    return PT_OK;
}

int pt_sim_send(pt_sim *sim, int32_t handle, const uint8_t *data, uint32_t len)
{
    sim_socket *stream = stream_of(sim, handle);
    int code = check_writable(sim, stream);
    if (code != PT_OK)
        return code;
    uint64_t waiting = stream->queued_end - stream->unacknowledged;
    uint64_t room = waiting < OWN_BUFFER ? OWN_BUFFER - waiting : 0;
    if (len > room)
        len = (uint32_t)room;
    PT_ASSERT(len <= OWN_BUFFER);
    if (len == 0)
        return 0;
    pt_sim_piece *piece = sim_take(sim, sizeof *piece + len);
    if (piece == NULL)
        return 0;
    uint8_t *copy = (uint8_t *)(piece + 1);
    memcpy(copy, data, len);
    piece->data = copy;
    piece->len = len;
    piece->owned = 1;
    code = pt_sim_send_piece(sim, handle, piece);
    PT_ASSERT(code == PT_OK);
    return code == PT_OK ? (int)len : code;
}

int pt_sim_receive(pt_sim *sim, int32_t handle, uint8_t *buffer, uint32_t size, int *broken)
{
    sim_socket *stream = stream_of(sim, handle);
    *broken = 0;
    if (stream == NULL || size == 0 || size > INT32_MAX)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    uint32_t count = 0;
    while (stream->queue != NULL && count < size) {
        sim_packet *packet = stream->queue;
        PT_ASSERT(packet->offset < packet->len);
        uint32_t len = packet->len - packet->offset;
        if (len > size - count)
            len = size - count;
        memcpy(buffer + count, packet->data + packet->offset, len);
        packet->offset += len;
        count += len;
        if (packet->offset != packet->len)
            break;
        stream->queue = packet->next;
        if (stream->queue == NULL)
            stream->queue_end = &stream->queue;
        sim_drop_packet(sim, packet);
    }
    PT_ASSERT(count <= stream->queue_len);
    stream->queue_len -= count;
    PT_ASSERT((stream->queue == NULL) == (stream->queue_len == 0));
    if (count == 0) {
        *broken = sim_stream_is_over(stream);
        if (sim_stream_is_over(stream))
            return stream->outcome == PT_ERR_TIMEOUT ? PT_ERR_TIMEOUT : PT_ERR_CONNECTION_CLOSED;
        return stream->fin_told ? PT_ERR_CONNECTION_CLOSED : PT_ERR_WOULD_BLOCK;
    }
    if (!sim_stream_is_over(stream) && !stream->fin_told)
        sim_stream_tell_window(sim, stream);
    return (int)count;
}

int pt_sim_finish(pt_sim *sim, int32_t handle)
{
    sim_socket *stream = stream_of(sim, handle);
    int code = check_writable(sim, stream);
    if (code != PT_OK)
        return code == PT_ERR_NOT_CONNECTED && stream->fin_wanted ? PT_OK : code;
    stream->fin_wanted = 1;
    sim_trace(sim, PT_SIM_CLOSE, stream->host->number, stream->peer_host, (uint32_t)handle,
              stream->queued_end);
    sim_stream_pump(sim, stream);
    return PT_OK;
}

int pt_sim_reset(pt_sim *sim, int32_t handle)
{
    sim_socket *stream = sim_find(sim, handle);
    if (stream == NULL || stream->kind != SIM_STREAM)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (sim_stream_is_over(stream))
        return PT_OK;
    if (stream->peer != 0)
        sim_stream_control(sim, stream, SIM_RST, 0);
    sim_trace(sim, PT_SIM_RESET, stream->host->number, stream->peer_host, 0,
              stream->unacknowledged);
    sim_stream_terminate(sim, stream, PT_ERR_CONNECTION_CLOSED, 0);
    sim_stream_settle(sim, stream);
    return PT_OK;
}

/* A stream that the other side may still hear from. */
static int is_living(const sim_socket *socket)
{
    return socket->kind == SIM_STREAM && !sim_stream_is_over(socket) && !socket->resting;
}

/* The other end of a living stream, which may not know of it yet; NULL: it is over, or not made. */
static sim_socket *other_end(const pt_sim *sim, const sim_socket *stream)
{
    PT_ASSERT(stream->kind == SIM_STREAM && (uint32_t)stream->peer_host < sim->host_count);

    for (sim_socket *other = sim->hosts[stream->peer_host]->sockets; other != NULL;
         other = other->next) {
        if (is_living(other) && other->peer == stream->handle)
            return other;
        if (is_living(other) && other->handle == stream->peer && other->peer == 0)
            return other;
    }
    return NULL;
}

/* What stands for a connection: the end that was dialled, or the other when that is over. */
static int is_first_end(const pt_sim *sim, const sim_socket *stream)
{
    return stream->dialled || other_end(sim, stream) == NULL;
}

uint32_t pt_sim_next_connection(const pt_sim *sim, int host, int other, uint32_t number,
                                int32_t *ends)
{
    const sim_host *hosts[2] = {sim_host_of(sim, host), sim_host_of(sim, other)};
    const sim_socket *next = NULL;
    ends[0] = ends[1] = 0;
    if (hosts[0] == NULL || hosts[1] == NULL)
        return 0;
    for (int side = 0; side < 2; side++) {
        for (const sim_socket *socket = hosts[side]->sockets; socket != NULL;
             socket = socket->next) {
            if (socket->number > number && (next == NULL || socket->number < next->number) &&
                is_living(socket) && socket->peer_host == hosts[!side]->number &&
                is_first_end(sim, socket))
                next = socket;
        }
    }
    if (next == NULL)
        return 0;
    PT_ASSERT(next->number > number);
    const sim_socket *far = other_end(sim, next);
    int side = next->host != hosts[0];
    ends[side] = next->handle;
    ends[!side] = far == NULL ? 0 : far->handle;
    return next->number;
}

int pt_sim_strike(pt_sim *sim, int32_t handle)
{
    sim_socket *stream = sim_find(sim, handle);
    if (stream == NULL || stream->kind != SIM_STREAM)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (!is_living(stream) || stream->host->vanished)
        return PT_OK;
    sim_trace(sim, PT_SIM_RESET, stream->peer_host, stream->host->number, 0, stream->received);
    sim_stream_terminate(sim, stream,
                         stream->open ? PT_ERR_CONNECTION_CLOSED : PT_ERR_CONNECTION_REFUSED, 1);
    sim_stream_settle(sim, stream);
    return PT_OK;
}

/* Nobody will read or write it any more: send what is owed, and end. */
static void release_stream(pt_sim *sim, sim_socket *stream)
{
    PT_ASSERT(stream->kind == SIM_STREAM && !stream->released);

    stream->released = 1;
    if (!stream->open && !sim_stream_is_over(stream))
        sim_stream_terminate(sim, stream, PT_ERR_CONNECTION_CLOSED, 0);
    if (sim_stream_is_over(stream)) {
        sim_stream_settle(sim, stream);
        return;
    }
    stream->fin_wanted = 1;
    if (stream->linger_at_ns == SIM_NEVER)
        stream->linger_at_ns = sim->now_ns + LAST_WAIT_NS;
    sim_stream_pump(sim, stream);
    sim_stream_settle(sim, stream);
}

void pt_sim_release(pt_sim *sim, int32_t handle)
{
    sim_socket *socket = sim_find(sim, handle);
    if (socket == NULL || socket->released || sim->notifying)
        return;
    sim_trace(sim, PT_SIM_CLOSE, socket->host->number, -1, (uint32_t)handle, socket->port);
    if (socket->kind == SIM_STREAM) {
        release_stream(sim, socket);
        return;
    }
    while (socket->first_waiting != NULL)
        (void)pt_sim_reset(sim, socket->first_waiting->handle);
    sim_destroy_socket(sim, socket);
}

int pt_sim_set_give_up(pt_sim *sim, int32_t handle, uint64_t give_up_ns, int action)
{
    sim_socket *stream = stream_of(sim, handle);
    if (stream == NULL)
        return PT_ERR_INVALID_PARAM;
    if (stream->give_up_ns == give_up_ns && stream->give_up_action == (action != 0))
        return PT_OK;
    stream->give_up_ns = give_up_ns;
    stream->give_up_action = action != 0;
    sim_stream_set_timer(sim, stream);
    return PT_OK;
}

int pt_sim_set_linger(pt_sim *sim, int32_t handle, uint64_t linger_ns)
{
    sim_socket *stream = sim_find(sim, handle);
    if (stream == NULL || stream->kind != SIM_STREAM)
        return PT_ERR_INVALID_PARAM;
    stream->linger_at_ns = sim->now_ns + linger_ns;
    sim_stream_set_timer(sim, stream);
    return PT_OK;
}

uint64_t pt_sim_get_silence(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL || stream->silent_since_ns == SIM_NEVER
               ? 0
               : sim->now_ns - stream->silent_since_ns;
}

uint64_t pt_sim_get_unacknowledged(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL || stream->unacknowledged > stream->queued_end
               ? 0
               : stream->queued_end - stream->unacknowledged;
}

uint64_t pt_sim_get_unread(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL ? 0 : stream->queue_len;
}
