/* CRC-16 against golden values and its definition. Every way that a processor has is compared in
 * crc_ways.c. */
#include "pt_crc.h"

#include "check.h"
#include "pt_error.h"
#include "vectors_crc16.h"

static uint16_t crc_by_bits(uint16_t crc, const uint8_t *data, size_t len)
{
    while (len-- > 0) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = (uint16_t)(crc & 1 ? crc >> 1 ^ 0x8408 : crc >> 1);
    }
    return crc;
}

static void the_check_value_is_2189(void)
{
    const uint8_t *digits = (const uint8_t *)"123456789";
    CHECK_EQUAL(pt_crc16(0, digits, 9), 0x2189);
    CHECK_EQUAL(pt_crc16_table(0, digits, 9), 0x2189);
}

static void golden_values_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(CRC16_VECTORS); index++) {
        const vector_crc16 *vector = &CRC16_VECTORS[index];
        check_case = vector->id;
        CHECK_EQUAL(pt_crc16(0, vector->input.data, vector->input.len), vector->crc);
        CHECK_EQUAL(pt_crc16_table(0, vector->input.data, vector->input.len), vector->crc);
    }
}

static void no_bytes_keep_the_start(void)
{
    CHECK_EQUAL(pt_crc16(0x1234, NULL, 0), 0x1234);
    CHECK_EQUAL(pt_crc16_table(0xFFFF, NULL, 0), 0xFFFF);
}

static void a_message_in_two_parts_has_the_crc_of_the_whole(void)
{
    uint8_t data[70];
    draw_bytes(data, sizeof data);
    uint16_t whole = crc_by_bits(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut++) {
        CHECK_EQUAL(pt_crc16(pt_crc16(0, data, cut), data + cut, sizeof data - cut), whole);
        CHECK_EQUAL(pt_crc16_table(pt_crc16_table(0, data, cut), data + cut, sizeof data - cut),
                    whole);
    }
}

static void neither_length_nor_alignment_nor_start_matters(void)
{
    uint8_t data[200 + 16];
    draw_bytes(data, sizeof data);
    for (size_t len = 0; len <= 200; len++) {
        const uint8_t *from = data + draw(16);
        uint16_t start = (uint16_t)draw(65536);
        uint16_t expected = crc_by_bits(start, from, len);
        CHECK_EQUAL(pt_crc16(start, from, len), expected);
        CHECK_EQUAL(pt_crc16_table(start, from, len), expected);
    }
}

static void a_word_is_its_four_bytes_the_highest_first(void)
{
    for (int round = 0; round < 200; round++) {
        uint8_t bytes[4];
        draw_bytes(bytes, sizeof bytes);
        uint16_t start = (uint16_t)draw(65536);
        uint32_t word = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 |
                        (uint32_t)bytes[2] << 8 | bytes[3];
        CHECK_EQUAL(pt_crc16_word(start, word), crc_by_bits(start, bytes, sizeof bytes));
    }
}

static void damage_of_one_bit_is_always_seen(void)
{
    uint8_t data[64];
    draw_bytes(data, sizeof data);
    uint16_t whole = pt_crc16(0, data, sizeof data);
    for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(pt_crc16(0, data, sizeof data) != whole);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void the_way_has_a_name(void)
{
    const char *name = pt_crc16_name();
    CHECK(strcmp(name, "vpclmul") == 0 || strcmp(name, "pclmul") == 0 ||
          strcmp(name, "pmull") == 0 || strcmp(name, "table") == 0);
}

int main(void)
{
    RUN(the_check_value_is_2189);
    RUN(golden_values_agree);
    RUN(no_bytes_keep_the_start);
    RUN(a_message_in_two_parts_has_the_crc_of_the_whole);
    RUN(neither_length_nor_alignment_nor_start_matters);
    RUN(a_word_is_its_four_bytes_the_highest_first);
    RUN(damage_of_one_bit_is_always_seen);
    RUN(the_way_has_a_name);
    return check_end();
}
