/* What a program for a 68000 needs beside the core when there is no C library and no compiler
 * library for that processor: the start, the end, and arithmetic that it has no instruction for.
 * The system calls are those of Linux, so that an emulator of its programs can run it. */
#include <stdint.h>

int main(void);
void bare_write(const char *text, uint32_t len);
uint32_t __mulsi3(uint32_t a, uint32_t b);
uint32_t __udivsi3(uint32_t a, uint32_t b);
uint32_t __umodsi3(uint32_t a, uint32_t b);
int32_t __divsi3(int32_t a, int32_t b);
int32_t __modsi3(int32_t a, int32_t b);
uint64_t __muldi3(uint64_t a, uint64_t b);
uint64_t __udivdi3(uint64_t a, uint64_t b);
uint64_t __umoddi3(uint64_t a, uint64_t b);
uint64_t __ashldi3(uint64_t a, int count);
uint64_t __lshrdi3(uint64_t a, int count);
int __clzsi2(uint32_t a);
int __ctzdi2(uint64_t a);
int __ctzsi2(uint32_t a);

/* The stack is ours, so that what is used of it can be seen afterwards. */
uint32_t bare_stack[4096];

__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "    lea bare_stack+16384, %sp\n"
        "    jsr main\n"
        "    move.l %d0, %d1\n"
        "    moveq #1, %d0\n"
        "    trap #0\n");

void bare_write(const char *text, uint32_t len)
{
    register uint32_t number __asm__("d0") = 4;
    register uint32_t file __asm__("d1") = 1;
    register const char *from __asm__("d2") = text;
    register uint32_t count __asm__("d3") = len;
    __asm__ volatile("trap #0" : "+d"(number) : "d"(file), "d"(from), "d"(count) : "memory");
}

typedef union wide {
    uint64_t whole;
    struct {
        uint32_t high, low; /* big-endian */
    } half;
} wide;

/* The processor's own multiplication, of 16 bits. Said in C, the compiler may call the function
 * below for it, which would call itself. */
static inline uint32_t multiply(uint32_t a, uint32_t b)
{
    __asm__("mulu.w %1, %0" : "+d"(a) : "d"(b));
    return a;
}

uint32_t __mulsi3(uint32_t a, uint32_t b)
{
    return ((multiply(a >> 16, b) + multiply(a, b >> 16)) << 16) + multiply(a, b);
}

static uint32_t divide(uint32_t a, uint32_t b, uint32_t *rest)
{
    uint32_t quotient = 0, left = 0;
    for (int bit = 0; bit < 32; bit++) {
        left = left << 1 | a >> 31;
        a <<= 1;
        quotient <<= 1;
        if (left >= b) {
            left -= b;
            quotient |= 1;
        }
    }
    *rest = left;
    return quotient;
}

uint32_t __udivsi3(uint32_t a, uint32_t b)
{
    uint32_t rest;
    return divide(a, b, &rest);
}

uint32_t __umodsi3(uint32_t a, uint32_t b)
{
    uint32_t rest;
    divide(a, b, &rest);
    return rest;
}

int32_t __divsi3(int32_t a, int32_t b)
{
    uint32_t quotient =
        __udivsi3(a < 0 ? 0u - (uint32_t)a : (uint32_t)a, b < 0 ? 0u - (uint32_t)b : (uint32_t)b);
    return (int32_t)((a < 0) != (b < 0) ? 0u - quotient : quotient);
}

int32_t __modsi3(int32_t a, int32_t b)
{
    uint32_t rest =
        __umodsi3(a < 0 ? 0u - (uint32_t)a : (uint32_t)a, b < 0 ? 0u - (uint32_t)b : (uint32_t)b);
    return (int32_t)(a < 0 ? 0u - rest : rest);
}

uint64_t __ashldi3(uint64_t a, int count)
{
    wide value = {a}, result;
    if (count == 0)
        return a;
    result.half.high = count < 32 ? value.half.high << count | value.half.low >> (32 - count)
                                  : value.half.low << (count - 32);
    result.half.low = count < 32 ? value.half.low << count : 0;
    return result.whole;
}

uint64_t __lshrdi3(uint64_t a, int count)
{
    wide value = {a}, result;
    if (count == 0)
        return a;
    result.half.low = count < 32 ? value.half.low >> count | value.half.high << (32 - count)
                                 : value.half.high >> (count - 32);
    result.half.high = count < 32 ? value.half.high >> count : 0;
    return result.whole;
}

uint64_t __muldi3(uint64_t a, uint64_t b)
{
    wide left = {a}, right = {b}, result;
    uint32_t a0 = left.half.low & 0xFFFF, a1 = left.half.low >> 16, b0 = right.half.low & 0xFFFF,
             b1 = right.half.low >> 16;
    uint32_t middle = multiply(a0, b1) + (multiply(a0, b0) >> 16),
             other = multiply(a1, b0) + (middle & 0xFFFF);
    result.half.low = (other << 16) + (multiply(a0, b0) & 0xFFFF);
    result.half.high = multiply(a1, b1) + (middle >> 16) + (other >> 16);
    result.half.high +=
        __mulsi3(left.half.high, right.half.low) + __mulsi3(left.half.low, right.half.high);
    return result.whole;
}

static uint64_t divide_wide(uint64_t a, uint64_t b, uint64_t *rest)
{
    wide value = {a}, quotient = {0}, left = {0};
    for (int bit = 0; bit < 64; bit++) {
        left.half.high = left.half.high << 1 | left.half.low >> 31;
        left.half.low = left.half.low << 1 | value.half.high >> 31;
        value.half.high = value.half.high << 1 | value.half.low >> 31;
        value.half.low <<= 1;
        quotient.half.high = quotient.half.high << 1 | quotient.half.low >> 31;
        quotient.half.low <<= 1;
        if (left.whole >= b) {
            left.whole -= b;
            quotient.half.low |= 1;
        }
    }
    *rest = left.whole;
    return quotient.whole;
}

uint64_t __udivdi3(uint64_t a, uint64_t b)
{
    uint64_t rest;
    return divide_wide(a, b, &rest);
}

uint64_t __umoddi3(uint64_t a, uint64_t b)
{
    uint64_t rest;
    divide_wide(a, b, &rest);
    return rest;
}

int __clzsi2(uint32_t a)
{
    int count = 0;
    for (; count < 32 && !(a & 0x80000000u); count++)
        a <<= 1;
    return count;
}

int __ctzsi2(uint32_t a)
{
    int count = 0;
    for (; count < 32 && !(a & 1); count++)
        a >>= 1;
    return count;
}

int __ctzdi2(uint64_t a)
{
    wide value = {a};
    return value.half.low != 0 ? __ctzsi2(value.half.low) : 32 + __ctzsi2(value.half.high);
}
