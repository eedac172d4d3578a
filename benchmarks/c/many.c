/* Many connections and one thread: the echo server on epoll, and the clients of Python's servers too. */
#include "baseline.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_PEERS = 8192,
    MAX_EVENTS = 256,
    ROOM = 8192, /* for the messages of these workloads, and for whatever is said before them */
};

static struct epoll_event events[MAX_EVENTS];

static void watch(int epoll, int fd, uint32_t number)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

static int wait_for_events(int epoll)
{
    int ready = epoll_wait(epoll, events, MAX_EVENTS, -1);
    if (ready < 0)
        die("epoll_wait");
    return ready;
}

/* The server: frames, echoed. What isn't whole yet is kept for each connection; nothing else is. */

static struct {
    size_t have;
    char *data;
} rests[MAX_PEERS];

static int echo(int fd)
{
    size_t have = rests[fd].have, whole = 0, frame;
    if (have)
        memcpy(buffer, rests[fd].data, have);
    size_t got = receive(fd, buffer + have, READ_SIZE);
    if (got == 0)
        return 0;
    have += got;
    while ((frame = whole_frame(buffer + whole, have - whole)))
        whole += frame;
    if (whole)
        send_all(fd, buffer, whole);
    free(rests[fd].data);
    rests[fd].data = NULL;
    rests[fd].have = have - whole;
    if (have > whole) {
        if (!(rests[fd].data = malloc(have - whole)))
            die("malloc");
        memcpy(rests[fd].data, buffer + whole, have - whole);
    }
    return 1;
}

void echo_server(const struct options *options)
{
    int listener = listen_at(options->path), epoll = epoll_create1(0);
    unsigned open = 0;
    watch(epoll, listener, (uint32_t)listener);
    do {
        for (int ready = wait_for_events(epoll), i = 0; i < ready; i++) {
            int fd = (int)events[i].data.u32;
            if (fd == listener) {
                fd = accept_from(listener);
                if (fd >= MAX_PEERS)
                    die_of(EMFILE, "accept");
                watch(epoll, fd, (uint32_t)fd);
                open++;
            } else if (!echo(fd)) {
                close(fd);
                open--;
            }
        }
    } while (open);
}

/* The clients. What a server speaks: */

struct dialect {
    const char *name;
    void (*greet)(int fd);
    /* Write a message of `size` bytes, and say how long it has become. */
    size_t (*encode)(char *out, size_t size);
    /* The length of what starts at `data`, or 0 while less than all of it has come; and whether it is a message. */
    size_t (*decode)(const char *data, size_t have, int *message);
    const char *farewell;
    size_t farewell_size;
};

static void greet_nobody(int fd)
{
    (void)fd;
}

static size_t frame_encode(char *out, size_t size)
{
    put(out, size, HEADER);
    memset(out + HEADER, 0, size);
    return HEADER + size;
}

static size_t frame_decode(const char *data, size_t have, int *message)
{
    *message = 1;
    return whole_frame(data, have);
}

/* aiohvsock's own protocol: a hello of either side, then frames whose first byte is a type: 0 for a message. */

static void native_greet(int fd)
{
    static const char MAGIC[8] = "\x89hvmsg\r\n";
    char hello[1024];
    memcpy(hello, MAGIC, sizeof MAGIC);
    put(hello + 8, 0x0101, 2);      /* the highest version and the lowest */
    put(hello + 10, 12, 2);         /* bytes that follow */
    put(hello + 12, 0, 4);          /* capabilities */
    put(hello + 16, MAX_FRAME, 4);  /* the longest message taken */
    put(hello + 20, 0, 4);          /* patience: without end */
    send_all(fd, hello, 24);

    receive_all(fd, hello, 12);
    size_t length = get(hello + 10, 2);
    if (memcmp(hello, MAGIC, sizeof MAGIC) || length > sizeof hello - 12)
        die_of(EPROTO, "hello");
    receive_all(fd, hello + 12, length);
}

static size_t native_decode(const char *data, size_t have, int *message)
{
    enum { DATA, PING, PONG };
    if (have < HEADER)
        return 0;
    int type = data[0];
    uint64_t size = get(data + 4, 4);
    if (type > PONG || size > MAX_FRAME)
        die_of(EPROTO, "frame");
    /* A ping needs no answer in the seconds that this lasts. */
    *message = type == DATA;
    return have < HEADER + size ? 0 : HEADER + size;
}

static const char NATIVE_CLOSE[] = {3, 0, 0, 0, 0, 0, 0, 1, /* code */ 0};

/* WebSocket, for messages of 126 bytes to 64 KiB. */

static void websocket_greet(int fd)
{
    static const char REQUEST[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    char answer[ROOM];
    size_t have = 0;
    send_all(fd, REQUEST, sizeof REQUEST - 1);
    do {
        receive_all(fd, answer + have, 1);
        have++;
    } while (have < sizeof answer && (have < 4 || memcmp(answer + have - 4, "\r\n\r\n", 4)));
    if (memcmp(answer, "HTTP/1.1 101", 12))
        die_of(EPROTO, "handshake");
}

static size_t websocket_encode(char *out, size_t size)
{
    static const char MASK[4] = {0x12, 0x34, 0x56, 0x78};
    if (size < 126 || size > 0xffff)
        die_of(EMSGSIZE, "WebSocket");
    put(out, 0x82fe, 2); /* binary and final; masked, and the length follows */
    put(out + 2, size, 2);
    memcpy(out + 4, MASK, 4);
    for (size_t i = 0; i < size; i++)
        out[8 + i] = MASK[i % 4];
    return 8 + size;
}

static size_t websocket_decode(const char *data, size_t have, int *message)
{
    if (have < 4)
        return 0;
    if (get(data, 2) != 0x827e)
        die_of(EPROTO, "frame");
    size_t size = get(data + 2, 2);
    *message = 1;
    return have < 4 + size ? 0 : 4 + size;
}

static const struct dialect dialects[] = {
    {"plain", greet_nobody, frame_encode, frame_decode, "", 0},
    {"native", native_greet, frame_encode, native_decode, NATIVE_CLOSE, sizeof NATIVE_CLOSE},
    {"websocket", websocket_greet, websocket_encode, websocket_decode, "", 0},
};

static const struct dialect *dialect;
static char request[ROOM];
static size_t request_size;

static struct {
    int fd;
    size_t have;
    char data[ROOM];
} peers[MAX_PEERS];
static unsigned peer_count;

static void choose_dialect(const struct options *options)
{
    for (size_t i = 0; i < sizeof dialects / sizeof *dialects; i++)
        if (strcmp(options->variant, dialects[i].name) == 0)
            dialect = &dialects[i];
    if (!dialect)
        die_of(EINVAL, options->variant);
    if (options->size > sizeof request / 2)
        die_of(EMSGSIZE, options->variant);
    request_size = dialect->encode(request, options->size);
}

/* Read what there is on a connection, and say how many messages are in it. */
static unsigned take(unsigned number)
{
    size_t have = peers[number].have, whole = 0, frame;
    char *data = peers[number].data;
    size_t got = receive(peers[number].fd, data + have, ROOM - have);
    if (got == 0)
        die_of(ECONNRESET, "recv");
    have += got;
    unsigned messages = 0;
    for (int message; (frame = dialect->decode(data + whole, have - whole, &message)); whole += frame)
        messages += (unsigned)message;
    peers[number].have = have - whole;
    memmove(data, data + whole, have - whole);
    return messages;
}

/* Connect, and have one message echoed, so that everything there is for a connection has been made. */
static void open_connections(const char *path, unsigned count)
{
    if (peer_count + count > MAX_PEERS)
        die_of(EMFILE, path);
    for (; count--; peer_count++) {
        peers[peer_count].fd = dial(path);
        dialect->greet(peers[peer_count].fd);
        send_all(peers[peer_count].fd, request, request_size);
        while (!take(peer_count))
            ;
    }
}

static void close_connections(void)
{
    if (dialect->farewell_size == 0)
        return;
    for (unsigned i = 0; i < peer_count; i++) {
        send_all(peers[i].fd, dialect->farewell, dialect->farewell_size);
        receive(peers[i].fd, buffer, READ_SIZE);
    }
}

static void wait_for_the_end(void)
{
    while (getchar() != EOF)
        ;
    close_connections();
}

/* connections: one request outstanding on each. A step is a round trip, on whichever. */

static int client_epoll;

static void connections_run(uint64_t count)
{
    uint64_t asked = 0, answered = 0;
    for (unsigned i = 0; i < peer_count && asked < count; i++, asked++)
        send_all(peers[i].fd, request, request_size);
    while (answered < count)
        for (int ready = wait_for_events(client_epoll), i = 0; i < ready; i++) {
            unsigned number = events[i].data.u32;
            for (unsigned answers = take(number); answers--; answered++)
                if (asked < count) {
                    send_all(peers[number].fd, request, request_size);
                    asked++;
                }
        }
}

void connections_client(const struct options *options)
{
    choose_dialect(options);
    open_connections(options->path, options->connections);
    client_epoll = epoll_create1(0);
    for (unsigned i = 0; i < peer_count; i++)
        watch(client_epoll, peers[i].fd, i);
    measure(connections_run, options->seconds);
    wait_for_the_end();
}

/* idle: connections that were used once and are kept. The harness looks at the server's memory when it reads "go",
 * and then says so. What comes before is there for what a server does only once, or once in a while. */

void idle_client(const struct options *options)
{
    choose_dialect(options);
    open_connections(options->path, options->connections / 2);
    say("go");
    if (getchar() == EOF)
        return;
    double start = now();
    open_connections(options->path, options->connections);
    report(options->connections, now() - start);
    wait_for_the_end();
}
