// storm: loads a filesystem with one kind of operation, as fast as one thread per job can.
//
//   storm MODE DIR JOBS FIRST COUNT SECONDS [BLOCK [DIRECT]]   prints: OPERATIONS SECONDS
//
// Also built as a library: storm() is one job. It ends after SECONDS, or when its work is done.
//
//   stat      stat(2) of each of the files f%06ld from FIRST on, COUNT of them, once, in mixed order
//   restat    the same again and again: what the kernel may keep is kept
//   negative  stat(2) of names that do not exist, each but once; COUNT of them, 0: no bound
//   open      open(2) and close(2), again and again
//   create    creat(2), close(2) and unlink(2) of new names; COUNT of them, 0: no bound
//   readdir   the whole directory again and again; an operation is an entry
//   list      readdir(3) and a stat of each entry, once
//   read, write        BLOCK bytes at mixed offsets of the file "data" (COUNT operations, 0: no bound)
//   seqread, seqwrite  the same in order
//   stream    write a new file of COUNT blocks and close it, again and again; an operation is a block
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FAIL (-(long) errno)

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

// Time is looked at every 16th operation only: it would count on a fast filesystem.
static int over(long n, double end)
{
	return n % 16 == 0 && now() >= end;
}

static long mixed(long i, long count)
{
	return count % 7919 ? i * 7919 % count : i;
}

static long names(const char *mode, int dir, long first, long count, double end)
{
	char name[64];
	struct stat st;
	long n;
	int again = strcmp(mode, "stat") != 0, opens = !strcmp(mode, "open"), fd;
	for (n = 0; (again || n < count) && !over(n, end); n++) {
		snprintf(name, sizeof(name), "f%06ld", first + mixed(n % count, count));
		if (opens) {
			fd = openat(dir, name, O_RDONLY);
			if (fd < 0 || close(fd) < 0)
				return FAIL;
		} else if (fstatat(dir, name, &st, 0) < 0) {
			return FAIL;
		}
	}
	return n;
}

static long negative(int dir, long first, long count, double end)
{
	char name[64];
	struct stat st;
	long n;
	for (n = 0; (!count || n < count) && !over(n, end); n++) {
		snprintf(name, sizeof(name), "none-%ld-%ld", first, n);
		if (fstatat(dir, name, &st, 0) == 0 || errno != ENOENT)
			return errno ? FAIL : -EEXIST;
	}
	return n;
}

static long create(int dir, long first, long count, double end)
{
	char name[64];
	long n;
	int fd;
	for (n = 0; (!count || n < count) && !over(n, end); n++) {
		snprintf(name, sizeof(name), "new-%ld-%ld", first, n);
		fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		if (fd < 0 || close(fd) < 0 || unlinkat(dir, name, 0) < 0)
			return FAIL;
	}
	return n;
}

static long listing(int dir, int stats, double end)
{
	struct dirent *e;
	struct stat st;
	long n = 0, before;
	DIR *d;
	int fd;
	do {
		before = n;
		fd = openat(dir, ".", O_RDONLY | O_DIRECTORY);
		d = fd < 0 ? NULL : fdopendir(fd);
		if (d == NULL)
			return FAIL;
		for (errno = 0; (e = readdir(d)) != NULL; n++)
			if (stats && fstatat(dir, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
				break;
		if (errno) {
			closedir(d);
			return FAIL;
		}
		closedir(d);
	} while (!stats && n > before && now() < end);
	return n;
}

static long blocks(const char *mode, int dir, long first, long count, double end, size_t block, int direct)
{
	int writing = strstr(mode, "write") != NULL, in_order = !strncmp(mode, "seq", 3);
	int fd = openat(dir, "data", (writing ? O_WRONLY : O_RDONLY) | (direct ? O_DIRECT : 0));
	uint64_t x = 88172645463325252ull + first;
	struct stat st;
	char *buf;
	long n, of, res;
	off_t at;
	if (fd < 0)
		return FAIL;
	fstat(fd, &st);
	of = st.st_size / block;
	buf = aligned_alloc(4096, block);
	if (buf == NULL || of == 0) {
		close(fd);
		return -EINVAL;
	}
	memset(buf, 0x5a, block);
	for (n = 0; (!count || n < count) && !over(n, end); n++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		at = (off_t) ((in_order ? (uint64_t) n : x) % of) * block;
		res = writing ? pwrite(fd, buf, block, at) : pread(fd, buf, block, at);
		if (res != (long) block) {
			n = res < 0 ? FAIL : -EIO;
			break;
		}
	}
	free(buf);
	close(fd);
	return n;
}

static long stream(int dir, long first, long count, double end, size_t block)
{
	char name[64], *buf = aligned_alloc(4096, block);
	long n = 0, k;
	int fd;
	if (buf == NULL)
		return -ENOMEM;
	memset(buf, 0x5a, block);
	snprintf(name, sizeof(name), "stream-%ld", first);
	do {
		fd = openat(dir, name, O_CREAT | O_TRUNC | O_WRONLY, 0644);
		if (fd < 0)
			return FAIL;
		for (k = 0; k < count; k++)
			if (write(fd, buf, block) != (ssize_t) block)
				return FAIL;
		if (close(fd) < 0)  // what was held back until now belongs to the work
			return FAIL;
		n += count;
	} while (now() < end);
	free(buf);
	return n;
}

long storm(const char *mode, const char *where, long first, long count, double seconds, long block, int direct)
{
	double end = now() + seconds;
	int dir = open(where, O_PATH | O_DIRECTORY);
	long n = -EINVAL;
	if (dir < 0)
		return FAIL;
	if (!strcmp(mode, "stat") || !strcmp(mode, "restat") || !strcmp(mode, "open"))
		n = count ? names(mode, dir, first, count, end) : -EINVAL;
	else if (!strcmp(mode, "negative"))
		n = negative(dir, first, count, end);
	else if (!strcmp(mode, "create"))
		n = create(dir, first, count, end);
	else if (!strcmp(mode, "readdir") || !strcmp(mode, "list"))
		n = listing(dir, !strcmp(mode, "list"), end);
	else if (strstr(mode, "read") || strstr(mode, "write"))
		n = blocks(mode, dir, first, count, end, block, direct);
	else if (!strcmp(mode, "stream"))
		n = stream(dir, first, count, end, block);
	close(dir);
	return n;
}

struct shared {
	int go, waiting;
	struct { long ops; double begin, end; } job[];
};

int main(int argc, char **argv)
{
	if (argc < 7) {
		fprintf(stderr, "usage: storm MODE DIR JOBS FIRST COUNT SECONDS [BLOCK [DIRECT]]\n");
		return 2;
	}
	const char *mode = argv[1];
	int jobs = atoi(argv[3]), j, bad = 0;
	long first = atol(argv[4]), count = atol(argv[5]), sum = 0;
	double seconds = atof(argv[6]), begin = 0, end = 0;
	long block = argc > 7 ? atol(argv[7]) : 4096;
	int direct = argc > 8 ? atoi(argv[8]) : 0;
	// What is a set of files is divided among the jobs; what makes its own names gets its own number.
	int divided = !strcmp(mode, "stat") || !strcmp(mode, "restat") || !strcmp(mode, "open");
	struct shared *s = mmap(NULL, sizeof(*s) + jobs * sizeof(s->job[0]), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (jobs < 1 || s == MAP_FAILED)
		return 2;
	for (j = 0; j < jobs; j++) {
		if (fork())
			continue;
		__atomic_add_fetch(&s->waiting, 1, __ATOMIC_SEQ_CST);
		while (!__atomic_load_n(&s->go, __ATOMIC_SEQ_CST))
			usleep(100);
		s->job[j].begin = now();
		s->job[j].ops = storm(mode, argv[2], divided ? first + j * (count / jobs) : first + j,
				      divided ? count / jobs : count, seconds, block, direct);
		s->job[j].end = now();
		_exit(0);
	}
	while (__atomic_load_n(&s->waiting, __ATOMIC_SEQ_CST) < jobs)
		usleep(100);
	__atomic_store_n(&s->go, 1, __ATOMIC_SEQ_CST);
	while (wait(NULL) > 0)
		;
	for (j = 0; j < jobs; j++) {
		if (s->job[j].ops < 0) {
			fprintf(stderr, "storm %s: %s\n", mode, strerror((int) -s->job[j].ops));
			bad = 1;
		}
		sum += s->job[j].ops;
		begin = !j || s->job[j].begin < begin ? s->job[j].begin : begin;
		end = !j || s->job[j].end > end ? s->job[j].end : end;
	}
	if (!bad)
		printf("%ld %.6f\n", sum, end - begin);
	return bad;
}
