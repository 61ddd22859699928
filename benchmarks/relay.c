/* The floor of a gateway: passes what the replay worker sends on to HTTP clients, and looks at nothing but the end.
 *
 *     relay WORKER_IP:PORT PORT    listens for clients on PORT of 127.0.0.1 until it is killed
 *
 * The body of an HTTP request becomes the body of a request frame. The worker's answer comes by a connection of its own.
 * What one read of it brings leaves in one write, as one chunk of HTTP/1.1: the frames as they are. One thread.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 1 << 16 };

typedef enum { CLIENTS, ANSWERS, CLIENT, ANSWER, WORKER } Kind;

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static Kind kinds[MOST];
static int client_of[MOST]; /* answer: the client's descriptor, 0 until its first bytes have come */
static char buffer[1 << 18];
static int epoll, worker, own_port;

static void check(int failed, const char *what) {
    if (failed) {
        perror(what);
        exit(1);
    }
}

static void watch(int fd, Kind kind) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    check(fd < 0 || fd >= MOST, "descriptor");
    kinds[fd] = kind, client_of[fd] = 0;
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static int listening(int port) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof own;
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    check(bind(fd, (struct sockaddr *)&own, size) || listen(fd, 4096), "listen");
    getsockname(fd, (struct sockaddr *)&own, &size);
    own_port = ntohs(own.sin_port);
    return fd;
}

static void put(char *at, uint64_t number, int bytes) {
    while (bytes--) at[bytes] = number & 0xff, number >>= 8;
}

/* A request frame for the worker, with the client's descriptor as the subject. */
static void ask(int client, const char *body, size_t length) {
    char frame[4096], *at = frame + 4, *control;
    put(frame, 0, 4); /* no path and no headers: the replay worker reads neither */
    control = at + 4 + 24;
    int size = sprintf(control,
        "{\"id\":\"c\",\"request_type\":\"single_in\",\"response_type\":\"many_out\",\"payload_codec\":\"json\","
        "\"connection_info\":{\"transport\":\"tcp_server\",\"info\":\"{\\\"address\\\":\\\"127.0.0.1:%d\\\","
        "\\\"subject\\\":\\\"%d\\\",\\\"context\\\":\\\"c\\\",\\\"stream_type\\\":\\\"response\\\"}\"}}", own_port, client);
    check(size + length + 36 > sizeof frame, "request");
    put(at, 24 + size + length, 4), put(at + 4, size, 8), put(at + 12, length, 8), put(at + 20, 0, 8);
    memcpy(control + size, body, length);
    size_t whole = control + size + length - frame;
    check(send(worker, frame, whole, MSG_NOSIGNAL) != (ssize_t)whole, "send");
}

/* A request comes in one read: the clients of the benchmark send short ones. */
static void take_request(int client) {
    ssize_t got = recv(client, buffer, sizeof buffer, 0);
    char *body = got > 0 ? memmem(buffer, got, "\r\n\r\n", 4) : NULL;
    if (!body) {
        close(client);
        return;
    }
    if (body + 4 == buffer + got) { /* the head alone: the body follows */
        ssize_t more = recv(client, buffer + got, sizeof buffer - got, 0);
        got += more > 0 ? more : 0;
    }
    ask(client, body + 4, buffer + got - body - 4);
}

static void take_answer(int answer) {
    ssize_t got = recv(answer, buffer, sizeof buffer, 0);
    int client = client_of[answer];
    if (got <= 0) {
        close(answer);
        return;
    }
    struct iovec parts[4];
    int count = 0;
    if (!client) {
        char *subject = memmem(buffer, got, "\"subject\":\"", 11);
        check(!subject, "handshake");
        client = client_of[answer] = atoi(subject + 11);
        parts[count++] = (struct iovec){(char *)HEAD, sizeof HEAD - 1};
    }
    int ended = got >= 10 && !memcmp(buffer + got - 10, "\"sentinel\"", 10);
    char size[24];
    parts[count++] = (struct iovec){size, sprintf(size, "%zx\r\n", (size_t)got)};
    parts[count++] = (struct iovec){buffer, got};
    parts[count++] = (struct iovec){ended ? "\r\n0\r\n\r\n" : "\r\n", ended ? 7 : 2};
    ssize_t whole = 0;
    for (int i = 0; i < count; i++) whole += parts[i].iov_len;
    check(writev(client, parts, count) != whole, "writev"); /* it blocks: the clients read */
    if (ended) close(answer);
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    char *colon = strrchr(arguments[1], ':');
    check(!colon, "address");
    *colon = 0;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
    inet_pton(AF_INET, arguments[1], &to.sin_addr);
    int one = 1;
    epoll = epoll_create1(0);
    watch(listening(atoi(arguments[2])), CLIENTS);
    watch(listening(0), ANSWERS);
    worker = socket(AF_INET, SOCK_STREAM, 0);
    check(connect(worker, (struct sockaddr *)&to, sizeof to), "connect");
    setsockopt(worker, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(worker, WORKER);
    for (;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (kinds[fd] == CLIENTS || kinds[fd] == ANSWERS) {
                int accepted = accept(fd, NULL, NULL);
                setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(accepted, kinds[fd] == CLIENTS ? CLIENT : ANSWER);
            } else if (kinds[fd] == CLIENT) {
                take_request(fd);
            } else if (kinds[fd] == ANSWER) {
                take_answer(fd);
            } else {
                check(recv(fd, buffer, sizeof buffer, 0) <= 0, "worker"); /* acknowledgements */
            }
        }
    }
}
