package micro_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
)

const memory = 64 << 20

// inMachine runs a program in a whole machine of godwit, and returns what it left.
func inMachine(t *testing.T, elf []byte, c machine.Config) micro.Result {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	defer sys.Close()
	c.Name, c.CPUs, c.Memory = t.Name(), 1, memory
	c.Kernel = filepath.Join(t.TempDir(), "guest.elf")
	if err := os.WriteFile(c.Kernel, elf, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := machine.New(sys, c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	outcome, err := m.Run(ctx)
	words := make([]byte, micro.ResultSize)
	if e := m.Memory().Read(micro.ResultStart, words); e != nil {
		t.Fatal(e)
	}
	r, e := micro.ReadResult(words)
	if e != nil {
		t.Fatal(e)
	}
	if err != nil || outcome != machine.PoweredOff {
		t.Fatalf("the guest %v after %d rounds: %v", outcome, r.Count, err)
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

// disk makes a disk image with the pattern.
func disk(t *testing.T, size int, seed uint64) string {
	t.Helper()
	data := make([]byte, size)
	micro.Pattern(seed, 0, data)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBlockInMachine(t *testing.T) {
	const size = 4 << 20
	path := disk(t, size, 1)
	b := micro.Block{
		Driver: micro.Driver{Indirect: true, EventIdx: true, Stop: micro.AnyStop()},
		Access: micro.Write, Size: 64 << 10, Segment: 4096, Depth: 8, Requests: size / (64 << 10), Verify: true, Seed: 2,
	}
	elf, err := b.ELF()
	if err != nil {
		t.Fatal(err)
	}
	r := inMachine(t, elf, machine.Config{Disks: []blk.Config{{Path: path}}, Warn: func(err error) { t.Error(err) }})
	if r.Count != b.Requests || r.Errors > 0 || r.Mismatches > 0 {
		t.Errorf("%d requests, %d errors, %d mismatches", r.Count, r.Errors, r.Mismatches)
	}
	want := make([]byte, size)
	micro.Pattern(b.Seed, 0, want)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk is not what was written: %v", err)
	}
}

// TestVirtioAttackInMachine attacks all devices of a machine, with KVM's own
// interrupts and doorbells.
func TestVirtioAttackInMachine(t *testing.T) {
	rounds := uint64(1000)
	if testing.Short() {
		rounds = 300
	}
	elf, err := micro.VirtioAttack{Seed: 4, Count: rounds, Memory: memory, Stop: micro.AnyStop()}.ELF()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := inMachine(t, elf, machine.Config{
		Disks:   []blk.Config{{Path: disk(t, 1<<20, 1)}, {Path: disk(t, 1<<20, 1), ReadOnly: true}},
		Vsock:   func() (string, error) { return filepath.Join(t.TempDir(), "v"), nil },
		Balloon: &balloon.Config{},
		HVC:     &console.Config{Out: &out},
	})
	if r.Count != rounds {
		t.Errorf("%d rounds, want %d", r.Count, rounds)
	}
}
