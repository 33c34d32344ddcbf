/* Every way of computing a CRC that this processor has, against the definition: all lengths to 700
 * and some beyond, any alignment, any start value. Memory is allocated to the byte, for the address
 * sanitizer.
 *
 * Who includes it has included the source of the CRC, so that the ways that were not chosen can be
 * called, and has defined WAYS_VALUE, the type of a CRC, and WAYS_POLYNOMIAL, reflected. */
#ifndef WAYS_H
#define WAYS_H

#include <stdio.h>
#include <stdlib.h>

static uint32_t random_state = 1;

static unsigned draw(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 16;
}

static WAYS_VALUE crc_by_bits(WAYS_VALUE crc, const uint8_t *data, size_t len)
{
    while (len-- > 0) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = (WAYS_VALUE)(crc & 1 ? crc >> 1 ^ WAYS_POLYNOMIAL : crc >> 1);
    }
    return crc;
}

static struct {
    const char *name;
    WAYS_VALUE (*way)(WAYS_VALUE, const uint8_t *, size_t);
    unsigned wrong;
} ways[8];
static unsigned way_count;

static void add(const char *name, WAYS_VALUE (*way)(WAYS_VALUE, const uint8_t *, size_t))
{
    ways[way_count].name = name;
    ways[way_count++].way = way;
}

/* All of them with the same bytes, so that the definition, which is slow, is asked once. */
static void check_one(WAYS_VALUE start, const uint8_t *data, size_t len, size_t offset)
{
    WAYS_VALUE wanted = crc_by_bits(start, data, len);
    for (unsigned i = 0; i < way_count; i++) {
        if (ways[i].way(start, data, len) != wanted) {
            printf("%s: %u bytes at offset %u from 0x%x: wrong\n", ways[i].name, (unsigned)len,
                   (unsigned)offset, (unsigned)start);
            ways[i].wrong++;
        }
    }
}

/* How often one of the ways that were added was wrong. */
static unsigned check_ways(void)
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
            WAYS_VALUE start = (WAYS_VALUE)(round == 0 ? 0 : (uint32_t)draw() << 16 ^ draw());
            check_one(start, memory + offset, len, offset);
            free(memory);
        }
    }
    for (unsigned i = 0; i < way_count; i++) {
        printf("%s: %u wrong\n", ways[i].name, ways[i].wrong);
        wrong += ways[i].wrong;
    }
    return wrong;
}

#endif
