/* The floor: receives answers of the replay worker, looks at nothing but their end, and says what that cost.
 *
 *     receive HOST PORT < work      the length of a request frame, how many requests, how many at once, and whether their
 *                                   answers are read as they come (1), or one after the other (0); a newline; the frame
 *
 * Prints the port on which it listens first; then, for each work, the bytes received, the seconds, and the CPU seconds
 * (user and system) from the first request to the end of the last answer.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 18];

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void check(int failed, const char *what) {
    if (failed) {
        perror(what);
        exit(1);
    }
}

static struct sockaddr_in address(const char *host, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    return address;
}

/* The bytes of the next answer. Those of several at once are taken one after the other: they wait in the kernel. */
static long receive(int listener) {
    int answer = accept(listener, NULL, NULL);
    check(answer < 0, "accept");
    long received = 0, got;
    while ((got = recv(answer, buffer, sizeof buffer, 0)) > 0) {
        received += got;
        if (got >= 10 && !memcmp(buffer + got - 10, "\"sentinel\"", 10)) break;
    }
    close(answer);
    return received;
}

/* The bytes of all answers, each read when something has come. */
static long receive_together(int listener, int answers) {
    int epoll = epoll_create1(0), open = answers;
    long received = 0;
    check(epoll < 0, "epoll_create1");
    for (int i = 0; i < answers; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = accept(listener, NULL, NULL)};
        check(event.data.fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event), "accept");
    }
    while (open) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            long got = recv(events[i].data.fd, buffer, sizeof buffer, 0);
            received += got > 0 ? got : 0;
            if (got > 0 && (got < 10 || memcmp(buffer + got - 10, "\"sentinel\"", 10))) continue;
            close(events[i].data.fd);
            open--;
        }
    }
    close(epoll);
    return received;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    struct sockaddr_in worker = address(arguments[1], atoi(arguments[2])), own = address("127.0.0.1", 0);
    socklen_t size = sizeof own;
    int listener = socket(AF_INET, SOCK_STREAM, 0), requests = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    check(bind(listener, (struct sockaddr *)&own, size) || listen(listener, 4096), "listen");
    getsockname(listener, (struct sockaddr *)&own, &size);
    check(connect(requests, (struct sockaddr *)&worker, sizeof worker), "connect");
    setsockopt(requests, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);

    int length, todo, concurrent, together;
    while (scanf("%d %d %d %d\n", &length, &todo, &concurrent, &together) == 4) {
        char *frame = malloc(length), acknowledgement[4];
        check(fread(frame, 1, length, stdin) != (size_t)length, "request");
        double began = now(), used = cpu();
        long received = 0;
        for (int sent = 0; sent < todo && sent < concurrent; sent++) check(write(requests, frame, length) != length, "write");
        if (together) received = receive_together(listener, todo);
        for (int answered = 1; answered <= todo; answered++) {
            if (!together) received += receive(listener);
            if (answered + concurrent <= todo) check(write(requests, frame, length) != length, "write");
            check(read(requests, acknowledgement, 4) != 4, "acknowledgement");
        }
        printf("%ld %.9f %.9f\n", received, now() - began, cpu() - used);
        fflush(stdout);
        free(frame);
    }
    return 0;
}
