// Makes N orphans that end at once, and exits with 0 when all of them could be made.
#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t fork_within(int seconds) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    time_t deadline = now.tv_sec + seconds;
    for (;;) {
        pid_t child = fork();
        if (child >= 0 || errno != EAGAIN) return child;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > deadline) return -1;
        usleep(1000);
    }
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1000;
    for (int i = 0; i < count; i++) {
        pid_t parent = fork_within(10);
        if (parent < 0) return 1;
        if (parent == 0) {
            pid_t orphan = fork_within(10);
            _exit(orphan < 0 ? 1 : 0);
        }
        int status;
        if (waitpid(parent, &status, 0) != parent || status != 0) return 2;
    }
    return 0;
}
