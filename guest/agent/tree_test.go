package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writeTree makes files: "name/" is a folder, "name -> target" a symbolic link,
// and "name: content" a file.
func writeTree(t *testing.T, dir string, entries ...string) {
	t.Helper()
	for _, e := range entries {
		var err error
		if name, target, ok := strings.Cut(e, " -> "); ok {
			err = os.Symlink(target, filepath.Join(dir, name))
		} else if name, ok := strings.CutSuffix(e, "/"); ok {
			err = os.MkdirAll(filepath.Join(dir, name), 0o755)
		} else {
			name, content, _ := strings.Cut(e, ": ")
			err = os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// readTree is the reverse of writeTree, sorted.
func readTree(t *testing.T, dir string) []string {
	t.Helper()
	var entries []string
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		name, _ := filepath.Rel(dir, file)
		switch d.Type() {
		case fs.ModeDir:
			entries = append(entries, name+"/")
		case fs.ModeSymlink:
			target, err := os.Readlink(file)
			entries = append(entries, name+" -> "+target)
			return err
		default:
			content, err := os.ReadFile(file)
			entries = append(entries, name+": "+string(content))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(entries)
	return entries
}

// TestCopy has what docker cp and cp -r do with each kind of source and
// destination, to the guest and from it.
func TestCopy(t *testing.T) {
	source := []string{"file: f", "dir/", "dir/a: 1", "dir/sub/", "dir/sub/b: 2", "dir/link -> ../file", "link -> dir"}
	target := []string{"old: o", "there/", "there/keep: k"}
	folder := func(at string) []string {
		return []string{at + "/", at + "/a: 1", at + "/link -> ../file", at + "/sub/", at + "/sub/b: 2"}
	}
	tests := []struct {
		src, dst string
		follow   bool
		want     []string // beside target
		fails    string
	}{
		{src: "file", dst: "new", want: []string{"new: f"}},
		{src: "file", dst: "old", want: []string{"old: f"}},
		{src: "file", dst: "there", want: []string{"there/file: f"}},
		{src: "file", dst: "there/", want: []string{"there/file: f"}},
		{src: "file", dst: "there/keep", want: []string{"there/keep: f"}},
		{src: "file", dst: "none/", fails: "no folder"},
		{src: "file", dst: "none/new", fails: "no such file"},
		{src: "dir", dst: "new", want: folder("new")},
		{src: "dir/", dst: "new/", want: folder("new")},
		{src: "dir", dst: "there", want: folder("there/dir")},
		{src: "dir/.", dst: "new", want: folder("new")},
		{src: "dir/.", dst: "there", want: folder("there")},
		{src: "dir", dst: "old", fails: "no folder"},
		{src: "link", dst: "new", want: []string{"new -> dir"}},
		{src: "link", dst: "old", want: []string{"old -> dir"}},
		{src: "link", dst: "there", want: []string{"there/link -> dir"}},
		{src: "link", dst: "there", follow: true, want: folder("there/link")},
		{src: "link/", dst: "new", want: folder("new")},
		{src: "none", dst: "new", fails: "no such file"},
	}
	c := connect(t)
	for _, copy := range []struct {
		name string
		f    func(context.Context, string, string, CopyOptions) (Copied, error)
	}{{"upload", c.Upload}, {"download", c.Download}} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s %s to %s", copy.name, tt.src, tt.dst), func(t *testing.T) {
				from, to := t.TempDir(), t.TempDir()
				writeTree(t, from, source...)
				writeTree(t, to, target...)
				_, err := copy.f(testContext(t), from+"/"+tt.src, to+"/"+tt.dst, CopyOptions{Follow: tt.follow})
				if tt.fails != "" {
					if err == nil || !strings.Contains(err.Error(), tt.fails) {
						t.Errorf("error %v, want %q", err, tt.fails)
					}
					tt.want = nil
				} else if err != nil {
					t.Fatal(err)
				}
				if want := merge(target, tt.want); !slices.Equal(readTree(t, to), want) {
					t.Errorf("got  %q\nwant %q", readTree(t, to), want)
				}
			})
		}
	}
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// merge is what entries are there when more are put over them.
func merge(old, more []string) []string {
	byName := make(map[string]string)
	for _, e := range slices.Concat(old, more) {
		name, _, _ := strings.Cut(strings.TrimSuffix(e, "/"), ": ")
		name, _, _ = strings.Cut(name, " -> ")
		byName[name] = e
	}
	var all []string
	for _, e := range byName {
		all = append(all, e)
	}
	slices.Sort(all)
	return all
}

// TestCopyKeeps checks what else belongs to a file.
func TestCopyKeeps(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	writeTree(t, from, "d/", "d/script: #!", "d/sealed/", "d/sealed/x: x")
	long := "d/" + strings.Repeat("long", 60)
	writeTree(t, from, long+": ünï")
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	for name, mode := range map[string]fs.FileMode{"d/script": 0o755 | fs.ModeSetuid, "d/sealed/x": 0o400, "d/sealed": 0o500, "d": 0o750} {
		if err := errors.Join(os.Chmod(filepath.Join(from, name), mode), os.Chtimes(filepath.Join(from, name), when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(from, "d/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := connect(t)
	for _, tt := range []struct {
		name string
		f    func(context.Context, string, string, CopyOptions) (Copied, error)
		suid fs.FileMode
	}{{"up", c.Upload, fs.ModeSetuid}, {"down", c.Download, 0}} {
		var last Copied
		dst := filepath.Join(to, tt.name)
		copied, err := tt.f(testContext(t), from+"/d", dst, CopyOptions{Progress: func(c Copied) { last = c }})
		if err != nil {
			t.Fatal(err)
		}
		if want := (Copied{Files: 5, Bytes: 2 + 1 + 5, Skipped: 1}); copied != want {
			t.Errorf("%s: copied %+v, want %+v", tt.name, copied, want)
		}
		if last.Bytes != copied.Bytes {
			t.Errorf("%s: progress ended at %+v", tt.name, last)
		}
		for name, mode := range map[string]fs.FileMode{"script": 0o755 | tt.suid, "sealed/x": 0o400, "sealed": 0o500 | fs.ModeDir, ".": 0o750 | fs.ModeDir} {
			info, err := os.Stat(filepath.Join(dst, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != mode || name != "." && !info.ModTime().Equal(when) {
				t.Errorf("%s: %s has mode %v and time %v, want %v", tt.name, name, info.Mode(), info.ModTime(), mode)
			}
		}
		if b, err := os.ReadFile(filepath.Join(dst, filepath.Base(long))); string(b) != "ünï" || err != nil {
			t.Errorf("%s: long name: %q, %v", tt.name, b, err)
		}
	}
}

func TestCopyLarge(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	if err := os.WriteFile(from+"/big", content, 0o600); err != nil {
		t.Fatal(err)
	}
	c := connect(t)
	if _, err := c.Upload(testContext(t), from+"/big", to+"/up", CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Download(testContext(t), to+"/up", to+"/down", CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to + "/down"); !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(content), err)
	}
	if n := TreeSize(to); n != 2*int64(len(content)) {
		t.Errorf("the tree has %d bytes", n)
	}
}

func TestCopyEndsWithItsContext(t *testing.T) {
	c := connect(t)
	from := t.TempDir()
	writeTree(t, from, "large: ")
	if err := os.Truncate(from+"/large", 1<<40); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	to := t.TempDir()
	_, err := c.Download(ctx, from+"/large", to, CopyOptions{Progress: func(Copied) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := readTree(t, to); len(left) != 0 {
		t.Errorf("left behind: %.100q", left)
	}
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// entry is one entry of a hostile archive.
type entry struct {
	name, link string
	kind       byte
	content    string
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.content)), Mode: 0o6777}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// hostile are archives that try to get out of the folder that they are put into,
// or to leave there what they should not.
func hostile(t testing.TB, outside string) map[string][]byte {
	dir := entry{name: "d/", kind: tar.TypeDir}
	return map[string][]byte{
		"parent":              archive(t, entry{name: "../escaped", kind: tar.TypeReg, content: "x"}),
		"absolute":            archive(t, entry{name: outside + "/escaped", kind: tar.TypeReg, content: "x"}),
		"parent of the top":   archive(t, entry{name: "..", kind: tar.TypeDir}, entry{name: "../escaped", kind: tar.TypeReg}),
		"parent inside":       archive(t, dir, entry{name: "d/../../escaped", kind: tar.TypeReg, content: "x"}),
		"beside the top":      archive(t, dir, entry{name: "escaped", kind: tar.TypeReg, content: "x"}),
		"prefix of the top":   archive(t, dir, entry{name: "d2/escaped", kind: tar.TypeReg, content: "x"}),
		"by a link":           archive(t, dir, entry{name: "d/l", kind: tar.TypeSymlink, link: outside}, entry{name: "d/l/escaped", kind: tar.TypeReg, content: "x"}),
		"by a relative link":  archive(t, dir, entry{name: "d/l", kind: tar.TypeSymlink, link: "../.."}, entry{name: "d/l/escaped", kind: tar.TypeReg, content: "x"}),
		"folder by a link":    archive(t, dir, entry{name: "d/l", kind: tar.TypeSymlink, link: outside}, entry{name: "d/l", kind: tar.TypeDir}, entry{name: "d/l/escaped", kind: tar.TypeReg}),
		"over a link":         archive(t, dir, entry{name: "d/l", kind: tar.TypeSymlink, link: outside + "/victim"}, entry{name: "d/l", kind: tar.TypeReg, content: "x"}),
		"mode by a link":      archive(t, dir, entry{name: "d/l", kind: tar.TypeSymlink, link: outside + "/victim"}, entry{name: "d/l", kind: tar.TypeDir}),
		"hard link":           archive(t, dir, entry{name: "d/h", kind: tar.TypeLink, link: outside + "/victim"}, entry{name: "d/h", kind: tar.TypeReg, content: "x"}),
		"device":              archive(t, dir, entry{name: "d/null", kind: tar.TypeChar}, entry{name: "d/fifo", kind: tar.TypeFifo}),
		"long name":           archive(t, dir, entry{name: "d/" + strings.Repeat("a/", 4000) + "x", kind: tar.TypeReg}),
		"link as the top":     archive(t, entry{name: "l", kind: tar.TypeSymlink, link: outside}, entry{name: "l/escaped", kind: tar.TypeReg, content: "x"}),
		"nothing":             archive(t),
		"no archive":          bytes.Repeat([]byte("no archive "), 1000),
		"empty":               nil,
		"contents and parent": archive(t, entry{name: "./", kind: tar.TypeDir}, entry{name: "./../escaped", kind: tar.TypeReg, content: "x"}),
	}
}

func TestHostileArchives(t *testing.T) {
	for name := range hostile(t, "/") {
		for _, dst := range []string{"there", "new", "sub/file", "there/"} {
			t.Run(name+" to "+dst, func(t *testing.T) {
				outside := t.TempDir()
				writeTree(t, outside, "victim: untouched", "inside/", "inside/there/", "inside/sub/", "inside/sub/file: old")
				if err := os.Chmod(outside+"/victim", 0o600); err != nil {
					t.Fatal(err)
				}
				_, _ = receiveTree(bytes.NewReader(hostile(t, outside)[name]), outside+"/inside/"+dst, receiveOptions{})
				checkOutside(t, outside)
			})
		}
	}
}

// checkOutside checks that nothing happened outside of the folder "inside" in
// dir, and that nothing inside has special permissions or is a special file.
func checkOutside(t *testing.T, dir string) {
	t.Helper()
	info, err := os.Stat(dir + "/victim")
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the victim has mode %v, %v", info.Mode(), err)
	}
	if b, _ := os.ReadFile(dir + "/victim"); string(b) != "untouched" {
		t.Errorf("the victim says %q", b)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	err = filepath.WalkDir(dir+"/inside", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if special := info.Mode() & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky | fs.ModeDevice | fs.ModeNamedPipe); special != 0 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
		if st := info.Sys().(*syscall.Stat_t); !info.IsDir() && st.Nlink != 1 {
			t.Errorf("%s has %d links", file, st.Nlink)
		}
		if strings.HasPrefix(d.Name(), ".copy-") {
			t.Errorf("%s was left behind", file)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// FuzzReceiveTree puts what the fuzzer makes of hostile archives into a folder.
func FuzzReceiveTree(f *testing.F) {
	for _, a := range hostile(f, "/tmp/nonexistent") {
		f.Add(a, "there")
	}
	f.Add(archive(f, entry{name: "d/", kind: tar.TypeDir}, entry{name: "d/a", kind: tar.TypeReg, content: "x"}), "new")
	f.Fuzz(func(t *testing.T, stream []byte, dst string) {
		dir := t.TempDir()
		if !filepath.IsLocal(dst) {
			dst = "new"
		}
		writeTree(t, dir, "victim: untouched", "inside/", "inside/there/")
		os.Chmod(dir+"/victim", 0o600)
		_, _ = receiveTree(bytes.NewReader(stream), dir+"/inside/"+dst, receiveOptions{})
		checkOutside(t, dir)
	})
}

func TestSetTime(t *testing.T) {
	near, far := net.Pipe()
	var got time.Time
	server := &Server{Reaper: NewReaper(), SetTime: func(t time.Time) error { got = t; return nil }}
	go server.Serve(far)
	c := dialTest(t, near)
	want := time.Unix(1234567890, 987654321)
	if err := c.SetTime(testContext(t), want); err != nil || !got.Equal(want) {
		t.Errorf("set to %v, %v, want %v", got, err, want)
	}
	if err := connect(t).SetTime(testContext(t), want); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("an agent that cannot: %v", err)
	}
}

// TestPrintable: what a guest says does not steer the terminal.
func TestPrintable(t *testing.T) {
	if got := printable("no \x1b]0;file\x07: ünï\n"); got != "no ?]0;file?: ünï?" {
		t.Errorf("got %q", got)
	}
}
