package vcpu

import (
	"testing"

	"github.com/godwit-vmm/godwit/kvm"
)

// find returns the entry of a leaf and subleaf, or nil.
func find(table []kvm.CPUIDEntry2, function, index uint32) *kvm.CPUIDEntry2 {
	for i := range table {
		if table[i].Function == function && table[i].Index == index {
			return &table[i]
		}
	}
	return nil
}

// amdHost and intelHost are cut down from what KVM reports on such hosts, with
// the host's own topology in the leaves where it shows.
func amdHost() []kvm.CPUIDEntry2 {
	return []kvm.CPUIDEntry2{
		{Function: 0, EAX: 0xd, EBX: 0x68747541, ECX: 0x444d4163, EDX: 0x69746e65},
		{Function: 1, EBX: 0x17100800, ECX: 1 << 24, EDX: 1 << 28},
		{Function: 0xb, Index: 0, Flags: 1, EAX: 7, EDX: 99},
		{Function: 0x40000000, EAX: 0x40000001, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d},
		{Function: 0x40000001, EAX: 0x1007efb},
		{Function: 0x80000008, EAX: 0x3030, ECX: 0x703f},
		{Function: 0x8000001d, Index: 0, Flags: 1, EAX: 0x4121 | 1<<14},
		{Function: 0x8000001d, Index: 3, Flags: 1, EAX: 0x3c163},
		{Function: 0x8000001e, EAX: 99, EBX: 0x163, ECX: 0x407},
	}
}

func intelHost() []kvm.CPUIDEntry2 {
	return []kvm.CPUIDEntry2{
		{Function: 0, EAX: 0x1f, EBX: 0x756e6547, ECX: 0x6c65746e, EDX: 0x49656e69},
		{Function: 1, EBX: 0x63400800},
		{Function: 4, Index: 0, Flags: 1, EAX: 0xfc004121},
		{Function: 4, Index: 3, Flags: 1, EAX: 0xfc1fc163},
		{Function: 6, EAX: 0xffff, EBX: 2, ECX: 9},
		{Function: 0xa, EAX: 0x08300805, EDX: 0x8604},
		{Function: 0x15, EAX: 2, EBX: 200, ECX: 25000000},
		{Function: 0x1f, Index: 0, Flags: 1, EAX: 7, EDX: 99},
		{Function: 0x40000000, EAX: 0x40000001},
	}
}

func TestCPUIDTopology(t *testing.T) {
	for name, host := range map[string]func() []kvm.CPUIDEntry2{"amd": amdHost, "intel": intelHost} {
		for _, count := range []int{1, 2, 3, 64} {
			ids := make(map[uint32]bool)
			for id := range count {
				table := CPUID(host(), id, Topology{Count: count})
				one := find(table, 1, 0)
				if got := one.EBX >> 24; got != uint32(id) {
					t.Errorf("%s: initial APIC ID of %d is %d", name, id, got)
				}
				if got := one.EBX >> 16 & 0xff; got != uint32(count) {
					t.Errorf("%s: %d of %d logical processors", name, got, count)
				}
				if htt := one.EDX>>28&1 == 1; htt != (count > 1) {
					t.Errorf("%s: HTT %v with %d processors", name, htt, count)
				}
				core := find(table, 0xb, 1)
				if core.EBX != uint32(count) || core.EDX != uint32(id) {
					t.Errorf("%s: leaf 0xb core level of %d/%d: %+v", name, id, count, core)
				}
				// Every ID must fit the bits that the core level takes.
				if uint32(id)>>core.EAX != 0 {
					t.Errorf("%s: ID %d needs more than %d bits", name, id, core.EAX)
				}
				if end := find(table, 0xb, 2); end.ECX>>8&0xff != 0 {
					t.Errorf("%s: leaf 0xb does not end", name)
				}
				ids[core.EDX] = true
			}
			if len(ids) != count {
				t.Errorf("%s: %d different APIC IDs of %d", name, len(ids), count)
			}
		}
	}
}

// TestCPUIDHidesHost checks that nothing of the host's own topology, power or
// performance hardware is left.
func TestCPUIDHidesHost(t *testing.T) {
	table := CPUID(intelHost(), 1, Topology{Count: 2})
	for _, e := range table {
		if e.EDX == 99 {
			t.Errorf("leaf %#x.%d has the host's APIC ID", e.Function, e.Index)
		}
	}
	if e := find(table, 0xa, 0); e.EAX != 0 || e.EDX != 0 {
		t.Errorf("performance counters: %+v", e)
	}
	if e := find(table, 6, 0); e.EAX != 1<<2 || e.EBX != 0 {
		t.Errorf("power management: %+v", e)
	}
	if find(table, 0x15, 0) != nil {
		t.Error("the host's crystal is told though the TSC rate is not known")
	}
	if find(table, 0x1f, 1).EBX != 2 {
		t.Error("leaf 0x1f does not say 2 cores")
	}
	if e := find(table, 4, 3); e.EAX>>14&0xfff != 1 {
		t.Errorf("last level cache shared by %d", e.EAX>>14&0xfff+1)
	}
	if e := find(table, 4, 0); e.EAX>>14&0xfff != 0 {
		t.Errorf("first level cache shared by %d", e.EAX>>14&0xfff+1)
	}
	amd := CPUID(amdHost(), 3, Topology{Count: 6})
	if e := find(amd, 0x80000008, 0); e.ECX&0xff != 5 || e.ECX>>12&0xf != 3 {
		t.Errorf("leaf 0x80000008 ECX %#x, want 6 cores and 3 bits", e.ECX)
	}
	if e := find(amd, 0x8000001e, 0); e.EAX != 3 || e.EBX != 3 || e.ECX != 0 {
		t.Errorf("leaf 0x8000001e %+v", e)
	}
}

func TestCPUIDTimers(t *testing.T) {
	const khz = 2_445_000
	for _, deadline := range []bool{false, true} {
		table := CPUID(amdHost(), 0, Topology{Count: 1, TSCkHz: khz, TSCDeadline: deadline})
		one := find(table, 1, 0)
		if got := one.ECX>>24&1 == 1; got != deadline {
			t.Errorf("TSC deadline %v, want %v", got, deadline)
		}
		if one.ECX>>31 != 1 || one.ECX>>21&1 != 1 {
			t.Errorf("hypervisor or x2APIC bit missing: %#x", one.ECX)
		}
		if e := find(table, 0x40000010, 0); e == nil || e.EAX != khz || e.EBX != 1_000_000 {
			t.Errorf("timing leaf %+v", e)
		}
		if e := find(table, 0x40000000, 0); e.EAX != 0x40000010 {
			t.Errorf("the highest hypervisor leaf is %#x", e.EAX)
		}
	}
	e := find(CPUID(intelHost(), 0, Topology{Count: 1, TSCkHz: khz}), 0x15, 0)
	if hz := uint64(e.ECX) * uint64(e.EBX) / uint64(e.EAX); hz != khz*1000 {
		t.Errorf("leaf 0x15 says %d Hz, want %d", hz, khz*1000)
	}
}
