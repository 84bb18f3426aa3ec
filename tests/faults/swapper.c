/* The attacker: exchanges what a run of besom is about to meet, as fast as the kernel can.
 *
 * swapper COUNTER SECONDS PAUSE < targets, one per line, tab between the words:
 *   swap   DIR NAME SPARE    exchange DIR/NAME for SPARE, and back
 *   away   DIR NAME SPARE    rename DIR/NAME to SPARE, and back
 *   rotate DIR NAME SPARE    put away what DIR/NAME is, put SPARE there instead, and all of it back
 *   bind   DIR NAME SOURCE   mount SOURCE on DIR/NAME, and unmount it
 *   tmpfs  DIR NAME -        mount an empty file system on DIR/NAME, and unmount it
 *   trash  DIR - SPARE       exchange whatever is called .besom-trash-* in DIR for SPARE, and back
 *
 * DIRs are opened once, so they are found wherever they are renamed to; their times are put back to SECONDS
 * after each change, so that nothing gives it away. COUNTER is a file of one 64-bit number of attacks done,
 * mapped. PAUSE: at most so many microseconds between two bursts; 0 is full speed. Works until SIGTERM:
 * then all is unmounted, and what is called trash is what besom made.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 512

struct target {
    char kind, name[256], at[320], spare[1024], found[1060];
    int dir, out;
};

static struct target targets[MOST];
static volatile sig_atomic_t over;

static void end(int signum) { (void)signum; over = 1; }

static int find_trash(struct target *t) {
    int fd = openat(t->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = 0;
    DIR *all = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *one;
    while (all && !found && (one = readdir(all)))
        if (!strncmp(one->d_name, ".besom-trash-", 13)) {
            snprintf(t->found, sizeof t->found, "%s", one->d_name);
            found = 1;
        }
    if (all) closedir(all);
    return found;
}

/* One attack, or its undoing; whether it came about. */
static int attack(struct target *t) {
    switch (t->kind) {
    case 's':
        return !renameat2(t->dir, t->name, AT_FDCWD, t->spare, RENAME_EXCHANGE);
    case 'a':
        if (renameat2(t->out ? AT_FDCWD : t->dir, t->out ? t->spare : t->name, t->out ? t->dir : AT_FDCWD,
                      t->out ? t->name : t->spare, RENAME_NOREPLACE))
            return 0;
        t->out = !t->out;
        return 1;
    case 'r':
        switch (t->out++ % 4) {
        case 0: return !renameat2(t->dir, t->name, AT_FDCWD, t->found, RENAME_NOREPLACE);
        case 1: return !renameat2(AT_FDCWD, t->spare, t->dir, t->name, RENAME_NOREPLACE);
        case 2: return !renameat2(t->dir, t->name, AT_FDCWD, t->spare, RENAME_NOREPLACE);
        default: return !renameat2(AT_FDCWD, t->found, t->dir, t->name, RENAME_NOREPLACE);
        }
    case 'b':
    case 't':
        if (t->out ? umount2(t->at, MNT_DETACH | UMOUNT_NOFOLLOW)
                   : mount(t->kind == 'b' ? t->spare : "none", t->at, t->kind == 'b' ? NULL : "tmpfs",
                           t->kind == 'b' ? MS_BIND : 0, NULL))
            return 0;
        t->out = !t->out;
        return 1;
    default: /* trash */
        if (!t->out && !find_trash(t)) return 0;
        if (renameat2(t->dir, t->found, AT_FDCWD, t->spare, RENAME_EXCHANGE)) {
            t->out = 0;
            return 0;
        }
        t->out = !t->out;
        return 1;
    }
}

int main(int argc, char **argv) {
    static char line[2048], dir[1024], kind[16];
    if (argc != 4) return 2;
    int fd = open(argv[1], O_RDWR);
    volatile uint64_t *done = mmap(NULL, sizeof *done, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct timespec then[2] = {{atol(argv[2]), 0}, {atol(argv[2]), 0}};
    unsigned pause = (unsigned)atol(argv[3]), seed = (unsigned)getpid();
    int count = 0;
    if (fd < 0 || done == MAP_FAILED) return 2;
    while (count < MOST && fgets(line, sizeof line, stdin)) {
        struct target *t = &targets[count++];
        if (sscanf(line, "%15[^\t]\t%1023[^\t]\t%255[^\t]\t%1023[^\n]", kind, dir, t->name, t->spare) != 4)
            return 2;
        t->kind = *kind == 't' && kind[1] == 'r' ? '*' : *kind;
        if ((t->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
            perror(dir);
            return 2;
        }
        if (t->kind == 'r') snprintf(t->found, sizeof t->found, "%s.old", t->spare);
        snprintf(t->at, sizeof t->at, "/proc/self/fd/%d/%s", t->dir, t->name);
    }
    signal(SIGTERM, end);
    puts("begun");
    fflush(stdout);
    while (!over) {
        for (int i = 0; i < count && !over; i++)
            if (attack(&targets[i])) {
                ++*done;
                futimens(targets[i].dir, then);
            }
        if (pause) usleep((useconds_t)rand_r(&seed) % pause);
    }
    for (int i = count; i--;)
        if (strchr("bt*", targets[i].kind) && targets[i].out) attack(&targets[i]);
    return 0;
}
