/* Every encoding of the original protocol (docs/protocol.md): values in, bytes out, and back.
 * Sans-I/O and stateless.
 *
 * Encoders return the number of bytes written, or PT_ERR_INVALID_PARAM (a field out of range) or
 * PT_ERR_BUFFER_FULL (size too small); on failure nothing has been written. Decoders return the
 * number of bytes that the thing occupies, or the first PT_ERR_* that applies in the order given;
 * on failure *out is untouched. Pointers into the input stay valid as long as it does.
 */
#ifndef PT_WIRE_H
#define PT_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"

enum pt_frame_type {
    PT_FRAME_DATA = 1,
    PT_FRAME_PING = 2,
    PT_FRAME_PONG = 3,
    PT_FRAME_DISCONNECT = 4,
    PT_FRAME_ACK = 5,
    PT_FRAME_REJECT = 6,
    PT_FRAME_CAPABILITY = 7,
    PT_FRAME_OFFER = 8, /* from here on in the wide form alone: see pt_wide.h */
    PT_FRAME_GRANT = 9,
    PT_FRAME_REFUSE = 10
};

enum pt_frame_flag {
    PT_FLAG_UNRELIABLE = 0x01,
    PT_FLAG_COALESCABLE = 0x02,
    PT_FLAG_NO_DELAY = 0x04,
    PT_FLAG_BATCH = 0x08,
    PT_FLAG_FRAGMENT = 0x10,
    PT_FLAG_LANDED = 0x80 /* never on the wire: a whole message that was granted, as an event */
};

enum pt_discovery_type {
    PT_DISCOVERY_ANNOUNCE = 1,
    PT_DISCOVERY_QUERY = 2,
    PT_DISCOVERY_GOODBYE = 3
};

enum pt_capability_flag {
    PT_CAPABILITY_FRAGMENTATION = 0x0001,
    PT_CAPABILITY_STREAMING = 0x0002,
    PT_CAPABILITY_COMPACT = 0x0004
};

enum pt_fragment_flag { PT_FRAGMENT_FIRST = 0x01, PT_FRAGMENT_LAST = 0x02 };

/* One message on the wire. payload points into the bytes that were read, or is NULL when only a
 * header was decoded. */
typedef struct pt_frame {
    const uint8_t *payload;
    uint32_t payload_len;
    uint8_t type; /* enum pt_frame_type */
    uint8_t flags;
    uint8_t sequence;
} pt_frame;

/* A discovery packet. name is not terminated. */
typedef struct pt_discovery {
    uint16_t flags;
    uint16_t port; /* the sender's TCP listening port */
    uint8_t type;  /* enum pt_discovery_type */
    uint8_t transports;
    uint8_t name_len;
    uint8_t name[PT_NAME_MAX];
} pt_discovery;

typedef struct pt_capability {
    uint16_t max_message; /* largest message that the side wants; decoded values are clamped to 256
                             .. 8,192 */
    uint16_t preferred_chunk; /* streaming hint */
    uint16_t flags;           /* enum pt_capability_flag */
    uint8_t pressure;         /* fill level of its queues, 0 .. 100 */
} pt_capability;

typedef struct pt_datagram {
    const uint8_t *payload;
    uint16_t payload_len;
    uint16_t port; /* the sender's datagram port */
} pt_datagram;

typedef struct pt_fragment {
    uint16_t message_id;
    uint16_t total_len; /* of the whole message */
    uint16_t offset;    /* of this piece */
    uint8_t flags;      /* enum pt_fragment_flag */
} pt_fragment;

/* Full frame header, 10 bytes. Encode: type must be 1 .. 7 and payload_len fit 16 bits. Decode
 * order: fewer than 10 bytes PT_ERR_TRUNCATED, PT_ERR_MAGIC, PT_ERR_VERSION, PT_ERR_INVALID_PARAM
 * (type). frame->payload becomes NULL. The payload length is not judged here: receivers hold it
 * against their own limit. */
int pt_header_encode(const pt_frame *frame, uint8_t *out, size_t size);
int pt_header_decode(const uint8_t *data, size_t len, pt_frame *out);

/* Whole frame: header, payload, CRC-16 over both. A payload over PT_FRAME_MAX_PAYLOAD is
 * PT_ERR_MESSAGE_TOO_LARGE both ways (decoding: on the header alone). Decode: as the header, then
 * that limit, then PT_ERR_TRUNCATED when not all is there, then PT_ERR_CRC; bytes behind the frame
 * are left alone. */
int pt_frame_encode(const pt_frame *frame, uint8_t *out, size_t size);
int pt_frame_decode(const uint8_t *data, size_t len, pt_frame *out);

/* The writing half of pt_frame_encode(), for whoever has seen to type, length and room. */
void pt_frame_put(uint8_t *out, uint8_t type, uint8_t flags, uint8_t sequence,
                  const uint8_t *payload, uint32_t payload_len);

/* Compact header, 4 bytes, then payload; no sequence, no CRC. Only the low four flag bits fit; the
 * rest is lost, as in the original. Decode order: fewer than 4 bytes PT_ERR_TRUNCATED,
 * PT_ERR_MAGIC, PT_ERR_INVALID_PARAM (type). */
int pt_compact_encode(const pt_frame *frame, uint8_t *out, size_t size);
int pt_compact_decode(const uint8_t *data, size_t len, pt_frame *out);

/* 1 when the bytes begin like a compact header ('P', then anything but 'T'), else 0; fewer than 2
 * bytes: 0. */
int pt_is_compact(const uint8_t *data, size_t len);

/* Discovery packet, 14 + name_len bytes. Decode order: fewer than 14 bytes PT_ERR_TRUNCATED,
 * PT_ERR_MAGIC, PT_ERR_VERSION, PT_ERR_INVALID_PARAM (type, then name length), PT_ERR_TRUNCATED,
 * PT_ERR_CRC. Bytes behind the CRC are not looked at. */
int pt_discovery_encode(const pt_discovery *packet, uint8_t *out, size_t size);
int pt_discovery_decode(const uint8_t *data, size_t len, pt_discovery *out);

/* Payload of a CAPABILITY frame. Encode writes the original's four TLVs, 15 bytes; values go out as
 * they are. Decode starts from 512 / 256 / 50 / 0, applies TLVs in any order (the last of a kind
 * wins), skips unknown types and values that are too short, ignores a single byte left at the end;
 * a length past the end is PT_ERR_TRUNCATED, more than 65,535 bytes PT_ERR_INVALID_PARAM. Decode
 * returns len. */
int pt_capability_encode(const pt_capability *capability, uint8_t *out, size_t size);
int pt_capability_decode(const uint8_t *data, size_t len, pt_capability *out);

/* UDP message: "PTUD", port, length, payload; no CRC. Encode: payload over 1,392 bytes is
 * PT_ERR_MESSAGE_TOO_LARGE. Decode order: fewer than 8 bytes PT_ERR_TRUNCATED, PT_ERR_MAGIC,
 * PT_ERR_TRUNCATED; bytes behind the payload are not looked at. */
int pt_datagram_encode(const pt_datagram *datagram, uint8_t *out, size_t size);
int pt_datagram_decode(const uint8_t *data, size_t len, pt_datagram *out);

/* Fragment header, 8 bytes, at the front of a DATA payload with PT_FLAG_FRAGMENT. Decode: fewer
 * than 8 bytes PT_ERR_TRUNCATED; the reserved byte is not looked at. What the fields mean together
 * is judged by the receiver of the message, not here. */
int pt_fragment_encode(const pt_fragment *fragment, uint8_t *out, size_t size);
int pt_fragment_decode(const uint8_t *data, size_t len, pt_fragment *out);

#endif
