/* The workloads of one connection. Everything blocks. */
#include "baseline.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static int connection;
static size_t size;

static void serve_one(const struct options *options)
{
    connection = accept_from(listen_at(options->path));
}

static void be_client(const struct options *options, void (*run)(uint64_t))
{
    connection = dial(options->path);
    size = options->size;
    measure(run, options->seconds);
    while (getchar() != EOF)
        ;
}

/* raw: eight bytes say how many follow; one byte answers them, and one answers the last of those that follow. */

void raw_server(const struct options *options)
{
    serve_one(options);
    char header[8];
    while (receive(connection, header, 1)) {
        receive_all(connection, header + 1, sizeof header - 1);
        uint64_t left = get(header, sizeof header);
        send_all(connection, "", 1);
        while (left) {
            size_t got = receive(connection, buffer, READ_SIZE);
            if (got == 0)
                return;
            left -= got;
        }
        send_all(connection, "", 1);
    }
}

static void raw_run(uint64_t count)
{
    char header[8], answer;
    put(header, count * size, sizeof header);
    send_all(connection, header, sizeof header);
    receive_all(connection, &answer, 1);
    while (count--)
        send_all(connection, buffer, size);
    receive_all(connection, &answer, 1);
}

void raw_client(const struct options *options)
{
    be_client(options, raw_run);
}

/* pingpong: frames, echoed. */

void pingpong_server(const struct options *options)
{
    serve_one(options);
    size_t have = 0, got, frame;
    while ((got = receive(connection, buffer + have, READ_SIZE))) {
        size_t whole = 0;
        have += got;
        while ((frame = whole_frame(buffer + whole, have - whole)))
            whole += frame;
        if (whole) {
            send_all(connection, buffer, whole);
            have -= whole;
            memmove(buffer, buffer + whole, have);
        }
    }
}

static void receive_frame(void)
{
    size_t have = 0;
    while (!whole_frame(buffer, have)) {
        size_t got = receive(connection, buffer + have, READ_SIZE);
        if (got == 0)
            die_of(ECONNRESET, "recv");
        have += got;
    }
}

static void pingpong_run(uint64_t count)
{
    static char frame[HEADER + MAX_FRAME];
    put(frame, size, HEADER);
    while (count--) {
        send_all(connection, frame, HEADER + size);
        receive_frame();
    }
}

void pingpong_client(const struct options *options)
{
    be_client(options, pingpong_run);
}

/* pipelined: a frame whose payload, of eight bytes, says how many frames follow; one frame answers the last of them.
 *
 * Reads and writes are buffered, as stdio's are; the variant "naive" does without: a writev for each frame, and a
 * read for its header, and another for its payload. */

static const char ANSWER[HEADER + 1] = {[HEADER - 1] = 1};

static void pipelined_naive_server(void)
{
    char header[HEADER];
    uint64_t left = 0;
    size_t got;
    while ((got = receive(connection, header, HEADER))) {
        receive_all(connection, header + got, HEADER - got);
        uint64_t length = get(header, HEADER);
        if (length > MAX_FRAME)
            die_of(EMSGSIZE, "frame");
        receive_all(connection, buffer, length);
        if (left == 0)
            left = get(buffer, 8);
        else if (--left == 0)
            send_all(connection, ANSWER, sizeof ANSWER);
    }
}

void pipelined_server(const struct options *options)
{
    serve_one(options);
    if (strcmp(options->variant, "naive") == 0) {
        pipelined_naive_server();
        return;
    }
    uint64_t left = 0;
    size_t have = 0, got, frame;
    while ((got = receive(connection, buffer + have, READ_SIZE))) {
        size_t whole = 0;
        have += got;
        while ((frame = whole_frame(buffer + whole, have - whole))) {
            if (left == 0)
                left = get(buffer + whole + HEADER, 8);
            else if (--left == 0)
                send_all(connection, ANSWER, sizeof ANSWER);
            whole += frame;
        }
        if (whole) {
            have -= whole;
            memmove(buffer, buffer + whole, have);
        }
    }
}

static struct {
    size_t used;
    char data[64 * 1024];
} out;

static void flush_out(void)
{
    send_all(connection, out.data, out.used);
    out.used = 0;
}

static void put_out(const char *data, size_t length)
{
    if (out.used + length > sizeof out.data)
        flush_out();
    if (length > sizeof out.data) {
        send_all(connection, data, length);
        return;
    }
    memcpy(out.data + out.used, data, length);
    out.used += length;
}

static void send_count(uint64_t count)
{
    char frame[HEADER + 8];
    put(frame, 8, HEADER);
    put(frame + HEADER, count, 8);
    send_all(connection, frame, sizeof frame);
}

static char payload[MAX_FRAME];

static void pipelined_run(uint64_t count)
{
    char header[HEADER];
    send_count(count);
    while (count--) {
        put(header, size, HEADER);
        put_out(header, HEADER);
        put_out(payload, size);
    }
    flush_out();
    receive_frame();
}

static void pipelined_naive_run(uint64_t count)
{
    char header[HEADER];
    send_count(count);
    while (count--) {
        put(header, size, HEADER);
        struct iovec parts[] = {{header, HEADER}, {payload, size}};
        ssize_t sent = writev(connection, parts, 2);
        if (sent < HEADER) /* a blocking socket takes all, if no signal comes */
            die("writev");
        send_all(connection, payload, HEADER + size - (size_t)sent);
    }
    receive_frame();
}

void pipelined_client(const struct options *options)
{
    be_client(options, strcmp(options->variant, "naive") == 0 ? pipelined_naive_run : pipelined_run);
}
