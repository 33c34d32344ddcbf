/* Each state of a next-state table with each of its steps, tried on the noun itself. Include behind
 * check.h and memory.h.
 *
 * A row of letters for each state says what becomes of the steps, in their order:
 *   a digit   the state that follows, by this step alone
 *   a letter  likewise (a: state 0), but what was asked for takes other steps of the table too
 *   -         nothing: the table has no such arrow, and the state stays
 *   !         a mistake, which assertions stop */
#ifndef PAIRS_H
#define PAIRS_H

#include "pt_assert.h"

#if PT_ASSERTIONS && (defined(__unix__) || defined(__APPLE__))
#include <sys/wait.h>
#include <unistd.h>
#define PAIRS_CAN_STOP 1
#else
#define PAIRS_CAN_STOP 0
#endif

typedef struct machine {
    uint8_t (*next)(uint8_t state, uint8_t step);
    void (*enter)(uint8_t state);             /* a new one, in that state */
    int (*take)(uint8_t state, uint8_t step); /* ask for the step: the state in which it is then */
    void (*leave)(void);
    const char *rows[7]; /* NULL behind the last */
} machine;

/* 1 when an assertion stops a child that asks for the step. */
static inline int stops(const machine *one, uint8_t state, uint8_t step)
{
#if PAIRS_CAN_STOP
    int status = 0;
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        (void)one->take(state, step);
        _exit(0);
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status);
#else
    (void)one, (void)state, (void)step;
    return 1; /* there are no processes here, or no assertions */
#endif
}

static inline void check_pairs(const machine *one)
{
    for (uint8_t state = 0; one->rows[state] != NULL; state++) {
        for (uint8_t step = 0; one->rows[state][step] != 0; step++) {
            const char pair[] = {(char)('0' + state), '/', (char)('0' + step), 0};
            const char letter = one->rows[state][step];
            const int is_arrow = letter >= '0' && letter <= '9';
            check_case = pair;
            CHECK_EQUAL(one->next(state, step), is_arrow ? letter - '0' : PT_NOWHERE);
            one->enter(state);
            if (letter == '!')
                CHECK(stops(one, state, step));
            else
                CHECK_EQUAL(one->take(state, step), is_arrow        ? letter - '0'
                                                    : letter == '-' ? state
                                                                    : letter - 'a');
            one->leave();
        }
    }
    check_case = "";
}

#endif
