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

enum { BURST = 64, BURST_BYTES = 1 << 18, ONE_WRITE = 1 << 16 };

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
    enum { INPUT, LISTENER, REQUESTS, ANSWER } kind;
    int fd;
    Text held;        /* requests: what came and is no whole request; answer: its beginning, then its end */
    Text next;        /* answer: what is to be written next, in `held` or in `frames` */
    long items, pace; /* answer: how many are still to be written, and the microseconds between them */
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

/* One packet an item. (The timers of epoll are too coarse for this.) */
static void *write_paced(void *argument) {
    Connection *answer = argument;
    struct timespec due;
    send(answer->fd, answer->held.bytes, answer->held.length, MSG_NOSIGNAL);
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (; answer->items; answer->items--) {
        due.tv_nsec += answer->pace * 1000;
        due.tv_sec += due.tv_nsec / 1000000000, due.tv_nsec %= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        if (send(answer->fd, answer->frames->bytes, answer->frames->item, MSG_NOSIGNAL) < 0) break;
    }
    Text end = {0};
    append_end(&end, answer->frames->json);
    send(answer->fd, end.bytes, end.length, MSG_NOSIGNAL);
    char byte;
    while (recv(answer->fd, &byte, 1, 0) > 0) {}
    close(answer->fd);
    free(end.bytes), free(answer->held.bytes), free(answer);
    return NULL;
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

static void answer(const char *control, size_t control_length, const char *body, size_t body_length) {
    Text address = text_after(control, control_length, "\\\"address\\\":\\\""), subject = text_after(control, control_length, "\\\"subject\\\":\\\"");
    int json = memmem(control, control_length, "\"msgpack\"", 9) == NULL, one = 1;
    char *colon = memrchr(address.bytes, ':', address.length);
    int family = memchr(address.bytes, ':', colon - address.bytes) ? AF_INET6 : AF_INET; /* the router is on this machine */
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    Connection *made = calloc(1, sizeof *made);
    made->kind = ANSWER, made->fd = socket(family, SOCK_STREAM, 0);
    made->items = number_after(body, body_length, "items", 0), made->pace = number_after(body, body_length, "pace", 0);
    int hold = number_after(body, body_length, "hold", 0);
    made->frames = frames_of(json, number_after(body, body_length, "size", 100), number_after(body, body_length, "burst", BURST));
    if (family == AF_INET ? connect(made->fd, (struct sockaddr *)&v4, sizeof v4)
                          : connect(made->fd, (struct sockaddr *)&v6, sizeof v6)) { /* the caller is gone */
        close(made->fd), free(made);
        return;
    }
    setsockopt(made->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    Text handshake = {0};
    append_text(&handshake, "{\"subject\":\"");
    append(&handshake, subject.bytes, subject.length);
    append_text(&handshake, "\",\"stream_type\":\"response\"}");
    append_frame(&made->held, handshake.bytes, handshake.length, "", 0);
    append_frame(&made->held, "{\"error\":null}", 14, "", 0);
    free(handshake.bytes);
    if (made->pace) {
        pthread_t thread;
        check(pthread_create(&thread, NULL, write_paced, made) != 0, "pthread_create");
        pthread_detach(thread);
        return;
    }
    if (hold || (made->items <= made->frames->burst && made->items * made->frames->item <= ONE_WRITE)) { /* all of it in one write */
        append(&made->held, made->frames->bytes, made->items * made->frames->item);
        if (!hold) append_end(&made->held, json);
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
    if (got <= 0) {
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
            if (connection->kind == INPUT) return 0;
            if (connection->kind == LISTENER) accept_all(connection->fd);
            else if (events[i].events & ~EPOLLOUT) read_on(connection);
            else write_on(connection);
        }
    }
}
