package machine

import (
	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/godwit-vmm/godwit/kvm"
)

// enter translates the entry state of a boot protocol into KVM's registers.
func enter(e *bootloader.Entry, r *kvm.Regs, s *kvm.Sregs) {
	const rflagsReserved = 1 << 1
	*r = kvm.Regs{RIP: e.RIP, RSP: e.RSP, RBX: e.RBX, RSI: e.RSI, RFLAGS: rflagsReserved}

	s.CR0, s.CR3, s.CR4, s.EFER = e.CR0, e.CR3, e.CR4, e.EFER
	data := segment(&e.Data)
	s.CS = segment(&e.Code)
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = segment(&e.Task)
	s.LDT = kvm.Segment{Unusable: 1}
	s.GDT = kvm.DTable{Base: e.GDTBase, Limit: e.GDTLimit}
	s.IDT = kvm.DTable{}
}

func segment(s *bootloader.Segment) kvm.Segment {
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector, Type: s.Type, DPL: s.DPL,
		S: bit(s.CodeData), Present: bit(s.Present), L: bit(s.Long), DB: bit(s.Default), G: bit(s.Granular),
	}
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
