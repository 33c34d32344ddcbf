/* Every encoding against its golden vectors, both ways; and the laws that hold for all of them: a
 * refusal writes nothing, a decoder reads no byte too many. */
#include "pt_wire.h"

#include "check.h"
#include "vectors_capability.h"
#include "vectors_compact.h"
#include "vectors_discovery.h"
#include "vectors_fragment_header.h"
#include "vectors_frame.h"
#include "vectors_header.h"
#include "vectors_udp.h"

#define CANARY 0xC5

static uint8_t out[PT_FRAME_OVERHEAD + 8192 + 16];

/* The bytes behind what was written, and all of them after a refusal, are as they were. */
static void check_untouched(size_t from)
{
    size_t at = from;
    while (at < sizeof out && out[at] == CANARY)
        at++;
    CHECK_EQUAL(at, sizeof out);
}

static void check_encoded(int result, const vector_bytes *bytes)
{
    if (!CHECK_EQUAL(result, bytes->len))
        return;
    CHECK_BYTES(out, bytes->data, bytes->len);
    check_untouched(bytes->len);
}

/* A copy that ends where the bytes end, so that a sanitizer sees who reads beyond. */
static uint8_t *exact_copy(const vector_bytes *bytes)
{
    uint8_t *copy = malloc(bytes->len + (bytes->len == 0));
    REQUIRE(copy != NULL);
    if (bytes->len > 0)
        memcpy(copy, bytes->data, bytes->len);
    return copy;
}

/* ---- Full headers, frames, compact headers */

typedef int frame_encode(const pt_frame *frame, uint8_t *bytes, size_t size);
typedef int frame_decode(const uint8_t *data, size_t len, pt_frame *frame);

static void check_frame(const vector_frame *vector, frame_encode *encode, frame_decode *decode,
                        int whole)
{
    check_case = vector->id;
    int too_large = whole && (vector->payload_len > PT_FRAME_MAX_PAYLOAD);
    if (vector->op != VECTOR_DECODE) {
        pt_frame frame = {.payload = vector->payload.data,
                          .payload_len = vector->payload_len,
                          .type = vector->type};
        frame.flags = vector->input_flags;
        frame.sequence = vector->sequence;
        memset(out, CANARY, sizeof out);
        if (too_large) {
            CHECK_EQUAL(encode(&frame, out, sizeof out), PT_ERR_MESSAGE_TOO_LARGE);
            check_untouched(0);
        } else {
            CHECK_EQUAL(encode(&frame, out, vector->bytes.len - 1), PT_ERR_BUFFER_FULL);
            check_untouched(0);
            check_encoded(encode(&frame, out, vector->bytes.len), &vector->bytes);
        }
    }
    pt_frame frame;
    memset(&frame, CANARY, sizeof frame);
    uint8_t *bytes = exact_copy(&vector->bytes);
    int result = decode(bytes, vector->bytes.len, &frame);
    if (too_large) {
        CHECK_EQUAL(result, PT_ERR_MESSAGE_TOO_LARGE);
    } else if (vector->code != PT_OK) {
        CHECK_EQUAL(result, vector->code);
        CHECK_EQUAL(frame.type, CANARY);
    } else if (CHECK(result > 0)) {
        CHECK_EQUAL(frame.type, vector->type);
        CHECK_EQUAL(frame.flags, vector->flags);
        CHECK_EQUAL(frame.sequence, vector->sequence);
        CHECK_EQUAL(frame.payload_len, vector->payload_len);
        if (whole)
            CHECK_BYTES(frame.payload, vector->payload.data, vector->payload_len);
        else
            CHECK(frame.payload == NULL);
    }
    free(bytes);
}

static void full_headers_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(HEADER_VECTORS); index++)
        check_frame(&HEADER_VECTORS[index], pt_header_encode, pt_header_decode, 0);
}

static void whole_frames_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(FRAME_VECTORS); index++)
        check_frame(&FRAME_VECTORS[index], pt_frame_encode, pt_frame_decode, 1);
}

static void compact_headers_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(COMPACT_VECTORS); index++) {
        const vector_frame *vector = &COMPACT_VECTORS[index];
        check_frame(vector, pt_compact_encode, pt_compact_decode, 0);
        CHECK_EQUAL(pt_is_compact(vector->bytes.data, vector->bytes.len), vector->is_compact);
    }
}

static void fields_that_do_not_fit_are_refused(void)
{
    memset(out, CANARY, sizeof out);
    for (unsigned type = 0; type < 256; type++) {
        pt_frame frame = {.type = (uint8_t)type};
        int expected = type >= PT_FRAME_DATA && type <= PT_FRAME_CAPABILITY ? PT_ERR_BUFFER_FULL
                                                                            : PT_ERR_INVALID_PARAM;
        CHECK_EQUAL(pt_header_encode(&frame, out, 0), expected);
        CHECK_EQUAL(pt_compact_encode(&frame, out, 0), expected);
        CHECK_EQUAL(pt_frame_encode(&frame, out, 0), expected);
    }
    pt_frame frame = {.type = PT_FRAME_DATA, .payload_len = 65536};
    CHECK_EQUAL(pt_header_encode(&frame, out, sizeof out), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_compact_encode(&frame, out, sizeof out), PT_ERR_INVALID_PARAM);
    check_untouched(0);
}

static void the_largest_frame_comes_back_and_one_byte_more_is_refused(void)
{
    uint8_t *payload = malloc(PT_FRAME_MAX_PAYLOAD + 1);
    REQUIRE(payload != NULL);
    draw_bytes(payload, PT_FRAME_MAX_PAYLOAD + 1);
    pt_frame frame = {.payload = payload,
                      .payload_len = PT_FRAME_MAX_PAYLOAD,
                      .type = PT_FRAME_DATA,
                      .sequence = 255},
             back;
    CHECK_EQUAL(pt_frame_encode(&frame, out, sizeof out), PT_FRAME_MAX_PAYLOAD + PT_FRAME_OVERHEAD);
    if (CHECK_EQUAL(pt_frame_decode(out, PT_FRAME_MAX_PAYLOAD + PT_FRAME_OVERHEAD, &back),
                    PT_FRAME_MAX_PAYLOAD + PT_FRAME_OVERHEAD))
        CHECK_BYTES(back.payload, payload, PT_FRAME_MAX_PAYLOAD);
    CHECK_EQUAL(pt_frame_decode(out, PT_FRAME_MAX_PAYLOAD + PT_FRAME_OVERHEAD - 1, &back),
                PT_ERR_TRUNCATED);

    frame.payload_len++;
    CHECK_EQUAL(pt_frame_encode(&frame, out, sizeof out), PT_ERR_MESSAGE_TOO_LARGE);
    CHECK_EQUAL(pt_header_encode(&frame, out, sizeof out), PT_HEADER_SIZE);
    CHECK_EQUAL(pt_frame_decode(out, sizeof out, &back), PT_ERR_MESSAGE_TOO_LARGE);
    free(payload);
}

static void damage_of_one_bit_never_gives_another_frame(void)
{
    uint8_t whole[PT_FRAME_OVERHEAD + 40];
    uint8_t payload[40];
    draw_bytes(payload, sizeof payload);
    pt_frame frame = {.payload = payload,
                      .payload_len = sizeof payload,
                      .type = PT_FRAME_DATA,
                      .flags = 0x10,
                      .sequence = 7},
             back;
    CHECK_EQUAL(pt_frame_encode(&frame, whole, sizeof whole), sizeof whole);
    for (size_t bit = 0; bit < 8 * sizeof whole; bit++) {
        whole[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(pt_frame_decode(whole, sizeof whole, &back) < 0);
        whole[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* ---- Discovery, capability, datagram, fragment */

static void discovery_packets_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(DISCOVERY_VECTORS); index++) {
        const vector_discovery *vector = &DISCOVERY_VECTORS[index];
        check_case = vector->id;
        pt_discovery packet;
        memset(&packet, 0, sizeof packet);
        packet.flags = vector->flags;
        packet.port = vector->port;
        packet.type = vector->type;
        packet.transports = vector->transports;
        packet.name_len = vector->name_len;
        if (vector->name.len > 0)
            memcpy(packet.name, vector->name.data, vector->name.len);
        memset(out, CANARY, sizeof out);
        if (vector->op == VECTOR_ENCODE) {
            CHECK_EQUAL(pt_discovery_encode(&packet, out, vector->size), vector->code);
            check_untouched(0);
            continue;
        }
        if (vector->op == VECTOR_BOTH) {
            CHECK_EQUAL(pt_discovery_encode(&packet, out, vector->bytes.len - 1),
                        PT_ERR_BUFFER_FULL);
            check_untouched(0);
            check_encoded(pt_discovery_encode(&packet, out, vector->bytes.len), &vector->bytes);
        }
        uint8_t *bytes = exact_copy(&vector->bytes);
        memset(&packet, CANARY, sizeof packet);
        int result = pt_discovery_decode(bytes, vector->bytes.len, &packet);
        if (vector->code != PT_OK) {
            CHECK_EQUAL(result, vector->code);
            CHECK_EQUAL(packet.type, CANARY);
        } else {
            CHECK_EQUAL(result, PT_DISCOVERY_MIN_SIZE + vector->name.len);
            CHECK_EQUAL(packet.flags, vector->flags);
            CHECK_EQUAL(packet.port, vector->port);
            CHECK_EQUAL(packet.type, vector->type);
            CHECK_EQUAL(packet.transports, vector->transports);
            if (CHECK_EQUAL(packet.name_len, vector->name.len))
                CHECK_BYTES(packet.name, vector->name.data, vector->name.len);
        }
        free(bytes);
    }
}

static void capabilities_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(CAPABILITY_VECTORS); index++) {
        const vector_capability *vector = &CAPABILITY_VECTORS[index];
        check_case = vector->id;
        pt_capability capability;
        memset(&capability, 0, sizeof capability);
        if (vector->op != VECTOR_DECODE) {
            capability.max_message = vector->input[0];
            capability.preferred_chunk = vector->input[1];
            capability.pressure = (uint8_t)vector->input[2];
            capability.flags = vector->input[3];
            memset(out, CANARY, sizeof out);
            CHECK_EQUAL(pt_capability_encode(&capability, out, PT_CAPABILITY_SIZE - 1),
                        PT_ERR_BUFFER_FULL);
            check_untouched(0);
            check_encoded(pt_capability_encode(&capability, out, PT_CAPABILITY_SIZE),
                          &vector->bytes);
        }
        uint8_t *bytes = exact_copy(&vector->bytes);
        capability.pressure = CANARY;
        int result = pt_capability_decode(bytes, vector->bytes.len, &capability);
        if (vector->code != PT_OK) {
            CHECK_EQUAL(result, vector->code);
            CHECK_EQUAL(capability.pressure, CANARY);
        } else {
            CHECK_EQUAL(result, vector->bytes.len);
            CHECK_EQUAL(capability.max_message, vector->decoded[0]);
            CHECK_EQUAL(capability.preferred_chunk, vector->decoded[1]);
            CHECK_EQUAL(capability.pressure, vector->decoded[2]);
            CHECK_EQUAL(capability.flags, vector->decoded[3]);
        }
        free(bytes);
    }
}

static void datagrams_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(UDP_VECTORS); index++) {
        const vector_udp *vector = &UDP_VECTORS[index];
        check_case = vector->id;
        pt_datagram datagram = {.payload = vector->payload.data,
                                .payload_len = (uint16_t)vector->payload.len,
                                .port = vector->port};
        if (vector->op != VECTOR_DECODE) {
            memset(out, CANARY, sizeof out);
            CHECK_EQUAL(pt_datagram_encode(&datagram, out, vector->bytes.len - 1),
                        PT_ERR_BUFFER_FULL);
            check_untouched(0);
            check_encoded(pt_datagram_encode(&datagram, out, vector->bytes.len), &vector->bytes);
        }
        uint8_t *bytes = exact_copy(&vector->bytes);
        memset(&datagram, CANARY, sizeof datagram);
        int result = pt_datagram_decode(bytes, vector->bytes.len, &datagram);
        if (vector->code != PT_OK) {
            CHECK_EQUAL(result, vector->code);
            CHECK_EQUAL(datagram.port, CANARY << 8 | CANARY);
        } else {
            CHECK_EQUAL(result, PT_DATAGRAM_HEADER_SIZE + vector->payload.len);
            CHECK_EQUAL(datagram.port, vector->port);
            if (CHECK_EQUAL(datagram.payload_len, vector->payload.len))
                CHECK_BYTES(datagram.payload, vector->payload.data, vector->payload.len);
        }
        free(bytes);
    }
}

static void a_datagram_carries_1392_bytes_and_no_more(void)
{
    static uint8_t payload[PT_DATAGRAM_MAX_PAYLOAD + 1];
    pt_datagram datagram = {.payload = payload, .payload_len = PT_DATAGRAM_MAX_PAYLOAD};
    CHECK_EQUAL(pt_datagram_encode(&datagram, out, sizeof out),
                PT_DATAGRAM_HEADER_SIZE + PT_DATAGRAM_MAX_PAYLOAD);
    datagram.payload_len++;
    CHECK_EQUAL(pt_datagram_encode(&datagram, out, sizeof out), PT_ERR_MESSAGE_TOO_LARGE);
}

static void fragment_headers_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(FRAGMENT_HEADER_VECTORS); index++) {
        const vector_fragment_header *vector = &FRAGMENT_HEADER_VECTORS[index];
        check_case = vector->id;
        pt_fragment fragment = {.message_id = vector->message_id,
                                .total_len = vector->total_len,
                                .offset = vector->offset,
                                .flags = vector->flags};
        if (vector->op != VECTOR_DECODE) {
            memset(out, CANARY, sizeof out);
            CHECK_EQUAL(pt_fragment_encode(&fragment, out, PT_FRAGMENT_HEADER_SIZE - 1),
                        PT_ERR_BUFFER_FULL);
            check_untouched(0);
            check_encoded(pt_fragment_encode(&fragment, out, PT_FRAGMENT_HEADER_SIZE),
                          &vector->bytes);
        }
        uint8_t *bytes = exact_copy(&vector->bytes);
        memset(&fragment, CANARY, sizeof fragment);
        int result = pt_fragment_decode(bytes, vector->bytes.len, &fragment);
        if (vector->code != PT_OK) {
            CHECK_EQUAL(result, vector->code);
            CHECK_EQUAL(fragment.flags, CANARY);
        } else {
            CHECK_EQUAL(result, PT_FRAGMENT_HEADER_SIZE);
            CHECK_EQUAL(fragment.message_id, vector->message_id);
            CHECK_EQUAL(fragment.total_len, vector->total_len);
            CHECK_EQUAL(fragment.offset, vector->offset);
            CHECK_EQUAL(fragment.flags, vector->flags);
        }
        free(bytes);
    }
}

/* ---- All decoders */

static void no_decoder_reads_beyond_what_it_was_given(void)
{
    static const char *const starts[] = {"PTMG\1\1", "PTLK\1\1", "PTUD", "P\x10", "\1\2\2\2", ""};
    for (unsigned round = 0; round < 2000; round++) {
        vector_bytes bytes = {NULL, 0};
        uint8_t noise[64];
        const char *start = starts[draw(6)];
        draw_bytes(noise, sizeof noise);
        memcpy(noise, start, strlen(start));
        bytes.data = noise;
        bytes.len = draw(sizeof noise + 1);
        uint8_t *copy = exact_copy(&bytes); /* a sanitizer watches its end */
        pt_frame frame;
        pt_discovery packet;
        pt_capability capability;
        pt_datagram datagram;
        pt_fragment fragment;
        CHECK(pt_header_decode(copy, bytes.len, &frame) <= (int)bytes.len);
        CHECK(pt_frame_decode(copy, bytes.len, &frame) <= (int)bytes.len);
        CHECK(pt_compact_decode(copy, bytes.len, &frame) <= (int)bytes.len);
        CHECK(pt_discovery_decode(copy, bytes.len, &packet) <= (int)bytes.len);
        CHECK(pt_capability_decode(copy, bytes.len, &capability) <= (int)bytes.len);
        CHECK(pt_datagram_decode(copy, bytes.len, &datagram) <= (int)bytes.len);
        CHECK(pt_fragment_decode(copy, bytes.len, &fragment) <= (int)bytes.len);
        pt_is_compact(copy, bytes.len);
        free(copy);
    }
}

static void every_code_has_a_name_and_a_text(void)
{
    CHECK(strcmp(pt_error_name(PT_OK), "PT_OK") == 0);
    CHECK(strcmp(pt_error_name(PT_ERR_CRC), "PT_ERR_CRC") == 0);
    CHECK(strcmp(pt_error_name(-1000), "PT_ERR_UNKNOWN") == 0);
    CHECK(strcmp(pt_strerror(-1000), "unknown error") == 0);
    for (int code = PT_ERR_CANCELLED; code <= PT_OK; code++) {
        CHECK(strcmp(pt_error_name(code), "PT_ERR_UNKNOWN") != 0);
        CHECK(strcmp(pt_strerror(code), "unknown error") != 0);
    }
}

int main(void)
{
    RUN(full_headers_agree);
    RUN(whole_frames_agree);
    RUN(compact_headers_agree);
    RUN(fields_that_do_not_fit_are_refused);
    RUN(the_largest_frame_comes_back_and_one_byte_more_is_refused);
    RUN(damage_of_one_bit_never_gives_another_frame);
    RUN(discovery_packets_agree);
    RUN(capabilities_agree);
    RUN(datagrams_agree);
    RUN(a_datagram_carries_1392_bytes_and_no_more);
    RUN(fragment_headers_agree);
    RUN(no_decoder_reads_beyond_what_it_was_given);
    RUN(every_code_has_a_name_and_a_text);
    return check_end();
}
