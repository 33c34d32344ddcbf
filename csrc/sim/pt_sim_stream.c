/* Streams of the simulated network: a small TCP. Positions count bytes from 0 and never wrap; the
 * end of a half takes one position of its own.
 *
 * What is sent stays in the sender's pieces until it is acknowledged; a packet is a copy. A packet
 * that does not come back in time is sent again, the time doubling; three acknowledgements of the
 * same position, or one that ends inside a loss being mended, do it at once. The receiver keeps
 * what came early. */
#include "pt_sim.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

#define FIRST_RTO_NS   UINT64_C(1000000000)
#define LEAST_RTO_NS   UINT64_C(250000000)
#define LONGEST_RTO_NS UINT64_C(4000000000)
#define GIVE_UP_NS     UINT64_C(30000000000)
#define LAST_WAIT_NS                                                                               \
    UINT64_C(60000000000) /* a stream that nobody holds waits so long for the other half's end */
#define NEVER UINT64_MAX
#define REST_NS                                                                                    \
    LONGEST_RTO_NS       /* one whose halves are both ended answers so long what is sent again */
#define OWN_BUFFER 65536 /* bytes that pt_sim_send() copies at most */

/* --------------------------------------------------------------------------------------- timers */

static int is_over(const sim_socket *stream)
{
    return stream->outcome != PT_OK && stream->outcome != PT_ERR_WOULD_BLOCK;
}

/* Something left that the other side has to acknowledge. */
static int is_outstanding(const sim_socket *stream)
{
    return stream->outcome == PT_ERR_WOULD_BLOCK ||
           stream->unacknowledged < stream->next_position + stream->fin_sent;
}

/* Bytes wait, and the other side's window is closed. */
static int is_stuck(const sim_socket *stream)
{
    return stream->open && !is_outstanding(stream) && stream->next_position < stream->queued_end;
}

static uint64_t rto(const sim_socket *stream)
{
    uint64_t time_ns = FIRST_RTO_NS;
    if (stream->rtt_ns != 0) {
        time_ns = stream->rtt_ns + 4 * stream->rtt_spread_ns;
        if (time_ns < LEAST_RTO_NS)
            time_ns = LEAST_RTO_NS;
    }
    time_ns <<= stream->backoff;
    return time_ns < LONGEST_RTO_NS ? time_ns : LONGEST_RTO_NS;
}

static uint64_t sooner(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

/* Plan the one timer for whatever comes first. */
static void set_timer(pt_sim *sim, sim_socket *stream)
{
    uint64_t time_ns = NEVER;
    if (!is_over(stream) && !stream->host->vanished) {
        if (stream->rto_at_ns != 0 && (is_outstanding(stream) || is_stuck(stream)))
            time_ns = stream->rto_at_ns;
        if (stream->silent_since_ns != NEVER && !stream->late_told)
            time_ns = sooner(time_ns, stream->silent_since_ns + stream->give_up_ns);
        time_ns = sooner(time_ns, stream->linger_at_ns);
    }
    if (stream->timer != NULL) {
        if (stream->timer->time_ns == time_ns)
            return;
        sim_unplan(sim, stream->timer);
        stream->timer = NULL;
    }
    if (time_ns == NEVER)
        return;
    stream->timer = sim_plan(sim, SIM_TIMER, time_ns);
    if (stream->timer != NULL)
        stream->timer->handle = stream->handle;
}

/* From now on we wait for a sign of life. */
static void await_answer(pt_sim *sim, sim_socket *stream)
{
    if (stream->silent_since_ns == NEVER)
        stream->silent_since_ns = sim->now_ns;
    if (stream->rto_at_ns == 0)
        stream->rto_at_ns = sim->now_ns + rto(stream);
}

/* ---------------------------------------------------------------------------------- packets out */

static uint64_t received_so_far(const sim_socket *stream)
{
    return stream->received + (stream->fin_seen && stream->received == stream->fin_at);
}

/* The edge never goes back. */
static uint64_t window_edge(const sim_socket *stream)
{
    uint64_t room = stream->window > stream->queue_len ? stream->window - stream->queue_len : 0;
    uint64_t edge = stream->received + room;
    return edge > stream->told_edge ? edge : stream->told_edge;
}

static void address_packet(sim_socket *stream, sim_packet *packet)
{
    packet->source = stream->handle;
    packet->source_host = stream->host->number;
    packet->source_port = stream->port;
    packet->target = stream->peer;
    packet->target_host = stream->peer_host;
    packet->port = stream->peer_port;
    packet->ack = received_so_far(stream);
    stream->told_edge = window_edge(stream);
    packet->edge = stream->told_edge;
}

static void send_control(pt_sim *sim, sim_socket *stream, int kind, uint64_t stamp_ns)
{
    sim_packet *packet = sim_make_packet(sim, kind, 0);
    if (packet == NULL)
        return;
    address_packet(stream, packet);
    packet->position = kind == SIM_FIN ? stream->queued_end : stream->next_position;
    packet->stamp_ns = stamp_ns;
    sim_transmit(sim, packet);
}

/* Nobody is there: say so to whoever asked. */
static void refuse(pt_sim *sim, const sim_packet *asked)
{
    sim_packet *packet = sim_make_packet(sim, SIM_RST, 0);
    if (packet == NULL)
        return;
    packet->source_host = asked->target_host;
    packet->target_host = asked->source_host;
    packet->target = asked->source;
    sim_trace(sim, PT_SIM_REFUSE, asked->target_host, asked->source_host, 0, asked->port);
    sim_transmit(sim, packet);
}

static pt_sim_piece *piece_at(const sim_socket *stream, uint64_t position)
{
    pt_sim_piece *piece = stream->pieces;
    while (piece != NULL && piece->end <= position)
        piece = piece->next;
    return piece;
}

/* How many bytes from position on go into one packet: the rest of a piece, and small ones behind it
 * that need not be pushed. */
static uint32_t packet_len(const pt_sim_piece *piece, uint64_t position, uint64_t limit)
{
    uint64_t len = piece->end - position;
    while (!piece->push && piece->next != NULL && len + piece->next->len <= PT_SIM_MSS) {
        piece = piece->next;
        len += piece->len;
    }
    len = sooner(len, limit - position);
    return (uint32_t)(len < PT_SIM_SEGMENT_MAX ? len : PT_SIM_SEGMENT_MAX);
}

static void fill_packet(sim_packet *packet, const pt_sim_piece *piece)
{
    uint64_t position = packet->position;
    for (uint32_t done = 0; done < packet->len; piece = piece->next) {
        uint32_t start = (uint32_t)(position - (piece->end - piece->len));
        uint32_t len = piece->len - start;
        if (len > packet->len - done)
            len = packet->len - done;
        memcpy(packet->data + done, piece->data + start, len);
        done += len;
        position += len;
    }
}

/* Give bytes from position on to the processor. 0: no memory; tried again soon. */
static int process(pt_sim *sim, sim_socket *stream, uint64_t position, uint32_t len, int again)
{
    sim_packet *packet = sim_make_packet(sim, SIM_DATA, len);
    if (packet == NULL) {
        stream->rto_at_ns = sim->now_ns + LEAST_RTO_NS;
        return 0;
    }
    packet->position = position;
    packet->again = again != 0;
    fill_packet(packet, piece_at(stream, position));
    address_packet(stream, packet);
    stream->sending = 1;
    if (again)
        sim_trace(sim, PT_SIM_RETRANSMIT, packet->source_host, packet->target_host, len, position);
    sim_process_packet(sim, packet);
    return 1;
}

/* Send again from the oldest byte that is not acknowledged. 0 when nothing else may be sent now. */
static int resend(pt_sim *sim, sim_socket *stream)
{
    stream->resend = 0;
    if (stream->unacknowledged < stream->next_position) {
        uint32_t len = packet_len(piece_at(stream, stream->unacknowledged), stream->unacknowledged,
                                  stream->next_position);
        (void)process(sim, stream, stream->unacknowledged, len, 1);
        return 0;
    }
    if (stream->fin_sent && stream->unacknowledged == stream->queued_end)
        send_control(sim, stream, SIM_FIN, 0);
    return 1;
}

/* Send what may be sent: one packet at a time is with the processor. */
static void pump(pt_sim *sim, sim_socket *stream)
{
    while (stream->open && !is_over(stream) && !stream->sending) {
        if (stream->resend && !resend(sim, stream))
            break;
        if (stream->next_position == stream->queued_end) {
            if (stream->fin_wanted && !stream->fin_sent) {
                stream->fin_sent = 1;
                send_control(sim, stream, SIM_FIN, 0);
                await_answer(sim, stream);
            }
            break;
        }
        uint32_t len = packet_len(piece_at(stream, stream->next_position), stream->next_position,
                                  stream->queued_end);
        uint64_t room = stream->send_edge > stream->next_position
                            ? stream->send_edge - stream->next_position
                            : 0;
        if (room < len) {
            /* A little room is not worth a packet while more will come. */
            if (room == 0 || (room < stream->window / 2 && is_outstanding(stream))) {
                if (!is_outstanding(stream))
                    await_answer(sim, stream);
                break;
            }
            len = (uint32_t)room;
        }
        if (!process(sim, stream, stream->next_position, len, 0))
            break;
        stream->next_position += len;
    }
    set_timer(sim, stream);
}

void sim_stream_left(pt_sim *sim, sim_packet *packet)
{
    sim_socket *stream = sim_find(sim, packet->source);
    if (stream == NULL)
        return;
    stream->sending = 0;
    if (!packet->again)
        packet->stamp_ns = sim->now_ns;
    if (is_over(stream))
        return;
    await_answer(sim, stream);
    pump(sim, stream);
}

/* -------------------------------------------------------------------------------------- the end */

/* Give a piece back. */
static void settle_piece(pt_sim *sim, pt_sim_piece *piece, int result)
{
    if (piece->owned)
        sim_give(sim, piece, sizeof *piece + piece->len);
    else
        piece->result = result;
}

void sim_stream_terminate(pt_sim *sim, sim_socket *stream, int outcome, int tell)
{
    if (is_over(stream))
        return;
    stream->outcome = outcome;
    stream->linger_at_ns = NEVER;
    stream->silent_since_ns = NEVER;
    set_timer(sim, stream);
    while (stream->done != NULL) {
        pt_sim_piece *piece = stream->done;
        stream->done = piece->next;
        settle_piece(sim, piece, PT_OK);
    }
    while (stream->pieces != NULL) {
        pt_sim_piece *piece = stream->pieces;
        stream->pieces = piece->next;
        settle_piece(sim, piece,
                     outcome == PT_ERR_CONNECTION_REFUSED ? PT_ERR_CONNECTION_CLOSED : outcome);
    }
    stream->pieces_end = &stream->pieces;
    if (stream->waiting) {
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
    return stream->fin_sent && stream->unacknowledged > stream->queued_end && stream->fin_seen &&
           stream->received == stream->fin_at;
}

/* Nobody holds it, and nothing is left to do: destroy it, or let it rest before that. */
static void settle(pt_sim *sim, sim_socket *stream)
{
    if (!stream->released)
        return;
    if (is_over(stream)) {
        sim_destroy_socket(sim, stream);
    } else if (are_both_ended(stream) && !stream->resting) {
        stream->resting = 1;
        stream->linger_at_ns = sim->now_ns + REST_NS;
        set_timer(sim, stream);
    }
}

static void give_up(pt_sim *sim, sim_socket *stream)
{
    uint64_t left = stream->next_position - stream->unacknowledged;
    sim_trace(sim, PT_SIM_GIVE_UP, stream->host->number, stream->peer_host, (uint32_t)left,
              stream->unacknowledged);
    if (stream->peer != 0)
        send_control(sim, stream, SIM_RST, 0);
    sim_stream_terminate(sim, stream, PT_ERR_TIMEOUT, 1);
}

/* Nothing came back in time. */
static void retry(pt_sim *sim, sim_socket *stream)
{
    if (stream->backoff < 5)
        stream->backoff++;
    stream->rto_at_ns = sim->now_ns + rto(stream);
    if (!stream->open) {
        send_control(sim, stream, SIM_SYN, 0);
    } else if (is_outstanding(stream)) {
        stream->resend = 1;
        stream->recover = stream->next_position;
        stream->duplicate_acks = 0;
    } else {
        send_control(sim, stream, SIM_PROBE, 0);
        await_answer(sim, stream);
    }
}

void sim_stream_timer(pt_sim *sim, sim_socket *stream)
{
    stream->timer = NULL; /* this one has happened */
    if (stream->host->vanished)
        return;
    if (sim->now_ns >= stream->linger_at_ns) {
        if (stream->resting)
            sim_stream_terminate(sim, stream, PT_ERR_NOT_CONNECTED, 0);
        else
            give_up(sim, stream);
        settle(sim, stream);
        return;
    }
    if (stream->silent_since_ns != NEVER && !stream->late_told &&
        sim->now_ns - stream->silent_since_ns >= stream->give_up_ns) {
        if (stream->give_up_action != 0) {
            give_up(sim, stream);
            settle(sim, stream);
            return;
        }
        stream->late_told = 1;
        sim_tell(sim, stream, PT_SIM_NEWS_LATE);
    }
    if (stream->rto_at_ns != 0 && sim->now_ns >= stream->rto_at_ns &&
        (is_outstanding(stream) || is_stuck(stream)))
        retry(sim, stream);
    pump(sim, stream);
}

/* ----------------------------------------------------------------------------------- packets in */

/* Smoothed as RFC 6298 has it. */
static void measure(sim_socket *stream, uint64_t rtt_ns)
{
    if (stream->rtt_ns == 0) {
        stream->rtt_ns = rtt_ns ? rtt_ns : 1;
        stream->rtt_spread_ns = rtt_ns / 2;
        return;
    }
    uint64_t error = rtt_ns > stream->rtt_ns ? rtt_ns - stream->rtt_ns : stream->rtt_ns - rtt_ns;
    stream->rtt_spread_ns = (3 * stream->rtt_spread_ns + error) / 4;
    stream->rtt_ns = (7 * stream->rtt_ns + rtt_ns) / 8;
    if (stream->rtt_ns == 0)
        stream->rtt_ns = 1;
}

/* Pieces whose last byte is acknowledged are done; a slow driver says so later, each by chance. 1
 * when some are. */
static int complete_pieces(pt_sim *sim, sim_socket *stream)
{
    int completed = 0;
    while (stream->pieces != NULL && stream->pieces->end <= stream->unacknowledged) {
        pt_sim_piece *piece = stream->pieces;
        stream->pieces = piece->next;
        if (stream->pieces == NULL)
            stream->pieces_end = &stream->pieces;
        sim_event *event = NULL;
        if (stream->host->completion_jitter_ns != 0 && !piece->owned)
            event = sim_plan(sim, SIM_DONE,
                             sim->now_ns +
                                 sim_choose(&sim->random, stream->host->completion_jitter_ns + 1));
        if (event != NULL) {
            event->handle = stream->handle;
            event->position = piece->end;
            piece->next = stream->done;
            stream->done = piece;
        } else {
            settle_piece(sim, piece, PT_OK);
            completed = 1;
        }
    }
    return completed;
}

void sim_stream_done(pt_sim *sim, sim_socket *stream, uint64_t position)
{
    for (pt_sim_piece **link = &stream->done; *link != NULL; link = &(*link)->next) {
        pt_sim_piece *piece = *link;
        if (piece->end != position)
            continue;
        *link = piece->next;
        settle_piece(sim, piece, PT_OK);
        sim_tell(sim, stream, PT_SIM_NEWS_SENT);
        settle(sim, stream);
        return;
    }
}

static void acknowledge(pt_sim *sim, sim_socket *stream, const sim_packet *packet)
{
    int wider = packet->edge > stream->send_edge;
    if (wider)
        stream->send_edge = packet->edge;
    stream->late_told = 0;
    if (packet->ack > stream->unacknowledged) {
        uint64_t count = packet->ack - stream->unacknowledged;
        stream->unacknowledged = packet->ack;
        stream->duplicate_acks = 0;
        stream->backoff = 0;
        if (packet->stamp_ns != 0)
            measure(stream, sim->now_ns - packet->stamp_ns);
        stream->rto_at_ns = is_outstanding(stream) ? sim->now_ns + rto(stream) : 0;
        sim_trace(sim, PT_SIM_ACK, packet->source_host, packet->target_host, (uint32_t)count,
                  packet->ack);
        if (stream->unacknowledged < stream->recover)
            stream->resend = 1;
        if (complete_pieces(sim, stream))
            sim_tell(sim, stream, PT_SIM_NEWS_SENT);
    } else if (packet->kind == SIM_ACK && !wider && is_outstanding(stream) &&
               ++stream->duplicate_acks == 3) {
        stream->resend = 1;
        stream->recover = stream->next_position;
    }
    if (wider && !is_outstanding(stream)) {
        stream->backoff = 0;
        stream->rto_at_ns = 0;
    }
    stream->silent_since_ns = is_outstanding(stream) ? sim->now_ns : NEVER;
}

/* Keep a packet that lies behind a gap, in order of position; one that is there already is dropped.
 */
static void keep_early(pt_sim *sim, sim_socket *stream, sim_packet *packet)
{
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
    send_control(sim, stream, SIM_ACK, stamp_ns);
}

static void check_end(pt_sim *sim, sim_socket *stream)
{
    if (stream->fin_seen && stream->received == stream->fin_at && !stream->fin_told) {
        stream->fin_told = 1;
        sim_tell(sim, stream, PT_SIM_NEWS_CLOSING);
    }
}

static sim_socket *make_stream(pt_sim *sim, sim_host *host, uint16_t port, int *code)
{
    sim_socket *stream = sim_make_socket(sim, host, SIM_STREAM, port, code);
    if (stream == NULL)
        return NULL;
    stream->pieces_end = &stream->pieces;
    stream->outcome = PT_ERR_WOULD_BLOCK;
    stream->window = host->window;
    stream->give_up_ns = GIVE_UP_NS;
    stream->give_up_action = 1;
    stream->silent_since_ns = NEVER;
    stream->linger_at_ns = NEVER;
    return stream;
}

static void become_open(sim_socket *stream, const sim_packet *packet)
{
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
    sim_host *host = sim->hosts[packet->target_host];
    for (sim_socket *other = host->sockets; other != NULL; other = other->next) {
        if (other->kind == SIM_STREAM && other->peer == packet->source &&
            other->peer_host == packet->source_host) {
            send_control(sim, other, SIM_SYN_ACK, 0); /* it had been lost */
            return;
        }
    }
    sim_socket *listener = sim_find_port(host, SIM_LISTENER, packet->port);
    if (listener == NULL) {
        refuse(sim, packet);
        return;
    }
    if (listener->waiting_count == PT_SIM_BACKLOG)
        return; /* the caller tries again */
    int code;
    sim_socket *stream = make_stream(sim, host, packet->port, &code);
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
    send_control(sim, stream, SIM_SYN_ACK, 0);
    sim_tell(sim, listener, PT_SIM_NEWS_INCOMING);
}

static void take_answer(pt_sim *sim, sim_socket *stream, const sim_packet *packet)
{
    if (stream->open)
        return;
    become_open(stream, packet);
    stream->silent_since_ns = NEVER;
    stream->rto_at_ns = 0;
    stream->backoff = 0;
    sim_trace(sim, PT_SIM_OPEN, stream->host->number, stream->peer_host, (uint32_t)stream->handle,
              stream->peer_port);
    sim_tell(sim, stream, PT_SIM_NEWS_OPENED);
}

void sim_stream_arrived(pt_sim *sim, sim_packet *packet)
{
    sim_socket *stream = packet->kind == SIM_SYN ? NULL : sim_find(sim, packet->target);
    if (packet->kind == SIM_SYN) {
        take_call(sim, packet);
    } else if (stream == NULL || stream->kind != SIM_STREAM || is_over(stream) ||
               (packet->kind != SIM_RST && stream->open && packet->source != stream->peer)) {
        if (packet->kind != SIM_RST)
            refuse(sim, packet);
    } else if (packet->kind == SIM_RST ? are_both_ended(stream)
                                       : !stream->open && packet->kind != SIM_SYN_ACK) {
        /* a reset that answers something old, or a packet that overtook the answer to our call:
         * that one will be sent again */
    } else if (packet->kind == SIM_RST) {
        sim_trace(sim, PT_SIM_RESET, packet->source_host, packet->target_host, 0, stream->received);
        sim_stream_terminate(
            sim, stream, stream->open ? PT_ERR_CONNECTION_CLOSED : PT_ERR_CONNECTION_REFUSED, 1);
        settle(sim, stream);
    } else if (packet->kind == SIM_SYN_ACK) {
        take_answer(sim, stream, packet);
        pump(sim, stream);
    } else if (packet->kind == SIM_DATA && stream->released && stream->fin_told == 0 &&
               packet->position + packet->len > stream->received) {
        refuse(sim, packet); /* nobody will read it */
        sim_stream_terminate(sim, stream, PT_ERR_CONNECTION_CLOSED, 1);
        settle(sim, stream);
    } else {
        acknowledge(sim, stream, packet);
        if (packet->kind == SIM_DATA) {
            sim_packet *data = packet;
            packet = NULL;
            take_data(sim, stream, data);
        } else if (packet->kind == SIM_FIN) {
            stream->fin_seen = 1;
            stream->fin_at = packet->position;
            send_control(sim, stream, SIM_ACK, 0);
        } else if (packet->kind == SIM_PROBE) {
            send_control(sim, stream, SIM_ACK, 0);
        }
        int untold = !stream->fin_told;
        check_end(sim, stream);
        if (untold && stream->fin_told && packet == NULL)
            send_control(sim, stream, SIM_ACK, 0); /* the end was waiting for these bytes */
        pump(sim, stream);
        settle(sim, stream);
    }
    if (packet != NULL)
        sim_drop_packet(sim, packet);
}

/* ---------------------------------------------------------------------------------- for callers */

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
    sim_socket *stream = make_stream(sim, here, own_port, &code);
    if (stream == NULL)
        return code;
    stream->dialled = 1;
    stream->peer_host = target;
    stream->peer_port = port;
    send_control(sim, stream, SIM_SYN, 0);
    await_answer(sim, stream);
    set_timer(sim, stream);
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

int sim_stream_ready(const sim_socket *stream)
{
    if (stream->outcome == PT_ERR_WOULD_BLOCK)
        return 0;
    int ready = stream->queue_len != 0 || stream->fin_told ? PT_READY_READ : 0;
    if (is_over(stream))
        return PT_READY_READ | PT_READY_WRITE | PT_READY_HANGUP;
    return ready | (stream->queued_end - stream->unacknowledged < OWN_BUFFER ? PT_READY_WRITE : 0);
}

static int check_writable(const pt_sim *sim, const sim_socket *stream)
{
    if (stream == NULL)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (is_over(stream))
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
    piece->next = NULL;
    piece->result = 1;
    stream->queued_end += piece->len;
    piece->end = stream->queued_end;
    *stream->pieces_end = piece;
    stream->pieces_end = &piece->next;
    pump(sim, stream);
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
    stream->queue_len -= count;
    if (count == 0) {
        *broken = is_over(stream);
        if (is_over(stream))
            return stream->outcome == PT_ERR_TIMEOUT ? PT_ERR_TIMEOUT : PT_ERR_CONNECTION_CLOSED;
        return stream->fin_told ? PT_ERR_CONNECTION_CLOSED : PT_ERR_WOULD_BLOCK;
    }
    if (!is_over(stream) && !stream->fin_told &&
        window_edge(stream) - stream->told_edge >= stream->window / 2) {
        sim_trace(sim, PT_SIM_WINDOW, stream->host->number, stream->peer_host,
                  stream->window - stream->queue_len, stream->received);
        send_control(sim, stream, SIM_ACK, 0);
    }
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
    pump(sim, stream);
    return PT_OK;
}

int pt_sim_reset(pt_sim *sim, int32_t handle)
{
    sim_socket *stream = sim_find(sim, handle);
    if (stream == NULL || stream->kind != SIM_STREAM)
        return PT_ERR_INVALID_PARAM;
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (is_over(stream))
        return PT_OK;
    if (stream->peer != 0)
        send_control(sim, stream, SIM_RST, 0);
    sim_trace(sim, PT_SIM_RESET, stream->host->number, stream->peer_host, 0,
              stream->unacknowledged);
    sim_stream_terminate(sim, stream, PT_ERR_CONNECTION_CLOSED, 0);
    settle(sim, stream);
    return PT_OK;
}

/* A stream that the other side may still hear from. */
static int is_living(const sim_socket *socket)
{
    return socket->kind == SIM_STREAM && !is_over(socket) && !socket->resting;
}

/* The other end of a living stream, which may not know of it yet; NULL: it is over, or not made. */
static sim_socket *other_end(const pt_sim *sim, const sim_socket *stream)
{
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
    settle(sim, stream);
    return PT_OK;
}

/* Nobody will read or write it any more: send what is owed, and end. */
static void release_stream(pt_sim *sim, sim_socket *stream)
{
    stream->released = 1;
    if (!stream->open && !is_over(stream))
        sim_stream_terminate(sim, stream, PT_ERR_CONNECTION_CLOSED, 0);
    if (is_over(stream)) {
        settle(sim, stream);
        return;
    }
    stream->fin_wanted = 1;
    if (stream->linger_at_ns == NEVER)
        stream->linger_at_ns = sim->now_ns + LAST_WAIT_NS;
    pump(sim, stream);
    settle(sim, stream);
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
    set_timer(sim, stream);
    return PT_OK;
}

int pt_sim_set_linger(pt_sim *sim, int32_t handle, uint64_t linger_ns)
{
    sim_socket *stream = sim_find(sim, handle);
    if (stream == NULL || stream->kind != SIM_STREAM)
        return PT_ERR_INVALID_PARAM;
    stream->linger_at_ns = sim->now_ns + linger_ns;
    set_timer(sim, stream);
    return PT_OK;
}

uint64_t pt_sim_get_silence(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL || stream->silent_since_ns == NEVER
               ? 0
               : sim->now_ns - stream->silent_since_ns;
}

uint64_t pt_sim_get_unacknowledged(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL ? 0
                          : stream->queued_end - sooner(stream->unacknowledged, stream->queued_end);
}

uint64_t pt_sim_get_unread(const pt_sim *sim, int32_t handle)
{
    const sim_socket *stream = stream_of(sim, handle);
    return stream == NULL ? 0 : stream->queue_len;
}
