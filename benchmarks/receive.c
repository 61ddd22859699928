/* The floor: receives an answer of the replay worker, looks at nothing but its end, and says what that cost.
 *
 *     receive HOST PORT < request frames      one per line: its length in bytes, a newline, the bytes
 *
 * Prints the port on which it listens first; then, for each request, the bytes received, the seconds, and the CPU
 * seconds (user and system) from sending the request to the end of the answer.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
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

int main(int count, char **arguments) {
    if (count != 3) return 2;
    struct sockaddr_in worker = address(arguments[1], atoi(arguments[2])), own = address("127.0.0.1", 0);
    socklen_t size = sizeof own;
    int listener = socket(AF_INET, SOCK_STREAM, 0), requests = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    check(bind(listener, (struct sockaddr *)&own, size) || listen(listener, 16), "listen");
    getsockname(listener, (struct sockaddr *)&own, &size);
    check(connect(requests, (struct sockaddr *)&worker, sizeof worker), "connect");
    setsockopt(requests, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);

    int length;
    while (scanf("%d\n", &length) == 1) {
        char *frame = malloc(length);
        check(fread(frame, 1, length, stdin) != (size_t)length, "request");
        double began = now(), used = cpu();
        check(write(requests, frame, length) != length, "write");
        int answer = accept(listener, NULL, NULL);
        check(answer < 0, "accept");
        long received = 0, got;
        while ((got = recv(answer, buffer, sizeof buffer, 0)) > 0) {
            received += got;
            if (got >= 10 && !memcmp(buffer + got - 10, "\"sentinel\"", 10)) break;
        }
        close(answer);
        char acknowledgement[4];
        check(read(requests, acknowledgement, 4) != 4, "acknowledgement");
        printf("%ld %.9f %.9f\n", received, now() - began, cpu() - used);
        fflush(stdout);
        free(frame);
    }
    return 0;
}
