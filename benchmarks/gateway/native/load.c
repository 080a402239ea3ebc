/* The load generator: one thread, epoll, kept-alive connections; every request that was sent is waited for.
 *
 *   load PORT BODIES AUTHORIZATION CONNECTIONS SECONDS RATE REQUESTS
 *
 * BODIES holds one JSON body a line, sent in turn. RATE 0: a closed loop over CONNECTIONS; else that many requests
 * a second, at random moments (Poisson), timed from the moment they were due. REQUESTS 0: only SECONDS end it.
 * Prints one JSON object; times in microseconds, at most SAMPLES of them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
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

enum { MAX_CONNECTIONS = 4096, ANSWER_BYTES = 1 << 18, SAMPLES = 50000, GIVE_UP = 20000 };
enum { DRAIN_SECONDS = 60 };

typedef struct {
    int fd;
    int busy;
    int status, chunked, closes;
    size_t used, body, parsed, length; /* body: offset behind the head, 0: not there yet */
    int64_t due, first;
    char *answer;
} Connection;

static Connection pool[MAX_CONNECTIONS];
static int idle[MAX_CONNECTIONS], idle_count, opened, busy_count;
static char **requests;
static size_t *lengths, request_count, turn;
static long sent, good, refused, broken, unconnected, cut, statuses[600];
static int64_t latencies[SAMPLES], firsts[SAMPLES];
static long latency_count, first_count;
static int poller, timer, port, streams;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double random_share(void) {
    static uint64_t state = 88172645463325252ULL;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)((state >> 11) + 1) / 9007199254740993.0;
}

static void keep(int64_t *samples, long *count, int64_t value) { /* a reservoir: all of them are equally likely kept */
    long seen = (*count)++;
    if (seen >= SAMPLES) seen = (long)(random_share() * (double)*count);
    if (seen < SAMPLES) samples[seen] = value / 1000;
}

static void read_bodies(const char *path, const char *authorization) {
    FILE *file = fopen(path, "r");
    if (!file) perror(path), exit(1);
    char *line = NULL;
    size_t room = 0;
    for (ssize_t length; (length = getline(&line, &room, file)) > 0;) {
        if (line[length - 1] == '\n') line[--length] = 0;
        streams = strstr(line, "\"stream\": true") || strstr(line, "\"stream\":true");
        requests = realloc(requests, (request_count + 1) * sizeof *requests);
        lengths = realloc(lengths, (request_count + 1) * sizeof *lengths);
        lengths[request_count] = (size_t)asprintf(
            &requests[request_count],
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
            "Content-Type: application/json\r\nContent-Length: %zd\r\n\r\n%s",
            port, authorization, length, line);
        request_count++;
    }
    fclose(file);
}

static int connect_one(Connection *c) {
    int on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) {
        close(c->fd), c->fd = -1;
        return 0;
    }
    if (!c->answer) c->answer = malloc(ANSWER_BYTES + 1);
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){EPOLLIN, {.u32 = (uint32_t)(c - pool)}});
    return 1;
}

static void disconnect(Connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void rest(Connection *c) {
    c->busy = 0, busy_count--;
    idle[idle_count++] = (int)(c - pool);
}

static void fail(Connection *c, long *kind) {
    (*kind)++;
    disconnect(c);
    rest(c);
}

static void start(int64_t due) {
    Connection *c = &pool[idle[--idle_count]];
    size_t number = turn++ % request_count;
    c->due = due;
    sent++, busy_count++, c->busy = 1;
    c->status = c->chunked = c->closes = 0;
    c->used = c->body = c->parsed = c->length = 0;
    c->first = 0;
    if (c->fd < 0 && !connect_one(c)) {
        fail(c, &unconnected);
        return;
    }
    if (send(c->fd, requests[number], lengths[number], MSG_NOSIGNAL) != (ssize_t)lengths[number]) fail(c, &broken);
}

static void read_head(Connection *c) {
    char *end = memmem(c->answer, c->used, "\r\n\r\n", 4);
    if (!end) return;
    c->body = c->parsed = (size_t)(end + 4 - c->answer);
    c->status = atoi(c->answer + 9);
    for (char *line = c->answer; line < end; line = strstr(line, "\r\n") + 2) {
        if (!strncasecmp(line, "content-length:", 15)) c->length = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) c->chunked = 1;
        if (!strncasecmp(line, "connection: close", 17)) c->closes = 1;
    }
}

/* 1: the answer is whole. */
static int is_whole(Connection *c) {
    if (!c->chunked) return c->used >= c->body + c->length;
    for (;;) {
        char *line = c->answer + c->parsed, *end = memmem(line, c->used - c->parsed, "\r\n", 2);
        if (!end) return 0;
        size_t length = strtoul(line, NULL, 16), next = (size_t)(end + 2 - c->answer) + length + 2;
        if (next > c->used) return 0;
        if (!length) return 1;
        c->parsed = next;
    }
}

static void note_first(Connection *c) {
    char *text = c->answer + c->body, *found;
    while ((found = strstr(text, "\"content\":"))) {
        text = found + 10;
        while (*text == ' ') text++;
        if (*text == '"' && text[1] && text[1] != '"') {
            c->first = now_ns();
            return;
        }
    }
}

static void finish(Connection *c) {
    if (c->status != 200) {
        statuses[c->status >= 0 && c->status < 600 ? c->status : 0]++;
        fail(c, &refused);
        return;
    }
    if (streams && !strstr(c->answer + c->body, "[DONE]")) {
        fail(c, &cut);
        return;
    }
    good++;
    keep(latencies, &latency_count, now_ns() - c->due);
    if (c->first) keep(firsts, &first_count, c->first - c->due);
    if (c->closes) disconnect(c);
    rest(c);
}

/* 1: a request ended, well or not. */
static int receive(Connection *c) {
    ssize_t got = recv(c->fd, c->answer + c->used, ANSWER_BYTES - c->used, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return 0;
    if (!c->busy) { /* closed while nobody used it */
        disconnect(c);
        return 0;
    }
    if (got <= 0) {
        fail(c, &broken);
        return 1;
    }
    c->used += (size_t)got;
    c->answer[c->used] = 0;
    if (!c->body) read_head(c);
    if (!c->body) return 0;
    if (!c->first && c->status == 200) note_first(c);
    if (!is_whole(c)) return 0;
    finish(c);
    return 1;
}

static void arm(int64_t when) {
    struct itimerspec at = {.it_value = {when / 1000000000LL, when % 1000000000LL}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void print_samples(const char *name, int64_t *samples, long count) {
    printf(", \"%s\": [", name);
    for (long i = 0; i < (count < SAMPLES ? count : SAMPLES); i++) printf(i ? ",%ld" : "%ld", (long)samples[i]);
    printf("]");
}

int main(int count, char **arguments) {
    if (count != 8) return fprintf(stderr, "load PORT BODIES AUTHORIZATION CONNECTIONS SECONDS RATE REQUESTS\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    port = atoi(arguments[1]);
    read_bodies(arguments[2], arguments[3]);
    int connections = atoi(arguments[4]);
    double rate = atof(arguments[6]);
    long limit = atol(arguments[7]);
    if (rate > 0) connections = MAX_CONNECTIONS;
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &(struct epoll_event){EPOLLIN, {.u32 = MAX_CONNECTIONS}});
    for (opened = 0; opened < connections; opened++) pool[opened].fd = -1;
    for (int i = connections; i--;) idle[idle_count++] = i;
    int64_t begun = now_ns(), until = begun + (int64_t)(atof(arguments[5]) * 1e9), next = begun;
    for (int64_t now = begun;; now = now_ns()) {
        long failures = refused + broken + unconnected + cut;
        int more = now < until && (!limit || sent < limit) && failures < GIVE_UP;
        if (more && rate > 0) {
            while (next <= now && idle_count) {
                start(next);
                next += (int64_t)(-log(random_share()) / rate * 1e9);
            }
            arm(next < until ? next : until);
        } else if (more) {
            int room = idle_count; /* not those that fail at once: they come in the next turn */
            while (room-- && (!limit || sent < limit)) start(now_ns());
        }
        if (!more && (!busy_count || now > until + DRAIN_SECONDS * 1000000000LL)) break;
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, more && rate == 0 && idle_count ? 10 : 100);
        for (int i = 0; i < ready; i++) {
            uint32_t which = events[i].data.u32;
            uint64_t ticks;
            if (which == MAX_CONNECTIONS) {
                if (read(timer, &ticks, sizeof ticks) < 0) continue;
            } else if (pool[which].fd >= 0) {
                receive(&pool[which]);
            }
        }
    }
    printf("{\"sent\": %ld, \"good\": %ld, \"seconds\": %.6f", sent, good, (double)(now_ns() - begun) / 1e9);
    printf(", \"failed\": {\"broken\": %ld, \"unconnected\": %ld, \"cut short\": %ld, \"unanswered\": %d", broken,
           unconnected, cut, busy_count);
    for (int i = 0; i < 600; i++)
        if (statuses[i]) printf(", \"status %d\": %ld", i, statuses[i]);
    printf("}");
    print_samples("latency_us", latencies, latency_count);
    print_samples("first_us", firsts, first_count);
    printf("}\n");
}
