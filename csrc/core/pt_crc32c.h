/* CRC-32C (Castagnoli): polynomial 0x1EDC6F41 reflected (0x82F63B78), initial value and final XOR
 * 0xFFFFFFFF. CRC of "123456789" is 0xE3069283. It stands in the header of wide frames. */
#ifndef PT_CRC32C_H
#define PT_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The CRC of len bytes at data, continued from crc (0 for a new one, else the CRC of the bytes
 * before). data may be NULL when len is 0. Picks the fastest way that this processor has, once;
 * thread-safe. */
uint32_t pt_crc32c(uint32_t crc, const uint8_t *data, size_t len);

#endif
