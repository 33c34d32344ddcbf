/* What bench/timers.py runs: arm and cancel timers of a wheel, with few or many of them armed.
 *
 * usage: timers ROUNDS. Prints one line of JSON; exit status 0, or the process stops.
 */
#define _GNU_SOURCE 1
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "pt_wheel.h"

#define EXPECT(condition) ((condition) ? (void)0 : abort())
#define REACH             600000u /* ticks ahead at most: ten minutes of milliseconds */

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* The next of a sequence that no cache foresees (xorshift). */
static uint32_t next(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

/* ns of one arm and of one cancel, so many timers armed: all are armed and cancelled in turn, in an
 * order by chance, until there were so many rounds. */
static void measure(uint32_t count, long rounds, double *arm_ns, double *cancel_ns)
{
    static pt_wheel wheel;
    pt_timer *timers = calloc(count, sizeof *timers);
    uint32_t *order = calloc(count, sizeof *order);
    uint32_t *deadlines = calloc(count, sizeof *deadlines);
    uint32_t chance = 1;
    long done = 0;
    EXPECT(timers != NULL && order != NULL && deadlines != NULL);
    for (uint32_t index = 0; index < count; index++)
        deadlines[index] = 1 + next(&chance) % REACH;
    for (uint32_t index = 1; index < count; index++) {
        uint32_t other = next(&chance) % (index + 1);
        order[index] = order[other];
        order[other] = index;
    }
    *arm_ns = *cancel_ns = 0;
    pt_wheel_init(&wheel, 0);
    for (; done < rounds; done += count) {
        double start = now_ns();
        for (uint32_t index = 0; index < count; index++)
            pt_wheel_arm(&wheel, &timers[index], deadlines[index]);
        double middle = now_ns();
        EXPECT(wheel.armed_count == count);
        for (uint32_t index = 0; index < count; index++)
            pt_wheel_cancel(&wheel, &timers[order[index]]);
        *arm_ns += middle - start;
        *cancel_ns += now_ns() - middle;
        EXPECT(wheel.armed_count == 0);
    }
    *arm_ns /= (double)done;
    *cancel_ns /= (double)done;
    free(deadlines);
    free(order);
    free(timers);
}

int main(int argc, char **argv)
{
    static const uint32_t counts[] = {10, 1000, 100000, 1000000};
    EXPECT(argc == 2);
    long rounds = strtol(argv[1], NULL, 10);
    EXPECT(rounds > 0);
    for (size_t index = 0; index < sizeof counts / sizeof counts[0]; index++) {
        double arm_ns, cancel_ns;
        measure(counts[index], rounds, &arm_ns, &cancel_ns);
        printf("%s{\"timers\": %u, \"arm_ns\": %.1f, \"cancel_ns\": %.1f}%s", index ? ", " : "[",
               (unsigned)counts[index], arm_ns, cancel_ns,
               index + 1 < sizeof counts / sizeof counts[0] ? "" : "]\n");
    }
    return 0;
}
