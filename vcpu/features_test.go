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

func TestSameCPUID(t *testing.T) {
	host := []kvm.CPUIDEntry2{{Function: 1, ECX: 1, EDX: 1}, {Function: 7, ECX: 1}, {Function: 7, Index: 1, ECX: 1}, {Function: 0xd, EAX: 7, EBX: 576}}
	for _, tt := range []struct {
		name   string
		change func(table []kvm.CPUIDEntry2) []kvm.CPUIDEntry2
		want   bool
	}{
		{"equal", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { return c }, true},
		{"OSXSAVE", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[0].ECX |= 1 << 27; return c }, true},
		{"APIC switched off", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[0].EDX |= 1 << 9; return c }, true},
		{"OSPKE", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[1].ECX |= 1 << 4; return c }, true},
		{"XSAVE area", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[3].EBX = 832; return c }, true},
		{"a feature", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[0].ECX = 0; return c }, false},
		{"that bit of another subleaf", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[2].ECX |= 1 << 4; return c }, false},
		{"XCR0's features", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { c[3].EAX = 3; return c }, false},
		{"a leaf less", func(c []kvm.CPUIDEntry2) []kvm.CPUIDEntry2 { return c[:3] }, false},
	} {
		if got := sameCPUID(tt.change(slices.Clone(host)), host); got != tt.want {
			t.Errorf("%s: the same %v, want %v", tt.name, got, tt.want)
		}
	}
}
