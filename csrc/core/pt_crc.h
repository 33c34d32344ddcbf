/* CRC-16 as the original computes it: polynomial 0x1021 reflected (0x8408), initial value 0, no
 * final XOR ("KERMIT"). CRC of "123456789" is 0x2189. On the wire it stands high byte first. */
#ifndef PT_CRC_H
#define PT_CRC_H

#include <stddef.h>
#include <stdint.h>

/* The CRC of len bytes at data, continued from start (0 for a new one, else the CRC of the bytes
 * before). data may be NULL when len is 0. Picks the fastest way that this processor has, once;
 * thread-safe. */
uint16_t pt_crc16(uint16_t start, const uint8_t *data, size_t len);

/* Name of the way that pt_crc16() uses here: "vpclmul", "pclmul", "pmull" or "table". Static
 * memory. */
const char *pt_crc16_name(void);

/* The portable way (tables), whatever the processor: the yardstick of the tests. Same arguments and
 * result as pt_crc16(). */
uint16_t pt_crc16_table(uint16_t start, const uint8_t *data, size_t len);

/* The same of four bytes, the highest of word first: for numbers that are not in memory yet. */
uint16_t pt_crc16_word(uint16_t start, uint32_t word);

#endif
