/* Every way of computing the CRC that this processor has, against the definition: all lengths to
 * 700 and some beyond, any alignment, any start value. The source is included, so that the ways
 * that were not chosen can be called. Memory is allocated to the byte, for the address sanitizer.
 */
#include "pt_crc.c"

#include <stdio.h>
#include <stdlib.h>

static uint32_t random_state = 1;

static unsigned draw(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 16;
}

static uint16_t crc_by_bits(uint16_t crc, const uint8_t *data, size_t len)
{
    while (len-- > 0) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = (uint16_t)(crc & 1 ? crc >> 1 ^ 0x8408 : crc >> 1);
    }
    return crc;
}

static unsigned check(const char *name, uint16_t (*way)(uint16_t, const uint8_t *, size_t))
{
    unsigned wrong = 0;
    for (size_t len = 0; len < 9000; len += len < 700 ? 1 : 1 + draw() % 97) {
        for (unsigned round = 0; round < 8; round++) {
            size_t offset = draw() % 64;
            uint8_t *memory = malloc(offset + len + (offset + len == 0));
            if (memory == NULL)
                return 1;
            for (size_t i = 0; i < offset + len; i++)
                memory[i] = (uint8_t)draw();
            uint16_t start = (uint16_t)(round == 0 ? 0 : draw());
            if (way(start, memory + offset, len) != crc_by_bits(start, memory + offset, len)) {
                printf("%s: %zu bytes at offset %zu from 0x%04x: wrong\n", name, len, offset,
                       (unsigned)start);
                wrong++;
            }
            free(memory);
        }
    }
    printf("%s: %u wrong\n", name, wrong);
    return wrong;
}

int main(void)
{
    unsigned wrong = check("table", pt_crc16_table) + check("pt_crc16", pt_crc16);
    const char *name = pt_crc16_name();
#if CRC_PCLMUL
    if (strcmp(name, "vpclmul") == 0)
        wrong += check(name, crc_wide);
#endif
#if CRC_PCLMUL || CRC_PMULL
    if (strcmp(name, "table") != 0)
        wrong += check(CRC_NAME, crc_blocks);
#endif
    printf("chosen: %s\n", name);
    return wrong != 0;
}
