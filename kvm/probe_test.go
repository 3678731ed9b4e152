package kvm

import (
	"testing"
	"time"
)

func TestProbeRing0(t *testing.T) {
	sys := openSystem(t)
	start := time.Now()
	ns, err := ProbeRing0(sys)
	took := time.Since(start)
	ok(t, err)
	t.Logf("%.2f ns an instruction, probed in %v", ns, took)
	// A few milliseconds on any real machine, a few hundred in an emulated one.
	if took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if software := softwareKVM(); software != (ns > SoftwareNsPerInsn) {
		t.Errorf("%.2f ns an instruction says software %v, the modules say %v", ns, ns > SoftwareNsPerInsn, software)
	}
}

func BenchmarkProbeRing0(b *testing.B) {
	sys := openSystem(b)
	for b.Loop() {
		_, err := ProbeRing0(sys)
		ok(b, err)
	}
}
