/* What a stream sends: the one timer, packets cut from pieces, and what their acknowledgements say.
 *
 * What is sent stays in the sender's pieces until it is acknowledged; a packet is a copy. A packet
 * that does not come back in time is sent again, the time doubling; three acknowledgements of the
 * same position, or one that ends inside a loss being mended, do it at once. */
#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

#define FIRST_RTO_NS UINT64_C(1000000000)
#define LEAST_RTO_NS UINT64_C(250000000)
#define LAST_BACKOFF 5

/* ---------------------------------------------------------------------------- what always holds */

#if PT_ASSERTIONS
/* Of a stream that is not over, whenever it has been served. */
static void check_stream(const pt_sim *sim, const sim_socket *stream)
{
    PT_ASSERT(stream->kind == SIM_STREAM && !sim_stream_is_over(stream));
    PT_ASSERT(stream->open == (stream->outcome == PT_OK));
    PT_ASSERT(!stream->open || stream->peer > 0);
    PT_ASSERT(!stream->waiting || (stream->parent != NULL && !stream->dialled));

    /* what is sent: acknowledged, on its way, waiting, and the end behind it */
    PT_ASSERT(stream->unacknowledged <= stream->next_position + stream->fin_sent);
    PT_ASSERT(stream->next_position <= stream->queued_end);
    PT_ASSERT(!stream->fin_sent || stream->next_position == stream->queued_end);
    PT_ASSERT((stream->pieces == NULL) == (stream->unacknowledged >= stream->queued_end));
    PT_ASSERT((stream->pieces == NULL) == (stream->pieces_end == &stream->pieces));
    PT_ASSERT(stream->pieces == NULL || stream->pieces->end > stream->unacknowledged);

    /* what is received: read, waiting to be read, behind a gap, and the end behind it */
    PT_ASSERT((stream->queue == NULL) == (stream->queue_len == 0));
    PT_ASSERT(stream->queue_len <= stream->window);
    PT_ASSERT(stream->received <= stream->told_edge);
    PT_ASSERT(stream->early == NULL || stream->early->position > stream->received);
    PT_ASSERT(!stream->fin_seen || stream->received <= stream->fin_at);
    PT_ASSERT(!stream->fin_told || (stream->fin_seen && stream->received == stream->fin_at));

    PT_ASSERT(stream->silent_since_ns == SIM_NEVER || stream->silent_since_ns <= sim->now_ns);
    PT_ASSERT(stream->timer == NULL || stream->timer->handle == stream->handle);
}
#endif

/* --------------------------------------------------------------------------------------- timers */

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
    PT_ASSERT(stream->backoff <= LAST_BACKOFF);
    PT_ASSERT(stream->rtt_ns != 0 || stream->rtt_spread_ns == 0);

    uint64_t time_ns = FIRST_RTO_NS;
    if (stream->rtt_ns != 0) {
        time_ns = stream->rtt_ns + 4 * stream->rtt_spread_ns;
        if (time_ns < LEAST_RTO_NS)
            time_ns = LEAST_RTO_NS;
    }
    time_ns <<= stream->backoff;
    return time_ns < SIM_LONGEST_RTO_NS ? time_ns : SIM_LONGEST_RTO_NS;
}

static uint64_t sooner(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

void sim_stream_set_timer(pt_sim *sim, sim_socket *stream)
{
    PT_ASSERT(stream->timer == NULL || stream->timer->handle == stream->handle);

    uint64_t time_ns = SIM_NEVER;
    if (!sim_stream_is_over(stream) && !stream->host->vanished) {
        if (stream->rto_at_ns != 0 && (is_outstanding(stream) || is_stuck(stream)))
            time_ns = stream->rto_at_ns;
        if (stream->silent_since_ns != SIM_NEVER && !stream->late_told)
            time_ns = sooner(time_ns, stream->silent_since_ns + stream->give_up_ns);
        time_ns = sooner(time_ns, stream->linger_at_ns);
    }
    if (stream->timer != NULL) {
        if (stream->timer->time_ns == time_ns)
            return;
        sim_unplan(sim, stream->timer);
        stream->timer = NULL;
    }
    if (time_ns == SIM_NEVER)
        return;
    stream->timer = sim_plan(sim, SIM_TIMER, time_ns);
    if (stream->timer != NULL)
        stream->timer->handle = stream->handle;
}

void sim_stream_await_answer(pt_sim *sim, sim_socket *stream)
{
    PT_ASSERT(!sim_stream_is_over(stream));

    if (stream->silent_since_ns == SIM_NEVER)
        stream->silent_since_ns = sim->now_ns;
    if (stream->rto_at_ns == 0)
        stream->rto_at_ns = sim->now_ns + rto(stream);
}

/* ---------------------------------------------------------------------------------- packets out */

static uint64_t received_so_far(const sim_socket *stream)
{
    return stream->received + (stream->fin_seen && stream->received == stream->fin_at);
}

/* The edge never goes back, as TCP wants it: what was promised may be on its way, and a receiver
 * that took the promise back would have to drop it. */
static uint64_t window_edge(const sim_socket *stream)
{
    PT_ASSERT(stream->queue_len <= stream->window);

    uint64_t room = stream->window > stream->queue_len ? stream->window - stream->queue_len : 0;
    uint64_t edge = stream->received + room;
    return edge > stream->told_edge ? edge : stream->told_edge;
}

static void address_packet(sim_socket *stream, sim_packet *packet)
{
    PT_ASSERT(stream->peer > 0 || packet->kind == SIM_SYN);

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

void sim_stream_control(pt_sim *sim, sim_socket *stream, int kind, uint64_t stamp_ns)
{
    PT_ASSERT(kind > SIM_DATA && kind < SIM_DATAGRAM);
    PT_ASSERT(kind != SIM_FIN || stream->fin_sent);

    sim_packet *packet = sim_make_packet(sim, kind, 0);
    if (packet == NULL)
        return;
    address_packet(stream, packet);
    packet->position = kind == SIM_FIN ? stream->queued_end : stream->next_position;
    packet->stamp_ns = stamp_ns;
    sim_transmit(sim, packet);
}

void sim_stream_refuse(pt_sim *sim, const sim_packet *asked)
{
    PT_ASSERT(asked->kind != SIM_RST);

    sim_packet *packet = sim_make_packet(sim, SIM_RST, 0);
    if (packet == NULL)
        return;
    packet->source_host = asked->target_host;
    packet->target_host = asked->source_host;
    packet->target = asked->source;
    sim_trace(sim, PT_SIM_REFUSE, asked->target_host, asked->source_host, 0, asked->port);
    sim_transmit(sim, packet);
}

void sim_stream_tell_window(pt_sim *sim, sim_socket *stream)
{
    if (window_edge(stream) - stream->told_edge < stream->window / 2)
        return;
    sim_trace(sim, PT_SIM_WINDOW, stream->host->number, stream->peer_host,
              stream->window - stream->queue_len, stream->received);
    sim_stream_control(sim, stream, SIM_ACK, 0);
}

static pt_sim_piece *piece_at(const sim_socket *stream, uint64_t position)
{
    pt_sim_piece *piece = stream->pieces;
    while (piece != NULL && piece->end <= position)
        piece = piece->next;
    PT_ASSERT(piece != NULL && piece->end - piece->len <= position);
    return piece;
}

/* How many bytes from position on go into one packet: the rest of a piece, and small ones behind it
 * that need not be pushed. */
static uint32_t packet_len(const pt_sim_piece *piece, uint64_t position, uint64_t limit)
{
    PT_ASSERT(position < piece->end);
    PT_ASSERT(position < limit);

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
        PT_ASSERT(start < piece->len);
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
    PT_ASSERT(len != 0 && position + len <= stream->queued_end);
    PT_ASSERT((again != 0) == (position < stream->next_position));
    PT_ASSERT(!stream->sending);

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
    PT_ASSERT(stream->open && stream->resend);

    stream->resend = 0;
    if (stream->unacknowledged < stream->next_position) {
        uint32_t len = packet_len(piece_at(stream, stream->unacknowledged), stream->unacknowledged,
                                  stream->next_position);
        (void)process(sim, stream, stream->unacknowledged, len, 1);
        return 0;
    }
    if (stream->fin_sent && stream->unacknowledged == stream->queued_end)
        sim_stream_control(sim, stream, SIM_FIN, 0);
    return 1;
}

void sim_stream_pump(pt_sim *sim, sim_socket *stream)
{
    while (stream->open && !sim_stream_is_over(stream) && !stream->sending) {
        if (stream->resend && !resend(sim, stream))
            break;
        if (stream->next_position == stream->queued_end) {
            if (stream->fin_wanted && !stream->fin_sent) {
                stream->fin_sent = 1;
                sim_stream_control(sim, stream, SIM_FIN, 0);
                sim_stream_await_answer(sim, stream);
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
                    sim_stream_await_answer(sim, stream);
                break;
            }
            len = (uint32_t)room;
        }
        if (!process(sim, stream, stream->next_position, len, 0))
            break;
        stream->next_position += len;
    }
    sim_stream_set_timer(sim, stream);
#if PT_ASSERTIONS
    if (!sim_stream_is_over(stream))
        check_stream(sim, stream);
#endif
}

void sim_stream_left(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT(packet->kind == SIM_DATA && packet->next == NULL);

    sim_socket *stream = sim_find(sim, packet->source);
    if (stream == NULL)
        return;
    PT_ASSERT(stream->sending);
    stream->sending = 0;
    if (!packet->again)
        packet->stamp_ns = sim->now_ns;
    if (sim_stream_is_over(stream))
        return;
    sim_stream_await_answer(sim, stream);
    sim_stream_pump(sim, stream);
}

/* ----------------------------------------------------------------------------- acknowledgements */

void sim_stream_settle_piece(pt_sim *sim, pt_sim_piece *piece, int result)
{
    PT_ASSERT(piece->result == 1 && result != 1);

    if (piece->owned)
        sim_give(sim, piece, sizeof *piece + piece->len);
    else
        piece->result = result;
}

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
            sim_stream_settle_piece(sim, piece, PT_OK);
            completed = 1;
        }
    }
    return completed;
}

void sim_stream_acknowledge(pt_sim *sim, sim_socket *stream, const sim_packet *packet)
{
    PT_ASSERT(packet->ack <= stream->next_position + stream->fin_sent);
    PT_ASSERT(packet->stamp_ns <= sim->now_ns);

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
    stream->silent_since_ns = is_outstanding(stream) ? sim->now_ns : SIM_NEVER;
}

void sim_stream_retry(pt_sim *sim, sim_socket *stream)
{
    if (stream->rto_at_ns == 0 || sim->now_ns < stream->rto_at_ns ||
        !(is_outstanding(stream) || is_stuck(stream)))
        return;
    if (stream->backoff < LAST_BACKOFF)
        stream->backoff++;
    stream->rto_at_ns = sim->now_ns + rto(stream);
    if (!stream->open) {
        sim_stream_control(sim, stream, SIM_SYN, 0);
    } else if (is_outstanding(stream)) {
        stream->resend = 1;
        stream->recover = stream->next_position;
        stream->duplicate_acks = 0;
    } else {
        sim_stream_control(sim, stream, SIM_PROBE, 0);
        sim_stream_await_answer(sim, stream);
    }
}
