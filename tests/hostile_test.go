package tests

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
)

// counter counts what is written to it.
type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

// TestHostilePorts lets a guest read and write random values at random ports
// and at every kind of address without RAM, and checks that the VMM comes out
// of it whole: it runs to the guest's own end, and has not grown.
func TestHostilePorts(t *testing.T) {
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	defer sys.Close()
	// Ports by which a guest ends itself on purpose: those are not attacks.
	ends := []micro.Span{{First: 0x60, Last: 0x64}, {First: 0x505, Last: 0x505}, {First: 0x600, Last: 0x607}, {First: 0xcf8, Last: 0xcff}}
	attacks := map[string]micro.Attack{
		"ports":  {Ports: true, SkipPorts: ends},
		"ioapic": {MMIO: []micro.Span{{First: uint64(memory.IOAPICStart), Last: uint64(memory.IOAPICStart) + 0xff}}},
		"ecam":   {MMIO: []micro.Span{{First: uint64(memory.ECAMStart), Last: uint64(memory.ECAMStart) + memory.ECAMSize - 1}}},
		"holes": {MMIO: []micro.Span{
			{First: uint64(memory.PCIWindowStart), Last: uint64(memory.PCIWindowStart) + 0xfffff},
			{First: 0xfed00000, Last: 0xfed0ffff},
		}},
		"lapic": {MMIO: []micro.Span{{First: uint64(memory.LAPICStart), Last: uint64(memory.LAPICStart) + 0xfff}}},
	}
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			a.Count, a.Stop = 10_000, micro.PowerOff()
			for _, seed := range []uint64{1, 0x5eed} {
				a.Seed = seed
				attack(t, sys, a)
			}
		})
	}
}

func attack(t *testing.T, sys *kvm.System, a micro.Attack) {
	t.Helper()
	elf, err := a.ELF()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "attack.elf")
	if err := os.WriteFile(path, elf, 0o644); err != nil {
		t.Fatal(err)
	}
	var console, channel counter
	m, err := machine.New(sys, machine.Config{
		Name: "attack", CPUs: 1, Memory: 16 << 20, Kernel: path, Console: &console, Channel: &channel,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	before := heap()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	outcome, err := m.Run(ctx)
	if err != nil {
		t.Fatalf("seed %#x: %v", a.Seed, err)
	}
	if outcome != machine.PoweredOff {
		t.Fatalf("seed %#x: the guest %v after %d accesses", a.Seed, outcome, finished(t, m))
	}
	if n := finished(t, m); n != a.Count {
		t.Errorf("seed %#x: %d accesses of %d", a.Seed, n, a.Count)
	}
	const slack = 256 << 10
	if after := heap(); after > before+slack {
		t.Errorf("seed %#x: the heap grew from %d to %d bytes", a.Seed, before, after)
	}
}

// finished is how many accesses the guest says it made.
func finished(t *testing.T, m *machine.Machine) uint64 {
	t.Helper()
	n, err := m.Memory().Uint64(micro.ResultStart + micro.ResultCount)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
