/* A world of pipes: see pt_pipes.c. */
#ifndef PT_PIPES_H
#define PT_PIPES_H

#include "pt_link.h"

/* What a link's handle points to; the caller's. */
typedef struct pt_pipe_pair {
    int in;
    int out;
} pt_pipe_pair;

/* The world: needs no platform data. */
const pt_platform_ops *pt_pipes_ops(void);

#endif
