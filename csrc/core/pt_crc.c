/* CRC-16, reflected polynomial 0x8408, from 0: tables everywhere, carry-less multiplication where
 * the processor has it.
 *
 * Theory. A message is a polynomial over GF(2), its first bit the highest power; its CRC is message
 * * x^16 mod P, P = x^16 + x^12 + x^5 + 1. "Reflected": bit 0 of a byte is its highest power, so a
 * 64-bit word read little-endian holds x^63 in bit 0 and x^0 in bit 63, and no byte needs to be
 * turned round, only our constants are. A start value is added (XOR) to the first 16 bits.
 *
 * Multiplication is linear, so the CRC is a dot product. With word j counted from the end of the
 * message,
 *
 *     CRC = sum over j of word_j * (x^(64 j + 16) mod P), mod P
 *
 * and no product waits for another. The constants have 16 bits, so the sum has 79, and one Barrett
 * reduction at the end brings it to 16. Words must be whole: leading zeros do not change a CRC that
 * starts from 0, so the odd bytes stand at the front, behind imagined zeros, and there is no tail.
 * A long message would need a constant for each word; it is folded first: four independent lanes
 * are carried over the D bits of one round by x^D mod P, until fewer than BLOCKS blocks of 16 bytes
 * are left.
 *
 * Where bits lie. The product of two words fills bits 0 .. 126. KEYS hold their reflected 16 bits
 * in bits 1 .. 16, which puts x^0 of the product at bit 79: bits 64 .. 79 are then a reflected
 * 16-bit value, and the low word is all that lies above x^15, in place for the reduction. FOLDS
 * hold them in bits 48 .. 63, one power less: x^0 comes to lie at bit 127, where x^0 of a block of
 * 16 bytes lies.
 *
 * Ideas: V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ" (2009);
 * for the tables M. Kounavis, F. Berry, "A Systematic Approach to Building High Performance
 * Software-based CRC Generators" (2005). */
#include "pt_crc.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_config.h"
#include "pt_crc_inside.h"

/* ---- Tables: PT_CRC_SLICES bytes at a time. TABLE[k][b] is byte b followed by k zero bytes; the
 * eight basis entries are the powers x^(8 k + 23) down to x^(8 k + 16), mod P, reflected. */

static const uint16_t TABLE[PT_CRC_SLICES][256] = {
    ROW(0x1189, 0x2312, 0x4624, 0x8c48, 0x1081, 0x2102, 0x4204, 0x8408),
#if PT_CRC_SLICES > 1
    ROW(0x19d8, 0x33b0, 0x6760, 0xcec0, 0x9591, 0x2333, 0x4666, 0x8ccc),
    ROW(0x5adc, 0xb5b8, 0x6361, 0xc6c2, 0x8595, 0x033b, 0x0676, 0x0cec),
    ROW(0x1cbb, 0x3976, 0x72ec, 0xe5d8, 0xc3a1, 0x8f53, 0x16b7, 0x2d6e),
    ROW(0x0b44, 0x1688, 0x2d10, 0x5a20, 0xb440, 0x6091, 0xc122, 0x8a55),
    ROW(0x042b, 0x0856, 0x10ac, 0x2158, 0x42b0, 0x8560, 0x02d1, 0x05a2),
    ROW(0x9fd5, 0x37bb, 0x6f76, 0xdeec, 0xb5c9, 0x6383, 0xc706, 0x861d),
    ROW(0x81bf, 0x0b6f, 0x16de, 0x2dbc, 0x5b78, 0xb6f0, 0x65f1, 0xcbe2),
    ROW(0x4dfd, 0x9bfa, 0x3fe5, 0x7fca, 0xff94, 0xf739, 0xe663, 0xc4d7),
    ROW(0x2c27, 0x584e, 0xb09c, 0x6929, 0xd252, 0xacb5, 0x517b, 0xa2f6),
    ROW(0x5591, 0xab22, 0x5e55, 0xbcaa, 0x7145, 0xe28a, 0xcd05, 0x921b),
    ROW(0x8555, 0x02bb, 0x0576, 0x0aec, 0x15d8, 0x2bb0, 0x5760, 0xaec0),
    ROW(0x05ad, 0x0b5a, 0x16b4, 0x2d68, 0x5ad0, 0xb5a0, 0x6351, 0xc6a2),
    ROW(0x7eea, 0xfdd4, 0xf3b9, 0xef63, 0xd6d7, 0xa5bf, 0x436f, 0x86de),
    ROW(0x482a, 0x9054, 0x28b9, 0x5172, 0xa2e4, 0x4dd9, 0x9bb2, 0x3f75),
    ROW(0x8e10, 0x1431, 0x2862, 0x50c4, 0xa188, 0x4b01, 0x9602, 0x2415),
#endif
};

_Static_assert(PT_CRC_SLICES == 1 || PT_CRC_SLICES == 16,
               "TABLE has a row for each byte taken at a time");

uint16_t pt_crc16_table(uint16_t start, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);

    uint16_t crc = start; /* 16 bits wide, which is what a 68000 is quick with */
    for (size_t odd = PT_CRC_SLICES > 1 ? len % 16 : len; odd > 0; odd--)
        crc = (uint16_t)(crc >> 8 ^ TABLE[0][(uint8_t)(crc ^ *data++)]);

#if PT_CRC_SLICES > 1
    unsigned whole = crc;
    for (size_t left = len / 16; left > 0; left--, data += 16) {
        unsigned next =
            (unsigned)TABLE[15][(whole ^ data[0]) & 0xFF] ^ TABLE[14][(whole >> 8) ^ data[1]];
        for (unsigned i = 2; i < 16; i++)
            next ^= TABLE[15 - i][data[i]];
        whole = next;
    }
    crc = (uint16_t)whole;
#endif
    return crc;
}

uint16_t pt_crc16_word(uint16_t start, uint32_t word)
{
#if PT_CRC_SLICES > 1
    return (uint16_t)(TABLE[3][(start ^ word >> 24) & 0xFF] ^
                      TABLE[2][(start >> 8 ^ word >> 16) & 0xFF] ^ TABLE[1][word >> 8 & 0xFF] ^
                      TABLE[0][word & 0xFF]);
#else
    uint8_t bytes[4] = {(uint8_t)(word >> 24), (uint8_t)(word >> 16), (uint8_t)(word >> 8),
                        (uint8_t)word};
    return pt_crc16_table(start, bytes, sizeof bytes);
#endif
}

#if CRC_PCLMUL || CRC_PMULL
/* ---- A block: 16 bytes, two words; and the two multiplications that a sum of products needs. */

typedef uint64_t block __attribute__((vector_size(16)));

#if CRC_PCLMUL
#define CRC_TARGET __attribute__((target("ssse3,pclmul")))
#define CRC_INLINE static inline __attribute__((always_inline, target("ssse3,pclmul")))
#define CRC_NAME   "pclmul"
CRC_INLINE block load(const void *data)
{
    return (block)_mm_loadu_si128((const __m128i *)data);
}
CRC_INLINE block shuffle(block a, const uint8_t *order)
{
    return (block)_mm_shuffle_epi8((__m128i)a, (__m128i)load(order));
}
CRC_INLINE block multiply_first(block a, block b)
{
    return (block)_mm_clmulepi64_si128((__m128i)a, (__m128i)b, 0x00);
}
CRC_INLINE block multiply_second(block a, block b)
{
    return (block)_mm_clmulepi64_si128((__m128i)a, (__m128i)b, 0x11);
}
#else
#define CRC_TARGET
#define CRC_INLINE static inline __attribute__((always_inline))
#define CRC_NAME   "pmull"
CRC_INLINE block load(const void *data)
{
    return (block)vld1q_u8((const uint8_t *)data);
}
CRC_INLINE block shuffle(block a, const uint8_t *order)
{
    return (block)vqtbl1q_u8((uint8x16_t)a, vld1q_u8(order));
}
CRC_INLINE block multiply_first(block a, block b)
{
    return (block)vmull_p64((poly64_t)a[0], (poly64_t)b[0]);
}
CRC_INLINE block multiply_second(block a, block b)
{
    return (block)vmull_high_p64((poly64x2_t)a, (poly64x2_t)b);
}
#endif

#define BLOCKS 16 /* longest dot product, in blocks of 16 bytes */

/* For the two words of a block with 15, 14 .. 0 blocks behind it: x^(64 j + 16) mod P in bits 1
 * .. 16. The empty comments keep clang-format from joining the rows. */
static const uint64_t KEYS[BLOCKS][2] = {
    {0x19208, 0x126c2}, {0x0b33c, 0x127e2}, {0x1334e, 0x04280}, {0x17904, 0x1959a}, /**/
    {0x156c6, 0x1924c}, {0x0b4c2, 0x1c1f8}, {0x0a1c6, 0x00466}, {0x00a8a, 0x1bed8}, /**/
    {0x160be, 0x1c584}, {0x1ce5e, 0x0b8f2}, {0x1db50, 0x0b072}, {0x00842, 0x19a3c}, /**/
    {0x14ff2, 0x04d7a}, {0x00e3a, 0x07762}, {0x05b44, 0x08e10}, {0x189ae, 0x10810},
};

/* Carry a block over 16, 64 and 128 bytes: x^(D + 63) and x^(D - 1) mod P in bits 48 .. 63. */
static const uint64_t FOLD_16[2] = {0xa95d000000000000, 0x7eea000000000000};
static const uint64_t FOLD_64[2] = {0x9822000000000000, 0x7f90000000000000};
#if CRC_PCLMUL
static const uint64_t FOLD_128[2] = {0x471c000000000000, 0x46d8000000000000};
#endif

/* Barrett: floor(x^79 / P), 64 bits reflected, and P less its x^16, in bits 1 .. 16 like the keys.
 */
static const uint64_t REDUCE_QUOTIENT = 0x859b040b1c581911;
static const uint64_t REDUCE_POLYNOMIAL = 0x10810;

/* Bytes SLIDE[n] .. SLIDE[n + 15] are a shuffle that moves a block up by 16 - n bytes (n <= 16) or
 * down by n - 16. 0x80 makes a zero. */
#define Z8 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80
static const uint8_t SLIDE[48] = {Z8, Z8, 0,  1,  2,  3,  4,  5,  6,  7,
                                  8,  9,  10, 11, 12, 13, 14, 15, Z8, Z8};

CRC_INLINE block multiply(block a, const uint64_t *constants)
{
    return multiply_first(a, load(constants)) ^ multiply_second(a, load(constants));
}

/* The CRC of a sum of products with KEYS. */
CRC_INLINE uint16_t reduce(block sum)
{
    block quotient = multiply_first(sum, (block){REDUCE_QUOTIENT, 0});
    return (uint16_t)(sum ^ multiply_first(quotient,
                                           (block){REDUCE_POLYNOMIAL, 0}))[1]; /* bits 64 .. 79 */
}

/* Fewer than 16 bytes: one block, the bytes at its end. Two loads that may overlap fetch them. */
CRC_INLINE uint16_t crc_short(uint16_t start, const uint8_t *data, size_t len)
{
    uint64_t first = 0, second;
    unsigned beyond = 0; /* the byte of start that a single byte of data does not reach */
    PT_ASSERT(len < 16);
    if (len == 0)
        return start;
    if (len >= 8) {
        memcpy(&first, data, 8);
        memcpy(&second, data + len - 8, 8);
        first = len == 8 ? 0 : (first ^ start) << (8 * (16 - len));
        second ^= (uint64_t)start >> (8 * (len - 8));
    } else {
        if (len >= 4) {
            uint32_t low, high;
            memcpy(&low, data, 4);
            memcpy(&high, data + len - 4, 4);
            second = low | (uint64_t)high << (8 * (len - 4));
        } else {
            second = data[0] | (uint64_t)data[len / 2] << (8 * (len / 2)) |
                     (uint64_t)data[len - 1] << (8 * (len - 1));
            beyond = len == 1 ? start >> 8 : 0;
        }
        second = (second ^ start) << (8 * (8 - len));
    }
    return (uint16_t)(reduce(multiply((block){first, second}, KEYS[BLOCKS - 1])) ^ beyond);
}

/* What must be added to the first whole block: the start value, and the odd bytes in front of it,
 * carried over it. len >= 16. */
CRC_INLINE block crc_front(uint16_t start, const uint8_t *data, size_t odd)
{
    PT_ASSERT(odd < 16);
    block value = {start, 0};
    return odd == 0 ? value
                    : multiply(shuffle(load(data) ^ value, SLIDE + odd), FOLD_16) ^
                          shuffle(value, SLIDE + 16 + odd);
}

/* Lanes have names, and are no array, so that the compiler keeps them in registers. */
CRC_TARGET static uint16_t crc_blocks(uint16_t start, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    if (len < 16)
        return crc_short(start, data, len);

    size_t left = len / 16;
    block front = crc_front(start, data, len % 16), sum;
    const uint64_t (*key)[2];
    data += len % 16;
    if (left < BLOCKS) {
        key = KEYS + BLOCKS - left;
        sum = multiply(load(data) ^ front, *key++);
        data += 16;
    } else {
        block a = load(data) ^ front, b = load(data + 16), c = load(data + 32), d = load(data + 48);
        for (left -= 4, data += 64; left >= 4; left -= 4, data += 64) {
            a = multiply(a, FOLD_64) ^ load(data);
            b = multiply(b, FOLD_64) ^ load(data + 16);
            c = multiply(c, FOLD_64) ^ load(data + 32);
            d = multiply(d, FOLD_64) ^ load(data + 48);
        }
        key = KEYS + BLOCKS - left;
        sum = multiply(a, key[-4]) ^ multiply(b, key[-3]) ^ multiply(c, key[-2]) ^
              multiply(d, key[-1]);
    }
    PT_ASSERT(key > KEYS && key <= KEYS + BLOCKS);
    for (; key < KEYS + BLOCKS; key++, data += 16)
        sum ^= multiply(load(data), *key);
    return reduce(sum);
}
#endif

#if CRC_PCLMUL
/* ---- The same, two blocks at a time. */

WIDE_INLINE __m256i wide_of(block low)
{
    return _mm256_zextsi128_si256((__m128i)low);
}
WIDE_TARGET static uint16_t crc_wide(uint16_t start, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    if (len < 16)
        return crc_short(start, data, len);

    size_t left = len / 16;
    block front = crc_front(start, data, len % 16);
    const uint64_t (*key)[2];
    __m256i sums;
    data += len % 16;
    if (left == 1)
        return reduce(multiply(load(data) ^ front, KEYS[BLOCKS - 1]));
    if (left < BLOCKS) {
        key = KEYS + BLOCKS - left + 2;
        sums = wide_multiply(wide_load(data) ^ wide_of(front), wide_load(key - 2));
        data += 32;
    } else {
        const __m256i fold = _mm256_broadcastsi128_si256((__m128i)load(FOLD_128));
        __m256i a = wide_load(data) ^ wide_of(front), b = wide_load(data + 32),
                c = wide_load(data + 64), d = wide_load(data + 96);
        for (left -= 8, data += 128; left >= 8; left -= 8, data += 128) {
            a = wide_multiply(a, fold) ^ wide_load(data);
            b = wide_multiply(b, fold) ^ wide_load(data + 32);
            c = wide_multiply(c, fold) ^ wide_load(data + 64);
            d = wide_multiply(d, fold) ^ wide_load(data + 96);
        }
        key = KEYS + BLOCKS - left;
        sums = wide_multiply(a, wide_load(key - 8)) ^ wide_multiply(b, wide_load(key - 6)) ^
               wide_multiply(c, wide_load(key - 4)) ^ wide_multiply(d, wide_load(key - 2));
    }
    PT_ASSERT(key > KEYS && key <= KEYS + BLOCKS);
    for (; key < KEYS + BLOCKS - 1; key += 2, data += 32)
        sums ^= wide_multiply(wide_load(data), wide_load(key));
    block sum = (block)_mm256_castsi256_si128(sums) ^ (block)_mm256_extracti128_si256(sums, 1);
    return reduce(key == KEYS + BLOCKS ? sum : sum ^ multiply(load(data), *key));
}
#endif

#if CRC_PCLMUL || CRC_PMULL
/* ---- Which way: decided at the first call. Every thread that comes first decides alike, so a
 * relaxed store will do. */

typedef uint16_t crc_way(uint16_t start, const uint8_t *data, size_t len);

static uint16_t crc_first(uint16_t start, const uint8_t *data, size_t len);

static CRC_CHOICE(crc_way) crc_chosen = crc_first;

static crc_way *crc_choose(void)
{
#if CRC_PCLMUL
    unsigned has = crc_features();
    if ((has & CRC_HAS_PCLMUL) == 0)
        return pt_crc16_table;
    return (has & CRC_HAS_WIDE) != 0 ? crc_wide : crc_blocks;
#else
    return crc_blocks;
#endif
}

static uint16_t crc_first(uint16_t start, const uint8_t *data, size_t len)
{
    crc_way *way = crc_choose();
    atomic_store_explicit(&crc_chosen, way, memory_order_relaxed);
    PT_ASSERT(way(start, data, len) == pt_crc16_table(start, data, len));
    return way(start, data, len);
}

uint16_t pt_crc16(uint16_t start, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    return atomic_load_explicit(&crc_chosen, memory_order_relaxed)(start, data, len);
}

const char *pt_crc16_name(void)
{
    crc_way *way = crc_choose();
    if (way == crc_blocks)
        return CRC_NAME;
    return way == pt_crc16_table ? "table" : "vpclmul";
}
#else
uint16_t pt_crc16(uint16_t start, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    return pt_crc16_table(start, data, len);
}

const char *pt_crc16_name(void)
{
    return "table";
}
#endif
