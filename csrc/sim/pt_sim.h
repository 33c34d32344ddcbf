/* A network in a box: hosts, links and sockets on a virtual clock, driven by one seed.
 *
 * Time is integer nanoseconds and moves only when somebody advances it. Whatever happens is an
 * event with a time; events of one time happen in the order in which they were planned. So the same
 * seed and the same calls give the same decisions, and the same hash over them, on every machine.
 *
 * A write crosses three stages, each a resource that serves one at a time: the sender's processor
 * (fixed cost and cost of each byte), the wire, the receiver's processor. When the last stage is
 * done the acknowledgement travels back; its arrival completes the write. A host has one processor
 * for both directions, a wire has one queue for each direction. Acknowledgements and other control
 * packets cost latency only.
 *
 * One thread. Memory comes from the caller's source and has a limit. No struct here depends on
 * PT_LOWMEM: the network and the classic worlds on it are one extension module, in which nodes of
 * both builds meet.
 */
#ifndef PT_SIM_H
#define PT_SIM_H

#include <stddef.h>
#include <stdint.h>

#include "pt_link.h"

#define PT_SIM_TICKS          60    /* ticks of one second: the classic Mac's clock */
#define PT_SIM_SOCKETS_MAX    32767 /* sockets of one network at a time */
#define PT_SIM_HOSTS_MAX      4096
#define PT_SIM_BACKLOG        128   /* connections that wait to be accepted, for one listener */
#define PT_SIM_DATAGRAM_MAX   2048  /* bytes of one datagram */
#define PT_SIM_DATAGRAM_QUEUE 65536 /* bytes that wait on one datagram socket; more is dropped */
#define PT_SIM_SEGMENT_MAX    65535 /* bytes of one packet: a whole write */
#define PT_SIM_MSS 1460 /* small writes without push are merged into packets of so many bytes */
/* Receive window of a stream, where the host has no other: more than is sent between two turns of
 * the receiver */
#define PT_SIM_WINDOW_SIZE 131072
#define PT_SIM_MILLION     1000000 /* chances are parts of this */

enum pt_sim_preset { PT_SIM_NONE = 0, PT_SIM_LAN = 1, PT_SIM_CLASSIC = 2 };

/* What a host's processor takes, in ns. */
typedef struct pt_sim_costs {
    uint64_t send_fixed_ns;
    uint64_t send_byte_ns;
    uint64_t receive_fixed_ns;
    uint64_t receive_byte_ns;
} pt_sim_costs;

/* One direction between two hosts. Chances in parts per million. */
typedef struct pt_sim_path {
    uint64_t latency_ns;
    uint64_t jitter_ns;  /* 0 .. so many more, evenly */
    uint64_t byte_ns;    /* time of a byte on the wire */
    uint64_t reorder_ns; /* what a reordered packet is held back */
    uint32_t loss;
    uint32_t duplicate;
    uint32_t reorder;
    uint32_t damage; /* one bit of the payload is flipped, and no checksum below tells */
} pt_sim_path;

/* Packets that took one direction. */
typedef struct pt_sim_counts {
    uint64_t packets; /* offered, control packets included */
    uint64_t bytes;
    uint64_t lost;
    uint64_t cut; /* offered while the direction was cut or the host had vanished */
    uint64_t duplicated;
    uint64_t reordered;
    uint64_t damaged;
    uint64_t delivered;
} pt_sim_counts;

enum pt_sim_kind {
    PT_SIM_SEND = 1,        /* data left the sender: a bytes, b position */
    PT_SIM_ARRIVE = 2,      /* it reached the host: a bytes, b position */
    PT_SIM_DELIVER = 3,     /* the receiver's processor is done with it: a bytes, b position */
    PT_SIM_ACK = 4,         /* an acknowledgement came: a bytes newly covered, b position */
    PT_SIM_LOST = 5,        /* a bytes */
    PT_SIM_CUT = 6,         /* a bytes */
    PT_SIM_DUPLICATE = 7,   /* a bytes */
    PT_SIM_REORDER = 8,     /* a bytes, b ms held back */
    PT_SIM_DAMAGE = 9,      /* a byte, b bit */
    PT_SIM_RETRANSMIT = 10, /* a bytes, b position */
    PT_SIM_GIVE_UP = 11,    /* a bytes unacknowledged */
    PT_SIM_RESET = 12,
    PT_SIM_OPEN = 13,     /* a handle, b port */
    PT_SIM_ACCEPT = 14,   /* a handle, b port */
    PT_SIM_REFUSE = 15,   /* b port */
    PT_SIM_CLOSE = 16,    /* a handle */
    PT_SIM_DATAGRAM = 17, /* a bytes, b port */
    PT_SIM_OVERFLOW = 18, /* a bytes that found no room */
    PT_SIM_WINDOW = 19,   /* a bytes of window, told without data */
    PT_SIM_NOTE = 20,     /* a, b of the caller */
    PT_SIM_KINDS = 21
};

/* One decision, as it is traced. source, target: numbers of hosts, -1: none. */
typedef struct pt_sim_record {
    uint64_t time_ns;
    uint32_t kind; /* enum pt_sim_kind */
    int32_t source;
    int32_t target;
    uint32_t a;
    uint32_t b;
} pt_sim_record;

/* Bytes on their way, in memory of whoever sends them: neither they nor this may move or change
 * while result is 1. */
typedef struct pt_sim_piece pt_sim_piece;
struct pt_sim_piece {
    pt_sim_piece *next; /* the network's to keep */
    const uint8_t *data;
    uint64_t end; /* position in the stream behind its last byte; the network's to keep */
    uint32_t len;
    int32_t result; /* 1: in progress; PT_OK: all bytes are acknowledged; PT_ERR_*: they never will
                       be */
    uint8_t push;   /* 1: not merged with what follows */
    uint8_t owned;  /* 1: the network's own copy */
};

/* What a socket's owner is told, while it happens. It must only note it down: every call into the
 * network is refused until it returns. */
enum pt_sim_news {
    PT_SIM_NEWS_DATA = 1,       /* bytes, or a datagram, can be read */
    PT_SIM_NEWS_SENT = 2,       /* a piece is done */
    PT_SIM_NEWS_CLOSING = 3,    /* the other side ended its half */
    PT_SIM_NEWS_TERMINATED = 4, /* reset, refused, or given up */
    PT_SIM_NEWS_OPENED = 5,     /* a dialled connection is open */
    PT_SIM_NEWS_INCOMING = 6,   /* a connection waits to be accepted */
    PT_SIM_NEWS_LATE = 7, /* nothing was acknowledged within the time of pt_sim_set_give_up(), which
                             says to go on */
    PT_SIM_NEWS_UNREACHABLE = 8 /* a datagram found nobody */
};

typedef void (*pt_sim_notify)(void *owner, int32_t handle, int news);

typedef struct pt_sim pt_sim; /* opaque */

/* ---------------------------------------------------------------- the box, its clock, its trace */

/* Make a network. limit: bytes that it may hold (0: none); trace_records: how many decisions are
 * kept for reading. NULL: no memory. */
pt_sim *pt_sim_open(const pt_memory *source, uint64_t seed, uint64_t limit, uint32_t trace_records);

/* End it: pieces in flight get PT_ERR_CONNECTION_CLOSED, and all memory goes back. */
void pt_sim_close(pt_sim *sim);

/* Nanoseconds since the beginning. */
uint64_t pt_sim_now(const pt_sim *sim);

/* The same in ticks of 1/60 s, which wrap. */
uint32_t pt_sim_ticks(const pt_sim *sim);

/* When the next event is due; UINT64_MAX: there is none. */
uint64_t pt_sim_next_event(const pt_sim *sim);

/* Serve the next event if it is due by limit_ns, the clock being its time. Returns
 * - 1: it was served.
 * - 0: none was due, and the clock stays.
 * - PT_ERR_NO_MEMORY: it was served, but the limit of pt_sim_open() was met, or the system had no
 *   memory, and something was dropped; told once.
 * - PT_ERR_INVALID_STATE: called from a notification; nothing was served. */
int pt_sim_step(pt_sim *sim, uint64_t limit_ns);

/* Serve all events up to to_ns, then the clock is to_ns (never backward). Returns
 * - PT_OK: all of them, *served in number.
 * - PT_ERR_NO_MEMORY, _INVALID_STATE: as pt_sim_step(). *served were served before that; the clock
 *   is where it stopped, and the call may be made again. */
int pt_sim_advance(pt_sim *sim, uint64_t to_ns, uint64_t *served);

/* FNV-1a 64 over every decision so far. */
uint64_t pt_sim_trace_hash(const pt_sim *sim);

/* Take up to capacity decisions, oldest first. Returns their number. */
uint32_t pt_sim_trace_read(pt_sim *sim, pt_sim_record *records, uint32_t capacity);

/* Decisions that were overwritten before they were read. */
uint64_t pt_sim_trace_dropped(const pt_sim *sim);

/* Put numbers of the caller into trace and hash. */
void pt_sim_note(pt_sim *sim, uint32_t a, uint32_t b);

/* Bytes from the seed. */
void pt_sim_random(pt_sim *sim, uint8_t *out, size_t size);

/* Bytes held now, and at most so far. */
uint64_t pt_sim_bytes(const pt_sim *sim, int peak);

/* ------------------------------------------------------------------------------ hosts and paths */

/* The numbers of a preset. Either may be NULL. */
void pt_sim_get_preset(int preset, pt_sim_path *path, pt_sim_costs *costs);

/* What hosts and paths made from now on start with. */
void pt_sim_set_defaults(pt_sim *sim, const pt_sim_path *path, const pt_sim_costs *costs);

/* Add a host. Returns its number, 0 and up, or PT_ERR_BUSY (the address is taken), PT_ERR_RESOURCE,
 * PT_ERR_NO_MEMORY. */
int pt_sim_add_host(pt_sim *sim, uint32_t address);

/* The number of the host with this address; PT_ERR_PEER_NOT_FOUND. */
int pt_sim_find_host(const pt_sim *sim, uint32_t address);

/* Costs of a host from now on; the receive window of its streams made from now on; how much later,
 * at most, its driver reports a write as done (each write by chance: so they may be reported out of
 * order). PT_OK or PT_ERR_INVALID_PARAM. */
int pt_sim_set_costs(pt_sim *sim, int host, const pt_sim_costs *costs);
int pt_sim_set_window(pt_sim *sim, int host, uint32_t window);
int pt_sim_set_completion_jitter(pt_sim *sim, int host, uint64_t jitter_ns);

/* Power off (1) or on (0). Off: silent, and deaf. On again: its earlier sockets are terminated.
 * PT_OK or PT_ERR_INVALID_PARAM. */
int pt_sim_set_vanished(pt_sim *sim, int host, int vanished);

/* One direction. PT_OK, PT_ERR_INVALID_PARAM or PT_ERR_NO_MEMORY. */
int pt_sim_set_path(pt_sim *sim, int source, int target, const pt_sim_path *path);
int pt_sim_get_path(pt_sim *sim, int source, int target, pt_sim_path *path);
int pt_sim_set_cut(pt_sim *sim, int source, int target, int cut);
int pt_sim_get_counts(pt_sim *sim, int source, int target, pt_sim_counts *counts);

/* ------------------------------------------------------------------------ sockets of every kind */

/* Forget a socket. A stream sends what it owes, pieces included, and ends its half; it is reset
 * when data arrives that nobody will read. A listener resets what waits. Pieces of a stream stay
 * the network's until their result is not 1. */
void pt_sim_release(pt_sim *sim, int32_t handle);

/* What is ready, enum pt_ready. 0 for a handle that is none. */
int pt_sim_ready(const pt_sim *sim, int32_t handle);

/* Tell owner what happens to a socket; notify NULL: nobody. PT_OK, PT_ERR_INVALID_PARAM,
 * PT_ERR_INVALID_STATE. */
int pt_sim_attach(pt_sim *sim, int32_t handle, pt_sim_notify notify, void *owner);

/* 1 while a notification runs. */
int pt_sim_is_notifying(const pt_sim *sim);

/* Address and port of a socket, or (remote 1) of its other end. PT_OK or PT_ERR_INVALID_PARAM,
 * PT_ERR_NOT_CONNECTED. */
int pt_sim_get_name(const pt_sim *sim, int32_t handle, int remote, uint32_t *address,
                    uint16_t *port);

/* -------------------------------------------------------------------------------------- streams */

/* Wait for connections; port 0: a free one. Returns a handle (1 and up), or PT_ERR_BUSY (the port
 * is taken), PT_ERR_INVALID_PARAM, PT_ERR_RESOURCE, PT_ERR_NO_MEMORY, PT_ERR_INVALID_STATE (in a
 * notification). */
int32_t pt_sim_listen(pt_sim *sim, int host, uint16_t port);

/* Begin to connect. Returns a handle, or as pt_sim_listen(), or PT_ERR_NETWORK: no host has that
 * address. */
int32_t pt_sim_dial(pt_sim *sim, int host, uint32_t address, uint16_t port);

/* Take a connection that waits. Returns its handle, or PT_ERR_WOULD_BLOCK, PT_ERR_INVALID_PARAM,
 * PT_ERR_INVALID_STATE. */
int32_t pt_sim_accept(pt_sim *sim, int32_t handle);

/* PT_ERR_WOULD_BLOCK while connecting, PT_OK when open, else why not: PT_ERR_CONNECTION_REFUSED,
 * PT_ERR_TIMEOUT, PT_ERR_CONNECTION_CLOSED, or PT_ERR_INVALID_PARAM. */
int pt_sim_get_outcome(const pt_sim *sim, int32_t handle);

/* Send a piece, after those before it. PT_OK, PT_ERR_CONNECTION_CLOSED, PT_ERR_NOT_CONNECTED,
 * PT_ERR_INVALID_PARAM, PT_ERR_INVALID_STATE. */
int pt_sim_send_piece(pt_sim *sim, int32_t handle, pt_sim_piece *piece);

/* Copy bytes into the network's own memory and send them. Returns how many (0: no room now), or
 * PT_ERR_*. */
int pt_sim_send(pt_sim *sim, int32_t handle, const uint8_t *data, uint32_t len);

/* Read up to size bytes. Returns their number, PT_ERR_WOULD_BLOCK, PT_ERR_CONNECTION_CLOSED
 * (*broken 0: the other side ended its half; 1: reset), PT_ERR_TIMEOUT (given up; *broken 1),
 * PT_ERR_INVALID_PARAM or PT_ERR_INVALID_STATE. */
int pt_sim_receive(pt_sim *sim, int32_t handle, uint8_t *buffer, uint32_t size, int *broken);

/* End our half when all has been sent. PT_OK, or as pt_sim_send_piece(). */
int pt_sim_finish(pt_sim *sim, int32_t handle);

/* Break the connection, at once. Pieces in flight get PT_ERR_CONNECTION_CLOSED. PT_OK or
 * PT_ERR_INVALID_PARAM, PT_ERR_INVALID_STATE. */
int pt_sim_reset(pt_sim *sim, int32_t handle);

/* The oldest connection between two hosts that was made after the one of that number (0: of all).
 * Returns its number, 1 and up, 0 when there is none. ends: handles of its ends on the one and on
 * the other host, 0 for an end that is over. */
uint32_t pt_sim_next_connection(const pt_sim *sim, int host, int other, uint32_t number,
                                int32_t *ends);

/* Let a box in the middle reset a connection as this end sees it: it is broken here, now, and what
 * it had received can still be read. The other end hears of it as soon as it sends. Ends that are
 * over, and those of a host that has vanished, hear nothing. PT_OK or PT_ERR_INVALID_PARAM,
 * PT_ERR_INVALID_STATE. */
int pt_sim_strike(pt_sim *sim, int32_t handle);

/* Nothing acknowledged for so long: terminate with PT_ERR_TIMEOUT (action 1), or tell once and go
 * on (0). 30 s and 1 at first. */
int pt_sim_set_give_up(pt_sim *sim, int32_t handle, uint64_t give_up_ns, int action);

/* All must be acknowledged within so long from now, or the connection is broken: pieces in flight
 * get PT_ERR_TIMEOUT. */
int pt_sim_set_linger(pt_sim *sim, int32_t handle, uint64_t linger_ns);

/* Nanoseconds that something of ours has waited for a sign of life; 0: nothing waits. */
uint64_t pt_sim_get_silence(const pt_sim *sim, int32_t handle);

/* Bytes taken and not acknowledged; bytes received and not read. 0 for a handle that is none. */
uint64_t pt_sim_get_unacknowledged(const pt_sim *sim, int32_t handle);
uint64_t pt_sim_get_unread(const pt_sim *sim, int32_t handle);

/* ------------------------------------------------------------------------------------ datagrams */

/* Hear datagrams on a port that others may share; port 0: a free one. Returns a handle, or as
 * pt_sim_listen(). */
int32_t pt_sim_datagram(pt_sim *sim, int host, uint16_t port);

/* Send to an address, or to all (255.255.255.255, or the last address of the sender's network of
 * 256 or 2^24). PT_OK (it left; whether it arrives is another matter), PT_ERR_NETWORK: no host has
 * that address; PT_ERR_MESSAGE_TOO_LARGE, PT_ERR_INVALID_PARAM, PT_ERR_INVALID_STATE,
 * PT_ERR_NO_MEMORY. */
int pt_sim_send_to(pt_sim *sim, int32_t handle, const uint8_t *data, uint32_t len, uint32_t address,
                   uint16_t port);

/* The next datagram, cut to size. Returns its length (0 is one), PT_ERR_WOULD_BLOCK,
 * PT_ERR_INVALID_PARAM or PT_ERR_INVALID_STATE. */
int pt_sim_receive_from(pt_sim *sim, int32_t handle, uint8_t *buffer, uint32_t size,
                        uint32_t *address, uint16_t *port);

#endif
