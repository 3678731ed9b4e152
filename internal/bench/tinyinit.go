package bench

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"

	"github.com/godwit-vmm/godwit/guest/micro"
)

const (
	tinyInitName = "godwit-bench-init"
	tinyInitSays = "godwit-bench: init runs"
)

// tinyInit is a static Linux program for the use as init: it says that it runs
// and powers the machine off. Hence a boot ends at the same point everywhere,
// whatever else the RAM disk holds.
func tinyInit() ([]byte, error) {
	const (
		sysWrite  = 1
		sysReboot = 169
		magic1    = 0xfee1dead // reboot(2)
		magic2    = 672274793
		powerOff  = 0x4321fedc
	)
	var a micro.Asm
	text := a.NewLabel()
	syscall := func(nr uint64) {
		a.MovImm(micro.RAX, nr)
		a.Data(0x0f, 0x05)
	}
	message := tinyInitSays + "\n"
	a.MovImm(micro.RDI, 1)
	a.LeaLabel(micro.RSI, text)
	a.MovImm(micro.RDX, uint64(len(message)))
	syscall(sysWrite)
	a.MovImm(micro.RDI, magic1)
	a.MovImm(micro.RSI, magic2)
	a.MovImm(micro.RDX, powerOff)
	syscall(sysReboot)
	a.Ud2() // not reached: a machine that does not power off panics here
	a.Bind(text)
	a.Data([]byte(message)...)
	code, err := a.Assemble()
	if err != nil {
		return nil, err
	}
	return linuxELF(code)
}

// linuxELF makes a static executable of one segment.
func linuxELF(code []byte) ([]byte, error) {
	const (
		base    = 0x40_0000
		headers = 64 + 56
	)
	size := uint64(headers + len(code))
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 4096,
	}
	var b bytes.Buffer
	for _, part := range []any{header, segment, code} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// cpioFile is a newc archive that holds one executable (cpio(5)).
func cpioFile(name string, data []byte) []byte {
	const regular = 0o100755
	var b bytes.Buffer
	entry := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		pad4(&b)
		b.Write(data)
		pad4(&b)
	}
	entry(name, regular, data)
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}

func pad4(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
