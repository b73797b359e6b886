// Forks as fast as it can from its first instruction on, with children that leave their session,
// until it cannot; then says how many it made and waits. With "spread" every child does the same.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int spread = argc > 1 && !strcmp(argv[1], "spread");
    int made = 0;
    for (;;) {
        pid_t child = fork();
        if (child == 0) {
            setsid();
            if (!spread)
                for (;;) pause();
        } else if (child < 0) {
            if (!spread) break;
            usleep(1000);
        } else {
            made++;
        }
    }
    printf("%d\n", made);
    fflush(stdout);
    for (;;) pause();
}
