/* A worker that costs almost nothing, for timing callers: it speaks the plain wire, and its answers are made beforehand.
 *
 *     replay [everywhere]    prints the port on which it takes requests, then serves until its standard input ends
 *
 * It takes requests at 127.0.0.1; with `everywhere` at each address of this machine's loopback, 127.0.0.0/8.
 *
 * A request's body says what to answer: {"items": 100, "size": 100, "burst": 64, "pace": 0, "hold": 0}, in JSON or in
 * MessagePack, and the answer is in the format that the request names. Items go out in bursts, each with one system call
 * (of 256 KiB at most); or, with a pace, one by one with that many microseconds between them. With `hold` the answer does
 * not end.
 *
 * Paced answers are shared out by turns among 16 engines (`"engines": 16` in the body), as if each ran on a machine of its
 * own: every engine steps once in each pace, and they step one after the other at equal distances. With 4,096 answers and
 * a pace of 20 ms, 256 items leave every 1.25 ms. A step is due at an absolute time: one that is late is made up for, and
 * none is left out. An engine writes all its items for one connection at once.
 *
 * A router that offers a session of dynamo_fast (docs/spec/mux.md) is answered there, all others on a connection for each
 * answer. It takes no account of credit: no answer may have more than 64 KiB on a session.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ENGINES = 16, BURST = 64, BURST_BYTES = 1 << 18, ONE_WRITE = 1 << 16 };

typedef struct {
    char *bytes;
    size_t length;
} Text;

/* The frames of one answer format, one size of item, and one length of burst. */
typedef struct Frames {
    int json;
    long size, wanted, burst; /* bytes of an item, items in a burst as asked for and as it is */
    size_t item;      /* bytes of an item's frame */
    char *bytes;      /* a burst of items */
    struct Frames *next;
} Frames;

typedef struct {
    enum { INPUT, LISTENER, REQUESTS, ANSWER, SESSION } kind;
    int fd;
    Text held;        /* requests: what came and is no whole request; answer: its beginning, then its end */
    Text next;        /* answer: what is to be written next, in `held` or in `frames` */
    long items;       /* answer: how many are still to be written */
    int ended, writing;
    const Frames *frames;
} Connection;

static int epoll;

static void check(int failed, const char *what) {
    if (failed) {
        perror(what);
        exit(1);
    }
}

/* Frames */

static void append(Text *text, const void *bytes, size_t length) {
    text->bytes = realloc(text->bytes, text->length + length + 1);
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

static void append_text(Text *text, const char *string) { append(text, string, strlen(string)); }

static void append_number(Text *text, uint64_t number, int bytes) {
    char big_endian[8];
    for (int i = 0; i < bytes; i++) big_endian[i] = (char)(number >> 8 * (bytes - 1 - i));
    append(text, big_endian, bytes);
}

static void append_frame(Text *text, const char *header, size_t header_length, const char *data, size_t data_length) {
    append_number(text, header_length, 8);
    append_number(text, data_length, 8);
    append_number(text, 0, 8);
    append(text, header, header_length);
    append(text, data, data_length);
}

/* {"data": {"data": {"token": 12345, "text": "xx..."}}, "complete_final": false}, of `size` bytes or a few more */
static Text wrapper(int json, long size) {
    long room = size - (json ? 66 : 46), length = room > 0 ? room : 0;
    char *x = malloc(length + 1);
    memset(x, 'x', length);
    Text text = {0};
    append_text(&text, json ? "{\"data\":{\"data\":{\"token\":12345,\"text\":\"" : "\x82\xa4" "data\x81\xa4" "data\x82\xa5token\xcd\x30\x39\xa4text");
    if (!json && length < 32) append_number(&text, 0xa0 | length, 1);
    else if (!json && length < 1 << 16) append_number(&text, 0xda0000 | length, 3);
    else if (!json) append_number(&text, 0xdb00000000 | length, 5);
    append(&text, x, length);
    append_text(&text, json ? "\"}},\"complete_final\":false}" : "\xae" "complete_final\xc2");
    free(x);
    return text;
}

static const Frames *frames_of(int json, long size, long wanted) {
    static Frames *all;
    for (Frames *each = all; each; each = each->next)
        if (each->json == json && each->size == size && each->wanted == wanted) return each;
    Text body = wrapper(json, size), burst = {0};
    Frames *made = calloc(1, sizeof *made);
    made->json = json, made->size = size, made->wanted = wanted, made->next = all;
    made->burst = BURST_BYTES / size < 1 ? 1 : BURST_BYTES / size > wanted ? wanted : BURST_BYTES / size;
    for (long i = 0; i < made->burst; i++) append_frame(&burst, "", 0, body.bytes, body.length);
    made->item = burst.length / made->burst, made->bytes = burst.bytes;
    free(body.bytes);
    return all = made;
}

static void append_end(Text *text, int json) {
    const char *final = json ? "{\"complete_final\":true}" : "\x81\xae" "complete_final\xc3";
    append_frame(text, "", 0, final, strlen(final));
    append_frame(text, "\"sentinel\"", 10, "", 0);
}

/* Answers */

static void watch(Connection *connection, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    check(epoll_ctl(epoll, operation, connection->fd, &event), "epoll_ctl");
}

/* What is to be written after what was written last; 0 at the end. */
static int refill(Connection *answer) {
    const Frames *frames = answer->frames;
    if (answer->items) {
        long count = answer->items < frames->burst ? answer->items : frames->burst;
        answer->items -= count;
        answer->next = (Text){frames->bytes, count * frames->item};
    } else if (!answer->ended) {
        answer->ended = 1;
        answer->held.length = 0;
        append_end(&answer->held, frames->json);
        answer->next = answer->held;
    } else {
        return 0;
    }
    return 1;
}

static void write_on(Connection *answer) {
    do {
        while (answer->next.length) {
            ssize_t sent = send(answer->fd, answer->next.bytes, answer->next.length, MSG_NOSIGNAL);
            if (sent < 0 && errno == EAGAIN) {
                if (!answer->writing) watch(answer, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
                answer->writing = 1;
                return;
            }
            if (sent < 0) return; /* whatever the caller says, it is over when it closes */
            answer->next.bytes += sent, answer->next.length -= sent;
        }
    } while (refill(answer));
    if (answer->writing) watch(answer, EPOLL_CTL_MOD, EPOLLIN);
    answer->writing = 0;
}

/* Sessions */

enum { OPEN = 1, PROLOGUE = 2, DATA = 3, END = 5, TWO_PART_PREFIX = 24, HELLO_SIZE = 8 + 12, SMALLEST_WINDOW = 1 << 16 };

typedef struct Session {
    Connection connection; /* what comes in is read and thrown away */
    char *key;             /* the address and the token of the router */
    uint32_t last;         /* the number of the last stream */
    int lost;
    pthread_mutex_t writing;
    struct Session *next;
} Session;

static Session *sessions;

static void append_mux(Text *text, uint32_t stream, int kind, const char *body, size_t length) {
    append_number(text, stream, 4);
    append_number(text, (uint64_t)kind << 24 | length, 4);
    append(text, body, length);
}

/* All of it, however long that takes. Returns 0 if the connection is lost. */
static int send_all(int fd, const char *bytes, size_t length) {
    while (length) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return 0;
        bytes += sent, length -= sent;
    }
    return 1;
}

static void write_session(Session *session, Text text) {
    pthread_mutex_lock(&session->writing);
    if (!session->lost && !send_all(session->connection.fd, text.bytes, text.length)) session->lost = 1;
    pthread_mutex_unlock(&session->writing);
}

static void append_mux_item(Text *text, uint32_t stream, const Frames *frames) {
    append_mux(text, stream, DATA, frames->bytes + TWO_PART_PREFIX, frames->item - TWO_PART_PREFIX);
}

static void append_mux_end(Text *text, uint32_t stream, int json) {
    const char *final = json ? "{\"complete_final\":true}" : "\x81\xae" "complete_final\xc3";
    append_mux(text, stream, DATA, final, strlen(final));
    append_mux(text, stream, END, "", 0);
}

/* Paced answers */

typedef struct Paced {
    int fd;           /* of a connection of its own; -1: it is on a session */
    Session *session;
    uint32_t number;  /* of its stream there */
    long items;       /* how many are still to be written */
    const Frames *frames;
    struct Paced *next;
} Paced;

/* Engines with the same pace; one thread is all of them. */
typedef struct Pacer {
    long pace, engines;
    Paced **answers; /* of each engine */
    long turn;       /* the engine that gets the next answer */
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct Pacer *next;
} Pacer;

static int64_t steps, late_steps, latest; /* of all pacers: those over a millisecond late, and by how many ns the worst */

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void sleep_until(int64_t due) {
    struct timespec time = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR) {}
    int64_t late = now() - due;
    steps++, late_steps += late > 1000000;
    if (late > latest) latest = late;
}

/* The router closes a connection of its own when it has the end: the main thread waits for that. */
static void leave(Paced *answer) {
    if (answer->fd >= 0) {
        Connection *made = calloc(1, sizeof *made);
        made->kind = ANSWER, made->fd = answer->fd;
        watch(made, EPOLL_CTL_ADD, EPOLLIN);
    }
    free(answer);
}

/* The item of this answer, and its end if it was the last; on a session it is left in `together`. Returns whether more follow. */
static int write_item(Paced *answer, Text *together) {
    int is_last = --answer->items == 0;
    if (answer->session) {
        append_mux_item(together, answer->number, answer->frames);
        if (is_last) append_mux_end(together, answer->number, answer->frames->json);
        return !is_last && !answer->session->lost;
    }
    if (!is_last) return send_all(answer->fd, answer->frames->bytes, answer->frames->item);
    Text text = {0};
    append(&text, answer->frames->bytes, answer->frames->item);
    append_end(&text, answer->frames->json);
    send_all(answer->fd, text.bytes, text.length);
    free(text.bytes);
    return 0;
}

/* An item of each answer of one engine; what goes to one session leaves in one write. */
static void step(Paced **answers) {
    Text together = {0};
    Session *session = NULL;
    for (Paced **at = answers, *each; (each = *at);) {
        if (each->session != session && together.length) {
            write_session(session, together);
            together.length = 0;
        }
        session = each->session;
        if (write_item(each, &together)) {
            at = &each->next;
        } else {
            *at = each->next;
            leave(each);
        }
    }
    if (together.length) write_session(session, together);
    free(together.bytes);
}

static void *run_engines(void *argument) {
    Pacer *pacer = argument;
    long engines = pacer->engines, ahead;
    int64_t origin = now(), distance = pacer->pace * 1000 / engines, slot = 0;
    pthread_mutex_lock(&pacer->lock);
    for (;;) {
        for (ahead = 0; ahead < engines && !pacer->answers[(slot + ahead) % engines]; ahead++) {}
        if (ahead == engines) {
            pthread_cond_wait(&pacer->more, &pacer->lock);
            slot = (now() - origin) / distance + 1;
            continue;
        }
        slot += ahead;
        pthread_mutex_unlock(&pacer->lock);
        sleep_until(origin + slot * distance);
        pthread_mutex_lock(&pacer->lock);
        step(&pacer->answers[slot++ % engines]);
    }
    return NULL;
}

static Pacer *pacer_of(long pace, long engines) {
    static Pacer *all;
    for (Pacer *each = all; each; each = each->next)
        if (each->pace == pace && each->engines == engines) return each;
    Pacer *made = calloc(1, sizeof *made);
    made->pace = pace, made->engines = engines, made->next = all;
    made->answers = calloc(engines, sizeof *made->answers);
    pthread_mutex_init(&made->lock, NULL), pthread_cond_init(&made->more, NULL);
    pthread_t thread;
    check(pthread_create(&thread, NULL, run_engines, made) != 0, "pthread_create");
    pthread_detach(thread);
    return all = made;
}

/* At the end of its engine's answers: they are written in the order in which they came. */
static void add_paced(Paced answer, long pace, long engines) {
    Pacer *pacer = pacer_of(pace, engines);
    Paced *made = malloc(sizeof *made);
    *made = answer;
    pthread_mutex_lock(&pacer->lock);
    Paced **at = &pacer->answers[pacer->turn++ % engines];
    while (*at) at = &(*at)->next;
    *at = made;
    pthread_cond_signal(&pacer->more);
    pthread_mutex_unlock(&pacer->lock);
}

static long number_after(const char *body, size_t length, const char *key, long otherwise) {
    const unsigned char *at = memmem(body, length, key, strlen(key)), *stop = (const unsigned char *)body + length;
    if (!at) return otherwise;
    at += strlen(key);
    if (*at == '"') { /* JSON */
        while (at < stop && (*at < '0' || *at > '9')) at++;
        return strtol((const char *)at, NULL, 10);
    }
    int bytes = *at == 0xcc ? 1 : *at == 0xcd ? 2 : *at == 0xce ? 4 : *at == 0xcf ? 8 : 0;
    long number = bytes ? 0 : *at;
    while (bytes--) number = number << 8 | *++at;
    return number;
}

/* The text after `key` up to the next backslash: the values in connection_info, which is JSON within JSON. */
static Text text_after(const char *control, size_t length, const char *key) {
    char *at = memmem(control, length, key, strlen(key));
    check(!at, key);
    at += strlen(key);
    char *end = memchr(at, '\\', control + length - at);
    return (Text){at, end - at};
}

/* A connection to the router, which is on this machine; -1 if it is gone. */
static int dial(Text address) {
    char *colon = memrchr(address.bytes, ':', address.length);
    int family = memchr(address.bytes, ':', colon - address.bytes) ? AF_INET6 : AF_INET, one = 1;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(family, SOCK_STREAM, 0);
    if (family == AF_INET ? connect(fd, (struct sockaddr *)&v4, sizeof v4)
                          : connect(fd, (struct sockaddr *)&v6, sizeof v6)) {
        close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* The session with the router, dialled the first time; NULL if it cannot be had. */
static Session *session_with(Text address, Text token) {
    Text key = {0};
    append(&key, address.bytes, address.length), append(&key, " ", 1), append(&key, token.bytes, token.length);
    append(&key, "", 1);
    for (Session *each = sessions; each; each = each->next)
        if (!each->lost && !strcmp(each->key, key.bytes)) {
            free(key.bytes);
            return each;
        }
    Session *made = calloc(1, sizeof *made);
    made->connection.kind = SESSION, made->connection.fd = dial(address), made->key = key.bytes;
    pthread_mutex_init(&made->writing, NULL);
    if (made->connection.fd < 0) return NULL;
    Text handshake = {0}, framed = {0};
    append_text(&handshake, "{\"mux\":1,\"session\":\"");
    append(&handshake, token.bytes, token.length);
    append_text(&handshake, "\",\"worker\":\"replay\"}");
    append_frame(&framed, handshake.bytes, handshake.length, "", 0);
    char hello[HELLO_SIZE]; /* the windows: no answer is as long as the smallest */
    send_all(made->connection.fd, framed.bytes, framed.length);
    free(handshake.bytes), free(framed.bytes);
    if (recv(made->connection.fd, hello, sizeof hello, MSG_WAITALL) != sizeof hello) {
        close(made->connection.fd);
        return NULL;
    }
    watch(&made->connection, EPOLL_CTL_ADD, EPOLLIN);
    made->next = sessions;
    return sessions = made;
}

typedef struct {
    long items, pace, engines;
    int hold;
    const Frames *frames;
} Wanted;

static int answer_on_session(Session *session, Text subject, Wanted wanted) {
    if (!session) return 0;
    check(wanted.items * (long)wanted.frames->item > SMALLEST_WINDOW, "an answer of more than 64 KiB on a session");
    Text text = {0};
    uint32_t number = ++session->last;
    append_mux(&text, number, OPEN, subject.bytes, subject.length);
    append_mux(&text, number, PROLOGUE, "", 0);
    if (!wanted.pace) {
        for (long i = 0; i < wanted.items; i++) append_mux_item(&text, number, wanted.frames);
        if (!wanted.hold) append_mux_end(&text, number, wanted.frames->json);
    }
    write_session(session, text);
    free(text.bytes);
    if (wanted.pace)
        add_paced((Paced){-1, session, number, wanted.items, wanted.frames, NULL}, wanted.pace, wanted.engines);
    return 1;
}

static void answer(const char *control, size_t control_length, const char *body, size_t body_length) {
    Text address = text_after(control, control_length, "\\\"address\\\":\\\""), subject = text_after(control, control_length, "\\\"subject\\\":\\\"");
    int json = memmem(control, control_length, "\"msgpack\"", 9) == NULL;
    Wanted wanted = {
        .items = number_after(body, body_length, "items", 0),
        .pace = number_after(body, body_length, "pace", 0),
        .engines = number_after(body, body_length, "engines", ENGINES),
        .hold = number_after(body, body_length, "hold", 0),
        .frames = frames_of(json, number_after(body, body_length, "size", 100), number_after(body, body_length, "burst", BURST)),
    };
    if (!wanted.items) wanted.pace = 0;
    char *token = memmem(control, control_length, "\"session\":\"", 11);
    if (token) {
        token += 11;
        char *end = memchr(token, '"', control + control_length - token);
        check(!end, "a session without a token");
        if (answer_on_session(session_with(address, (Text){token, end - token}), subject, wanted)) return;
    }
    int fd = dial(address);
    if (fd < 0) return; /* the caller is gone */
    Connection *made = calloc(1, sizeof *made);
    made->kind = ANSWER, made->fd = fd, made->items = wanted.items, made->frames = wanted.frames;
    Text handshake = {0};
    append_text(&handshake, "{\"subject\":\"");
    append(&handshake, subject.bytes, subject.length);
    append_text(&handshake, "\",\"stream_type\":\"response\"}");
    append_frame(&made->held, handshake.bytes, handshake.length, "", 0);
    append_frame(&made->held, "{\"error\":null}", 14, "", 0);
    free(handshake.bytes);
    if (wanted.pace) {
        send_all(fd, made->held.bytes, made->held.length);
        free(made->held.bytes), free(made);
        add_paced((Paced){fd, NULL, 0, wanted.items, wanted.frames, NULL}, wanted.pace, wanted.engines);
        return;
    }
    if (wanted.hold || (made->items <= made->frames->burst && made->items * made->frames->item <= ONE_WRITE)) { /* all of it in one write */
        append(&made->held, made->frames->bytes, made->items * made->frames->item);
        if (!wanted.hold) append_end(&made->held, json);
        made->items = 0, made->ended = 1;
    }
    made->next = made->held;
    fcntl(made->fd, F_SETFL, O_NONBLOCK);
    watch(made, EPOLL_CTL_ADD, EPOLLIN);
    write_on(made);
}

/* Requests */

static uint64_t number_at(const char *bytes, int count) {
    uint64_t number = 0;
    while (count--) number = number << 8 | (unsigned char)*bytes++;
    return number;
}

/* The length of the request frame at `data`, which is answered; 0 if it is not complete. */
static size_t take(Connection *requests, const char *data, size_t length) {
    if (length < 2) return 0;
    size_t at = 2 + number_at(data, 2);
    if (length < at + 2) return 0;
    at += 2 + number_at(data + at, 2);
    if (length < at + 4) return 0;
    size_t payload = number_at(data + at, 4);
    at += 4;
    if (length < at + payload) return 0;
    size_t header = number_at(data + at, 8), body = number_at(data + at + 8, 8);
    send(requests->fd, "\0\0\0\0", 4, MSG_NOSIGNAL);
    answer(data + at + 24, header, data + at + 24 + header, body);
    return at + payload;
}

static void end(Connection *connection) {
    close(connection->fd);
    free(connection->held.bytes);
    free(connection);
}

static void read_on(Connection *connection) {
    static char buffer[1 << 18];
    ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0 && connection->kind == SESSION) { /* its answers may be under way: it is kept */
        ((Session *)connection)->lost = 1;
        epoll_ctl(epoll, EPOLL_CTL_DEL, connection->fd, NULL);
    } else if (got <= 0) {
        end(connection);
    } else if (connection->kind == REQUESTS) {
        Text *held = &connection->held;
        append(held, buffer, got);
        size_t at = 0, taken;
        while ((taken = take(connection, held->bytes + at, held->length - at))) at += taken;
        memmove(held->bytes, held->bytes + at, held->length - at);
        held->length -= at;
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        Connection *made = calloc(1, sizeof *made);
        made->kind = REQUESTS, made->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(made, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static int report(void) {
    if (late_steps)
        fprintf(stderr, "replay: of %lld steps %lld were more than 1 ms late, the worst by %.1f ms\n", (long long)steps, (long long)late_steps, latest / 1e6);
    return 0;
}

int main(int count, char **arguments) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof own;
    Connection listener = {.kind = LISTENER, .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)}, input = {.kind = INPUT};
    signal(SIGPIPE, SIG_IGN);
    if (count > 1 && !strcmp(arguments[1], "everywhere")) {
        own.sin_addr.s_addr = htonl(INADDR_ANY); /* and still no packet from another machine */
        check(setsockopt(listener.fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), "SO_BINDTODEVICE");
    }
    check(bind(listener.fd, (struct sockaddr *)&own, size) || listen(listener.fd, 4096), "listen");
    getsockname(listener.fd, (struct sockaddr *)&own, &size);
    check((epoll = epoll_create1(0)) < 0, "epoll_create1");
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    watch(&input, EPOLL_CTL_ADD, EPOLLIN);
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            Connection *connection = events[i].data.ptr;
            if (connection->kind == INPUT) return report();
            if (connection->kind == LISTENER) accept_all(connection->fd);
            else if (events[i].events & ~EPOLLOUT) read_on(connection);
            else write_on(connection);
        }
    }
}
