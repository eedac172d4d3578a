/* The limit the contenders are measured against: blocking C over AF_UNIX.
 *
 *   baseline server|client raw|pingpong PATH SIZE DEADLINE SECONDS
 *
 * It speaks what workloads/raw.py and workloads/pingpong.py speak, and talks to the harness as worker.py does:
 * the server prints "ready"; the client prints "go" before what it measures, one line of JSON after it, and
 * stays until its standard input ends.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_SIZE = 256 * 1024, /* as the Python contenders read */
    MAX_FRAME = 1024 * 1024,
    HEADER = 4,
};

static char buffer[HEADER + MAX_FRAME + READ_SIZE];

static void die(const char *what)
{
    fprintf(stderr, "baseline: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

static size_t receive(int fd, char *data, size_t room)
{
    ssize_t got = recv(fd, data, room, 0);
    if (got < 0)
        die("recv");
    return (size_t)got;
}

static void receive_all(int fd, char *data, size_t size)
{
    while (size) {
        size_t got = receive(fd, data, size);
        if (got == 0) {
            errno = ECONNRESET;
            die("recv");
        }
        data += got;
        size -= got;
    }
}

static void send_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            die("send");
        data += sent;
        size -= (size_t)sent;
    }
}

static void put(char *out, uint64_t value, int width)
{
    for (int i = width - 1; i >= 0; i--, value >>= 8)
        out[i] = (char)value;
}

static uint64_t get(const char *in, int width)
{
    uint64_t value = 0;
    for (int i = 0; i < width; i++)
        value = value << 8 | (unsigned char)in[i];
    return value;
}

/* raw: eight bytes say how many follow; one byte answers them, and one answers the last of those that follow. */

static void raw_server(int fd)
{
    char header[8];
    while (receive(fd, header, 1)) {
        receive_all(fd, header + 1, sizeof header - 1);
        uint64_t left = get(header, sizeof header);
        send_all(fd, "", 1);
        while (left) {
            size_t got = receive(fd, buffer, READ_SIZE);
            if (got == 0)
                return;
            left -= got;
        }
        send_all(fd, "", 1);
    }
}

static void raw_run(int fd, size_t size, uint64_t count)
{
    char header[8], answer;
    put(header, count * size, sizeof header);
    send_all(fd, header, sizeof header);
    receive_all(fd, &answer, 1);
    while (count--)
        send_all(fd, buffer, size);
    receive_all(fd, &answer, 1);
}

/* pingpong: frames of a four-byte length and a payload, echoed. */

static void pingpong_server(int fd)
{
    size_t have = 0, got;
    while ((got = receive(fd, buffer + have, READ_SIZE))) {
        size_t whole = 0;
        have += got;
        while (have - whole >= HEADER) {
            size_t size = get(buffer + whole, HEADER);
            if (size > MAX_FRAME) {
                errno = EMSGSIZE;
                die("frame");
            }
            if (have - whole < HEADER + size)
                break;
            whole += HEADER + size;
        }
        send_all(fd, buffer, whole);
        have -= whole;
        memmove(buffer, buffer + whole, have);
    }
}

static void pingpong_run(int fd, size_t size, uint64_t count)
{
    static char frame[HEADER + MAX_FRAME];
    put(frame, size, HEADER);
    while (count--) {
        size_t have = 0;
        send_all(fd, frame, HEADER + size);
        while (have < HEADER || have < HEADER + get(buffer, HEADER)) {
            size_t got = receive(fd, buffer + have, READ_SIZE);
            if (got == 0) {
                errno = ECONNRESET;
                die("recv");
            }
            have += got;
        }
    }
}

/* The counterpart of measure() in workloads/measuring.py. */
static void measure(void (*run)(int, size_t, uint64_t), int fd, size_t size, double seconds)
{
    uint64_t count = 64;
    double elapsed;
    for (;;) {
        double start = now();
        run(fd, size, count);
        elapsed = now() - start;
        if (elapsed >= seconds / 8)
            break;
        count *= 2;
    }
    count = (uint64_t)((double)count * seconds / elapsed) + 1;
    say("go");
    double start = now();
    run(fd, size, count);
    printf("{\"count\": %llu, \"seconds\": %.9f}\n", (unsigned long long)count, now() - start);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 7)
        return 2;
    int serving = strcmp(argv[1], "server") == 0, raw = strcmp(argv[2], "raw") == 0;
    size_t size = strtoull(argv[4], NULL, 10);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[3]) >= sizeof address.sun_path || size == 0 || size > MAX_FRAME)
        return 2;
    strcpy(address.sun_path, argv[3]);
    alarm((unsigned)atoi(argv[5])); /* so that nothing is left behind when the harness is killed */
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    if (serving) {
        if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 8))
            die(argv[3]);
        say("ready");
        int peer = accept(fd, NULL, NULL);
        if (peer < 0)
            die("accept");
        (raw ? raw_server : pingpong_server)(peer);
    } else {
        if (connect(fd, (struct sockaddr *)&address, sizeof address))
            die(argv[3]);
        measure(raw ? raw_run : pingpong_run, fd, size, atof(argv[6]));
        while (getchar() != EOF)
            ;
    }
    return 0;
}
