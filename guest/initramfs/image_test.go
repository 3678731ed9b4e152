package initramfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

// cachedKernel is the kernel in the cache; without one, what an image holds
// cannot be tested.
func cachedKernel(t *testing.T) guest.Kernel {
	t.Helper()
	k, err := guest.CachedKernel()
	if errors.Is(err, guest.ErrNotCached) {
		testenv.Lacks(t, "no cached kernel: make guest")
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestImages(t *testing.T) {
	kernel := cachedKernel(t)
	copied := guest.Kernel{
		Version:    kernel.Version,
		Path:       filepath.Join(t.TempDir(), "vmlinuz"),
		ModulesDir: kernel.ModulesDir,
	}
	programs := []cpio.Record{cpio.StaticFile("init", "program", 0o755), cpio.Symlink("bbin/ls", "bb")}
	modules := "lib/modules/" + kernel.Version + "/"
	tests := []struct {
		image    string
		has, not []string
	}{
		{guest.GuestImage, []string{"init", "bbin/ls", "dev/console", "proc", modules + "modules.dep", modules + "virtio_blk.ko", modules + "virtio_ring.ko"}, []string{modules + "kvm.ko"}},
		{guest.HostImage, []string{"bin/nproc", modules + "kvm.ko", modules + "kvm_amd.ko", modules + "irqbypass.ko", modules + "virtio_console.ko"}, nil},
	}
	for _, test := range tests {
		file := copied.Image(test.image)
		if err := writeImage(file, copied, test.image, programs); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(content)))
		if err != nil {
			t.Fatal(err)
		}
		names := make(map[string]int)
		for i, r := range records {
			if _, twice := names[r.Name]; twice {
				t.Errorf("%s: %s is there twice", test.image, r.Name)
			}
			names[r.Name] = i
			// The kernel unpacks in order and makes no folders by itself.
			if parent := filepath.Dir(r.Name); parent != "." {
				if _, ok := names[parent]; !ok {
					t.Errorf("%s: %s comes before its folder", test.image, r.Name)
				}
			}
		}
		for _, name := range test.has {
			if _, ok := names[name]; !ok {
				t.Errorf("%s: no %s", test.image, name)
			}
		}
		for _, name := range test.not {
			if _, ok := names[name]; ok {
				t.Errorf("%s: it has %s", test.image, name)
			}
		}
		// The same again must not touch the file.
		before, _ := os.Stat(file)
		if err := writeImage(file, copied, test.image, programs); err != nil {
			t.Fatal(err)
		}
		if after, _ := os.Stat(file); !os.SameFile(before, after) {
			t.Errorf("%s: written anew without a change", test.image)
		}
	}
}

func TestCommandsAreNamedOnce(t *testing.T) {
	names := commands()
	slices.Sort(names)
	if i := len(slices.Compact(slices.Clone(names))); i != len(names) {
		t.Errorf("%d of %d commands are different", i, len(names))
	}
	for _, name := range names {
		if strings.ContainsAny(name, "/ ") {
			t.Errorf("%q is no command of u-root", name)
		}
	}
}
