package vcpu

import (
	"slices"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/kvm"
)

func TestFeatureWords(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range featureWords {
		names := strings.Fields(w.names)
		if len(names) != 32 {
			t.Errorf("leaf %#x.%d %v has %d names, want 32", w.leaf, w.subleaf, w.register, len(names))
		}
		for _, n := range names {
			if n != "-" && seen[n] {
				t.Errorf("%s is there twice", n)
			}
			seen[n] = true
		}
	}
}

func TestMissingFeatures(t *testing.T) {
	saved := []kvm.CPUIDEntry2{
		{Function: 1, ECX: 1<<28 | 1<<12 | 1<<31, EDX: 1 << 28}, // avx, fma; hypervisor, HTT
		{Function: 7, EBX: 1 << 16},                             // avx512f
		{Function: 0x8000_0001, EDX: 1 << 29},                   // lm
	}
	host := slices.Clone(saved)
	if got := MissingFeatures(saved, host); got != nil {
		t.Errorf("the same host lacks %q", got)
	}
	host[0].ECX &^= 1<<12 | 1<<31
	host[0].EDX = 0
	host[1].EBX = ^uint32(1 << 16)
	if got := MissingFeatures(saved, host); !slices.Equal(got, []string{"fma", "avx512f"}) {
		t.Errorf("the host lacks %q, want fma and avx512f", got)
	}
	if got := Features(saved); !slices.Equal(got, []string{"fma", "avx", "avx512f", "lm"}) {
		t.Errorf("features %q", got)
	}
	if err := checkFeatures(saved, host); err == nil || !strings.Contains(err.Error(), "fma avx512f") {
		t.Error(err)
	}
}
