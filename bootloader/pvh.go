package bootloader

import (
	"encoding/binary"

	"github.com/godwit-vmm/godwit/memory"
)

// The structures of Xen's public/arch-x86/hvm/start_info.h: start info, then
// the module list, then the memory map.
const (
	startInfoMagic   = 0x336ec578
	startInfoVersion = 1 // the first with a memory map
	startInfoSize    = 56
	moduleSize       = 32
	moduleListAddr   = startInfoAddr + startInfoSize
	mapTableAddr     = moduleListAddr + moduleSize
)

// writeStartInfo puts hvm_start_info and what it points to where [enter32]
// points the kernel to.
func writeStartInfo(mem *memory.Guest, b *bootInfo) error {
	le := binary.LittleEndian
	modules := uint32(0)
	if b.initrd.Size > 0 {
		modules = 1
	}
	p := make([]byte, 0, startInfoSize+moduleSize+24*len(b.memoryMap))
	p = le.AppendUint32(p, startInfoMagic)
	p = le.AppendUint32(p, startInfoVersion)
	p = le.AppendUint32(p, 0) // flags
	p = le.AppendUint32(p, modules)
	p = le.AppendUint64(p, uint64(moduleListAddr))
	p = le.AppendUint64(p, uint64(cmdlineAddr))
	p = le.AppendUint64(p, uint64(b.rsdp))
	p = le.AppendUint64(p, uint64(mapTableAddr))
	p = le.AppendUint32(p, uint32(len(b.memoryMap)))
	p = le.AppendUint32(p, 0) // reserved

	p = le.AppendUint64(p, uint64(b.initrd.Start))
	p = le.AppendUint64(p, b.initrd.Size)
	p = le.AppendUint64(p, 0) // the module's command line
	p = le.AppendUint64(p, 0) // reserved

	for _, e := range b.memoryMap {
		p = le.AppendUint64(p, uint64(e.Start))
		p = le.AppendUint64(p, e.Size)
		p = le.AppendUint32(p, e.kind)
		p = le.AppendUint32(p, 0) // reserved
	}
	return mem.Write(startInfoAddr, p)
}
