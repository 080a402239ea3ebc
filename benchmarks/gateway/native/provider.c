/* The mock provider: one thread, epoll, kept-alive connections, answers read from files at start.
 *
 *   provider PORT DIRECTORY GAP_US
 *
 * DIRECTORY holds `plain` (one HTTP response) and `stream`, `stream_usage` (pieces, each after a line with its
 * length). A request whose body asks for a stream gets its pieces one by one, GAP_US apart; with 0, in one write.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 65536, REQUEST_BYTES = 1 << 20, MAX_PIECES = 4096 };

typedef struct {
    char *data;
    size_t length;
} Bytes;

typedef struct {
    Bytes pieces[MAX_PIECES];
    int count;
} Stream;

typedef struct connection {
    int fd;
    char *buffer;
    size_t used, capacity;
    const Stream *stream; /* being sent; NULL: waits for a request */
    int piece;
    int64_t due;
    struct connection *next; /* in the queue of streams; the gap is one, so that the queue is in order of time */
} Connection;

static Connection *connections[MAX_FDS], *first_due, *last_due;
static Bytes plain;
static Stream stream, stream_usage;
static int64_t gap_ns;
static int poller, timer;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static Bytes read_file(const char *directory, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    if (!file) perror(path), exit(1);
    Bytes bytes = {malloc(1 << 22), 0};
    bytes.length = fread(bytes.data, 1, 1 << 22, file);
    fclose(file);
    return bytes;
}

static void read_stream(Stream *into, const char *directory, const char *name) {
    Bytes all = read_file(directory, name);
    for (size_t at = 0; at < all.length && into->count < MAX_PIECES;) {
        char *end;
        size_t length = strtoul(all.data + at, &end, 10);
        into->pieces[into->count++] = (Bytes){end + 1, length};
        at = (size_t)(end + 1 - all.data) + length;
    }
}

static void arm_timer(void) {
    struct itimerspec when = {0};
    if (first_due) {
        when.it_value.tv_sec = first_due->due / 1000000000LL;
        when.it_value.tv_nsec = first_due->due % 1000000000LL;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void enqueue(Connection *c, int64_t due) {
    c->due = due;
    c->next = NULL;
    if (last_due) last_due->next = c;
    else first_due = c;
    last_due = c;
    if (first_due == c) arm_timer();
}

static void dequeue(Connection *c) {
    Connection **link = &first_due, *before = NULL;
    while (*link && *link != c) before = *link, link = &(*link)->next;
    if (!*link) return;
    *link = c->next;
    if (last_due == c) last_due = before;
}

static void drop(Connection *c) {
    if (c->stream) dequeue(c);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->buffer);
    free(c);
}

/* 0: gone. A reader that is too slow for a socket buffer is out of scope: its connection is dropped. */
static int put(Connection *c, Bytes bytes) {
    if (send(c->fd, bytes.data, bytes.length, MSG_NOSIGNAL) == (ssize_t)bytes.length) return 1;
    drop(c);
    return 0;
}

/* Length of the first whole request in the buffer, 0 if there is none yet; *body points behind its head. */
static size_t whole_request(Connection *c, char **body) {
    char *head_end = memmem(c->buffer, c->used, "\r\n\r\n", 4);
    if (!head_end) return 0;
    *body = head_end + 4;
    size_t length = 0;
    for (char *line = c->buffer; line < head_end;) {
        if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) { /* chunked: no request follows it before its answer */
            char *end = memmem(*body, c->used - (size_t)(*body - c->buffer), "0\r\n\r\n", 5);
            return end ? (size_t)(end + 5 - c->buffer) : 0;
        }
        line = (char *)memmem(line, (size_t)(head_end + 2 - line), "\r\n", 2) + 2;
    }
    size_t total = (size_t)(*body - c->buffer) + length;
    return c->used >= total ? total : 0;
}

static int has(const char *text, size_t length, const char *words) {
    return memmem(text, length, words, strlen(words)) != NULL;
}

static void answer(Connection *c) {
    char *body;
    size_t total;
    while (!c->stream && (total = whole_request(c, &body))) {
        size_t length = total - (size_t)(body - c->buffer);
        int streams = has(body, length, "\"stream\":true") || has(body, length, "\"stream\": true");
        int usage = has(body, length, "\"include_usage\":true") || has(body, length, "\"include_usage\": true");
        memmove(c->buffer, c->buffer + total, c->used - total);
        c->used -= total;
        if (!streams) {
            if (!put(c, plain)) return;
            continue;
        }
        const Stream *asked = usage ? &stream_usage : &stream;
        if (gap_ns) {
            c->stream = asked;
            c->piece = 1;
            enqueue(c, now_ns() + gap_ns);
            if (!put(c, asked->pieces[0])) return;
            continue;
        }
        Bytes *last = (Bytes *)&asked->pieces[asked->count - 1]; /* the pieces of one file, without their lengths */
        static char whole[1 << 22];
        size_t at = 0;
        for (const Bytes *each = asked->pieces; each <= last; at += each++->length)
            memcpy(whole + at, each->data, each->length);
        if (!put(c, (Bytes){whole, at})) return;
    }
}

static void receive(Connection *c) {
    if (c->used == c->capacity) {
        if (c->capacity >= REQUEST_BYTES) return drop(c);
        c->buffer = realloc(c->buffer, c->capacity = c->capacity * 4);
    }
    ssize_t got = recv(c->fd, c->buffer + c->used, c->capacity - c->used, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return drop(c);
    c->used += (size_t)got;
    answer(c);
}

static void send_due(void) {
    uint64_t ticks;
    while (read(timer, &ticks, sizeof ticks) > 0) continue;
    int64_t now = now_ns();
    while (first_due && first_due->due <= now) {
        Connection *c = first_due;
        first_due = c->next;
        if (!first_due) last_due = NULL;
        const Stream *of = c->stream;
        int number = c->piece++;
        c->stream = NULL; /* out of the queue while it is written */
        if (!put(c, of->pieces[number])) continue;
        if (c->piece < of->count) {
            c->stream = of;
            enqueue(c, now + gap_ns);
        } else {
            answer(c); /* what came meanwhile */
        }
    }
    arm_timer();
}

static void greet(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (fd < 0) return;
    if (fd >= MAX_FDS) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Connection *c = connections[fd] = calloc(1, sizeof *c);
    c->fd = fd;
    c->buffer = malloc(c->capacity = 8192);
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.fd = fd}});
}

int main(int count, char **arguments) {
    if (count != 4) return fprintf(stderr, "provider PORT DIRECTORY GAP_US\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    plain = read_file(arguments[2], "plain");
    read_stream(&stream, arguments[2], "stream");
    read_stream(&stream_usage, arguments[2], "stream_usage");
    gap_ns = atoll(arguments[3]) * 1000;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) return perror("listen"), 1;
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){EPOLLIN, {.fd = listener}});
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &(struct epoll_event){EPOLLIN, {.fd = timer}});
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) greet(listener);
            else if (fd == timer) send_due();
            else if (connections[fd]) receive(connections[fd]);
        }
    }
}
