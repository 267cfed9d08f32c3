/* Load generator of bench/path.py: packets from one network namespace to another, in one thread.
 *
 *     path CLIENT_NETNS SERVER_NETNS ADDRESS PORT SERVER_PORT CPU
 *
 * The server listens at SERVER_PORT of any address of its namespace, the client sends to ADDRESS:PORT. Commands on
 * stdin, "KIND MILLISECONDS", are answered by one line on stdout: units done, nanoseconds of processor time, of wall
 * time, and packets lost. All work is done in one thread: the kernel carries a packet
 * through bridge, firewall and veth to the receiver's socket before send(2) returns.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 32,                /* datagrams of a system call */
    OCTETS = 22,               /* of a datagram: 64 in the frame, with headers of UDP, IPv4 and Ethernet */
    CHUNK = 1 << 16,           /* octets of a write to a stream */
    WARM_UP = 1000000,         /* nanoseconds of processor time before those that count */
    FIRST_PORT = 10000, PORTS = 20000, /* source ports of short flows, used in turn; below those that Linux gives out */
};
static const long long PATIENCE = 50000000; /* nanoseconds; what has not come by then is lost */
static const long long QUIET = 5000000;     /* nanoseconds without octets, after which none are on their way */

struct report { long long done, lost; };
struct burst { struct mmsghdr heads[BATCH]; struct iovec vectors[BATCH]; struct sockaddr_in peers[BATCH]; char octets[BATCH][OCTETS]; };

static struct sockaddr_in target;
static int asks, shouts, answers, near_end, far_end;
static int next_port;

static void die(const char *what) { perror(what); exit(1); }
static int ok(int result, const char *what) { if (result < 0) die(what); return result; }

static long long clock_of(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void enter(const char *netns) {
    int file = ok(open(netns, O_RDONLY | O_CLOEXEC), netns);
    ok(setns(file, CLONE_NEWNET), "setns");
    close(file);
}

static int opened(int kind) {
    int one = 1, sock = ok(socket(AF_INET, kind, 0), "socket");
    ok(setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "SO_REUSEADDR");
    return sock;
}

static int bound(int kind, int port) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int sock = opened(kind);
    ok(bind(sock, (struct sockaddr *)&any, sizeof any), "bind");
    return sock;
}

static int connected(int kind) {
    int sock = opened(kind);
    ok(connect(sock, (struct sockaddr *)&target, sizeof target), "connect");
    return sock;
}

static void lay_out(struct burst *it) {
    memset(it, 0, sizeof *it);
    for (int n = 0; n < BATCH; n++) {
        it->vectors[n] = (struct iovec){it->octets[n], OCTETS};
        it->heads[n].msg_hdr = (struct msghdr){.msg_iov = &it->vectors[n], .msg_iovlen = 1};
    }
}

/* Receive up to `most` datagrams, into the first ones; wait at most PATIENCE. With `peers`, also their senders. */
static int take(int sock, struct burst *it, int most, int peers) {
    long long until = 0;
    int got = 0;
    while (got < most) {
        for (int n = got; peers && n < most; n++) {
            it->heads[n].msg_hdr.msg_name = &it->peers[n];
            it->heads[n].msg_hdr.msg_namelen = sizeof it->peers[n];
        }
        int more = recvmmsg(sock, it->heads + got, most - got, MSG_DONTWAIT, NULL);
        if (more > 0) { got += more; continue; }
        long long now = clock_of(CLOCK_MONOTONIC);
        if (!until) until = now + PATIENCE;
        if (now > until) break;
    }
    return got;
}

static struct burst out, in;

/* Datagrams and their answers: established flows. */
static void answered(struct report *it) {
    int sent = ok(sendmmsg(asks, out.heads, BATCH, 0), "sendmmsg");
    int heard = take(answers, &in, sent, 1);
    if (heard) ok(sendmmsg(answers, in.heads, heard, 0), "sendmmsg of answers");
    int back = take(asks, &out, heard, 0);
    it->done += heard + back;
    it->lost += sent - heard + heard - back;
}

/* Datagrams that nobody answers: each belongs to a flow that is new to connection tracking. */
static void unanswered(struct report *it) {
    int sent = ok(sendmmsg(shouts, out.heads, BATCH, 0), "sendmmsg");
    int heard = take(answers, &in, sent, 0);
    it->done += heard;
    it->lost += sent - heard;
}

/* A question from a source port of its own, and its answer, as with DNS: a new flow each. */
static void flows(struct report *it) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(FIRST_PORT + next_port++ % PORTS)};
    int sock = opened(SOCK_DGRAM);
    ok(bind(sock, (struct sockaddr *)&any, sizeof any), "bind");
    ok(connect(sock, (struct sockaddr *)&target, sizeof target), "connect");
    ok(send(sock, out.octets[0], OCTETS, 0), "send");
    int heard = take(answers, &in, 1, 1);
    if (heard) ok(sendmmsg(answers, in.heads, 1, 0), "sendmmsg of answers");
    if (heard && take(sock, &out, 1, 0)) it->done++;
    else it->lost++;
    close(sock);
}

static void pass(int from, int to) {
    char octet = '?';
    ok(send(from, &octet, 1, MSG_NOSIGNAL), "send");
    while (recv(to, &octet, 1, MSG_DONTWAIT) != 1)
        if (errno != EAGAIN) die("recv");
}

/* One octet there and back on a connection. */
static void trips(struct report *it) {
    for (int n = 0; n < BATCH; n++) {
        pass(near_end, far_end);
        pass(far_end, near_end);
    }
    it->done += BATCH;
}

/* As many octets of a stream as the socket takes, then as many as have arrived. */
static void stream(struct report *it) {
    static char chunk[4 * CHUNK];
    long size;
    while ((size = send(near_end, chunk, CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0) continue;
    while ((size = recv(far_end, chunk, sizeof chunk, MSG_DONTWAIT)) > 0) it->done += size;
}

/* Take what the stream has left on its way, so that `trips` does not find it. */
static void calm(void) {
    static char chunk[CHUNK];
    long long until = clock_of(CLOCK_MONOTONIC) + QUIET;
    while (clock_of(CLOCK_MONOTONIC) < until)
        if (recv(far_end, chunk, sizeof chunk, MSG_DONTWAIT) > 0) until = clock_of(CLOCK_MONOTONIC) + QUIET;
}

static const struct { const char *name; void (*work)(struct report *); } KINDS[] = {
    {"answered", answered}, {"unanswered", unanswered}, {"flows", flows}, {"trips", trips}, {"stream", stream},
};

/* Work for some processor time, and return how much it was. */
static long long spend(void (*work)(struct report *), long long nanoseconds, struct report *it) {
    long long begun = clock_of(CLOCK_THREAD_CPUTIME_ID), spent;
    do work(it);
    while ((spent = clock_of(CLOCK_THREAD_CPUTIME_ID) - begun) < nanoseconds);
    return spent;
}

static void measure(void (*work)(struct report *), long long nanoseconds) {
    struct report found = {0, 0};
    spend(work, WARM_UP, &found);
    found.done = 0;
    long long wall = clock_of(CLOCK_MONOTONIC);
    long long spent = spend(work, nanoseconds, &found);
    wall = clock_of(CLOCK_MONOTONIC) - wall;
    if (work == stream) calm();
    printf("%lld %lld %lld %lld\n", found.done, spent, wall, found.lost);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 7) { fprintf(stderr, "usage: path CLIENT_NETNS SERVER_NETNS ADDRESS PORT SERVER_PORT CPU\n"); return 2; }
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[6]), &cpus);
    ok(sched_setaffinity(0, sizeof cpus, &cpus), "sched_setaffinity");
    target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[4]))};
    if (inet_pton(AF_INET, argv[3], &target.sin_addr) != 1) die(argv[3]);
    lay_out(&out);
    lay_out(&in);
    int client_ns = ok(open(argv[1], O_RDONLY | O_CLOEXEC), argv[1]);
    enter(argv[2]);
    answers = bound(SOCK_DGRAM, atoi(argv[5]));
    int listener = bound(SOCK_STREAM, atoi(argv[5]));
    ok(listen(listener, 1), "listen");
    ok(setns(client_ns, CLONE_NEWNET), "setns");
    asks = connected(SOCK_DGRAM);
    shouts = connected(SOCK_DGRAM);
    near_end = connected(SOCK_STREAM);
    far_end = ok(accept(listener, NULL, NULL), "accept");
    int one = 1;
    ok(setsockopt(near_end, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
    ok(setsockopt(far_end, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
    printf("ready\n");
    fflush(stdout);
    char name[16];
    long long milliseconds;
    while (scanf("%15s %lld", name, &milliseconds) == 2) {
        size_t kind = 0;
        while (kind < sizeof KINDS / sizeof *KINDS && strcmp(name, KINDS[kind].name)) kind++;
        if (kind == sizeof KINDS / sizeof *KINDS) { fprintf(stderr, "path: no kind %s\n", name); return 2; }
        measure(KINDS[kind].work, milliseconds * 1000000);
    }
    return 0;
}
