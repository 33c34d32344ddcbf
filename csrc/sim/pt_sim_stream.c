/* Streams of the simulated network: a small TCP. Positions count bytes from 0 and never wrap; the
 * end of a half takes one position of its own.
 *
 * Here is the life of a stream: it is called or answers, takes in what comes, keeping what came
 * early, and ends. pt_sim_output.c has what it sends, pt_sim_calls.c what its owner may ask. */
#include "pt_assert.h"
#include "pt_sim_inside.h"

#define GIVE_UP_NS UINT64_C(30000000000)

/* -------------------------------------------------------------------------------------- the end */

void sim_stream_terminate(pt_sim *sim, sim_socket *stream, int outcome, int tell)
{
    PT_ASSERT(stream->kind == SIM_STREAM);
    PT_ASSERT(outcome != PT_OK && outcome != PT_ERR_WOULD_BLOCK);

    if (sim_stream_is_over(stream))
        return;
    stream->outcome = outcome;
    stream->linger_at_ns = SIM_NEVER;
    stream->silent_since_ns = SIM_NEVER;
    sim_stream_set_timer(sim, stream);
    PT_ASSERT(stream->timer == NULL);
    while (stream->done != NULL) {
        pt_sim_piece *piece = stream->done;
        stream->done = piece->next;
        sim_stream_settle_piece(sim, piece, PT_OK);
    }
    while (stream->pieces != NULL) {
        pt_sim_piece *piece = stream->pieces;
        stream->pieces = piece->next;
        sim_stream_settle_piece(
            sim, piece, outcome == PT_ERR_CONNECTION_REFUSED ? PT_ERR_CONNECTION_CLOSED : outcome);
    }
    stream->pieces_end = &stream->pieces;
    if (stream->waiting) {
        PT_ASSERT(stream->parent->waiting_count != 0);
        sim_socket **link = &stream->parent->first_waiting;
        while (*link != stream)
            link = &(*link)->next_waiting;
        *link = stream->next_waiting;
        stream->parent->waiting_count--;
        stream->waiting = 0;
        stream->released = 1;
    }
    if (tell)
        sim_tell(sim, stream, PT_SIM_NEWS_TERMINATED);
}

static int are_both_ended(const sim_socket *stream)
{
    PT_ASSERT(!stream->fin_sent || stream->fin_wanted);

    return stream->fin_sent && stream->unacknowledged > stream->queued_end && stream->fin_seen &&
           stream->received == stream->fin_at;
}

void sim_stream_settle(pt_sim *sim, sim_socket *stream)
{
    PT_ASSERT(stream->kind == SIM_STREAM);

    if (!stream->released)
        return;
    if (sim_stream_is_over(stream)) {
        sim_destroy_socket(sim, stream);
    } else if (are_both_ended(stream) && !stream->resting) {
        stream->resting = 1;
        /* So long the other side may send again what we have not seen acknowledged. */
        stream->linger_at_ns = sim->now_ns + SIM_LONGEST_RTO_NS;
        sim_stream_set_timer(sim, stream);
    }
}

static void give_up(pt_sim *sim, sim_socket *stream)
{
    PT_ASSERT(!sim_stream_is_over(stream));
    PT_ASSERT(!stream->resting);

    uint64_t left = stream->next_position - stream->unacknowledged;
    sim_trace(sim, PT_SIM_GIVE_UP, stream->host->number, stream->peer_host, (uint32_t)left,
              stream->unacknowledged);
    if (stream->peer != 0)
        sim_stream_control(sim, stream, SIM_RST, 0);
    sim_stream_terminate(sim, stream, PT_ERR_TIMEOUT, 1);
}

void sim_stream_timer(pt_sim *sim, sim_socket *stream)
{
    PT_ASSERT(stream->timer != NULL && stream->timer->handle == stream->handle);
    PT_ASSERT(!sim_stream_is_over(stream));
    stream->timer = NULL; /* this one has happened */
    if (stream->host->vanished)
        return;
    if (sim->now_ns >= stream->linger_at_ns) {
        if (stream->resting)
            sim_stream_terminate(sim, stream, PT_ERR_NOT_CONNECTED, 0);
        else
            give_up(sim, stream);
        sim_stream_settle(sim, stream);
        return;
    }
    if (stream->silent_since_ns != SIM_NEVER && !stream->late_told &&
        sim->now_ns - stream->silent_since_ns >= stream->give_up_ns) {
        if (stream->give_up_action != 0) {
            give_up(sim, stream);
            sim_stream_settle(sim, stream);
            return;
        }
        stream->late_told = 1;
        sim_tell(sim, stream, PT_SIM_NEWS_LATE);
    }
    sim_stream_retry(sim, stream);
    sim_stream_pump(sim, stream);
}

void sim_stream_done(pt_sim *sim, sim_socket *stream, uint64_t position)
{
    PT_ASSERT(position <= stream->unacknowledged);

    for (pt_sim_piece **link = &stream->done; *link != NULL; link = &(*link)->next) {
        pt_sim_piece *piece = *link;
        if (piece->end != position)
            continue;
        *link = piece->next;
        sim_stream_settle_piece(sim, piece, PT_OK);
        sim_tell(sim, stream, PT_SIM_NEWS_SENT);
        sim_stream_settle(sim, stream);
        return;
    }
}

/* ----------------------------------------------------------------------------------- packets in */

/* Keep a packet that lies behind a gap, in order of position; one that is there already is dropped.
 */
static void keep_early(pt_sim *sim, sim_socket *stream, sim_packet *packet)
{
    PT_ASSERT(packet->position > stream->received);
    PT_ASSERT(packet->position + packet->len <= stream->told_edge);

    sim_packet **link = &stream->early;
    while (*link != NULL && (*link)->position < packet->position)
        link = &(*link)->next;
    if (*link != NULL && (*link)->position == packet->position && (*link)->len >= packet->len) {
        sim_drop_packet(sim, packet);
        return;
    }
    packet->next = *link;
    *link = packet;
}

/* Put a packet, whose bytes come next, behind what waits to be read. */
static void append(pt_sim *sim, sim_socket *stream, sim_packet *packet)
{
    PT_ASSERT(packet->position <= stream->received);

    uint64_t end = packet->position + packet->len;
    if (end <= stream->received) {
        sim_drop_packet(sim, packet);
        return;
    }
    packet->offset = (uint32_t)(stream->received - packet->position);
    packet->next = NULL;
    *stream->queue_end = packet;
    stream->queue_end = &packet->next;
    stream->queue_len += packet->len - packet->offset;
    stream->received = end;
}

/* Takes the packet over. */
static void take_data(pt_sim *sim, sim_socket *stream, sim_packet *packet)
{
    PT_ASSERT(packet->kind == SIM_DATA && packet->len != 0);
    PT_ASSERT(stream->open && !sim_stream_is_over(stream));

    uint64_t stamp_ns = packet->stamp_ns;
    sim_trace(sim, PT_SIM_DELIVER, packet->source_host, packet->target_host, packet->len,
              packet->position);
    if (packet->position + packet->len > stream->told_edge) {
        sim_trace(sim, PT_SIM_OVERFLOW, packet->source_host, packet->target_host, packet->len,
                  packet->position);
        sim_drop_packet(sim, packet);
    } else if (packet->position > stream->received) {
        stamp_ns = 0;
        keep_early(sim, stream, packet);
    } else {
        uint64_t before = stream->received;
        append(sim, stream, packet);
        while (stream->early != NULL && stream->early->position <= stream->received) {
            sim_packet *next = stream->early;
            stream->early = next->next;
            append(sim, stream, next);
        }
        if (stream->received != before)
            sim_tell(sim, stream, PT_SIM_NEWS_DATA);
    }
    sim_stream_control(sim, stream, SIM_ACK, stamp_ns);
}

static void check_end(pt_sim *sim, sim_socket *stream)
{
    if (stream->fin_seen && stream->received == stream->fin_at && !stream->fin_told) {
        stream->fin_told = 1;
        sim_tell(sim, stream, PT_SIM_NEWS_CLOSING);
    }
}

sim_socket *sim_stream_make(pt_sim *sim, sim_host *host, uint16_t port, int *code)
{
    sim_socket *stream = sim_make_socket(sim, host, SIM_STREAM, port, code);
    if (stream == NULL)
        return NULL;
    stream->pieces_end = &stream->pieces;
    stream->outcome = PT_ERR_WOULD_BLOCK;
    stream->window = host->window;
    stream->give_up_ns = GIVE_UP_NS;
    stream->give_up_action = 1;
    stream->silent_since_ns = SIM_NEVER;
    stream->linger_at_ns = SIM_NEVER;
    return stream;
}

static void become_open(sim_socket *stream, const sim_packet *packet)
{
    PT_ASSERT(packet->kind == SIM_SYN || packet->kind == SIM_SYN_ACK);
    PT_ASSERT(!stream->open && packet->source > 0);

    stream->open = 1;
    stream->outcome = PT_OK;
    stream->peer = packet->source;
    stream->peer_host = packet->source_host;
    stream->peer_port = packet->source_port;
    stream->send_edge = packet->edge;
}

/* Someone dials. */
static void take_call(pt_sim *sim, const sim_packet *packet)
{
    PT_ASSERT(packet->kind == SIM_SYN && packet->source > 0);

    sim_host *host = sim->hosts[packet->target_host];
    for (sim_socket *other = host->sockets; other != NULL; other = other->next) {
        if (other->kind == SIM_STREAM && other->peer == packet->source &&
            other->peer_host == packet->source_host) {
            sim_stream_control(sim, other, SIM_SYN_ACK, 0); /* it had been lost */
            return;
        }
    }
    sim_socket *listener = sim_find_port(host, SIM_LISTENER, packet->port);
    if (listener == NULL) {
        sim_stream_refuse(sim, packet);
        return;
    }
    PT_ASSERT(listener->waiting_count <= PT_SIM_BACKLOG);
    if (listener->waiting_count == PT_SIM_BACKLOG)
        return; /* the caller tries again */
    int code;
    sim_socket *stream = sim_stream_make(sim, host, packet->port, &code);
    if (stream == NULL)
        return;
    become_open(stream, packet);
    stream->waiting = 1;
    stream->parent = listener;
    sim_socket **link = &listener->first_waiting;
    while (*link != NULL)
        link = &(*link)->next_waiting;
    *link = stream;
    listener->waiting_count++;
    sim_stream_control(sim, stream, SIM_SYN_ACK, 0);
    sim_tell(sim, listener, PT_SIM_NEWS_INCOMING);
}

static void take_answer(pt_sim *sim, sim_socket *stream, const sim_packet *packet)
{
    PT_ASSERT(stream->dialled && packet->kind == SIM_SYN_ACK);

    if (stream->open)
        return;
    become_open(stream, packet);
    stream->silent_since_ns = SIM_NEVER;
    stream->rto_at_ns = 0;
    stream->backoff = 0;
    sim_trace(sim, PT_SIM_OPEN, stream->host->number, stream->peer_host, (uint32_t)stream->handle,
              stream->peer_port);
    sim_tell(sim, stream, PT_SIM_NEWS_OPENED);
}

void sim_stream_arrived(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT(packet->kind >= SIM_DATA && packet->kind < SIM_DATAGRAM);

    sim_socket *stream = packet->kind == SIM_SYN ? NULL : sim_find(sim, packet->target);
    if (packet->kind == SIM_SYN) {
        take_call(sim, packet);
    } else if (stream == NULL || stream->kind != SIM_STREAM || sim_stream_is_over(stream) ||
               (packet->kind != SIM_RST && stream->open && packet->source != stream->peer)) {
        if (packet->kind != SIM_RST)
            sim_stream_refuse(sim, packet);
    } else if (packet->kind == SIM_RST ? are_both_ended(stream)
                                       : !stream->open && packet->kind != SIM_SYN_ACK) {
        /* a reset that answers something old, or a packet that overtook the answer to our call:
         * that one will be sent again */
    } else if (packet->kind == SIM_RST) {
        sim_trace(sim, PT_SIM_RESET, packet->source_host, packet->target_host, 0, stream->received);
        sim_stream_terminate(
            sim, stream, stream->open ? PT_ERR_CONNECTION_CLOSED : PT_ERR_CONNECTION_REFUSED, 1);
        sim_stream_settle(sim, stream);
    } else if (packet->kind == SIM_SYN_ACK) {
        take_answer(sim, stream, packet);
        sim_stream_pump(sim, stream);
    } else if (packet->kind == SIM_DATA && stream->released && stream->fin_told == 0 &&
               packet->position + packet->len > stream->received) {
        sim_stream_refuse(sim, packet); /* nobody will read it */
        sim_stream_terminate(sim, stream, PT_ERR_CONNECTION_CLOSED, 1);
        sim_stream_settle(sim, stream);
    } else {
        sim_stream_acknowledge(sim, stream, packet);
        if (packet->kind == SIM_DATA) {
            sim_packet *data = packet;
            packet = NULL;
            take_data(sim, stream, data);
        } else if (packet->kind == SIM_FIN) {
            stream->fin_seen = 1;
            stream->fin_at = packet->position;
            sim_stream_control(sim, stream, SIM_ACK, 0);
        } else if (packet->kind == SIM_PROBE) {
            sim_stream_control(sim, stream, SIM_ACK, 0);
        }
        int untold = !stream->fin_told;
        check_end(sim, stream);
        if (untold && stream->fin_told && packet == NULL)
            sim_stream_control(sim, stream, SIM_ACK, 0); /* the end was waiting for these bytes */
        sim_stream_pump(sim, stream);
        sim_stream_settle(sim, stream);
    }
    if (packet != NULL)
        sim_drop_packet(sim, packet);
}
