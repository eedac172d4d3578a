#include "baseline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

char buffer[HEADER + MAX_FRAME + READ_SIZE];

void die_of(int error, const char *what)
{
    fprintf(stderr, "baseline: %s: %s\n", what, strerror(error));
    exit(1);
}

void die(const char *what)
{
    die_of(errno, what);
}

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

void report(uint64_t count, double seconds)
{
    printf("{\"count\": %llu, \"seconds\": %.9f}\n", (unsigned long long)count, seconds);
    fflush(stdout);
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die_of(ENAMETOOLONG, path);
    strcpy(address.sun_path, path);
    return address;
}

static int new_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    return fd;
}

int listen_at(const char *path)
{
    struct sockaddr_un address = address_of(path);
    int fd = new_socket();
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128))
        die(path);
    say("ready");
    return fd;
}

int accept_from(int listener)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    return fd;
}

int dial(const char *path)
{
    struct sockaddr_un address = address_of(path);
    int fd = new_socket();
    if (connect(fd, (struct sockaddr *)&address, sizeof address))
        die(path);
    return fd;
}

size_t receive(int fd, char *data, size_t room)
{
    ssize_t got = recv(fd, data, room, 0);
    if (got < 0)
        die("recv");
    return (size_t)got;
}

void receive_all(int fd, char *data, size_t size)
{
    while (size) {
        size_t got = receive(fd, data, size);
        if (got == 0)
            die_of(ECONNRESET, "recv");
        data += got;
        size -= got;
    }
}

void send_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            die("send");
        data += sent;
        size -= (size_t)sent;
    }
}

void put(char *out, uint64_t value, int width)
{
    for (int i = width - 1; i >= 0; i--, value >>= 8)
        out[i] = (char)value;
}

uint64_t get(const char *in, int width)
{
    uint64_t value = 0;
    for (int i = 0; i < width; i++)
        value = value << 8 | (unsigned char)in[i];
    return value;
}

size_t whole_frame(const char *data, size_t have)
{
    if (have < HEADER)
        return 0;
    uint64_t size = get(data, HEADER);
    if (size > MAX_FRAME)
        die_of(EMSGSIZE, "frame");
    return have < HEADER + size ? 0 : HEADER + size;
}

void measure(void (*run)(uint64_t), double seconds)
{
    uint64_t count = 64;
    double elapsed;
    for (;;) {
        double start = now();
        run(count);
        elapsed = now() - start;
        if (elapsed >= seconds / 8)
            break;
        count *= 2;
    }
    count = (uint64_t)((double)count * seconds / elapsed) + 1;
    say("go");
    double start = now();
    run(count);
    report(count, now() - start);
}
