package vmlinux

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-vmm/godwit/bootloader"
	"github.com/godwit-vmm/godwit/memory"
)

// kernelVariable names a distribution's bzImage, compressed with gzip or LZ4,
// for the test below.
const kernelVariable = "GODWIT_TEST_KERNEL"

// TestRealKernel loads a kernel as it came from its distribution and again
// after extraction.
func TestRealKernel(t *testing.T) {
	path := os.Getenv(kernelVariable)
	if path == "" {
		t.Skipf("no kernel: set %s to a bzImage with a PVH note, such as Debian's cloud kernel", kernelVariable)
	}
	image := openFile(t, path)
	entry := load(t, image)
	if entry.Protocol != bootloader.Linux64 {
		t.Errorf("the bzImage is entered by %v", entry.Protocol)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := Extract(out, image)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("extracted %d bytes", n)
	if entry := load(t, openFile(t, out.Name())); entry.Protocol != bootloader.PVH {
		t.Errorf("the extracted kernel is entered by %v", entry.Protocol)
	}
}

func openFile(t *testing.T, path string) *bootloader.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	file, err := bootloader.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func load(t *testing.T, kernel *bootloader.File) bootloader.Entry {
	t.Helper()
	mem, err := memory.New(memory.Options{Size: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	entry, err := bootloader.Load(mem, bootloader.Options{
		Kernel:  kernel,
		Cmdline: "console=ttyS0",
		Platform: bootloader.Platform{
			APICIDs: []uint32{0},
			ECAM:    memory.Range{Start: memory.ECAMStart, Size: memory.ECAMSize},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !mem.Contains(memory.GPA(entry.RIP), 1) {
		t.Errorf("entry point %#x is not RAM", entry.RIP)
	}
	return entry
}
