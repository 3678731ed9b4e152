package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

// readChain reads guest memory by the extents of a chain, which it checks.
func readChain(t testing.TB, dir string) []byte {
	t.Helper()
	c, err := OpenChain(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var p []byte
	last := -1
	for _, e := range c.Extents() {
		if e.Offset != int64(len(p)) || e.Length <= 0 || e.Layer == last || e.File != c.Snapshots()[e.Layer].MemoryFile() {
			t.Fatalf("extent %+v behind layer %d, %#x", e, last, len(p))
		}
		part := make([]byte, e.Length)
		if _, err := e.File.ReadAt(part, e.Offset); err != nil {
			t.Fatal(err)
		}
		p, last = append(p, part...), e.Layer
	}
	return p
}

// chainOf makes a full snapshot 0 in parent and diffs 1 to n upon each other, and
// returns the memory at each.
func chainOf(t testing.TB, parent string, n int) [][]byte {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(n), 2))
	p := content(10, ramSize)
	dir := func(i int) string { return filepath.Join(parent, fmt.Sprint(i)) }
	full(t, dir(0), p)
	states := [][]byte{bytes.Clone(p)}
	for i := 1; i <= n; i++ {
		w := begin(t, dir(i), Options{Base: dir(i - 1)})
		for range 30 {
			count := 1 + r.IntN(9)
			page := r.IntN(ramSize/PageSize - count)
			change := p[page*PageSize : (page+count)*PageSize]
			copy(change, content(r.Uint64(), len(change)))
			writePages(t, w, int64(page)*PageSize, change)
		}
		commit(t, w)
		states = append(states, bytes.Clone(p))
	}
	return states
}

func TestChain(t *testing.T) {
	parent := t.TempDir()
	for i, want := range chainOf(t, parent, 3) {
		dir := filepath.Join(parent, fmt.Sprint(i))
		if !bytes.Equal(readChain(t, dir), want) {
			t.Errorf("memory of snapshot %d differs", i)
		}
		var done, total int64
		if err := Verify(context.Background(), dir, func(d, t int64) { done, total = d, t }); err != nil {
			t.Error(err)
		}
		if want := int64(i+1) * ramSize; done != want || total != want {
			t.Errorf("progress of snapshot %d ends at %d of %d, want %d", i, done, total, want)
		}
	}
	m := mustOpen(t, filepath.Join(parent, "3")).Manifest()
	if m.Kind != Diff || m.Base.Path != "2" {
		t.Errorf("kind %q, base %+v", m.Kind, m.Base)
	}
	// The chain moves as a whole, and is reached by a symbolic link.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(parent, moved); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(moved, "3"), link); err != nil {
		t.Fatal(err)
	}
	readChain(t, link)
}

func TestExtentsOfFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snap")
	full(t, dir, content(1, ramSize))
	c, err := OpenChain(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if e := c.Extents(); len(e) != 1 || e[0].Length != ramSize {
		t.Errorf("extents of a full snapshot: %+v", e)
	}
}

func TestRelative(t *testing.T) {
	top := t.TempDir()
	for _, dir := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	top, err := absolute(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ dir, base, want string }{
		{"a/x", top + "/a", "."},
		{"a/x", top + "/a/b", "b"},
		{"a/x", top + "/c", "../c"},
		{"a/x", "/proc", "/proc"},
	} {
		p := place{dir: filepath.Join(top, test.dir)}
		if found, err := p.relative(test.base); err != nil || found != test.want {
			t.Errorf("base %s of %s: %q (%v), want %q", test.base, test.dir, found, err, test.want)
		}
	}
}

func TestChainRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		breaks func(t *testing.T, parent string)
		says   string
	}{
		{"base is gone", func(t *testing.T, parent string) {
			if err := os.RemoveAll(filepath.Join(parent, "1")); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		{"base was replaced", func(t *testing.T, parent string) {
			if err := os.RemoveAll(filepath.Join(parent, "0")); err != nil {
				t.Fatal(err)
			}
			full(t, filepath.Join(parent, "0"), content(5, ramSize))
		}, "was replaced"},
		{"base has other memory", func(t *testing.T, parent string) {
			id := mustOpen(t, filepath.Join(parent, "0")).state.id
			if err := os.RemoveAll(filepath.Join(parent, "0")); err != nil {
				t.Fatal(err)
			}
			commit(t, begin(t, filepath.Join(parent, "0"), Options{Memory: []memory.Range{{Size: ramSize}}, id: id}))
		}, "other addresses"},
		{"loop", func(t *testing.T, parent string) {
			// A snapshot of the first one's id that builds upon the last.
			id := mustOpen(t, filepath.Join(parent, "0")).state.id
			commit(t, begin(t, filepath.Join(parent, "loop"), Options{Base: filepath.Join(parent, "2"), id: id}))
			if err := os.RemoveAll(filepath.Join(parent, "0")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(parent, "loop"), filepath.Join(parent, "0")); err != nil {
				t.Fatal(err)
			}
		}, "builds upon itself"},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent := t.TempDir()
			chainOf(t, parent, 2)
			test.breaks(t, parent)
			c, err := OpenChain(filepath.Join(parent, "2"))
			if err == nil {
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("OpenChain: %v, want an error that says %q", err, test.says)
			}
		})
	}
}

func TestChainDepth(t *testing.T) {
	parent := t.TempDir()
	small := []memory.Range{{Size: PageSize}}
	dir := func(i int) string { return filepath.Join(parent, fmt.Sprint(i)) }
	commit(t, begin(t, dir(0), Options{Memory: small}))
	for i := 1; i <= MaxChain; i++ {
		commit(t, begin(t, dir(i), Options{Memory: small, Base: dir(i - 1)}))
	}
	c, err := OpenChain(dir(MaxChain - 1))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if c, err := OpenChain(dir(MaxChain)); err == nil {
		c.Close()
		t.Errorf("a chain of %d opened", MaxChain+1)
	}
}

func TestBaseRefused(t *testing.T) {
	parent := t.TempDir()
	base := filepath.Join(parent, "base")
	full(t, base, content(1, ramSize))
	for _, o := range []Options{
		{Memory: ram, Base: base, BaseID: strings.Repeat("0", 32)},
		{Memory: ram[:1], Base: base},
	} {
		if w, err := Create(filepath.Join(parent, "diff"), o); err == nil {
			w.Abort()
			t.Errorf("Create with %+v worked", o)
		}
	}
	only(t, parent, "base")
}

// copyClone stands for a file system that can share blocks.
func copyClone(dst, src *os.File) error {
	_, err := io.Copy(dst, io.NewSectionReader(src, 0, ramSize))
	return err
}

func noClone(dst, src *os.File) error { return errors.ErrUnsupported }

func TestMerge(t *testing.T) {
	for name, clone := range map[string]func(dst, src *os.File) error{"copy": noClone, "clone": copyClone, "as the file system can": reflink} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			states := chainOf(t, parent, 3)
			out := filepath.Join(parent, "out")
			var done, total int64
			if err := merge(context.Background(), filepath.Join(parent, "2"), out, func(d, t int64) { done, total = d, t }, clone); err != nil {
				t.Fatal(err)
			}
			if done != ramSize || total != ramSize {
				t.Errorf("progress ends at %d of %d, want %d", done, total, ramSize)
			}
			merged, newest := mustOpen(t, out).Manifest(), mustOpen(t, filepath.Join(parent, "2")).Manifest()
			if merged.Kind != Full || merged.ID != newest.ID || merged.Name != newest.Name {
				t.Errorf("manifest %+v", merged)
			}
			if !bytes.Equal(readChain(t, out), states[2]) {
				t.Error("merged memory differs")
			}
			// The merged one takes the place of the one that it was made of.
			for _, i := range []string{"0", "1", "2"} {
				if err := os.RemoveAll(filepath.Join(parent, i)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Rename(out, filepath.Join(parent, "2")); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readChain(t, filepath.Join(parent, "3")), states[3]) {
				t.Error("memory of a diff upon the merged snapshot differs")
			}
			if err := Verify(context.Background(), filepath.Join(parent, "3"), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMergeKeepsHolesAndDisks(t *testing.T) {
	parent := t.TempDir()
	base, diff, out := filepath.Join(parent, "base"), filepath.Join(parent, "diff"), filepath.Join(parent, "out")
	full(t, base, bytes.Repeat([]byte{1}, ramSize))
	w := begin(t, diff, Options{Base: base})
	writePages(t, w, 0, make([]byte, 400*PageSize))
	f, err := w.CreateFile("disk-0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<20), func() error { _, err := f.WriteAt([]byte("disk"), 512<<10); return err }()); err != nil {
		t.Fatal(err)
	}
	m := testManifest()
	m.Disks[0].File = "disk-0"
	if err := w.Commit(m, sections); err != nil {
		t.Fatal(err)
	}
	if err := Merge(context.Background(), diff, out, nil); err != nil {
		t.Fatal(err)
	}
	if n := blocks(t, filepath.Join(out, MemoryFile)); n > 3*PageSize {
		t.Errorf("the merged memory file takes %d bytes for a page", n)
	}
	disk, err := os.ReadFile(filepath.Join(out, "disk-0"))
	if err != nil || len(disk) != 1<<20 || string(disk[512<<10:][:4]) != "disk" {
		t.Errorf("disk of %d bytes (%v)", len(disk), err)
	}
	if n := blocks(t, filepath.Join(out, "disk-0")); n > 2*PageSize {
		t.Errorf("the disk takes %d bytes for a page", n)
	}
}

func TestMergeFindsDamage(t *testing.T) {
	parent := t.TempDir()
	chainOf(t, parent, 1)
	flip(t, filepath.Join(parent, "0", MemoryFile), 5*PageSize)
	err := Merge(context.Background(), filepath.Join(parent, "1"), filepath.Join(parent, "out"), nil)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("Merge of damaged memory: %v", err)
	}
	only(t, parent, "0", "1")
}

func TestCancel(t *testing.T) {
	parent := t.TempDir()
	chainOf(t, parent, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Merge(ctx, filepath.Join(parent, "1"), filepath.Join(parent, "out"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Merge: %v", err)
	}
	if err := Verify(ctx, filepath.Join(parent, "1"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify: %v", err)
	}
	only(t, parent, "0", "1")
}
