// Takes MiB of memory, page by page, and says so.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    size_t size = (size_t)(argc > 1 ? atoi(argv[1]) : 1) << 20;
    char *memory = malloc(size);
    if (!memory) return 1;
    for (size_t at = 0; at < size; at += 4096) memory[at] = (char)at | 1;
    printf("%zu\n", size);
    return memory[size - 4096] == 0;
}
