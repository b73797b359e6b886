// Asks for its process id as a program of another ABI would, i386 or x32, and says whether it lives.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
#if defined(__x86_64__)
    long answer;
    if (strcmp(argv[1], "i386") == 0)
        __asm__ volatile("int $0x80" : "=a"(answer) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    else
        __asm__ volatile("syscall" : "=a"(answer) : "a"(0x40000000L + 39) : "memory", "rcx", "r11");
#endif
    return puts("alive") < 0;
}
