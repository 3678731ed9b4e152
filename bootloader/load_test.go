package bootloader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/bootloader/internal/kerneltest"
	"github.com/godwit-vmm/godwit/memory"
)

const testRAM = 4 << 20

func TestLoadBzImage(t *testing.T) {
	mem := testMemory(t, testRAM)
	image := kerneltest.BzImage([]byte("compressed kernel"))
	initrd := bytes.Repeat([]byte("initrd"), 1000)
	e, err := Load(mem, Options{
		Kernel:   testFile("vmlinuz", image),
		Initrd:   testFile("initrd.img", initrd),
		Cmdline:  "console=ttyS0",
		Platform: testPlatform(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Protocol != Linux64 || e.RIP != kerneltest.LoadAddress+0x200 || e.RSI == 0 || e.RBX != 0 {
		t.Errorf("entry %+v", e)
	}
	body := image[kerneltest.Setup:]
	if got := read(t, mem, kerneltest.LoadAddress, uint64(len(body))); !bytes.Equal(got, body) {
		t.Error("the protected-mode kernel is not at its preferred address")
	}
	var z zeroPage
	copy(z[:], read(t, mem, memory.GPA(e.RSI), memory.PageSize))
	if !bytes.Equal(z[0x212:offRamdiskAddr], image[0x212:offRamdiskAddr]) || z.u64(offPrefAddress) != kerneltest.LoadAddress {
		t.Error("the setup header is not in the zero page")
	}
	if z[offLoaderType] != 0xff {
		t.Errorf("type of loader %#x", z[offLoaderType])
	}
	if got := read(t, mem, memory.GPA(z.u32(offCmdlineAddr)), 14); string(got) != "console=ttyS0\x00" {
		t.Errorf("command line %q", got)
	}
	addr := memory.GPA(z.u32(offRamdiskAddr))
	if z.u32(offRamdiskSize) != uint32(len(initrd)) || !bytes.Equal(read(t, mem, addr, uint64(len(initrd))), initrd) {
		t.Errorf("initrd of %d bytes at %#x", z.u32(offRamdiskSize), addr)
	}
	if want := memory.GPA(testRAM-len(initrd)) &^ 0xfff; addr != want {
		t.Errorf("initrd at %#x, want the highest page %#x", addr, want)
	}
	if got := read(t, mem, memory.GPA(z.u64(offRSDPAddr)), 8); string(got) != "RSD PTR " {
		t.Errorf("RSDP %q", got)
	}
	checkE820(t, &z)
	checkLongMode(t, mem, e)
}

func checkE820(t *testing.T, z *zeroPage) {
	t.Helper()
	type entry struct {
		start, size uint64
		kind        uint32
	}
	var got []entry
	for i := range int(z[offE820Entries]) {
		off := offE820Table + 20*i
		got = append(got, entry{z.u64(off), z.u64(off + 8), z.u32(off + 16)})
	}
	want := []entry{
		{0, 0x9fc00, 1},
		{0x9fc00, 0x100000 - 0x9fc00, 2},
		{0x100000, testRAM - 0x100000, 1},
		{0xe0000000, 1 << 20, 2},
		{0xfeffc000, 0x4000, 2},
	}
	if len(got) != len(want) {
		t.Fatalf("e820 %x, want %x", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("e820 entry %d: %x, want %x", i, got[i], want[i])
		}
	}
}

// checkLongMode looks at the entry state with the eyes of a processor.
func checkLongMode(t *testing.T, mem *memory.Guest, e Entry) {
	t.Helper()
	if e.CR0 != 0x80000011 || e.CR4 != 0x20 || e.EFER != 0x500 {
		t.Errorf("CR0 %#x, CR4 %#x, EFER %#x", e.CR0, e.CR4, e.EFER)
	}
	for _, addr := range []uint64{0, 0x7123, 0x100200, 3<<30 + 5, 4<<30 - 1} {
		if got := translate(t, mem, e.CR3, addr); got != addr {
			t.Errorf("page tables map %#x to %#x", addr, got)
		}
	}
	checkDescriptors(t, mem, e, 0x00af9b000000ffff)
}

// translate walks four-level page tables with 2 MiB pages.
func translate(t *testing.T, mem *memory.Guest, cr3, addr uint64) uint64 {
	t.Helper()
	table := memory.GPA(cr3)
	for shift := 39; ; shift -= 9 {
		entry, err := mem.Uint64(table + memory.GPA(addr>>shift&511*8))
		if err != nil {
			t.Fatal(err)
		}
		if entry&3 != 3 {
			t.Fatalf("entry %#x for %#x is not a present, writable one", entry, addr)
		}
		if entry&(1<<7) != 0 {
			mask := uint64(1)<<shift - 1
			return entry&^0xfff&^mask | addr&mask
		}
		table = memory.GPA(entry &^ 0xfff)
	}
}

func checkDescriptors(t *testing.T, mem *memory.Guest, e Entry, code uint64) {
	t.Helper()
	for _, d := range []struct {
		name     string
		selector uint16
		want     uint64
	}{
		{"null", 0, 0},
		{"code", e.Code.Selector, code},
		{"data", e.Data.Selector, 0x00cf93000000ffff},
		{"task", e.Task.Selector, 0x00008b0000000067},
	} {
		if int(d.selector)+7 > int(e.GDTLimit) {
			t.Errorf("%s selector %#x is behind the GDT limit %#x", d.name, d.selector, e.GDTLimit)
		}
		got, err := mem.Uint64(memory.GPA(e.GDTBase + uint64(d.selector)))
		if err != nil {
			t.Fatal(err)
		}
		if got != d.want {
			t.Errorf("%s descriptor %#016x, want %#016x", d.name, got, d.want)
		}
	}
	if e.Code.Selector != 0x10 || e.Data.Selector != 0x18 {
		t.Errorf("selectors %#x and %#x, Linux wants 0x10 and 0x18", e.Code.Selector, e.Data.Selector)
	}
}

func TestLoadPVH(t *testing.T) {
	const entry = kerneltest.LoadAddress + 0x10
	long := kerneltest.PVHNote(entry)
	long.Desc = binary.LittleEndian.AppendUint64(nil, entry)
	other := kerneltest.Note{Name: "GNU\x00", Type: 18, Desc: []byte("no entry point")}
	tests := []struct {
		name  string
		align uint64
		notes []kerneltest.Note
	}{
		{"4-byte entry", 4, []kerneltest.Note{kerneltest.PVHNote(entry)}},
		{"8-byte entry", 4, []kerneltest.Note{long}},
		{"behind another note", 4, []kerneltest.Note{other, long}},
		{"8-byte alignment", 8, []kerneltest.Note{other, long}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem := testMemory(t, testRAM)
			code := bytes.Repeat([]byte{0xf4}, 0x1001)
			data := []byte("data")
			image := kerneltest.ELF(kerneltest.LoadAddress, []kerneltest.Segment{
				{PhysAddr: kerneltest.LoadAddress, Data: code},
				{PhysAddr: kerneltest.LoadAddress + 0x8000, Data: data, Zero: 0x9000},
			}, tt.align, tt.notes...)
			initrd := []byte("initrd")
			e, err := Load(mem, Options{
				Kernel: testFile("vmlinux", image), Initrd: testFile("initrd.img", initrd),
				Cmdline: "quiet", Platform: testPlatform(),
			})
			if err != nil {
				t.Fatal(err)
			}
			if e.Protocol != PVH || e.RIP != entry || e.CR0 != 0x11 || e.CR3 != 0 || e.CR4 != 0 || e.EFER != 0 {
				t.Errorf("entry %+v", e)
			}
			checkDescriptors(t, mem, e, 0x00cf9b000000ffff)
			if !bytes.Equal(read(t, mem, kerneltest.LoadAddress, uint64(len(code))), code) ||
				!bytes.Equal(read(t, mem, kerneltest.LoadAddress+0x8000, 4), data) {
				t.Error("segments are not where the file wants them")
			}
			checkStartInfo(t, mem, memory.GPA(e.RBX), initrd)
		})
	}
}

func checkStartInfo(t *testing.T, mem *memory.Guest, gpa memory.GPA, initrd []byte) {
	t.Helper()
	le := binary.LittleEndian
	p := read(t, mem, gpa, 56)
	if le.Uint32(p) != 0x336ec578 || le.Uint32(p[4:]) != 1 || le.Uint32(p[12:]) != 1 {
		t.Errorf("start info % x", p)
	}
	if got := read(t, mem, memory.GPA(le.Uint64(p[24:])), 6); string(got) != "quiet\x00" {
		t.Errorf("command line %q", got)
	}
	if got := read(t, mem, memory.GPA(le.Uint64(p[32:])), 8); string(got) != "RSD PTR " {
		t.Errorf("RSDP %q", got)
	}
	module := read(t, mem, memory.GPA(le.Uint64(p[16:])), 32)
	if n := le.Uint64(module[8:]); n != uint64(len(initrd)) || !bytes.Equal(read(t, mem, memory.GPA(le.Uint64(module)), n), initrd) {
		t.Errorf("module % x", module)
	}
	table := read(t, mem, memory.GPA(le.Uint64(p[40:])), 24*uint64(le.Uint32(p[48:])))
	ram := table[2*24:]
	if le.Uint64(ram) != 0x100000 || le.Uint64(ram[8:]) != testRAM-0x100000 || le.Uint32(ram[16:]) != 1 {
		t.Errorf("third range of the memory map % x", ram[:24])
	}
}

func TestLoadELF64(t *testing.T) {
	mem := testMemory(t, testRAM)
	image := kerneltest.ELF(kerneltest.LoadAddress, []kerneltest.Segment{{PhysAddr: kerneltest.LoadAddress, Data: []byte{0xf4}}}, 4)
	e, err := Load(mem, Options{Kernel: testFile("vmlinux", image), Platform: testPlatform()})
	if err != nil {
		t.Fatal(err)
	}
	if e.Protocol != Linux64 || e.RIP != kerneltest.LoadAddress {
		t.Errorf("entry %+v", e)
	}
	checkLongMode(t, mem, e)
	var z zeroPage
	copy(z[:], read(t, mem, memory.GPA(e.RSI), memory.PageSize))
	if z.u32(offHeaderMagic) != headerMagic || z.u16(offBootFlag) != 0xaa55 || z.u32(offRamdiskSize) != 0 {
		t.Error("zero page without a setup header, or with an initrd")
	}
	checkE820(t, &z)
}

func TestMemoryMapHasHighRAM(t *testing.T) {
	ram, err := memory.LayoutRAM(5 << 30)
	if err != nil {
		t.Fatal(err)
	}
	p := testPlatform()
	var total uint64
	m := memoryMap(ram, &p)
	for i, e := range m {
		if i > 0 && e.Start < m[i-1].End() {
			t.Errorf("entry %d begins at %#x, inside the one before", i, uint64(e.Start))
		}
		if e.kind == mapRAM {
			total += e.Size
		}
	}
	if want := uint64(5<<30 - (0x100000 - 0x9fc00)); total != want {
		t.Errorf("%d bytes of RAM, want %d", total, want)
	}
	if last := m[len(m)-1]; last.Start != 4<<30 || last.Size != 2<<30 {
		t.Errorf("high RAM %x", last)
	}
}

// zeros is endless content.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func TestLoadKeepsFilesOutOfTheHeap(t *testing.T) {
	const size = 64 << 20
	mem := testMemory(t, 256<<20)
	image := kerneltest.BzImage(nil)
	binary.LittleEndian.PutUint32(image[kerneltest.SysSize:], (size-kerneltest.Setup)/16)
	o := Options{
		Kernel:   &File{Name: "vmlinuz", Size: size, Content: overlay{image}},
		Initrd:   &File{Name: "initrd", Size: size, Content: zeros{}},
		Platform: testPlatform(),
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Load(mem, o); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
		t.Errorf("loading two files of 64 MiB allocated %d bytes", n)
	}
}

// overlay is content with zeros behind it.
type overlay struct{ head []byte }

func (o overlay) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(o.head)) {
		copy(p, o.head[off:])
	}
	return len(p), nil
}

func TestLoadMarksWhatItWrote(t *testing.T) {
	mem := testMemory(t, testRAM)
	image := kerneltest.BzImage(make([]byte, 5*memory.PageSize))
	if _, err := Load(mem, Options{Kernel: testFile("vmlinuz", image), Platform: testPlatform()}); err != nil {
		t.Fatal(err)
	}
	for page := range mem.Dirty().Pages() {
		content := read(t, mem, memory.GPA(page*memory.PageSize), memory.PageSize)
		if written := !bytes.Equal(content, make([]byte, memory.PageSize)); written && !mem.Dirty().Test(page) {
			t.Errorf("page %#x was written and is not marked dirty", page)
		}
	}
}

func TestNewFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kernel")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	f, err := NewFile(open(path))
	if err != nil || f.Size != 5 || f.Name != path {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := NewFile(open(dir)); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a directory: %v", err)
	}
}

func TestFileShrinksWhileRead(t *testing.T) {
	mem := testMemory(t, testRAM)
	image := kerneltest.BzImage(make([]byte, 4096))
	f := testFile("vmlinuz", image)
	f.Content = bytes.NewReader(image[:len(image)-100])
	_, err := Load(mem, Options{Kernel: f, Platform: testPlatform()})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "vmlinuz") {
		t.Errorf("error %v", err)
	}
}
