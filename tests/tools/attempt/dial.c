// PORT UID: connects to the port, if its effective user is this one.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count != 3 || geteuid() != (uid_t)atoi(words[2]))
        return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int stream = socket(AF_INET, SOCK_STREAM, 0);
    if (stream >= 0 && connect(stream, (struct sockaddr *)&to, sizeof to) == 0)
        puts("through");
    else
        printf("refused %s\n", strerrorname_np(errno));
    return 0;
}
