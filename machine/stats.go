package machine

import (
	"fmt"
	"os"
	"strings"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/rng"
	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/vcpu"
	"golang.org/x/sys/unix"
)

// Stats are the figures of a machine. What counts begins with the machine.
type Stats struct {
	// Exits are those of each processor.
	Exits [][]vcpu.ExitCount
	// Stray counts the accesses to ports and addresses without a device.
	Stray uint64
	// Dirtied is how many bytes the guest and the devices have written while that
	// was logged, in whole pages, each of which counts once for each look at the
	// log.
	Dirtied uint64
	// Disks are in the order of Config.Disks, Nets in that of Config.Nets.
	Disks []blk.Stats
	Nets  []net.Stats
	// The devices that a machine has one of; nil if it has none.
	RNG     *rng.Stats
	Vsock   *vsock.Stats
	Balloon *balloon.Stats
	HVC     *console.Stats
}

// Stats returns the figures of now. It may be called from any goroutine until Close.
func (m *Machine) Stats() Stats {
	s := Stats{Stray: m.Stray(), Dirtied: m.dirtied.Load() * memory.PageSize}
	for _, v := range m.cpus {
		s.Exits = append(s.Exits, v.ExitCounts())
	}
	for _, v := range m.virtio {
		switch d := v.device.(type) {
		case interface{ Stats() blk.Stats }:
			s.Disks = append(s.Disks, d.Stats())
		case interface{ Stats() net.Stats }:
			s.Nets = append(s.Nets, d.Stats())
		case interface{ Stats() rng.Stats }:
			s.RNG = new(d.Stats())
		case interface{ Stats() vsock.Stats }:
			s.Vsock = new(d.Stats())
		case interface{ Stats() balloon.Stats }:
			s.Balloon = new(d.Stats())
		case interface{ Stats() console.Stats }:
			s.HVC = new(d.Stats())
		}
	}
	return s
}

// MemoryGranted is how many bytes of memory the guest may use: all but what the
// balloon has.
func (m *Machine) MemoryGranted() uint64 {
	size := m.mem.Size()
	if m.balloon == nil {
		return size
	}
	return size - min(m.balloon.Stats().ActualPages*memory.PageSize, size)
}

// MemoryUsed is how many bytes of the host's memory the guest's takes up.
func (m *Machine) MemoryUsed() (uint64, error) {
	if m.mem.FD() < 0 {
		// A restored guest: the pages that it has written are this process's own,
		// and nearly all that this has.
		return anonymousMemory()
	}
	var s unix.Stat_t
	if err := unix.Fstat(m.mem.FD(), &s); err != nil {
		return 0, err
	}
	return uint64(s.Blocks) * 512, nil // see stat(2)
}

// anonymousMemory is how many bytes of memory this process has that are not a file's;
// 0 on a kernel that does not tell.
func anonymousMemory() (uint64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, nil
}
