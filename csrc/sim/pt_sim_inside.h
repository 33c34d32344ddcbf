/* What the parts of the simulated network share: the box (pt_sim.c), its memory, chance, trace and
 * events (pt_sim_ground.c), hosts, ways and packets (pt_sim_wire.c), sockets and datagrams
 * (pt_sim_socket.c), and streams: their life (pt_sim_stream.c), what they send (pt_sim_output.c),
 * what is asked of them (pt_sim_calls.c). For nobody else. */
#ifndef PT_SIM_INSIDE_H
#define PT_SIM_INSIDE_H

#include "pt_assert.h"
#include "pt_sim.h"

typedef struct sim_host sim_host;
typedef struct sim_socket sim_socket;
typedef struct sim_packet sim_packet;
typedef struct sim_event sim_event;

#define SIM_FIRST_FREE_PORT 49152U
#define SIM_LONGEST_RTO_NS  UINT64_C(4000000000)
#define SIM_NEVER           UINT64_MAX

enum sim_packet_kind {
    SIM_DATA = 1,
    SIM_ACK,
    SIM_SYN,
    SIM_SYN_ACK,
    SIM_FIN,
    SIM_RST,
    SIM_PROBE,
    SIM_DATAGRAM,
    SIM_UNREACHABLE
};
enum sim_event_kind { SIM_LEAVE = 1, SIM_ARRIVE, SIM_DELIVER, SIM_TIMER, SIM_DONE };
enum sim_socket_kind { SIM_LISTENER = 1, SIM_STREAM, SIM_PORT };

struct sim_event {
    uint64_t time_ns;
    uint64_t order;     /* of events of one time the one planned first happens first */
    sim_event *next;    /* unused ones */
    sim_packet *packet; /* LEAVE, ARRIVE, DELIVER */
    uint64_t position;  /* DONE: which piece */
    uint32_t place;     /* in the heap */
    int32_t handle;     /* TIMER, DONE */
    uint8_t kind;
};

struct sim_packet {
    sim_packet *next;
    uint64_t position; /* DATA, FIN: of the first byte */
    uint64_t ack;      /* all below was received */
    uint64_t edge;     /* positions below this may be sent */
    uint64_t stamp_ns; /* when the packet that is acknowledged left; 0: not to be measured */
    uint32_t len;
    uint32_t offset;  /* bytes of it that were read */
    uint32_t address; /* DATAGRAM: of the sender */
    int32_t source_host;
    int32_t target_host;
    int32_t source; /* sockets */
    int32_t target;
    uint16_t port; /* SYN, DATAGRAM, UNREACHABLE: at the target */
    uint16_t source_port;
    uint8_t kind;
    uint8_t again;   /* 1: retransmitted */
    uint8_t data[1]; /* len bytes */
};

typedef struct sim_way {
    pt_sim_path path;
    pt_sim_counts counts;
    uint64_t wire_free_ns; /* when the wire takes the next packet */
    uint64_t random;
    uint8_t cut;
} sim_way;

struct sim_host {
    uint32_t address;
    int32_t number;
    pt_sim_costs costs;
    uint64_t processor_free_ns;
    uint64_t completion_jitter_ns;
    uint32_t window;
    uint16_t next_port;
    uint8_t vanished;
    sim_socket *sockets;
    sim_way **ways; /* by target, way_count of them; NULL: not used yet */
    uint32_t way_count;
};

struct sim_socket {
    int32_t handle;
    uint32_t number; /* of all sockets in the order in which they were made, from 1 */
    uint8_t kind;
    uint8_t open; /* STREAM: established */
    uint8_t dialled;
    uint8_t waiting;  /* STREAM: not accepted yet */
    uint8_t released; /* nobody holds the handle any more */
    uint16_t port;
    sim_host *host;
    sim_socket *next; /* of the same host */
    pt_sim_notify notify;
    void *owner;

    sim_socket *parent;        /* STREAM, waiting: whose */
    sim_socket *first_waiting; /* LISTENER */
    sim_socket *next_waiting;
    uint32_t waiting_count;

    sim_packet *queue; /* STREAM: bytes in order, not read yet; PORT: datagrams */
    sim_packet **queue_end;
    uint32_t queue_len;

    int32_t peer; /* handle of the other end; 0: not known yet */
    int32_t peer_host;
    uint16_t peer_port;
    int32_t outcome;    /* PT_OK, PT_ERR_WOULD_BLOCK while connecting, or why it ended */
    uint8_t fin_wanted; /* our half ends when all is sent */
    uint8_t fin_sent;
    uint8_t fin_seen; /* the other half's end is at fin_at */
    uint8_t fin_told;
    uint8_t resting; /* both halves are ended */
    uint8_t sending; /* a packet of ours is with the processor */
    uint8_t resend;  /* the oldest bytes have to be sent again */
    uint8_t give_up_action;
    uint8_t late_told;
    uint8_t duplicate_acks;
    uint8_t backoff;      /* doublings of the retransmission time */
    pt_sim_piece *pieces; /* oldest that is not acknowledged */
    pt_sim_piece **pieces_end;
    pt_sim_piece *done;      /* acknowledged, to be reported later */
    uint64_t queued_end;     /* position behind the last byte that was given to us */
    uint64_t next_position;  /* of the next new byte */
    uint64_t unacknowledged; /* position of the oldest byte that is */
    uint64_t send_edge;      /* positions below this may be sent */
    uint64_t recover;        /* a loss is being mended up to here */
    uint64_t rtt_ns;         /* smoothed; 0: not measured */
    uint64_t rtt_spread_ns;
    uint64_t rto_at_ns;       /* when the oldest bytes are sent again; 0: never */
    uint64_t silent_since_ns; /* waits for a sign of life since then; UINT64_MAX: does not wait */
    uint64_t give_up_ns;
    uint64_t linger_at_ns; /* UINT64_MAX: no limit */
    uint64_t received;     /* position of the next byte in order */
    uint64_t told_edge;    /* what the other side knows of our window */
    uint64_t fin_at;
    uint32_t window;
    sim_packet *early; /* behind a gap, by position */
    sim_event *timer;
};

struct pt_sim {
    pt_memory memory;
    uint64_t limit;
    uint64_t bytes;
    uint64_t peak_bytes;
    uint64_t now_ns;
    uint64_t order;
    uint64_t seed;
    uint64_t random;
    uint64_t hash;
    sim_event **heap;
    uint32_t heap_count;
    uint32_t heap_size;
    sim_event *unused_events;
    sim_host **hosts;
    uint32_t host_count;
    uint32_t host_size;
    sim_socket **sockets;  /* by the low 16 bits of the handle */
    uint16_t *generations; /* of the handle's high bits */
    uint32_t socket_size;
    uint32_t generation_size;
    uint32_t first_unused; /* below it no place is */
    uint32_t sockets_made;
    pt_sim_path default_path;
    pt_sim_costs default_costs;
    pt_sim_record *records;
    uint32_t record_size;
    uint32_t record_count;
    uint32_t record_first;
    uint64_t records_dropped;
    uint8_t notifying;
    uint8_t out_of_memory;
};

/* Memory within the limit; NULL, remembered, when there is none. */
void *sim_take(pt_sim *sim, size_t size);
void sim_give(pt_sim *sim, void *memory, size_t size);

/* Make an array of count items at least wanted long. 0 when there is no memory. */
int sim_widen(pt_sim *sim, void **array, uint32_t *count, uint32_t wanted, size_t item_size);

/* What a hash becomes with size bytes of value behind it. Note a decision, which goes into the
 * hash.
 */
uint64_t sim_hash(uint64_t hash, uint64_t value, int size);
void sim_trace(pt_sim *sim, int kind, int32_t source, int32_t target, uint32_t a, uint64_t b);

/* Plan an event; NULL: no memory. Take one out of the plan. */
sim_event *sim_plan(pt_sim *sim, int kind, uint64_t time_ns);
void sim_unplan(pt_sim *sim, sim_event *event);

/* A random number from 0 to bound - 1. */
uint64_t sim_choose(uint64_t *random, uint64_t bound);

/* A host by its number, or NULL. */
sim_host *sim_host_of(const pt_sim *sim, int host);

/* A live socket, or NULL; one that its owner still holds, or NULL. */
sim_socket *sim_find(const pt_sim *sim, int32_t handle);
sim_socket *sim_held(const pt_sim *sim, int32_t handle);

/* A socket on a host; NULL: too many, or no memory. *code says which. Destroy it for good, its
 * packets with it. */
sim_socket *sim_make_socket(pt_sim *sim, sim_host *host, int kind, uint16_t port, int *code);
void sim_destroy_socket(pt_sim *sim, sim_socket *socket);

/* A port of the host's that is free for streams, or for datagrams. */
uint16_t sim_free_port(sim_host *host, int kind);
sim_socket *sim_find_port(sim_host *host, int kind, uint16_t port);

/* A packet with room for len bytes; NULL: no memory. */
sim_packet *sim_make_packet(pt_sim *sim, int kind, uint32_t len);
void sim_drop_packet(pt_sim *sim, sim_packet *packet);

/* Keep a host's processor busy; returns when it is done. Plan what becomes of a packet then; takes
 * it over. */
uint64_t sim_occupy(const pt_sim *sim, sim_host *host, uint64_t cost_ns);
void sim_plan_packet(pt_sim *sim, int kind, uint64_t time_ns, sim_packet *packet);

/* Put a packet on its way: through the processor (planned as SIM_LEAVE), or at once. Both take it
 * over. */
void sim_process_packet(pt_sim *sim, sim_packet *packet);
void sim_transmit(pt_sim *sim, sim_packet *packet);

/* A packet has come: 1 when it is to be delivered now, else that is planned. It is delivered: 1, or
 * 0 when nobody is there, and it is gone. */
int sim_arrive(pt_sim *sim, sim_packet *packet);
int sim_deliver(pt_sim *sim, sim_packet *packet);

/* Tell the owner. */
void sim_tell(pt_sim *sim, sim_socket *socket, int news);

/* A datagram is there; takes it over. */
void sim_datagram_arrived(pt_sim *sim, sim_packet *packet);

/* A stream that begins to connect, from this port. NULL: *code says why. */
sim_socket *sim_stream_make(pt_sim *sim, sim_host *host, uint16_t port, int *code);

/* Streams: a packet is there; a packet of ours has left the processor; the timer is due; a piece is
 * to be reported; end with a reason. */
void sim_stream_arrived(pt_sim *sim, sim_packet *packet);
void sim_stream_left(pt_sim *sim, sim_packet *packet);
void sim_stream_timer(pt_sim *sim, sim_socket *stream);
void sim_stream_done(pt_sim *sim, sim_socket *stream, uint64_t position);
void sim_stream_terminate(pt_sim *sim, sim_socket *stream, int outcome, int tell);

/* Where nobody holds a stream and nothing is left to do: destroy it, or let it rest before that. */
void sim_stream_settle(pt_sim *sim, sim_socket *stream);

/* Send what may be sent: one packet at a time is with the processor. Plan the one timer for
 * whatever comes first. From now on wait for a sign of life. */
void sim_stream_pump(pt_sim *sim, sim_socket *stream);
void sim_stream_set_timer(pt_sim *sim, sim_socket *stream);
void sim_stream_await_answer(pt_sim *sim, sim_socket *stream);

/* Take what an acknowledgement says. Send again when nothing came back in time. Give a piece back.
 */
void sim_stream_acknowledge(pt_sim *sim, sim_socket *stream, const sim_packet *packet);
void sim_stream_retry(pt_sim *sim, sim_socket *stream);
void sim_stream_settle_piece(pt_sim *sim, pt_sim_piece *piece, int result);

/* Send a packet without data. Say that nobody is there to whoever asked. Tell the other side of a
 * window that has become much wider. */
void sim_stream_control(pt_sim *sim, sim_socket *stream, int kind, uint64_t stamp_ns);
void sim_stream_refuse(pt_sim *sim, const sim_packet *asked);
void sim_stream_tell_window(pt_sim *sim, sim_socket *stream);

/* 1 when the connection has ended, or never came about. */
static inline int sim_stream_is_over(const sim_socket *stream)
{
    return stream->outcome != PT_OK && stream->outcome != PT_ERR_WOULD_BLOCK;
}

#endif
