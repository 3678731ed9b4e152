package vcpu

import (
	"slices"
	"testing"

	"github.com/godwit-vmm/godwit/kvm"
)

func TestExitCounts(t *testing.T) {
	v := New(nil, Config{})
	for r, n := range map[kvm.ExitReason]int{kvm.KVM_EXIT_MMIO: 1, kvm.KVM_EXIT_IO: 3, knownReasons: 1, knownReasons + 7: 1, ^kvm.ExitReason(0): 1} {
		for range n {
			v.exits.count(r)
		}
	}
	want := []ExitCount{{kvm.KVM_EXIT_IO, 3}, {kvm.KVM_EXIT_MMIO, 1}, {knownReasons, 3}}
	if got := v.ExitCounts(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := v.Exits(); got != 7 {
		t.Errorf("%d exits, want 7", got)
	}
	if n := testing.AllocsPerRun(1000, func() { v.exits.count(kvm.KVM_EXIT_IO) }); n != 0 {
		t.Errorf("%v allocations to count an exit", n)
	}
}

// BenchmarkExit is what an exit costs beside serving it.
func BenchmarkExit(b *testing.B) {
	v := New(nil, Config{})
	b.ReportAllocs()
	for b.Loop() {
		v.exits.count(kvm.KVM_EXIT_IO)
		v.yield()
	}
}
