/* Every way of CRC-16 that this processor has, against the definition. */
#include "pt_crc.c"

#define WAYS_VALUE      uint16_t
#define WAYS_POLYNOMIAL 0x8408
#include "ways.h"

int main(void)
{
    const char *name = pt_crc16_name();
    add("table", pt_crc16_table);
    add("pt_crc16", pt_crc16);
#if CRC_PCLMUL
    if (strcmp(name, "vpclmul") == 0)
        add(name, crc_wide);
#endif
#if CRC_PCLMUL || CRC_PMULL
    if (strcmp(name, "table") != 0)
        add(CRC_NAME, crc_blocks);
#endif
    printf("chosen: %s\n", name);
    return check_ways() != 0;
}
