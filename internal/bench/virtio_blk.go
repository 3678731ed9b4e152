package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
	"golang.org/x/sys/unix"
)

// What a disk may cost (issue 3).
const (
	blockOfQEMU  = 0.769 // of the time of QEMU's best: 1.3 times as fast
	streamOfLoop = 1.25  // of the time of a loop around pread or pwrite: 80% as fast
)

// blockCases are the benchmarks of the disk. All of the file is in the host's
// page cache.
func blockCases() []Case {
	random := func(depth int) func(context.Context, *Env) (*Result, error) {
		b := micro.Block{Random: true, Seed: 1, Size: 4096, Depth: depth, Requests: 20_000, Warmup: 2000}
		b.Indirect, b.EventIdx = true, true
		return func(ctx context.Context, e *Env) (*Result, error) {
			return runBlock(ctx, e, b, atMostTimes(godwitName, blockOfQEMU, qemuDisks()...))
		}
	}
	stream := func(dir micro.Access) func(context.Context, *Env) (*Result, error) {
		// As Linux reads ahead and writes back: a few large requests at a
		// time, in pieces that lie in one piece in memory.
		b := micro.Block{Access: dir, Size: 1 << 20, Segment: 64 << 10, Depth: 4, Requests: 1000, Warmup: 256}
		b.Indirect, b.EventIdx = true, true
		return func(ctx context.Context, e *Env) (*Result, error) {
			return runBlock(ctx, e, b, atMostTimes(godwitName, blockOfQEMU, qemuDisks()...), atMostTimes(godwitName, streamOfLoop, loopName))
		}
	}
	return []Case{
		{Name: "blk-rand-1", What: "4 KiB random reads from a disk, one at a time", Run: random(1)},
		{Name: "blk-rand-32", What: "4 KiB random reads from a disk, 32 at a time", Run: random(32)},
		{Name: "blk-read", What: "1 MiB sequential reads from a disk", Run: stream(micro.Read)},
		{Name: "blk-write", What: "1 MiB sequential writes to a disk", Run: stream(micro.Write)},
	}
}

// qemuDisk is a way in which QEMU serves a disk.
type qemuDisk struct {
	aio      string
	iothread bool
}

var qemuWays = [...]qemuDisk{{"threads", false}, {"threads", true}, {"io_uring", false}, {"io_uring", true}}

func (d qemuDisk) name() string {
	if d.iothread {
		return "QEMU " + d.aio + ", iothread"
	}
	return "QEMU " + d.aio
}

func qemuDisks() (names []string) {
	for _, d := range qemuWays {
		names = append(names, d.name())
	}
	return names
}

func (d qemuDisk) args(path string) []string {
	device := "virtio-blk-pci,drive=disk"
	args := []string{"-drive", "if=none,id=disk,format=raw,aio=" + d.aio + ",file=" + path}
	if d.iothread {
		args = append(args, "-object", "iothread,id=io")
		device += ",iothread=io"
	}
	return append(args, "-device", device)
}

// diskSize is that of the file behind the disks, in bytes.
const diskSize = 256 << 20

// runBlock compares a plain loop, godwit and QEMU on the same file.
func runBlock(ctx context.Context, e *Env, b micro.Block, goals ...goal) (*Result, error) {
	all := b.Requests
	if e.Quick {
		b.Requests, b.Warmup = b.Requests/10, b.Warmup/10
	}
	b.Stop = micro.AnyStop()
	path, err := benchDisk(e)
	if err != nil {
		return nil, err
	}
	guest, err := newDeviceGuest(e, b.ELF)
	if err != nil {
		return nil, err
	}
	defer guest.close()
	r := newDeviceResult("request", goals...)
	r.addLatencies()
	disk := machine.Config{NoRNG: true, Disks: []blk.Config{{Path: path}}}
	contestants := []contestant{
		{name: loopName, run: func(context.Context) ([]float64, error) { return plainDiskLoop(path, b) }},
		{name: godwitName, run: func(ctx context.Context) ([]float64, error) { return timings(guest.inMachine(ctx, disk)) }},
	}
	for _, way := range qemuWays {
		contestants = append(contestants, contestant{name: way.name(), peer: true, run: func(ctx context.Context) ([]float64, error) {
			return timings(guest.inQEMU(ctx, way.args(path)...))
		}})
	}
	if err := r.compete(ctx, e, e.rounds(11, 3), contestants...); err != nil {
		return nil, err
	}
	return r, r.countDeviceAllocations(e, all, func(requests uint64) (*deviceRun, error) {
		b.Requests = requests
		guest, err := newDeviceGuest(e, b.ELF)
		if err != nil {
			return nil, err
		}
		defer guest.close()
		return guest.inMachine(ctx, disk)
	})
}

// benchDisk makes a file whose data is in the page cache.
func benchDisk(e *Env) (string, error) {
	e.progress("making a disk")
	path := filepath.Join(e.Dir, "disk")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for off := int64(0); off < diskSize; off += int64(len(block)) {
		micro.Pattern(1, uint64(off), block)
		if _, err := f.WriteAt(block, off); err != nil {
			return "", err
		}
	}
	return path, f.Sync()
}

// plainDiskLoop does with system calls what the guest does with requests, one at a
// time.
func plainDiskLoop(path string, b micro.Block) ([]float64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	call := unix.Pread
	if b.Access == micro.Write {
		call = unix.Pwrite
	}
	buf := make([]byte, b.Size)
	places := uint64(diskSize / b.Size)
	state := uint64(1)
	loop := newPlainLoop(b.Warmup, b.Requests)
	for i := range b.Warmup + b.Requests {
		place := i % places
		if b.Random {
			state ^= state << 13
			state ^= state >> 7
			state ^= state << 17
			place = state >> 32 * places >> 32
		}
		err := loop.step(func() error {
			n, err := call(int(f.Fd()), buf, int64(place)*int64(b.Size))
			if err == nil && n != b.Size {
				err = fmt.Errorf("%d bytes of %d", n, b.Size)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return loop.samples(), nil
}
