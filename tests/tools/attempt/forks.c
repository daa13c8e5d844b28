// TOTAL WANTED [PROGRAM]: starts TOTAL children, a few at a time, each of which makes a raw socket and ends, or executes
// PROGRAM; says how many of them got another answer than WANTED (an errno, 0 for success; -1 does not try). Without words it
// does nothing, as a PROGRAM may.
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { AT_ONCE = 16 };

static int attempt(char *program) {
    if (program)
        return execv(program, (char *[]){program, NULL}), errno;
    return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) < 0 ? errno : 0;
}

int main(int count, char **words) {
    if (count == 1)
        return 0;
    if (count != 3 && count != 4)
        return 2;
    int total = atoi(words[1]), wanted = atoi(words[2]), started = 0, ended = 0, wrong = 0;
    while (ended < total) {
        while (started < total && started - ended < AT_ONCE) {
            pid_t child = fork();
            if (child < 0)
                return 3;
            if (child == 0)
                _exit(wanted >= 0 && attempt(words[3]) != wanted);
            started++;
        }
        int status;
        if (wait(&status) < 0)
            return 4;
        ended++;
        wrong += status != 0;
    }
    printf("wrong %d\n", wrong);
    return 0;
}
