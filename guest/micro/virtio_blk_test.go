package micro

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
)

// testDisk makes a disk image that holds the pattern.
func testDisk(t testing.TB, size int, seed uint64) string {
	t.Helper()
	data := make([]byte, size)
	Pattern(seed, 0, data)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// commas doubles them, as QEMU wants it in the value of an option.
func commas(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// qemuDisk is the options for a disk.
func qemuDisk(path, more string) []string {
	return []string{"-drive", "if=none,id=disk,format=raw,file=" + commas(path), "-device", "virtio-blk-pci,drive=disk" + more}
}

func TestBlock(t *testing.T) {
	const size = 8 << 20
	indirect, event := Driver{Indirect: true}, Driver{EventIdx: true}
	both := Driver{Indirect: true, EventIdx: true}
	for _, test := range []struct {
		name  string
		block Block
	}{
		{"one read", Block{Size: 4096, Requests: 1}},
		{"random reads, depth 1", Block{Random: true, Size: 4096, Requests: 300, Warmup: 10}},
		{"random reads, depth 64", Block{Random: true, Size: 4096, Requests: 2000, Depth: 64}},
		{"random reads, event index", Block{Driver: event, Random: true, Size: 4096, Requests: 2000, Depth: 32, Warmup: 5}},
		{"random reads, both, always kick", Block{Driver: Driver{Indirect: true, EventIdx: true, AlwaysKick: true}, Random: true, Size: 512, Requests: 1000, Depth: 8}},
		{"fewer requests than the depth", Block{Size: 4096, Requests: 3, Depth: 16}},
		{"sequential reads, segments", Block{Size: 1 << 20, Segment: 1 << 16, Requests: 20, Depth: 8}},
		{"sequential reads, indirect", Block{Driver: indirect, Size: 1 << 20, Segment: 8192, Requests: 20, Depth: 8}},
		{"sequential writes", Block{Access: Write, Size: 1 << 20, Requests: 8, Depth: 4}},
		{"sequential writes, indirect segments", Block{Driver: both, Access: Write, Size: 1 << 20, Segment: 4096 * 3, Requests: 8, Depth: 2}},
		{"random writes with flushes", Block{Access: Write, Random: true, Size: 4096, Requests: 100, Depth: 7, Flush: 11}},
		{"half the disk", Block{Access: Write, Size: 4096, Span: size / 2, Requests: size / 4096, Depth: 32}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, m := range machines {
				t.Run(m.name, func(t *testing.T) {
					runBlock(t, test.block, size, func(program []byte, disk string) Result {
						return m.run(t, program, qemuDisk(disk, "")...)
					})
				})
			}
			t.Run("godwit", func(t *testing.T) {
				runBlock(t, test.block, size, func(program []byte, disk string) Result {
					return newVirtioGuest(t, program, godwitDisk(t, disk)).run()
				})
			})
		})
	}
}

// godwitDisk is godwit's device.
func godwitDisk(t *testing.T, path string) virtio.Device {
	t.Helper()
	d, err := blk.New(blk.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// runBlock runs the program on a disk of the given size, and checks what it
// says and what is on the disk.
func runBlock(t *testing.T, b Block, size int, run func(program []byte, disk string) Result) {
	b.Stop, b.Verify, b.Seed = AnyStop(), true, 99
	before := b.Seed
	if b.Access == Write {
		before++
	}
	disk := testDisk(t, size, before)
	r := run(program(t)(b.ELF()), disk)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	checkBlock(t, b, r)
	got, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, b, got)
}

// checkBlock checks the figures of a run without errors.
func checkBlock(t *testing.T, b Block, r Result) {
	t.Helper()
	if r.Count != b.Requests || r.Bytes != b.Requests*uint64(b.Size) || r.Histogram.Count() != b.Requests {
		t.Errorf("%d requests, %d bytes, %d times; want %d requests of %d bytes", r.Count, r.Bytes, r.Histogram.Count(), b.Requests, b.Size)
	}
	if r.Errors != 0 || r.Mismatches != 0 {
		t.Errorf("%d errors, %d mismatches, the last one %#x", r.Errors, r.Mismatches, r.Detail)
	}
	ticks := r.LastTSC - r.FirstTSC
	if r.FirstTSC == 0 || r.LastTSC <= r.FirstTSC || r.Latency == 0 || r.Latency > ticks*uint64(max(b.Depth, 1)) {
		t.Errorf("time stamps %d to %d, latencies %d in all", r.FirstTSC, r.LastTSC, r.Latency)
	}
	// A device that polls may do without a doorbell.
	if b.AlwaysKick && r.Kicks == 0 {
		t.Error("no doorbell was rung")
	}
	t.Logf("%.1f kticks and %.2f kicks a request; latency 50%% %.1f, 99%% %.1f kticks",
		float64(ticks)/1e3/float64(r.Count), float64(r.Kicks)/float64(r.Count),
		r.Histogram.Quantile(.5)/1e3, r.Histogram.Quantile(.99)/1e3)
}

// checkDisk checks that each block has the old pattern or the one written, and
// that the sequential writes are where they belong.
func checkDisk(t *testing.T, b Block, got []byte) {
	t.Helper()
	written := 0
	old, now := make([]byte, b.Size), make([]byte, b.Size)
	for off := 0; off < len(got); off += b.Size {
		block := got[off : off+b.Size]
		Pattern(b.Seed, uint64(off), now)
		Pattern(b.Seed+1, uint64(off), old)
		switch {
		case bytes.Equal(block, now):
			written++
		case b.Access == Read || !bytes.Equal(block, old):
			t.Fatalf("the disk has something else at %#x", off)
		}
	}
	span := uint64(len(got))
	if b.Span > 0 {
		span = b.Span
	}
	want := min(b.Requests, span/uint64(b.Size))
	if b.Access == Write && (!b.Random && written != int(want) || b.Random && (written > int(want) || written < int(want)*9/10)) {
		t.Errorf("%d blocks were written, want %d", written, want)
	}
}

func TestBlockTellsFailures(t *testing.T) {
	ok := Block{Size: 4096, Requests: 10, Verify: true}
	disk := func(more string) func(*testing.T) []string {
		return func(t *testing.T) []string { return qemuDisk(testDisk(t, 1<<20, 7), more) }
	}
	for _, test := range []struct {
		name    string
		change  func(*Block)
		devices func(*testing.T) []string
		status  Status
		counts  Result // Errors and Mismatches
	}{
		{"no device", func(*Block) {}, func(*testing.T) []string { return nil }, StatusNoDevice, Result{}},
		{"second of one", func(b *Block) { b.Nth = 1 }, disk(""), StatusNoDevice, Result{}},
		{"no indirect tables", func(b *Block) { b.Indirect = true }, disk(",indirect_desc=off"), StatusFeatures, Result{}},
		{"no event index", func(b *Block) { b.EventIdx = true }, disk(",event_idx=off"), StatusFeatures, Result{}},
		{"small queue", func(b *Block) { b.Depth = 64 }, disk(",queue-size=64"), StatusQueue, Result{}},
		{"many segments", func(b *Block) { b.Segment, b.Indirect = 64, true }, disk(",queue-size=64"), StatusConfig, Result{}},
		{"small disk", func(b *Block) { b.Size = 2 << 20 }, disk(""), StatusConfig, Result{}},
		{"smaller than the span", func(b *Block) { b.Span = 1<<20 + 1 }, disk(""), StatusConfig, Result{}},
		{"other data", func(b *Block) { b.Seed = 8 }, disk(""), StatusDone, Result{Mismatches: 10}},
		{"read-only disk", func(b *Block) { b.Access, b.Verify = Write, false }, func(t *testing.T) []string {
			return []string{"-drive", "if=none,id=disk,format=raw,readonly=on,file=" + commas(testDisk(t, 1<<20, 7)), "-device", "virtio-blk-pci,drive=disk"}
		}, StatusDone, Result{Errors: 10}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := ok
			b.Seed, b.Stop = 7, AnyStop()
			test.change(&b)
			r := microvm.run(t, program(t)(b.ELF()), test.devices(t)...)
			if r.Status != test.status {
				t.Errorf("status %d: %v, want %d", r.Status, r.Err(), test.status)
			}
			if r.Errors != test.counts.Errors || r.Mismatches != test.counts.Mismatches {
				t.Errorf("%d errors, %d mismatches, want %d and %d", r.Errors, r.Mismatches, test.counts.Errors, test.counts.Mismatches)
			}
		})
	}
}

// TestBlockPicksDevice gives the program the second of two disks and another
// device.
func TestBlockPicksDevice(t *testing.T) {
	b := Block{Driver: Driver{Nth: 1, Stop: AnyStop()}, Size: 4096, Requests: 10, Verify: true, Seed: 2}
	devices := []string{"-device", "virtio-rng-pci"}
	for i, name := range []string{"a", "b"} {
		devices = append(devices, "-drive", "if=none,format=raw,id="+name+",file="+commas(testDisk(t, 1<<20, uint64(i+1))),
			"-device", "virtio-blk-pci,drive="+name)
	}
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			r := m.run(t, program(t)(b.ELF()), devices...)
			if err := r.Err(); err != nil || r.Mismatches > 0 || r.Count != b.Requests {
				t.Errorf("%v, %d requests, %d mismatches", err, r.Count, r.Mismatches)
			}
		})
	}
}

func TestBlockMistakes(t *testing.T) {
	for _, test := range []struct {
		block Block
		want  string
	}{
		{Block{}, "requests of 0 bytes"},
		{Block{Size: 4097}, "power of two"},
		{Block{Size: 32 << 20}, "power of two"},
		{Block{Size: 4096, Segment: 8192}, "segments"},
		{Block{Size: 4096, Segment: -1}, "segments"},
		{Block{Size: 4096, Depth: 257}, "in flight"},
		{Block{Size: 16 << 20, Depth: 17}, "bytes in all"},
		{Block{Size: 4096, Verify: true}, "without end"},
		{Block{Driver: Driver{Indirect: true}, Size: 1 << 20, Segment: 1, Requests: 1}, "queues and headers"},
	} {
		if _, err := test.block.ELF(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want %q in it", test.block, err, test.want)
		}
	}
}
