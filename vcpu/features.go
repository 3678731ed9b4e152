package vcpu

import (
	"fmt"
	"slices"
	"strings"

	"github.com/godwit-vmm/godwit/kvm"
)

// register is one of the four that CPUID fills.
type register int

const (
	regEAX register = iota
	regEBX
	regECX
	regEDX
)

func (r register) of(e *kvm.CPUIDEntry2) uint32 {
	return [...]uint32{e.EAX, e.EBX, e.ECX, e.EDX}[r]
}

// String is the name in the manuals.
func (r register) String() string { return [...]string{"EAX", "EBX", "ECX", "EDX"}[r] }

// featureWord is a register of CPUID whose bits are features, with their names by
// bit, as Linux has them in /proc/cpuinfo. A dash is a bit that is not a feature of
// the host, or that godwit or the guest itself sets.
type featureWord struct {
	leaf, subleaf uint32
	register      register
	names         string
}

// featureWords are the words that are compared (SDM vol. 2A, CPUID; AMD APM vol. 3
// appendix E).
var featureWords = [...]featureWord{
	{leafFeatures, 0, regEDX, "fpu vme de pse tsc msr pae mce cx8 - - sep mtrr pge mca cmov pat pse36 pn clflush - dts - mmx fxsr sse sse2 ss - - ia64 -"},
	{leafFeatures, 0, regECX, "pni pclmulqdq dtes64 - ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 - movbe popcnt - aes xsave - avx f16c rdrand -"},
	{7, 0, regEBX, "fsgsbase - sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb - avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"},
	{7, 0, regECX, "- avx512vbmi umip pku - waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni avx512_bitalg - avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd - -"},
	{7, 0, regEDX, "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - - - - - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities - ssbd"},
	{7, 1, regEAX, "- - - - avx_vnni avx512_bf16 - - - - fzrm fsrs fsrc - - - - - - - - amx_fp16 - avx_ifma - - - - - - - -"},
	{0xd, 1, regEAX, "xsaveopt xsavec xgetbv1 xsaves - - - - - - - - - - - - - - - - - - - - - - - - - - - -"},
	{leafAMDFeatures, 0, regEDX, "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"},
	{leafAMDFeatures, 0, regECX, "lahf_lm - svm - cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw - xop - - - fma4 - - - tbm - - - - - - - - - - - -"},
	{leafAMDSizes, 0, regEBX, "clzero - xsaveerptr - - - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - - - - - - amd_ssbd virt_ssbd - - - - - -"},
	{leafKVMFeatures, 0, regEAX, "kvmclock_old kvm_nopiodelay - kvmclock kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest - - - - - - - - kvmclock_stable - - - - - - -"},
}

// MissingFeatures names what the saved processor has and this host's KVM cannot give.
func MissingFeatures(saved, supported []kvm.CPUIDEntry2) []string {
	var missing []string
	for i := range featureWords {
		w := &featureWords[i]
		absent := w.value(saved) &^ w.value(supported)
		if absent == 0 {
			continue
		}
		for bit, name := range strings.Fields(w.names) {
			if absent>>bit&1 == 1 && name != "-" {
				missing = append(missing, name)
			}
		}
	}
	return missing
}

// Features names the features of a processor that a snapshot needs to find again.
func Features(table []kvm.CPUIDEntry2) []string { return MissingFeatures(table, nil) }

func (w *featureWord) value(table []kvm.CPUIDEntry2) uint32 {
	for i := range table {
		if e := &table[i]; e.Function == w.leaf && e.Index == w.subleaf {
			return w.register.of(e)
		}
	}
	return 0
}

// checkFeatures fails if the host lacks what the saved processor has.
func checkFeatures(saved, supported []kvm.CPUIDEntry2) error {
	if missing := MissingFeatures(saved, supported); len(missing) > 0 {
		return fmt.Errorf("this host lacks processor features that the guest was started with: %s: it needs a host that has them", strings.Join(missing, " "))
	}
	return nil
}

// sameCPUID tells whether two tables of one host differ at most in what KVM itself
// keeps up to date as control registers, XCR0 and MSRs are set (KVM's
// kvm_update_cpuid_runtime): the guest's own switches, and the size of its XSAVE area.
func sameCPUID(saved, here []kvm.CPUIDEntry2) bool {
	return slices.EqualFunc(saved, here, func(a, b kvm.CPUIDEntry2) bool {
		return withoutRuntime(a) == withoutRuntime(b)
	})
}

func withoutRuntime(e kvm.CPUIDEntry2) kvm.CPUIDEntry2 {
	const (
		leafExtended = 7
		leafXSAVE    = 0xd

		monitor, osxsave = 1 << 3, 1 << 27 // of leaf 1, ECX
		apic             = 1 << 9          // of leaf 1, EDX
		ospke            = 1 << 4          // of leaf 7, ECX
	)
	switch {
	case e.Function == leafFeatures:
		e.ECX &^= monitor | osxsave
		e.EDX &^= apic
	case e.Function == leafExtended && e.Index == 0:
		e.ECX &^= ospke
	case e.Function == leafXSAVE && e.Index <= 1:
		e.EBX = 0
	}
	return e
}
