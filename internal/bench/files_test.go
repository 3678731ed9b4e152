package bench

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

func TestLddPaths(t *testing.T) {
	const out = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f00)\n" +
		"\tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f11)\n"
	want := []string{"/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"}
	if got := lddPaths([]byte(out)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestQEMUFiles(t *testing.T) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	files, err := QEMUFiles()
	if err != nil {
		t.Fatal(err)
	}
	var base []string
	for _, f := range files {
		base = append(base, filepath.Base(f.Path))
		if info, err := os.Lstat(f.Source); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s comes from %s, which is no regular file (%v)", f.Path, f.Source, err)
		}
	}
	for _, want := range []string{filepath.Base(path), "libc.so.6", "ld-linux-x86-64.so.2", "bios-256k.bin", "bios-microvm.bin", "linuxboot_dma.bin"} {
		if !slices.Contains(base, want) {
			t.Errorf("%s is missing in %v", want, base)
		}
	}
}

func TestTinyInit(t *testing.T) {
	init, err := tinyInit()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(init))
	if err != nil {
		t.Fatal(err)
	}
	p := f.Progs[0]
	if f.Type != elf.ET_EXEC || p.Type != elf.PT_LOAD || p.Filesz != uint64(len(init)) || f.Entry <= p.Vaddr || f.Entry >= p.Vaddr+p.Filesz {
		t.Errorf("header %+v, segment %+v", f.FileHeader, p.ProgHeader)
	}
	if !bytes.Contains(init, []byte(tinyInitSays+"\n")) {
		t.Error("the message is not in the program")
	}
}

func TestBootInitrd(t *testing.T) {
	dir := t.TempDir()
	given := filepath.Join(dir, "given")
	if err := os.WriteFile(given, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := bootInitrd(&Env{Dir: dir, Initrd: given})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(disk, []byte("12345\x00\x00\x00070701")) {
		t.Fatalf("starts with %q", disk[:16])
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(disk[8:])))
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	got := records[0]
	if got.Name != tinyInitName || got.Mode != 0o100755 {
		t.Errorf("record %+v", got.Info)
	}
	want, err := tinyInit()
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, got.FileSize)
	if _, err := got.ReadAt(data, 0); err != nil || !bytes.Equal(data, want) {
		t.Errorf("content differs (%v)", err)
	}
	if _, err := bootInitrd(&Env{Dir: dir, Initrd: filepath.Join(dir, "missing")}); err == nil {
		t.Error("a missing initrd went through")
	}
}
