/* Every way of CRC-32C that this processor has, against the definition. */
#include "pt_crc32c.c"

#define WAYS_VALUE      uint32_t
#define WAYS_POLYNOMIAL 0x82f63b78
#include "ways.h"

/* From register to register, as the ways have it. */
static uint32_t whole(uint32_t crc, const uint8_t *data, size_t len)
{
    return ~pt_crc32c(~crc, data, len);
}

int main(void)
{
    add("table", crc_table);
    add("pt_crc32c", whole);
#if CRC_CRC32
    unsigned has = crc_features();
    if ((has & CRC_HAS_CRC32) != 0)
        add("words", crc_words);
#if CRC_PCLMUL
    if ((has & CRC_HAS_CRC32) != 0 && (has & CRC_HAS_PCLMUL) != 0)
        add("streams", crc_streams);
    if ((has & CRC_HAS_CRC32) != 0 && (has & CRC_HAS_WIDE) != 0)
        add("wide", crc_wide);
#else
    if ((has & CRC_HAS_CRC32) != 0)
        add("streams", crc_streams);
#endif
#endif
    return check_ways() != 0;
}
