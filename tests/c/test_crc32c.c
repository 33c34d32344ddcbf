/* CRC-32C against golden values and its definition. Every way that a processor has is compared in
 * crc32c_ways.c. */
#include "pt_crc32c.h"

#include "check.h"
#include "vectors_crc32c.h"

static uint32_t crc_by_bits(uint32_t crc, const uint8_t *data, size_t len)
{
    crc = ~crc;
    while (len-- > 0) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
    }
    return ~crc;
}

static void golden_values_agree(void)
{
    for (size_t index = 0; index < VECTOR_COUNT(CRC32C_VECTORS); index++) {
        const vector_crc32c *vector = &CRC32C_VECTORS[index];
        check_case = vector->id;
        CHECK_EQUAL(pt_crc32c(0, vector->input.data, vector->input.len), vector->crc);
    }
}

static void no_bytes_keep_the_crc(void)
{
    CHECK_EQUAL(pt_crc32c(0x12345678, NULL, 0), 0x12345678);
}

static void a_message_in_two_parts_has_the_crc_of_the_whole(void)
{
    uint8_t data[300];
    draw_bytes(data, sizeof data);
    uint32_t whole = crc_by_bits(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut++)
        CHECK_EQUAL(pt_crc32c(pt_crc32c(0, data, cut), data + cut, sizeof data - cut), whole);
}

static void neither_length_nor_alignment_nor_start_matters(void)
{
    static uint8_t data[9000 + 16];
    draw_bytes(data, sizeof data);
    for (size_t len = 0; len <= 9000; len += len < 300 ? 1 : 1 + draw(200)) {
        const uint8_t *from = data + draw(16);
        uint32_t start = (uint32_t)draw(65536) << 16 ^ (uint32_t)draw(65536);
        CHECK_EQUAL(pt_crc32c(start, from, len), crc_by_bits(start, from, len));
    }
}

static void damage_of_up_to_three_bits_is_always_seen(void)
{
    uint8_t data[64];
    draw_bytes(data, sizeof data);
    uint32_t whole = pt_crc32c(0, data, sizeof data);
    for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
        size_t others[2] = {draw(8 * sizeof data), draw(8 * sizeof data)};
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        for (int other = 0; other < 2; other++)
            data[others[other] / 8] ^= (uint8_t)(1u << others[other] % 8);
        CHECK(pt_crc32c(0, data, sizeof data) != whole);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        for (int other = 0; other < 2; other++)
            data[others[other] / 8] ^= (uint8_t)(1u << others[other] % 8);
    }
}

int main(void)
{
    RUN(golden_values_agree);
    RUN(no_bytes_keep_the_crc);
    RUN(a_message_in_two_parts_has_the_crc_of_the_whole);
    RUN(neither_length_nor_alignment_nor_start_matters);
    RUN(damage_of_up_to_three_bits_is_always_seen);
    return check_end();
}
