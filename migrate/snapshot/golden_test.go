package snapshot

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

// TestGolden reads the snapshots of every released version. They were written by
// that version and are never written again: a reader that does not take them has
// broken the promise of the package's comment.
func TestGolden(t *testing.T) {
	pages := func(values ...byte) []byte {
		var p []byte
		for _, v := range values {
			p = append(p, bytes.Repeat([]byte{v}, PageSize)...)
		}
		return p
	}
	for _, version := range []string{"1.0"} {
		for _, test := range []struct {
			name, id, machine string
			kind              Kind
			memory            []byte
		}{
			{"full", "de586c37911da44ad97eb772e45c737e", `{"version":1,"of":"full"}`, Full, pages(0, 0x11, 0, 0x33, 0x44)},
			{"diff", "97b9834a6cbc7d9e9a4e4da5a5e66156", `{"version":1,"of":"diff"}`, Diff, pages(0xa0, 0x11, 0, 0, 0x44)},
		} {
			dir := filepath.Join("testdata", "v"+version, test.name)
			if err := Verify(context.Background(), dir, nil); err != nil {
				t.Error(err)
				continue
			}
			if !bytes.Equal(readChain(t, dir), test.memory) {
				t.Errorf("%s: memory differs", dir)
			}
			s := mustOpen(t, dir)
			m := s.Manifest()
			if m.Format.String() != version || m.ID != test.id || m.Kind != test.kind || m.Godwit != "golden" || m.CPUs != 2 || len(m.CPUFeatures) != 2 {
				t.Errorf("%s: manifest %+v", dir, m)
			}
			if r := s.Ranges(); len(r) != 2 || r[0] != (memory.Range{Start: 0, Size: 3 * PageSize}) || r[1] != (memory.Range{Start: memory.HighStart, Size: 2 * PageSize}) {
				t.Errorf("%s: ranges %+v", dir, r)
			}
			if d := m.Disks; len(d) != 1 || d[0] != (Disk{ID: "disk0", Path: "/srv/disk0.img", Format: "raw", Size: 1 << 20, ReadOnly: true, Identity: "dev 8 inode 42"}) {
				t.Errorf("%s: disks %+v", dir, d)
			}
			if d := m.Devices; len(d) != 1 || d[0] != (Device{ID: "serial0", Type: "serial", Section: "serial0"}) {
				t.Errorf("%s: devices %+v", dir, d)
			}
			if p, ok := s.Section("machine"); !ok || string(p) != test.machine {
				t.Errorf("%s: section machine %q", dir, p)
			}
			if p, ok := s.Section("empty"); !ok || len(p) != 0 || len(s.Sections()) != 3 {
				t.Errorf("%s: sections %+v", dir, s.Sections())
			}
		}
	}
}
