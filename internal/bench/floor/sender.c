// Writes the packet on standard input to the socket on descriptor 3 for as long
// as it lives: the host's side of the benchmarks in which a guest receives. A
// process of its own, so that no VMM shares its scheduler with it.
#include <stdio.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

static char packet[1 << 17];

int main(void)
{
	size_t size = 0;
	ssize_t n;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while ((n = read(0, packet + size, sizeof(packet) - size)) > 0)
		size += n;
	if (size == 0 || n < 0) {
		perror("packet");
		return 1;
	}
	for (;;) {
		// An error is a full queue, or that nobody has the other end yet.
		if (write(3, packet, size) < 0)
			usleep(20);
	}
}
