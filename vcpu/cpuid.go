package vcpu

import (
	"math/bits"
	"slices"

	"github.com/godwit-vmm/godwit/kvm"
)

// Topology is what CPUID depends on beside the host: one socket of Count cores
// with one thread each, APIC IDs counted from 0.
type Topology struct {
	// Count is the number of processors of the guest.
	Count int
	// TSCkHz is the rate of the guest's time stamp counter, 0 if unknown.
	TSCkHz uint32
	// TSCDeadline says that the local APIC timer has the TSC deadline mode
	// (KVM_CAP_TSC_DEADLINE_TIMER); KVM does not report that in
	// KVM_GET_SUPPORTED_CPUID.
	TSCDeadline bool
}

// CPUID leaves that depend on the processor or are not KVM's to fill in
// (SDM vol. 2A, CPUID; AMD APM vol. 3 appendix E; KVM CPUID bits).
const (
	leafFeatures    = 0x1
	leafCache       = 0x4
	leafPower       = 0x6
	leafPMU         = 0xa
	leafTopology    = 0xb
	leafTSC         = 0x15
	leafFrequency   = 0x16
	leafTopologyV2  = 0x1f
	leafKVM         = 0x4000_0000
	leafKVMFeatures = 0x4000_0001
	leafTiming      = 0x4000_0010
	leafAMDFeatures = 0x8000_0001
	leafAMDSizes    = 0x8000_0008
	leafAMDCache    = 0x8000_001d
	leafAMDTopology = 0x8000_001e
)

// apicBusKHz is the rate of the local APIC timer that KVM emulates: 1 GHz.
const apicBusKHz = 1_000_000

// cpuidSignificant marks a leaf whose subleaf number counts
// (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const cpuidSignificant = 1

// CPUID makes the table of processor id of a guest from what KVM supports on
// this host.
func CPUID(supported []kvm.CPUIDEntry2, id int, t Topology) []kvm.CPUIDEntry2 {
	table := make([]kvm.CPUIDEntry2, 0, len(supported)+8)
	amd := isAMD(supported)
	maxKVM := uint32(leafKVMFeatures)
	for _, e := range supported {
		switch e.Function {
		case leafTopology, leafTopologyV2, leafTiming, leafTSC, leafFrequency:
			continue // made below, or the host's own affair
		case leafFeatures:
			features(&e, id, t)
		case leafCache, leafAMDCache:
			// No cache level is shared by more than the guest's own
			// cores; only the last level is shared at all.
			share(&e, t.Count)
		case leafPower:
			// Keep ARAT, the timer that does not stop; the rest is
			// power management of the host.
			e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&(1<<2), 0, 0, 0
		case leafPMU:
			// No performance counters: they neither migrate nor are
			// they the guest's to see.
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case leafKVM:
			if t.TSCkHz != 0 {
				maxKVM = leafTiming
			}
			e.EAX = max(e.EAX, maxKVM)
		case leafAMDFeatures:
			if amd && t.Count > 1 {
				e.ECX |= 1 << 1 // CmpLegacy: logical processors are cores
			}
		case leafAMDSizes:
			if amd {
				e.ECX = e.ECX&^0xf0ff | uint32(t.Count-1) | apicIDBits(t.Count)<<12
			}
		case leafAMDTopology:
			e.EAX = uint32(id)
			e.EBX = e.EBX&^0xffff | uint32(id)&0xff // core ID, one thread a core
			e.ECX = 0                               // node 0 of one
		}
		table = append(table, e)
	}
	table = append(table, topology(leafTopology, id, t.Count)...)
	if maxLeaf(supported) >= leafTopologyV2 {
		table = append(table, topology(leafTopologyV2, id, t.Count)...)
	}
	if t.TSCkHz != 0 {
		// The timing leaf saves the guest the calibration of both timers.
		table = append(table, kvm.CPUIDEntry2{Function: leafTiming, EAX: t.TSCkHz, EBX: apicBusKHz})
		if !amd && maxLeaf(supported) >= leafFrequency {
			// TSC = crystal * EBX / EAX. The crystal also drives the
			// local APIC timer, so it is the rate of KVM's.
			table = append(table,
				kvm.CPUIDEntry2{Function: leafTSC, EAX: apicBusKHz, EBX: t.TSCkHz, ECX: apicBusKHz * 1000},
				kvm.CPUIDEntry2{Function: leafFrequency, EAX: t.TSCkHz / 1000, EBX: t.TSCkHz / 1000, ECX: 100})
		}
	}
	return table
}

// features fills in leaf 1: who this processor is and what the VMM adds.
func features(e *kvm.CPUIDEntry2, id int, t Topology) {
	const (
		ecxX2APIC      = 1 << 21
		ecxTSCDeadline = 1 << 24
		ecxHypervisor  = 1 << 31
		edxHTT         = 1 << 28
	)
	e.EBX = uint32(id)<<24 | uint32(t.Count)<<16 | e.EBX&0xffff
	e.ECX |= ecxX2APIC | ecxHypervisor
	e.ECX &^= ecxTSCDeadline
	if t.TSCDeadline {
		e.ECX |= ecxTSCDeadline
	}
	e.EDX &^= edxHTT
	if t.Count > 1 {
		e.EDX |= edxHTT
	}
}

// share says in a cache leaf how many processors share the cache: all of the
// guest share the last level, and none the levels before it. The two vendors
// have the field in the same place; Intel also counts cores in the package.
func share(e *kvm.CPUIDEntry2, count int) {
	const lastLevel = 3
	level := e.EAX >> 5 & 7
	if e.EAX&0x1f == 0 {
		return // no more caches
	}
	e.EAX &^= 0xfff << 14
	if level >= lastLevel {
		e.EAX |= uint32(count-1) << 14
	}
	if e.Function == leafCache {
		e.EAX = e.EAX&^(0x3f<<26) | uint32(min(count-1, 0x3f))<<26
	}
}

// topology makes the extended topology leaf: threads, cores, and the empty
// level that ends the list.
func topology(leaf uint32, id, count int) []kvm.CPUIDEntry2 {
	const thread, core = 1, 2
	level := func(index, typ, shift, n uint32) kvm.CPUIDEntry2 {
		return kvm.CPUIDEntry2{
			Function: leaf, Index: index, Flags: cpuidSignificant,
			EAX: shift, EBX: n, ECX: typ<<8 | index, EDX: uint32(id),
		}
	}
	return []kvm.CPUIDEntry2{
		level(0, thread, 0, 1),
		level(1, core, apicIDBits(count), uint32(count)),
		level(2, 0, 0, 0),
	}
}

// apicIDBits is the number of bits that APIC IDs of count processors take.
func apicIDBits(count int) uint32 { return uint32(bits.Len(uint(count - 1))) }

func maxLeaf(table []kvm.CPUIDEntry2) uint32 {
	if i := slices.IndexFunc(table, func(e kvm.CPUIDEntry2) bool { return e.Function == 0 }); i >= 0 {
		return table[i].EAX
	}
	return 0
}

// isAMD tells whether the vendor is AMD or Hygon, whose topology leaves differ
// from Intel's.
func isAMD(table []kvm.CPUIDEntry2) bool {
	i := slices.IndexFunc(table, func(e kvm.CPUIDEntry2) bool { return e.Function == 0 })
	if i < 0 {
		return false
	}
	const auth, hygo = 0x6874_7541, 0x6f67_7948 // "Auth", "Hygo" in EBX
	return table[i].EBX == auth || table[i].EBX == hygo
}
