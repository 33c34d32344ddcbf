/* CRC-32C, reflected polynomial 0x82F63B78: tables everywhere, the processor's own instructions
 * where it has some.
 *
 * Theory, beyond that of pt_crc.c. The ways below know the register alone: the CRC, inverted. The
 * register after a message is (register * x^(8 len) + message * x^32) mod P, so what stands in
 * front can be carried over what follows by a product with a constant.
 *
 * An instruction takes 8 bytes at a time, one each cycle, but has its result only after three. So
 * there are three streams, each a third of a block. At the end the registers of the first two are
 * carried over what follows them and added to the last word of the third.
 *
 * With carry-less multiplication of 256 bits a message is folded: four independent lanes are
 * carried over the D bits of one round by x^D mod P, then the lanes over each other, until 32 bytes
 * are left. These 32 bytes are congruent to the message, and go through the instruction.
 *
 * Where bits lie. The product of two reflected words of 64 bits has its x^0 at bit 126, and not at
 * bit 127, where that of a reflected block lies: each constant is a power less. */
#include "pt_crc32c.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_config.h"
#include "pt_crc_inside.h"

/* TABLE[k][b] is byte b followed by k zero bytes; the eight basis entries are the powers
 * x^(8 k + 39) down to x^(8 k + 32), mod P, reflected. */
static const uint32_t TABLE[PT_CRC_SLICES][256] = {
    ROW(0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc,
        0x82f63b78),
#if PT_CRC_SLICES > 1
    ROW(0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604,
        0xfbc3faf9),
    ROW(0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9,
        0x8b277743),
    ROW(0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7,
        0x52a0c93f),
    ROW(0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae,
        0x6ea2d55c),
    ROW(0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb,
        0x1c08b7d6),
    ROW(0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a,
        0xf56e0ef4),
    ROW(0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32,
        0x34019664),
    ROW(0xf43ed648, 0xed91da61, 0xdecfc233, 0xb873f297, 0x750b93df, 0xea1727be, 0xd1c2398d,
        0xa66805eb),
    ROW(0xcb567ba5, 0x934081bb, 0x236d7587, 0x46daeb0e, 0x8db5d61c, 0x1e87dac9, 0x3d0fb592,
        0x7a1f6b24),
    ROW(0x9771f7c1, 0x2b0f9973, 0x561f32e6, 0xac3e65cc, 0x5d90bd69, 0xbb217ad2, 0x73ae8355,
        0xe75d06aa),
    ROW(0x3171d430, 0x62e3a860, 0xc5c750c0, 0x8e62d771, 0x1929d813, 0x3253b026, 0x64a7604c,
        0xc94ec098),
    ROW(0x30d23865, 0x61a470ca, 0xc348e194, 0x837db5d9, 0x03171d43, 0x062e3a86, 0x0c5c750c,
        0x18b8ea18),
    ROW(0x54075546, 0xa80eaa8c, 0x55f123e9, 0xabe247d2, 0x5228f955, 0xa451f2aa, 0x4d4f93a5,
        0x9a9f274a),
    ROW(0x678efd01, 0xcf1dfa02, 0x9bd782f5, 0x3243731b, 0x6486e636, 0xc90dcc6c, 0x97f7ee29,
        0x2a03aaa3),
    ROW(0xf20c0dfe, 0xe1f46d0d, 0xc604aceb, 0x89e52f27, 0x162628bf, 0x2c4c517e, 0x5898a2fc,
        0xb13145f8),
#endif
};

static uint32_t crc_table(uint32_t crc, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    for (size_t odd = PT_CRC_SLICES > 1 ? len % 16 : len; odd > 0; odd--)
        crc = crc >> 8 ^ TABLE[0][(crc ^ *data++) & 0xFF];

#if PT_CRC_SLICES > 1
    for (size_t left = len / 16; left > 0; left--, data += 16) {
        uint32_t next = TABLE[15][(crc ^ data[0]) & 0xFF] ^ TABLE[14][(crc >> 8 ^ data[1]) & 0xFF] ^
                        TABLE[13][(crc >> 16 ^ data[2]) & 0xFF] ^ TABLE[12][crc >> 24 ^ data[3]];
        for (unsigned i = 4; i < 16; i++)
            next ^= TABLE[15 - i][data[i]];
        crc = next;
    }
#endif
    return crc;
}

#if CRC_CRC32
/* ---- The instruction for 8, 4 and 1 bytes; and a register times a constant: the word that has
 * to be added to the last one before the place that it is carried to. */

#if CRC_PCLMUL
#define CRC_TARGET __attribute__((target("sse4.2,pclmul")))
#define CRC_INLINE static inline __attribute__((always_inline, target("sse4.2,pclmul")))
CRC_INLINE uint64_t step_8(uint64_t crc, uint64_t word)
{
    PT_ASSERT(crc <= UINT32_MAX);
    return _mm_crc32_u64(crc, word);
}
CRC_INLINE uint32_t step_4(uint32_t crc, uint32_t word)
{
    return _mm_crc32_u32(crc, word);
}
CRC_INLINE uint32_t step_1(uint32_t crc, uint8_t byte)
{
    return _mm_crc32_u8(crc, byte);
}
CRC_INLINE uint64_t carry(uint64_t crc, uint32_t power)
{
    PT_ASSERT(crc <= UINT32_MAX);
    __m128i product =
        _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi64_si128(power), 0x00);
    return (uint64_t)_mm_cvtsi128_si64(product);
}
#else
#define CRC_TARGET
#define CRC_INLINE static inline __attribute__((always_inline))
/* Written out, because compilers disagree about the name of the target that has the intrinsics. */
#define STEP(instruction, crc, word)                                                               \
    __asm__(".arch_extension crc\n\t" instruction : "+r"(crc) : "r"(word))
CRC_INLINE uint64_t step_8(uint64_t crc, uint64_t word)
{
    uint32_t next = (uint32_t)crc;
    PT_ASSERT(crc <= UINT32_MAX);
    STEP("crc32cx %w0, %w0, %x1", next, word);
    return next;
}
CRC_INLINE uint32_t step_4(uint32_t crc, uint32_t word)
{
    STEP("crc32cw %w0, %w0, %w1", crc, word);
    return crc;
}
CRC_INLINE uint32_t step_1(uint32_t crc, uint8_t byte)
{
    STEP("crc32cb %w0, %w0, %w1", crc, byte);
    return crc;
}
/* Not every processor that has the instructions can multiply without carry. */
CRC_INLINE uint64_t carry(uint64_t crc, uint32_t power)
{
    uint64_t product = 0;
    PT_ASSERT(crc <= UINT32_MAX);
    for (unsigned bit = 0; bit < 32; bit++)
        product ^= (uint64_t)power << bit & (0 - (crc >> bit & 1));
    return product;
}
#endif

CRC_INLINE uint64_t word_at(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, 8);
    return word;
}

/* One stream, for what is short or left over. */
CRC_TARGET static uint32_t crc_words(uint32_t start, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    uint64_t wide = start;
    for (size_t left = len / 8; left > 0; left--, data += 8)
        wide = step_8(wide, word_at(data));
    PT_ASSERT(wide <= UINT32_MAX);
    uint32_t crc = (uint32_t)wide;
    if ((len & 4) != 0) {
        uint32_t word;
        memcpy(&word, data, 4);
        crc = step_4(crc, word);
        data += 4;
    }
    for (size_t left = len % 4; left > 0; left--)
        crc = step_1(crc, *data++);
    return crc;
}

/* Bytes of a stream, in a block of three; and what carries a register over two streams and over
 * one: x^(16 len - 33) and x^(8 len - 33) mod P. */
#define LONG_STREAM  ((size_t)2048)
#define SHORT_STREAM ((size_t)256)
static const uint32_t LONG_POWERS[2] = {0x82f89c77, 0xa51b6135};
static const uint32_t SHORT_POWERS[2] = {0xdd7e3b0c, 0xb9e02b86};

CRC_INLINE uint32_t crc_block(uint32_t crc, const uint8_t *data, size_t len, const uint32_t *powers)
{
    uint64_t a = crc, b = 0, c = 0;
    const uint8_t *last = data + len - 8;
    PT_ASSERT(powers == LONG_POWERS || powers == SHORT_POWERS);
    PT_ASSERT(len == (powers == LONG_POWERS ? LONG_STREAM : SHORT_STREAM));
    for (; data < last; data += 8) {
        a = step_8(a, word_at(data));
        b = step_8(b, word_at(data + len));
        c = step_8(c, word_at(data + 2 * len));
    }
    a = step_8(a, word_at(data));
    b = step_8(b, word_at(data + len));
    return (uint32_t)step_8(c, word_at(data + 2 * len) ^ carry(a, powers[0]) ^ carry(b, powers[1]));
}

CRC_TARGET static uint32_t crc_streams(uint32_t crc, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    for (; len >= 3 * LONG_STREAM; len -= 3 * LONG_STREAM) {
        crc = crc_block(crc, data, LONG_STREAM, LONG_POWERS);
        data += 3 * LONG_STREAM;
    }
    for (; len >= 3 * SHORT_STREAM; len -= 3 * SHORT_STREAM) {
        crc = crc_block(crc, data, SHORT_STREAM, SHORT_POWERS);
        data += 3 * SHORT_STREAM;
    }
    PT_ASSERT(len < 3 * SHORT_STREAM);
    return crc_words(crc, data, len);
}
#endif

#if CRC_PCLMUL
/* Carry a block of 16 bytes over 32 and 128 bytes: x^(D + 63) and x^(D - 1) mod P in bits 32 .. 63.
 */
static const uint64_t FOLD_32[2] = {0x33ccbbbc00000000, 0xa2158b3400000000};
static const uint64_t FOLD_128[2] = {0x6577b24500000000, 0x7417153f00000000};

WIDE_TARGET static uint32_t crc_wide(uint32_t crc, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    if (len < 128) /* the instruction is as quick */
        return crc_words(crc, data, len);

    const __m256i over_32 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)FOLD_32)),
                  over_128 =
                      _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)FOLD_128));
    __m256i a = wide_load(data) ^ _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)crc)),
            b = wide_load(data + 32), c = wide_load(data + 64), d = wide_load(data + 96);
    for (len -= 128, data += 128; len >= 128; len -= 128, data += 128) {
        a = wide_multiply(a, over_128) ^ wide_load(data);
        b = wide_multiply(b, over_128) ^ wide_load(data + 32);
        c = wide_multiply(c, over_128) ^ wide_load(data + 64);
        d = wide_multiply(d, over_128) ^ wide_load(data + 96);
    }
    a = wide_multiply(a, over_32) ^ b;
    a = wide_multiply(a, over_32) ^ c;
    a = wide_multiply(a, over_32) ^ d;
    for (; len >= 32; len -= 32, data += 32)
        a = wide_multiply(a, over_32) ^ wide_load(data);
    PT_ASSERT(len < 32);

    uint64_t words[4];
    _mm256_storeu_si256((__m256i *)words, a);
    crc = crc_words(0, (const uint8_t *)words, sizeof words);
    return crc_words(crc, data, len);
}
#endif

/* ---- Which way. */

#if CRC_CRC32
typedef uint32_t crc_way(uint32_t crc, const uint8_t *data, size_t len);

static uint32_t crc_first(uint32_t crc, const uint8_t *data, size_t len);

static CRC_CHOICE(crc_way) crc_chosen = crc_first;

static crc_way *crc_choose(void)
{
    unsigned has = crc_features();
    if ((has & CRC_HAS_CRC32) == 0)
        return crc_table;
#if CRC_PCLMUL
    if ((has & CRC_HAS_PCLMUL) == 0)
        return crc_words;
    if ((has & CRC_HAS_WIDE) != 0)
        return crc_wide;
#endif
    return crc_streams;
}

static uint32_t crc_first(uint32_t crc, const uint8_t *data, size_t len)
{
    crc_way *way = crc_choose();
    atomic_store_explicit(&crc_chosen, way, memory_order_relaxed);
    PT_ASSERT(way(crc, data, len) == crc_table(crc, data, len));
    return way(crc, data, len);
}

uint32_t pt_crc32c(uint32_t crc, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    return ~atomic_load_explicit(&crc_chosen, memory_order_relaxed)(~crc, data, len);
}
#else
uint32_t pt_crc32c(uint32_t crc, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL || len == 0);
    return ~crc_table(~crc, data, len);
}
#endif
