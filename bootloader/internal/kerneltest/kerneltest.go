// Package kerneltest makes kernel files for tests: small, well-formed, and
// open to being spoiled.
package kerneltest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// Offsets of setup header fields in a bzImage (Linux
// Documentation/arch/x86/boot.rst), for tests that spoil one.
const (
	SetupSects    = 0x1f1
	SysSize       = 0x1f4
	BootFlag      = 0x1fe
	JumpLength    = 0x201
	Magic         = 0x202
	Version       = 0x206
	LoadFlags     = 0x211
	InitrdAddrMax = 0x22c
	XLoadFlags    = 0x236
	CmdlineSize   = 0x238
	PayloadOffset = 0x248
	PayloadLength = 0x24c
	PrefAddress   = 0x258
	InitSize      = 0x260
)

// The addresses and limits of the files made here.
const (
	// LoadAddress is where bzImages and ELF files want to be.
	LoadAddress = 0x100000
	// InitSizeBytes is the memory that a bzImage asks for.
	InitSizeBytes = 0x20000
	// CmdlineMax is the limit that a bzImage tells.
	CmdlineMax = 255
	// Setup is the number of bytes before a bzImage's protected-mode code.
	Setup = 2 * 512
	// PayloadStart is where the payload begins in the protected-mode code.
	PayloadStart = 0x400
)

// BzImage makes a 64-bit bzImage of boot protocol 2.15 around a compressed
// payload. The protected-mode code before the payload is filled with 0x90.
func BzImage(payload []byte) []byte {
	le := binary.LittleEndian
	body := bytes.Repeat([]byte{0x90}, PayloadStart)
	body = append(body, payload...)
	body = append(body, make([]byte, -len(body)&15)...)
	k := make([]byte, Setup, Setup+len(body))
	k[SetupSects] = Setup/512 - 1
	le.PutUint32(k[SysSize:], uint32(len(body)/16))
	le.PutUint16(k[BootFlag:], 0xaa55)
	k[BootFlag+2], k[JumpLength] = 0xeb, 0x6a
	copy(k[Magic:], "HdrS")
	le.PutUint16(k[Version:], 0x020f)
	k[LoadFlags] = 1
	le.PutUint32(k[InitrdAddrMax:], 0x7fffffff)
	le.PutUint16(k[XLoadFlags:], 1|2)
	le.PutUint32(k[CmdlineSize:], CmdlineMax)
	le.PutUint32(k[PayloadOffset:], PayloadStart)
	le.PutUint32(k[PayloadLength:], uint32(len(payload)))
	le.PutUint64(k[PrefAddress:], LoadAddress)
	le.PutUint32(k[InitSize:], InitSizeBytes)
	return append(k, body...)
}

// Segment is a PT_LOAD segment of an ELF file.
type Segment struct {
	PhysAddr uint64
	Data     []byte
	// Zero is how many bytes of zeros follow the data in memory.
	Zero uint64
}

// Note is an entry of a PT_NOTE segment.
type Note struct {
	Name string // with its NUL
	Type uint32
	Desc []byte
}

// PVHNote is the note that tells the PVH entry point.
func PVHNote(entry uint32) Note {
	return Note{"Xen\x00", 18, binary.LittleEndian.AppendUint32(nil, entry)}
}

// ELF makes a 64-bit x86 executable with the given entry point, segments and
// notes, which are padded to align bytes.
func ELF(entry uint64, segments []Segment, align uint64, notes ...Note) []byte {
	const headerSize, progSize = 64, 56
	count := len(segments)
	if len(notes) > 0 {
		count++
	}
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Entry: entry, Phoff: headerSize, Ehsize: headerSize, Phentsize: progSize, Phnum: uint16(count),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = 1

	var data []byte
	start := uint64(headerSize + count*progSize)
	progs := make([]elf.Prog64, 0, count)
	for _, s := range segments {
		size := uint64(len(s.Data))
		progs = append(progs, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Off: start + uint64(len(data)), Vaddr: s.PhysAddr, Paddr: s.PhysAddr,
			Filesz: size, Memsz: size + s.Zero,
		})
		data = append(data, s.Data...)
	}
	if len(notes) > 0 {
		n := encodeNotes(notes, align)
		progs = append(progs, elf.Prog64{
			Type: uint32(elf.PT_NOTE), Off: start + uint64(len(data)), Filesz: uint64(len(n)), Align: align,
		})
		data = append(data, n...)
	}
	var b bytes.Buffer
	// Writing to a Buffer cannot fail, nor can fixed-size structs.
	_ = binary.Write(&b, binary.LittleEndian, &h)
	_ = binary.Write(&b, binary.LittleEndian, progs)
	b.Write(data)
	return b.Bytes()
}

func encodeNotes(notes []Note, align uint64) []byte {
	var p []byte
	pad := func() { p = append(p, make([]byte, -uint64(len(p))&(align-1))...) }
	for _, n := range notes {
		p = binary.LittleEndian.AppendUint32(p, uint32(len(n.Name)))
		p = binary.LittleEndian.AppendUint32(p, uint32(len(n.Desc)))
		p = binary.LittleEndian.AppendUint32(p, n.Type)
		p = append(p, n.Name...)
		pad()
		p = append(p, n.Desc...)
		pad()
	}
	return p
}
