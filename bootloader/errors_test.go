package bootloader

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/bootloader/internal/kerneltest"
	"github.com/godwit-vmm/godwit/memory"
)

// elfImage is a small ELF kernel for tests that spoil it.
func elfImage() []byte {
	return kerneltest.ELF(kerneltest.LoadAddress, []kerneltest.Segment{
		{PhysAddr: kerneltest.LoadAddress, Data: make([]byte, 64)},
		{PhysAddr: kerneltest.LoadAddress + 0x1000, Data: make([]byte, 64)},
	}, 4, kerneltest.PVHNote(kerneltest.LoadAddress))
}

// Offsets in an ELF file and its program headers.
const (
	elfMachine  = 18
	elfEntry    = 24
	elfPhoff    = 32
	elfPhnum    = 56
	prog0       = 64
	prog1       = prog0 + 56
	prog2       = prog1 + 56
	progOffset  = 8
	progPaddr   = 24
	progFilesz  = 32
	progMemsz   = 40
	bzImageSize = kerneltest.Setup + kerneltest.PayloadStart
)

func TestKernelErrors(t *testing.T) {
	le := binary.LittleEndian
	bz := func(spoil func(k []byte)) []byte {
		k := kerneltest.BzImage(nil)
		spoil(k)
		return k
	}
	vm := func(spoil func(k []byte)) []byte {
		k := elfImage()
		spoil(k)
		return k
	}
	tests := []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "truncated or not a kernel"},
		{"text", []byte("#!/bin/sh\n"), "truncated or not a kernel"},
		{"zeros", make([]byte, 4096), "not a kernel: want a 64-bit x86 bzImage or ELF file"},
		{"gzip", append([]byte("\x1f\x8b"), make([]byte, 4096)...), "compressed with gzip"},
		{"boot sector", bz(func(k []byte) { k[kerneltest.Magic] = 0 }), "without a Linux setup header"},
		{"old protocol", bz(func(k []byte) { le.PutUint16(k[kerneltest.Version:], 0x20b) }), "boot protocol 2.11 is too old: want 2.12"},
		{"short header", bz(func(k []byte) { k[kerneltest.JumpLength] = 0x20 }), "setup header ends at 0x222"},
		{"long header", bz(func(k []byte) { k[kerneltest.JumpLength] = 0xff }), "setup header ends at 0x301"},
		{"zImage", bz(func(k []byte) { k[kerneltest.LoadFlags] = 0 }), "want a bzImage"},
		{"32-bit", bz(func(k []byte) { k[kerneltest.XLoadFlags] = 0 }), "32-bit kernel"},
		{"cut in the header", kerneltest.BzImage(nil)[:400], "truncated"},
		{"cut in the code", kerneltest.BzImage(nil)[:bzImageSize-1], fmt.Sprintf("truncated: the header tells of %d bytes", bzImageSize)},
		{"no code", bz(func(k []byte) { le.PutUint32(k[kerneltest.SysSize:], 0) }), "truncated"},
		{"huge code", bz(func(k []byte) { le.PutUint32(k[kerneltest.SysSize:], 0xffffffff) }), "truncated"},
		{"low address", bz(func(k []byte) { le.PutUint64(k[kerneltest.PrefAddress:], 0x10000) }), "must lie between 0x100000 and 0xc0000000"},
		{"wrapping address", bz(func(k []byte) { le.PutUint64(k[kerneltest.PrefAddress:], 1<<64-0x1000) }), "must lie between"},
		{"high address", bz(func(k []byte) { le.PutUint64(k[kerneltest.PrefAddress:], 0xb0000000) }), "give at least 2817 MiB of memory"},
		{"little memory", bz(func(k []byte) { le.PutUint32(k[kerneltest.InitSize:], 16<<20) }), "guest RAM ends at 0x400000: give at least 17 MiB of memory"},

		{"ELF cut in the header", elfImage()[:50], "truncated"},
		{"ELF cut in the program headers", elfImage()[:prog1], "truncated"},
		{"ELF cut in a segment", elfImage()[:prog2+56+100], "truncated"},
		{"32-bit ELF", vm(func(k []byte) { k[elf.EI_CLASS] = byte(elf.ELFCLASS32) }), "ELFCLASS32: want a 64-bit kernel"},
		{"big-endian ELF", vm(func(k []byte) { k[elf.EI_DATA] = byte(elf.ELFDATA2MSB) }), "want little-endian"},
		{"ARM ELF", vm(func(k []byte) { le.PutUint16(k[elfMachine:], uint16(elf.EM_AARCH64)) }), "EM_AARCH64: want EM_X86_64"},
		{"object file", vm(func(k []byte) { k[16] = byte(elf.ET_REL) }), "ET_REL: want an executable"},
		{"many program headers", vm(func(k []byte) { le.PutUint16(k[elfPhnum:], 0xffff) }), "65535 program headers"},
		{"wrapping program headers", vm(func(k []byte) { le.PutUint64(k[elfPhoff:], 1<<64-57) }), "truncated"},
		{"virtual entry", vm(func(k []byte) {
			le.PutUint32(k[prog2:], 0) // no notes
			le.PutUint64(k[elfEntry:], 0xffffffff81000000)
		}), "entry point 0xffffffff81000000"},
		{"file beyond memory", vm(func(k []byte) { le.PutUint64(k[prog0+progMemsz:], 32) }), "64 bytes in the file and 32 in memory"},
		{"segment outside the file", vm(func(k []byte) { le.PutUint64(k[prog0+progOffset:], 1<<63) }), "truncated"},
		{"overlap", vm(func(k []byte) { le.PutUint64(k[prog1+progPaddr:], kerneltest.LoadAddress+63) }), "overlap"},
		{"wrapping segment", vm(func(k []byte) { le.PutUint64(k[prog1+progMemsz:], 1<<64-1) }), "segment of 18446744073709551615 bytes"},
		{"low segment", vm(func(k []byte) { le.PutUint64(k[prog1+progPaddr:], 0x7000) }), "must lie between"},
		{"large segment", vm(func(k []byte) { le.PutUint64(k[prog1+progMemsz:], 8<<20) }), "give at least 10 MiB"},
		{"huge notes", vm(func(k []byte) { le.PutUint64(k[prog2+progFilesz:], 1<<40) }), "notes of 1099511627776 bytes: the limit is 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem := testMemory(t, testRAM)
			_, err := Load(mem, Options{Kernel: testFile("some/kernel", tt.image), Platform: testPlatform()})
			checkError(t, err, "some/kernel", fmt.Sprintf("(%d bytes)", len(tt.image)), tt.want)
		})
	}
}

// checkError wants one line with all the given parts.
func checkError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, part := range append(parts, "") {
		if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want one line with %q", err, part)
		}
	}
}

func TestCmdlineErrors(t *testing.T) {
	tests := []struct {
		name    string
		image   []byte
		cmdline string
		want    string
	}{
		{"bzImage", kerneltest.BzImage(nil), strings.Repeat("x", kerneltest.CmdlineMax), ""},
		{"bzImage, one more", kerneltest.BzImage(nil), strings.Repeat("x", kerneltest.CmdlineMax+1), "command line of 256 bytes: the limit of kernel K is 255"},
		{"ELF", elfImage(), strings.Repeat("x", 2047), ""},
		{"ELF, one more", elfImage(), strings.Repeat("x", 2048), "the limit of kernel K is 2047"},
		{"NUL", elfImage(), "a\x00b", "NUL at offset 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(testMemory(t, testRAM), Options{Kernel: testFile("K", tt.image), Cmdline: tt.cmdline, Platform: testPlatform()})
			if tt.want == "" && err == nil {
				return
			}
			checkError(t, err, tt.want)
		})
	}
}

func TestPlaceInitrd(t *testing.T) {
	const (
		mib = 1 << 20
		gib = 1 << 30
	)
	tests := []struct {
		name    string
		ram     uint64
		max     memory.GPA
		high    bool
		size    int64
		want    memory.GPA
		wantErr string
	}{
		{"end of RAM", 128 * mib, 0x7fffffff, false, 0x1234, 128*mib - 0x2000, ""},
		{"exact fit", 128 * mib, 0x7fffffff, false, 64 * mib, 64 * mib, ""},
		{"one byte more", 128 * mib, 0x7fffffff, false, 64*mib + 1, 0, "give at least 129 MiB of memory"},
		{"kernel's limit", 2 * gib, 0x37ffffff, false, mib, 0x38000000 - mib, ""},
		{"over the kernel's limit", 2 * gib, 0x37ffffff, false, 0x38000000 - 64*mib + 1, 0, "the limit is 872415232 bytes between the kernel's end 0x4000000 and address 0x38000000"},
		{"PCI hole", 5 * gib, 0xffffffff, true, mib, 3*gib - mib, ""},
		{"high RAM", 5 * gib, 0x7fffffff, true, 2*gib - 1, 4 * gib, ""},
		{"high RAM out of reach", 5 * gib, 0x7fffffff, false, 2*gib - 1, 0, "the limit is"},
		{"too large for any RAM", 5 * gib, 0x7fffffff, true, 1 << 62, 0, "too large"},
		{"limit inside the kernel", 128 * mib, 0x1000, false, 1, 0, "the limit is 0 bytes"},
		{"empty", 128 * mib, 0x7fffffff, false, 0, 0, "empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := &kernel{
				segments:   []segment{{Range: memory.Range{Start: 16 * mib, Size: 48 * mib}}},
				initrdMax:  tt.max,
				initrdHigh: tt.high,
			}
			r, err := placeInitrd(testMemory(t, tt.ram), k, &File{Name: "initrd.img", Size: tt.size, Content: zeros{}})
			if tt.wantErr != "" {
				checkError(t, err, "initrd.img", fmt.Sprintf("(%d bytes)", tt.size), tt.wantErr)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Start != tt.want || r.Size != uint64(tt.size) {
				t.Errorf("place %#x of %d bytes, want %#x", uint64(r.Start), r.Size, uint64(tt.want))
			}
		})
	}
}

func TestPlatformErrors(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(p *Platform)
		want  string
	}{
		{"no processors", func(p *Platform) { p.APICIDs = nil }, "no processors"},
		{"broadcast APIC ID", func(p *Platform) { p.APICIDs[1] = 255 }, "APIC ID 255: the limit is 254"},
		{"same APIC ID", func(p *Platform) { p.APICIDs[1] = 0 }, "APIC ID 0 appears twice"},
		{"high IOAPIC", func(p *Platform) { p.IOAPIC = 1 << 32 }, "below 4 GiB"},
		{"no ECAM", func(p *Platform) { p.ECAM.Size = 0 }, "ECAM"},
		{"ECAM over the edge", func(p *Platform) { p.ECAM.Start = 1<<32 - 1 }, "ECAM"},
		{"PCI32 over the edge", func(p *Platform) { p.PCI32.Size = 1 << 32 }, "below 4 GiB"},
		{"PCI64 over the edge", func(p *Platform) { p.PCI64.Start = 1<<64 - 1 }, "past the end"},
		{"ports over the edge", func(p *Platform) { p.PCIIO.Size++ }, "below port 0x10000"},
		{"all ports", func(p *Platform) { p.PCIIO = PortRange{0, 0x10000} }, "less than 0x10000"},
		{"SCI", func(p *Platform) { p.Power.SCI = 16 }, "SCI on GSI 16"},
		{"S5", func(p *Platform) { p.Power.SleepTypeS5 = 8 }, "sleep type 8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := testPlatform()
			tt.spoil(&p)
			_, err := Load(testMemory(t, testRAM), Options{Kernel: testFile("K", elfImage()), Platform: p})
			checkError(t, err, "platform: ", tt.want)
		})
	}
}
