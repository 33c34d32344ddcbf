/* The parties socket and socket-unix of bench/parties.py: messages from one process to another by
 * plain sockets.
 *
 * usage: socketcopy send|receive SIZE COUNT PERIOD PORT|PATH
 *
 * A message has SIZE bytes, 4 or more, and begins with its number modulo PERIOD; one of more than
 * 256 bytes ends with that number too. A length of 4 bytes stands before each message. Numbers and
 * lengths have the byte order of this machine. PORT is of TCP on loopback, and 0 for the receiver:
 * any; PATH begins with a slash and is of AF_UNIX.
 *
 * Each side prints JSON as the sides in Python do. Exit status 0, or the process stops: a wrong
 * message is not measured.
 */
#define _GNU_SOURCE 1
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EXPECT(condition) ((condition) ? (void)0 : abort())
#define WRITE             ((size_t)1 << 20) /* bytes of one write: beyond it nothing is gained */
#define SEND_BUFFER       (4 << 20)
#define IN_FULL           256 /* bytes up to which a message is compared as a whole */

typedef union {
    struct sockaddr any;
    struct sockaddr_in inet;
    struct sockaddr_un local;
} place;

static size_t size, frame; /* bytes of a message, and of a message with its length */
static size_t count, period;

static double now_s(clockid_t clock)
{
    struct timespec now;
    EXPECT(clock_gettime(clock, &now) == 0);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Where both sides meet; the length of the address. */
static socklen_t find(const char *name, place *there)
{
    memset(there, 0, sizeof *there);
    if (*name == '/') {
        EXPECT(strlen(name) < sizeof there->local.sun_path);
        there->local.sun_family = AF_UNIX;
        strcpy(there->local.sun_path, name);
        return sizeof there->local;
    }
    there->inet.sin_family = AF_INET;
    there->inet.sin_port = htons((uint16_t)strtoul(name, NULL, 10));
    there->inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof there->inet;
}

/* Write the length and the number of a message into its frame, which holds zeros. */
static void number_frame(uint8_t *at, size_t index)
{
    uint32_t length = (uint32_t)size, number = (uint32_t)(index % period);
    memcpy(at, &length, sizeof length);
    memcpy(at + sizeof length, &number, sizeof number);
    if (size > IN_FULL)
        memcpy(at + frame - sizeof number, &number, sizeof number);
}

static void send_messages(int fd)
{
    /* Whole periods, and at least one write: then a write has two parts at most. */
    size_t frames = period * (WRITE / (period * frame) + 1);
    size_t length = frames * frame, at = 0;
    uint8_t *ring = calloc(frames, frame);
    EXPECT(ring != NULL);
    for (size_t index = 0; index < frames; index++)
        number_frame(ring + index * frame, index);
    double began = now_s(CLOCK_MONOTONIC), cpu = now_s(CLOCK_PROCESS_CPUTIME_ID);
    for (size_t left = count * frame; left > 0;) {
        size_t wanted = left < WRITE ? left : WRITE;
        size_t first = wanted < length - at ? wanted : length - at;
        struct iovec parts[2] = {{ring + at, first}, {ring, wanted - first}};
        ssize_t written = writev(fd, parts, 2);
        EXPECT(written > 0);
        left -= (size_t)written;
        at = (at + (size_t)written) % length;
    }
    char end;
    EXPECT(shutdown(fd, SHUT_WR) == 0);
    EXPECT(read(fd, &end, 1) == 0); /* the receiver has all */
    printf("{\"sender_cpu_ns\": %.1f, \"seconds\": %.6f}\n",
           (now_s(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e9 / (double)count,
           now_s(CLOCK_MONOTONIC) - began);
    free(ring);
}

/* due: a frame of zeros, which becomes the frame that is due. */
static void check(const uint8_t *got, uint8_t *due, size_t index)
{
    number_frame(due, index);
    if (size <= IN_FULL) {
        EXPECT(memcmp(got, due, frame) == 0);
        return;
    }
    EXPECT(memcmp(got, due, 2 * sizeof(uint32_t)) == 0);
    EXPECT(memcmp(got + frame - sizeof(uint32_t), due + frame - sizeof(uint32_t), 4) == 0);
}

static void receive_messages(int fd)
{
    /* Whole frames: when the buffer is full all of it is done, and nothing is moved. */
    size_t room = frame * (WRITE / frame + 1), have = 0, done = 0, number = 0, warm = count / 10;
    uint8_t *buffer = malloc(room), *due = calloc(1, frame);
    EXPECT(buffer != NULL && due != NULL);
    double began = now_s(CLOCK_MONOTONIC), cpu = now_s(CLOCK_PROCESS_CPUTIME_ID);
    while (number < count) {
        ssize_t came = read(fd, buffer + have, room - have);
        EXPECT(came > 0);
        have += (size_t)came;
        for (; have - done >= frame; done += frame) {
            check(buffer + done, due, number);
            if (++number == warm) {
                began = now_s(CLOCK_MONOTONIC);
                cpu = now_s(CLOCK_PROCESS_CPUTIME_ID);
            }
        }
        if (done == room)
            have = done = 0;
    }
    double seen = (double)(count - warm), took = now_s(CLOCK_MONOTONIC) - began;
    cpu = now_s(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    EXPECT(have == done && read(fd, buffer, 1) == 0); /* nothing came beyond the last */
    printf("{\"rate\": %.3f, \"receiver_cpu_ns\": %.1f, \"total\": %zu}\n", seen / took,
           cpu * 1e9 / seen, number);
    free(due);
    free(buffer);
}

static void receive(const char *name)
{
    place here;
    socklen_t length = find(name, &here);
    int listener = socket(here.any.sa_family, SOCK_STREAM, 0);
    EXPECT(listener >= 0);
    EXPECT(bind(listener, &here.any, length) == 0 && listen(listener, 1) == 0);
    EXPECT(getsockname(listener, &here.any, &length) == 0);
    int port = here.any.sa_family == AF_INET ? ntohs(here.inet.sin_port) : 0;
    printf("{\"port\": %d}\n", port);
    fflush(stdout);
    int fd = accept(listener, NULL, NULL);
    EXPECT(fd >= 0);
    receive_messages(fd);
    EXPECT(close(fd) == 0 && close(listener) == 0);
}

static void send_to(const char *name)
{
    place there;
    socklen_t length = find(name, &there);
    int fd = socket(there.any.sa_family, SOCK_STREAM, 0), room = SEND_BUFFER;
    EXPECT(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
    EXPECT(connect(fd, &there.any, length) == 0);
    send_messages(fd);
    EXPECT(close(fd) == 0);
}

int main(int argc, char **argv)
{
    EXPECT(argc == 6);
    size = strtoul(argv[2], NULL, 10);
    count = strtoul(argv[3], NULL, 10);
    period = strtoul(argv[4], NULL, 10);
    frame = sizeof(uint32_t) + size;
    EXPECT(size >= sizeof(uint32_t) && size <= INT32_MAX && count > 0 && period > 0);
    if (strcmp(argv[1], "receive") == 0)
        receive(argv[5]);
    else
        send_to(argv[5]);
    return 0;
}
