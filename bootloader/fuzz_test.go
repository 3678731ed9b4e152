package bootloader

import (
	"encoding/binary"
	"testing"

	"github.com/godwit-vmm/godwit/bootloader/internal/kerneltest"
	"github.com/godwit-vmm/godwit/memory"
)

// fuzzLoad loads a hostile kernel and checks what must hold whenever that
// succeeds.
func fuzzLoad(t *testing.T, image []byte, initrdSize int64, cmdline string) {
	mem := testMemory(t, testRAM)
	o := Options{Kernel: testFile("kernel", image), Cmdline: cmdline, Platform: testPlatform()}
	if initrdSize != 0 {
		o.Initrd = &File{Name: "initrd", Size: initrdSize, Content: zeros{}}
	}
	e, err := Load(mem, o)
	if err != nil {
		return
	}
	if !mem.Contains(memory.GPA(e.RIP), 1) || e.RIP < 0x100000 {
		t.Errorf("entry point %#x", e.RIP)
	}
	var initrd memory.Range
	if e.Protocol == PVH {
		module := read(t, mem, moduleListAddr, 16)
		initrd.Start = memory.GPA(binary.LittleEndian.Uint64(module))
		initrd.Size = binary.LittleEndian.Uint64(module[8:])
	} else {
		var z zeroPage
		copy(z[:], read(t, mem, memory.GPA(e.RSI), memory.PageSize))
		initrd.Start = memory.GPA(z.u32(offRamdiskAddr))
		initrd.Size = uint64(z.u32(offRamdiskSize))
	}
	if initrd.Size != uint64(initrdSize) || !mem.Contains(initrd.Start, initrd.Size) || initrd.Contains(memory.GPA(e.RIP), 1) {
		t.Errorf("initrd %#x, entry %#x", initrd, e.RIP)
	}
	if got := read(t, mem, cmdlineAddr, uint64(len(cmdline))+1); string(got) != cmdline+"\x00" {
		t.Errorf("command line %q, want %q", got, cmdline)
	}
	// Whatever the file wants, the descriptors are ours.
	if gdt, err := mem.Uint64(gdtAddr + dataSelector); err != nil || gdt != 0x00cf93000000ffff {
		t.Errorf("data descriptor %#x, %v", gdt, err)
	}
}

// FuzzBzImage takes the setup header and what follows it apart from the boot
// sector before, so that the fuzzer spends its time on bytes that are read.
func FuzzBzImage(f *testing.F) {
	header := kerneltest.BzImage(nil)[offSetupSects:setupHeaderMax]
	f.Add(header, uint16(2000), int64(5000), "console=ttyS0")
	f.Add(header, uint16(100), int64(0), "")
	f.Fuzz(func(t *testing.T, header []byte, rest uint16, initrdSize int64, cmdline string) {
		image := append(make([]byte, offSetupSects), header...)
		image = append(image, make([]byte, rest)...)
		if len(image) >= offHeaderMagic+4 {
			binary.LittleEndian.PutUint16(image[offBootFlag:], bootFlag)
			binary.LittleEndian.PutUint32(image[offHeaderMagic:], headerMagic)
		}
		fuzzLoad(t, image, initrdSize, cmdline)
		if r, err := Payload(testFile("kernel", image)); err == nil && r.Size() > int64(len(image)) {
			t.Errorf("payload of %d bytes in a file of %d", r.Size(), len(image))
		}
	})
}

func FuzzELF(f *testing.F) {
	f.Add(elfImage(), int64(5000), "console=ttyS0")
	f.Add(kerneltest.ELF(kerneltest.LoadAddress, []kerneltest.Segment{{PhysAddr: kerneltest.LoadAddress, Data: []byte{0xf4}}}, 4), int64(0), "")
	f.Fuzz(func(t *testing.T, image []byte, initrdSize int64, cmdline string) {
		if len(image) >= 4 {
			copy(image, "\x7fELF")
		}
		fuzzLoad(t, image, initrdSize, cmdline)
	})
}
