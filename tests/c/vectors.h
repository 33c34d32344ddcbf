/* The golden vectors of tests/vectors as C tables: their shapes are here, make_vectors.py writes
 * their rows. A code is PT_OK or what decoding (or, where nothing can be decoded, encoding) must
 * return. Bytes of a row stand in one string of the program, so nothing here needs memory. */
#ifndef VECTORS_H
#define VECTORS_H

#include <stddef.h>
#include <stdint.h>

#define VECTOR_COUNT(table) (sizeof(table) / sizeof((table)[0]))

enum vector_op { VECTOR_BOTH, VECTOR_DECODE, VECTOR_ENCODE };

typedef struct vector_bytes {
    const uint8_t *data;
    uint32_t len;
} vector_bytes;

typedef struct vector_crc16 {
    const char *id;
    vector_bytes input;
    uint16_t crc;
} vector_crc16;

typedef struct vector_crc32c {
    const char *id;
    vector_bytes input;
    uint32_t crc;
} vector_crc32c;

/* Full header, compact header and whole frame: input is what was encoded, frame what is decoded. */
typedef struct vector_frame {
    const char *id;
    enum vector_op op;
    int code;
    vector_bytes bytes;
    vector_bytes payload;
    uint32_t payload_len;
    uint8_t type, flags, sequence;
    uint8_t input_flags; /* compact headers lose some */
    uint8_t is_compact;
} vector_frame;

typedef struct vector_discovery {
    const char *id;
    enum vector_op op;
    int code;
    vector_bytes bytes;
    vector_bytes name;
    uint32_t size; /* of the buffer that is encoded into */
    uint16_t flags, port;
    uint8_t type, transports, name_len;
} vector_discovery;

typedef struct vector_capability {
    const char *id;
    enum vector_op op;
    int code;
    vector_bytes bytes;
    uint16_t input[4]; /* max_message, preferred_chunk, pressure, flags */
    uint16_t decoded[4];
} vector_capability;

typedef struct vector_udp {
    const char *id;
    enum vector_op op;
    int code;
    vector_bytes bytes;
    vector_bytes payload;
    uint16_t port;
} vector_udp;

typedef struct vector_fragment_header {
    const char *id;
    enum vector_op op;
    int code;
    vector_bytes bytes;
    uint16_t message_id, total_len, offset;
    uint8_t flags;
} vector_fragment_header;

/* Bytes of a fresh connection, and the frames that the receiving machine hands on, one behind the
 * other, before it waits (PT_OK) or fails. */
typedef struct vector_stream {
    const char *id;
    vector_bytes sent;
    int code;
    uint32_t frame_count;
    uint32_t largest_payload; /* of the frames in it; a build whose limit is lower refuses it */
} vector_stream;

/* Fragments fed in order to a receiver of that capacity: PT_OK for more, 1 for the whole message,
 * or an error. */
typedef struct vector_step {
    int code;
    vector_bytes payload;
    vector_bytes message;
} vector_step;

typedef struct vector_reassembly {
    const char *id;
    const vector_step *steps;
    uint32_t step_count;
    uint16_t capacity;
} vector_reassembly;

typedef struct vector_batch {
    const char *id;
    vector_bytes payload;
    const vector_bytes *messages;
    int count;
} vector_batch;

#endif
