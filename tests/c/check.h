/* What a C test needs: conditions that say where and what when they do not hold, and one line at
 * the end. Plain C11, any processor, any system.
 *
 * A program is a file of tests, each a function whose name is a sentence that could be false, and a
 * main of RUN lines that returns check_end(). */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *check_test = ""; /* the test that runs now */
static const char *check_case = ""; /* the case of a table that it is at, if any */
static unsigned check_tests, check_conditions, check_failures;

static inline int check_condition(int holds, const char *text, const char *file, int line)
{
    check_conditions++;
    if (!holds) {
        check_failures++;
        printf("%s:%d: %s%s%s: %s\n", file, line, check_test, *check_case ? ", " : "", check_case,
               text);
        fflush(stdout);
    }
    return holds;
}

static inline int check_numbers(long long actual, long long expected, const char *text,
                                const char *file, int line)
{
    if (check_condition(actual == expected, text, file, line))
        return 1;
    printf("    is %lld, must be %lld\n", actual, expected);
    return 0;
}

static inline int check_memory(const uint8_t *actual, const uint8_t *expected, size_t len,
                               const char *text, const char *file, int line)
{
    size_t at = 0;
    while (at < len && actual[at] == expected[at])
        at++;
    if (check_condition(at == len, text, file, line))
        return 1;
    printf("    byte %u of %u is %02x, must be %02x\n", (unsigned)at, (unsigned)len, actual[at],
           expected[at]);
    return 0;
}

/* Each counts, tells when it does not hold, and is 1 or 0. The test goes on. */
#define CHECK(condition) check_condition((condition) != 0, #condition, __FILE__, __LINE__)
#define FAIL(text)       check_condition(0, text, __FILE__, __LINE__)
#define CHECK_EQUAL(actual, expected)                                                              \
    check_numbers((long long)(actual), (long long)(expected), #actual " == " #expected, __FILE__,  \
                  __LINE__)
#define CHECK_BYTES(actual, expected, len)                                                         \
    check_memory(actual, expected, len, #actual " holds the bytes of " #expected, __FILE__,        \
                 __LINE__)

/* Without this there is no sense in going on. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!CHECK(condition)) {                                                                   \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

#define RUN(test)                                                                                  \
    do {                                                                                           \
        check_test = #test;                                                                        \
        check_case = "";                                                                           \
        check_tests++;                                                                             \
        test();                                                                                    \
    } while (0)

/* The last line of the output and the exit status of the program. */
static inline int check_end(void)
{
    printf("%u tests, %u conditions, %u failed\n", check_tests, check_conditions, check_failures);
    return check_failures != 0;
}

/* Numbers that look random and are the same everywhere. */
static uint32_t check_seed = 1;

static inline uint32_t draw(uint32_t bound)
{
    check_seed = check_seed * 1664525u + 1013904223u;
    return (check_seed >> 8) % bound;
}

static inline void draw_bytes(uint8_t *out, size_t len)
{
    for (size_t at = 0; at < len; at++)
        out[at] = (uint8_t)draw(256);
}

#endif
