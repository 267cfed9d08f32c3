/*
 * The CNI plugin that runtimes start: hands a call to netplug's daemon, and prints the answer.
 *
 * A runtime waits for this program at each command, so it starts fast and does little. For systems without a compiler,
 * netplug/frontends/cni/shim.py does the same in Python. tests/test_cni_shim.py tests both.
 *
 * Request: NUL-terminated words (the executable's name, KEY=VALUE of each CNI_ variable), an empty word, then what
 * came on stdin. The end of the stream ends the request. netavark calls with arguments instead of variables: they
 * become NETAVARK_COMMAND and NETAVARK_NETNS.
 * Reply: a line "CODE LENGTH", LENGTH bytes for stdout, the rest for stderr. CODE is the exit code. A reply that ends
 * too early means that the daemon died over the call.
 * Without a reply this process becomes `ENGINE -I -m netplug.daemon.daemonless_queue NAME ARGUMENT...` with the same
 * stdin, and with NETPLUG_CNI_LINE: the run directory in which the daemon was looked for.
 * VERSION and netavark's "info" need no daemon. Errors have the form of the CNI specification (section "Error"), or
 * netavark's. There is no time limit here: runtimes have their own, and kill this process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NEWEST "1.1.0"
#define VERSIONS(q) q "0.1.0" q ", " q "0.2.0" q ", " q "0.3.0" q ", " q "0.3.1" q ", " q "0.4.0" q ", " \
                    q "1.0.0" q ", " q NEWEST q
#define NETAVARK_API "1.0.0"

enum { IO_FAILURE = 5, TRY_AGAIN = 11 }; /* codes of the CNI specification */

/* `netplug cni install` copies this program and writes its values here, found by `mark`. A link to it, a copy of it
 * and an image with this one file all work: no second file can be missing, and nothing has to be read at start. */
struct {
    char mark[32], version[32], run_dir[PATH_MAX], engine[PATH_MAX];
} settings = {"netplug-cni-settings", "0", "/run/netplug", "/usr/bin/python3"};

struct buffer {
    char *data; /* `size` bytes and a NUL; nothing before the first is added */
    size_t size, room;
};

static struct buffer given; /* stdin */
static int netavark;        /* it calls, and no CNI runtime */

static void reserve(struct buffer *to, size_t more)
{
    if (to->room - to->size > more)
        return;
    to->room = 2 * to->room + more + 1;
    to->data = realloc(to->data, to->room);
    if (!to->data)
        abort();
}

static void add(struct buffer *to, const char *data, size_t size)
{
    reserve(to, size);
    memcpy(to->data + to->size, data, size);
    to->size += size;
    to->data[to->size] = 0;
}

/* Read up to the end; return -1 when that fails. */
static int read_all(int fd, struct buffer *to)
{
    ssize_t got;
    do {
        reserve(to, 16384);
        got = read(fd, to->data + to->size, to->room - to->size - 1);
        to->size += got > 0 ? got : 0;
        to->data[to->size] = 0;
    } while (got > 0 || (got < 0 && errno == EINTR));
    return got;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t put = write(fd, data, size);
        if (put < 0 && errno != EINTR)
            return -1;
        data += put > 0 ? put : 0;
        size -= put > 0 ? put : 0;
    }
    return 0;
}

/* Return the version that the configuration names, if it is one; else the newest. */
static const char *version_asked(void)
{
    static char version[32], quote[2];
    const char *at = memmem(given.data, given.size, "\"cniVersion\"", 12);
    int found = at ? sscanf(at, "\"cniVersion\" : \"%31[.0-9A-Za-z]%1[\"]", version, quote) : 0;
    return found == 2 ? version : NEWEST;
}

/* Print why a call fails, in the form that the caller knows; return the exit code. `which`: text of JSON. */
static int refuse(int code, const char *what, const char *which, const char *how)
{
    const char *why = strerror(errno);
    if (netavark)
        dprintf(1, "{\"error\": \"%s%s %s: %s\"}\n", what, which, how, why);
    else
        dprintf(1, "{\"cniVersion\": \"%s\", \"code\": %d, \"msg\": \"%s%s %s: %s\"}\n",
                version_asked(), code, what, which, how, why);
    return EXIT_FAILURE;
}

/* Return what the daemon says; nothing, or the beginning of it, when there is none or when it dies over the call. */
static struct buffer ask(const char *run_dir, const struct buffer *request)
{
    struct buffer reply = {0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = snprintf(address.sun_path, sizeof address.sun_path, "%s/cni.sock", run_dir);
    int failed, fd = length < sizeof address.sun_path ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    while ((failed = connect(fd, (struct sockaddr *)&address, sizeof address)) && errno == EINTR)
        ;
    if (!failed) {
        write_all(fd, request->data, request->size); /* a daemon that stops listening may answer all the same */
        shutdown(fd, SHUT_WR);
        read_all(fd, &reply);
    }
    close(fd);
    return reply;
}

/* Print a reply and return its exit code; -1 when it is not whole. */
static int hand_on(const struct buffer *reply)
{
    char code[4], digits[11]; /* no sign, no other space: as shim.py reads them */
    int head = 0;
    if (!reply->size || sscanf(reply->data, "%3[0-9]%*1[ ]%10[0-9]%n", code, digits, &head) != 2 ||
        reply->data[head++] != '\n' || atoi(code) > 255) /* of a larger one the caller sees the last 8 bits */
        return -1;
    size_t length = strtoul(digits, NULL, 10);
    if (length > reply->size - head)
        return -1;
    const char *out = reply->data + head, *err = out + length;
    if (write_all(1, out, length))
        return EXIT_FAILURE;
    write_all(2, err, reply->data + reply->size - err);
    return atoi(code);
}

/* Become a netplug that does the work itself; return the exit code when that fails. */
static int work_alone(const char *run_dir, char *name, int argc, char **argv)
{
    char **args = calloc(argc + 5, sizeof *args);
    int fd = memfd_create("stdin", 0);
    if (!args || fd < 0 || write_all(fd, given.data, given.size) || lseek(fd, 0, SEEK_SET) || dup2(fd, 0) ||
        setenv("NETPLUG_CNI_LINE", run_dir, 1))
        return refuse(IO_FAILURE, "", "stdin", "cannot be handed on");
    if (fd)
        close(fd);
    memcpy(args, (char *[]){settings.engine, "-I", "-m", "netplug.daemon.daemonless_queue", name}, 5 * sizeof *args);
    memcpy(args + 5, argv + 1, (argc - 1) * sizeof *args);
    execv(settings.engine, args);
    return refuse(TRY_AGAIN, "no netplug daemon answers, and ", settings.engine, "cannot be started");
}

static void add_word(struct buffer *to, const char *key, const char *value)
{
    add(to, key, strlen(key));
    add(to, value, strlen(value) + 1);
}

int main(int argc, char **argv)
{
    struct buffer request = {0}, reply;
    const char *command = getenv("CNI_COMMAND"), *run_dir = getenv("NETPLUG_RUN_DIR");
    char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    netavark = !command || !*command;
    run_dir = run_dir && *run_dir ? run_dir : settings.run_dir;
    signal(SIGPIPE, SIG_IGN);
    if (netavark && (argc < 2 || (argc == 2 && !strcmp(argv[1], "info")))) {
        dprintf(2, "CNI %s plugin v%s\nCNI protocol versions supported: " VERSIONS("") "\n", name, settings.version);
        return dprintf(1, "{\"version\": \"%s\", \"api_version\": \"" NETAVARK_API "\"}\n", settings.version) < 0;
    }
    if (read_all(0, &given))
        return refuse(IO_FAILURE, "", "stdin", "cannot be read");
    if (!netavark && !strcmp(command, "VERSION"))
        return dprintf(1, "{\"cniVersion\": \"%s\", \"supportedVersions\": [" VERSIONS("\"") "]}\n",
                       version_asked()) < 0;
    add_word(&request, "", name);
    for (char **env = environ; *env; env++)
        if (!netavark && !strncmp(*env, "CNI_", 4))
            add_word(&request, "", *env);
    if (netavark) {
        add_word(&request, "NETAVARK_COMMAND=", argv[1]);
        add_word(&request, "NETAVARK_NETNS=", argv[argc - 1]);
    }
    add_word(&request, "", "");
    add(&request, given.data, given.size);
    reply = ask(run_dir, &request);
    int code = hand_on(&reply);
    return code < 0 ? work_alone(run_dir, name, argc, argv) : code;
}
