/* What the two CRCs share: how their tables are written down, what this processor can, and where
 * the choice of a way is kept. */
#ifndef PT_CRC_INSIDE_H
#define PT_CRC_INSIDE_H

#include "pt_config.h"

#if PT_ATOMICS
#include <stdatomic.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define CRC_PCLMUL 1
#define CRC_CRC32  1
#elif defined(__AARCH64EL__)
#if defined(__ARM_FEATURE_AES) || defined(__ARM_FEATURE_CRYPTO)
#include <arm_neon.h>
#define CRC_PMULL 1
#endif
#if defined(__ARM_FEATURE_CRC32)
#define CRC_CRC32 1
#elif defined(__linux__) && __STDC_HOSTED__
#include <sys/auxv.h>
#define CRC_CRC32 1
#endif
#endif

/* ---- Tables. A row is linear in the bits of its index b, so it is written as its eight basis
 * entries, b = 1, 2, 4 .. 128. The compiler adds them up. */

#define ENTRY(b, p0, p1, p2, p3, p4, p5, p6, p7)                                                   \
    (((b) & 1 ? p0 : 0) ^ ((b) & 2 ? p1 : 0) ^ ((b) & 4 ? p2 : 0) ^ ((b) & 8 ? p3 : 0) ^           \
     ((b) & 16 ? p4 : 0) ^ ((b) & 32 ? p5 : 0) ^ ((b) & 64 ? p6 : 0) ^ ((b) & 128 ? p7 : 0))
#define ENTRIES_4(b, ...)                                                                          \
    ENTRY(b, __VA_ARGS__), ENTRY(b + 1, __VA_ARGS__), ENTRY(b + 2, __VA_ARGS__),                   \
        ENTRY(b + 3, __VA_ARGS__)
#define ENTRIES_16(b, ...)                                                                         \
    ENTRIES_4(b, __VA_ARGS__), ENTRIES_4(b + 4, __VA_ARGS__), ENTRIES_4(b + 8, __VA_ARGS__),       \
        ENTRIES_4(b + 12, __VA_ARGS__)
#define ENTRIES_64(b, ...)                                                                         \
    ENTRIES_16(b, __VA_ARGS__), ENTRIES_16(b + 16, __VA_ARGS__), ENTRIES_16(b + 32, __VA_ARGS__),  \
        ENTRIES_16(b + 48, __VA_ARGS__)
#define ROW(...)                                                                                   \
    {ENTRIES_64(0, __VA_ARGS__), ENTRIES_64(64, __VA_ARGS__), ENTRIES_64(128, __VA_ARGS__),        \
     ENTRIES_64(192, __VA_ARGS__)}

/* ---- Which way: decided at the first call. Every thread that comes first decides alike, so a
 * relaxed store will do. */

#if PT_ATOMICS
#define CRC_CHOICE(way) _Atomic(way *)
#else
#define CRC_CHOICE(way)                            way *
#define atomic_load_explicit(place, order)         (*(place))
#define atomic_store_explicit(place, value, order) ((void)(*(place) = (value)))
#endif

#define CRC_HAS_PCLMUL 1 /* carry-less multiplication of 64 bits, and SSSE3 */
#define CRC_HAS_WIDE   2 /* and the same twice at a time, with AVX2 */
#define CRC_HAS_CRC32  4 /* instructions for CRC-32C; on x86 SSE4.2 */

#if CRC_PCLMUL
/* The system must save the wide registers too (XCR0 bits 1 and 2). */
__attribute__((target("xsave"))) static inline unsigned crc_features(void)
{
    unsigned a, b = 0, c = 0, d, has = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0)
        return 0;
    if ((c & bit_PCLMUL) != 0 && (c & bit_SSSE3) != 0)
        has |= CRC_HAS_PCLMUL;
    if ((c & bit_SSE4_2) != 0)
        has |= CRC_HAS_CRC32;
    if ((has & CRC_HAS_PCLMUL) != 0 && (c & bit_OSXSAVE) != 0 && (c & bit_AVX) != 0 &&
        (_xgetbv(0) & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
        (b & bit_AVX2) != 0 && (c & bit_VPCLMULQDQ) != 0)
        has |= CRC_HAS_WIDE;
    return has;
}

#define WIDE_TARGET __attribute__((target("ssse3,pclmul,avx2,vpclmulqdq")))
#define WIDE_INLINE                                                                                \
    static inline __attribute__((always_inline, target("ssse3,pclmul,avx2,vpclmulqdq")))

WIDE_INLINE __m256i wide_load(const void *data)
{
    return _mm256_loadu_si256((const __m256i *)data);
}
WIDE_INLINE __m256i wide_multiply(__m256i a, __m256i constants)
{
    return _mm256_clmulepi64_epi128(a, constants, 0x00) ^
           _mm256_clmulepi64_epi128(a, constants, 0x11);
}
#elif CRC_CRC32
static inline unsigned crc_features(void)
{
#if defined(__ARM_FEATURE_CRC32)
    return CRC_HAS_CRC32;
#else
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0 ? CRC_HAS_CRC32 : 0;
#endif
}
#endif

#endif
