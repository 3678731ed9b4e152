package bench

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

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
