/* What the parts of the baseline share. */
#ifndef BASELINE_H
#define BASELINE_H

#include <stddef.h>
#include <stdint.h>

enum {
    READ_SIZE = 256 * 1024, /* as the Python contenders read */
    MAX_FRAME = 1024 * 1024,
    HEADER = 8, /* of a frame: the length of the payload; what aiohvsock sends before a message is the same */
};

/* Room for a frame that is not whole yet, and for a read on top. */
extern char buffer[HEADER + MAX_FRAME + READ_SIZE];

/* What the command line says. */
struct options {
    const char *variant; /* how, where there is more than one way */
    const char *path;
    size_t size; /* of a message, or of a write */
    double seconds;
    unsigned connections;
};

/* common.c: none of these returns when it fails. */
_Noreturn void die(const char *what);
_Noreturn void die_of(int error, const char *what);
double now(void);
void say(const char *line);
void report(uint64_t count, double seconds);
int listen_at(const char *path);
int accept_from(int listener);
int dial(const char *path);
size_t receive(int fd, char *data, size_t room);
void receive_all(int fd, char *data, size_t size);
void send_all(int fd, const char *data, size_t size);
void put(char *out, uint64_t value, int width);
uint64_t get(const char *in, int width);

/* The length of the frame that starts at `data`, or 0 while less than all of it has come. */
size_t whole_frame(const char *data, size_t have);

/* The counterpart of measure() in workloads/ends.py. `run` does the workload's step `count` times. */
void measure(void (*run)(uint64_t count), double seconds);

/* One end of a workload; a client's returns when it is over, a server's when its clients have gone. */
typedef void end_fn(const struct options *options);
end_fn raw_server, raw_client, pingpong_server, pingpong_client, pipelined_server, pipelined_client; /* one.c */
end_fn echo_server, connections_client, idle_client;                                                /* many.c */

#endif
