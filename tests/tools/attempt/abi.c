// PORT ABI: socket() and connect() by another ABI's system calls: i386 (socketcall by `int 0x80`) or x32.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { I386_SOCKETCALL = 102, CALL_SOCKET = 1, CALL_CONNECT = 3, X32 = 0x40000000 };

static long i386(long number, long first, long second) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second) : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

static long x32(long number, long first, long second, long third) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number | X32), "D"(first), "S"(second), "d"(third) : "memory", "rcx", "r11");
    return result;
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    // Where 32-bit pointers reach.
    uint32_t *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED)
        return 2;
    struct sockaddr_in *to = (struct sockaddr_in *)(low + 16);
    to->sin_family = AF_INET;
    to->sin_port = htons(atoi(words[1]));
    to->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int is_x32 = !strcmp(words[2], "x32");
    low[0] = AF_INET, low[1] = SOCK_STREAM, low[2] = 0;
    long result = is_x32 ? x32(SYS_socket, AF_INET, SOCK_STREAM, 0) : i386(I386_SOCKETCALL, CALL_SOCKET, (long)low);
    if (result >= 0) {
        low[0] = result, low[1] = (uint32_t)(uintptr_t)to, low[2] = sizeof *to;
        result = is_x32 ? x32(SYS_connect, result, (long)to, sizeof *to) : i386(I386_SOCKETCALL, CALL_CONNECT, (long)low);
    }
    if (result >= 0)
        puts("through");
    else
        printf("%s %s\n", result == -ENOSYS ? "absent" : "refused", strerrorname_np(-result));
    return 0;
}
