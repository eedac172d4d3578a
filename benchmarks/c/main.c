/* The limit the contenders are measured against: C over AF_UNIX.
 *
 *   baseline server|client WORKLOAD VARIANT PATH SIZE DEADLINE SECONDS CONNECTIONS
 *
 * It speaks what the modules of workloads/ speak, and talks to the harness as worker.py does: the server prints
 * "ready"; the client prints "go" before what it measures, one line of JSON after it, and stays until its standard
 * input ends. The server ends when its clients have gone.
 */
#include "baseline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    end_fn *server, *client;
} workloads[] = {
    {"raw", raw_server, raw_client},
    {"pingpong", pingpong_server, pingpong_client},
    {"pipelined", pipelined_server, pipelined_client},
    {"large", pipelined_server, pipelined_client},
    {"connections", echo_server, connections_client},
    {"idle", echo_server, idle_client},
};

int main(int argc, char **argv)
{
    if (argc != 9)
        return 2;
    struct options options = {
        .variant = argv[3],
        .path = argv[4],
        .size = strtoull(argv[5], NULL, 10),
        .seconds = atof(argv[7]),
        .connections = (unsigned)atoi(argv[8]),
    };
    if (options.size == 0 || options.size > MAX_FRAME || options.connections == 0)
        return 2;
    alarm((unsigned)atoi(argv[6])); /* so that nothing is left behind when the harness is killed */
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (strcmp(argv[2], workloads[i].name) == 0) {
            (strcmp(argv[1], "server") == 0 ? workloads[i].server : workloads[i].client)(&options);
            return 0;
        }
    die_of(EINVAL, argv[2]);
}
