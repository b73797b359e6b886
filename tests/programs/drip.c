// Writes COUNT bytes one by one, on both streams in turn when MIXED is 1, with pauses of up to PAUSE microseconds.
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 1;
    long pause = argc > 2 ? atol(argv[2]) : 0;
    int mixed = argc > 3 && atoi(argv[3]);
    for (long number = 0; number < count; number++) {
        char byte = 'a' + number % 26;
        if (write(mixed ? 1 + number % 2 : 1, &byte, 1) != 1) return 1;
        if (pause) usleep(random() % pause);
    }
    return 0;
}
