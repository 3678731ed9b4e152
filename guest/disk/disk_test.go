package disk

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody is a user without privileges, on every system.
const nobody = 65534

func requireTools(t *testing.T) tools {
	t.Helper()
	found, err := findTools()
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	return found
}

// check has e2fsck look at an image.
func check(t *testing.T, image string) {
	t.Helper()
	out, err := exec.Command("/sbin/e2fsck", "-f", "-n", image).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// ask has debugfs answer a question about an image.
func ask(t *testing.T, image, command string) string {
	t.Helper()
	cmd := exec.Command(requireTools(t).debugfs, "-R", command, image)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("debugfs %s: %v", command, err)
	}
	if _, message, _ := strings.Cut(stderr.String(), "\n"); strings.TrimSpace(message) != "" {
		t.Errorf("debugfs %s: %s", command, message)
	}
	return stdout.String()
}

// describe is "TYPE MODE UID:GID LINKS" of a file in an image.
func describe(t *testing.T, image, name string) string {
	t.Helper()
	quoted, err := quote("/" + name)
	if err != nil {
		t.Fatal(err)
	}
	text := ask(t, image, "stat "+quoted)
	m := regexp.MustCompile(`Type: (.*?) +Mode: +(\d+).*(?s:.*)User: +(\d+) +Group: +(\d+)(?s:.*?)Links: (\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("%s: debugfs says %q", name, text)
	}
	return fmt.Sprintf("%s %s %s:%s %s", m[1], m[2], m[3], m[4], m[5])
}

var old = time.Unix(1_000_000_000, 0)

// archive writes a tar archive.
func archive(t *testing.T, w io.Writer, headers []*tar.Header, contents map[string]string) {
	t.Helper()
	out := tar.NewWriter(w)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = contents[h.Name]
		}
		h.Size = int64(len(content))
		if h.ModTime.IsZero() {
			h.ModTime = old
		}
		if err := out.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTar makes an image of an archive that has everything in it.
func TestTar(t *testing.T) {
	requireTools(t)
	long := strings.Repeat("n", 255)
	contents := map[string]string{
		"./bin/su": "#!", "./etc/shadow": "root:*", "./home/user/a b\"c\\d\té": "odd",
		"./deep/er/file": "no folder before", "./" + long: "long", "./twice": "second", "./big": strings.Repeat("0123456789", 100_000),
	}
	headers := []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 5, Gid: 6},
		{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\n\x00\x00\x00\x00\x00\x00\x00"}},
		{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o500},
		{Name: "./etc/shadow", Typeflag: tar.TypeReg, Mode: 0, Gid: 42},
		{Name: "./home/user/", Typeflag: tar.TypeDir, Mode: 0o2770, Uid: 1000, Gid: 100_000},
		{Name: "./home/user/a b\"c\\d\té", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Gid: 1000},
		{Name: "./tmp", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Name: "./dev/with space", Typeflag: tar.TypeBlock, Mode: 0o660, Gid: 6, Devmajor: 259, Devminor: 300},
		{Name: "./run/fifo", Typeflag: tar.TypeFifo, Mode: 0o600, Uid: 7},
		{Name: "./sh", Typeflag: tar.TypeSymlink, Linkname: "bin/su", Mode: 0o777, Uid: 9},
		{Name: "./away", Typeflag: tar.TypeSymlink, Linkname: "/" + strings.Repeat("very/long/", 20) + "target", Mode: 0o777},
		{Name: "./hard", Typeflag: tar.TypeLink, Linkname: "./bin/su"},
		{Name: "./deep/er/file", Typeflag: tar.TypeReg, Mode: 0o444},
		{Name: "./" + long, Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "./twice", Typeflag: tar.TypeChar, Mode: 0o644, Devmajor: 1, Devminor: 5},
		{Name: "./twice", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 3},
		{Name: "./big", Typeflag: tar.TypeReg, Mode: 0o644},
	}
	want := map[string]string{
		"":                       "directory 0711 5:6",
		"bin":                    "directory 0755 0:0 2",
		"bin/su":                 "regular 04755 0:0 2",
		"hard":                   "regular 04755 0:0 2",
		"etc":                    "directory 0500 0:0 2",
		"etc/shadow":             "regular 0000 0:42 1",
		"home":                   "directory 0755 0:0 3",
		"home/user":              "directory 02770 1000:100000 2",
		"home/user/a b\"c\\d\té": "regular 0640 1000:1000 1",
		"tmp":                    "directory 01777 0:0 2",
		"dev":                    "directory 0755 0:0 2",
		"dev/null":               "character special 0666 0:0 1",
		"dev/with space":         "block special 0660 0:6 1",
		"run/fifo":               "FIFO 0600 7:0 1",
		"sh":                     "symlink 0777 9:0 1",
		"away":                   "symlink 0777 0:0 1",
		"deep/er":                "directory 0755 0:0 2",
		"deep/er/file":           "regular 0444 0:0 1",
		long:                     "regular 0644 0:0 1",
		"twice":                  "regular 0600 3:0 1",
	}
	dir := t.TempDir()
	for _, format := range []string{"tar", "gzip", "xz", "zstd"} {
		t.Run(format, func(t *testing.T) {
			source, image := filepath.Join(dir, "in."+format), filepath.Join(dir, format+".img")
			var b bytes.Buffer
			archive(t, &b, headers, contents)
			writeCompressed(t, source, format, b.Bytes())
			if err := Build(t.Context(), source, image, Options{}); err != nil {
				t.Fatal(err)
			}
			check(t, image)
			for name, w := range want {
				if got := describe(t, image, name); got != w && !(name == "" && strings.HasPrefix(got, w)) {
					t.Errorf("%s is %q, want %q", name, got, w)
				}
			}
			for name, content := range contents {
				quoted, _ := quote("/" + clean(name))
				if got := ask(t, image, "cat "+quoted); got != content {
					t.Errorf("%s has %d bytes, want %d", name, len(got), len(content))
				}
			}
			for name, text := range map[string]string{
				"/dev/null": "Device major/minor number: 01:03", "/sh": `Fast link dest: "bin/su"`, "/deep/er/file": "mtime: 0x3b9aca00",
				"/bin/su": "security.capability (12) = 01 00 00 02 0a 00", "/away": "Size: 207", "/": "mtime: 0x3b9aca00",
				`"/dev/with space"`: "number: 259:300", "/etc": "mtime: 0x3b9aca00", "/run/fifo": "mtime: 0x3b9aca00",
			} {
				if got := ask(t, image, "stat "+name); !strings.Contains(got, text) {
					t.Errorf("%s: no %q in %s", name, text, got)
				}
			}
			expectNothingElse(t, dir, source, image)
		})
	}
}

func writeCompressed(t *testing.T, file, format string, content []byte) {
	t.Helper()
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	switch format {
	case "gzip":
		z := gzip.NewWriter(out)
		if _, err := z.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	case "tar":
		if _, err := out.Write(content); err != nil {
			t.Fatal(err)
		}
	default:
		cmd := exec.Command(format, "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(content), out
		if err := cmd.Run(); err != nil {
			t.Skipf("%s: %v", format, err)
		}
	}
}

// expectNothingElse checks that nothing temporary is left.
func expectNothingElse(t *testing.T, dir string, files ...string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q (%v)", left, err)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
}

// TestDir makes an image of a folder: with the label, UUID and size asked for,
// sparse, and with root as the owner of this user's files.
func TestDir(t *testing.T) {
	requireTools(t)
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "disk.img")
	for _, d := range []string{"", "etc", "empty"} {
		if err := os.Mkdir(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"etc/hostname": 0o640, "line\nbreak": 0o644} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte("text"), mode); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(
		os.Link(filepath.Join(tree, "etc/hostname"), filepath.Join(tree, "link")),
		os.Symlink("etc", filepath.Join(tree, "symlink")),
		os.Chmod(filepath.Join(tree, "empty"), 0o700|os.ModeSticky),
		syscall.Mkfifo(filepath.Join(tree, "pipe"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if !root {
		// debugfs cannot name it to change its owner.
		err = Build(t.Context(), tree, image, Options{})
		if err == nil || !strings.Contains(err.Error(), "line break") {
			t.Errorf("a name with a line break: %v", err)
		}
		err = os.Remove(filepath.Join(tree, "line\nbreak"))
	} else {
		err = os.Chown(filepath.Join(tree, "empty"), 12, 13)
	}
	if err != nil {
		t.Fatal(err)
	}
	const uuid = "11223344-5566-7788-99aa-bbccddeeff00"
	if err := os.WriteFile(image, []byte("an older image"), 0o600); err != nil {
		t.Fatal(err)
	}
	var progress bytes.Buffer
	if err := Build(t.Context(), tree, image, Options{Size: 1 << 30, Label: "godwit-root", UUID: uuid, Progress: &progress}); err != nil {
		t.Fatal(err)
	}
	check(t, image)
	want := map[string]string{
		"etc/hostname": "regular 0640 0:0 2", "link": "regular 0640 0:0 2", "symlink": "symlink 0777 0:0 1",
		"empty": "directory 01700 0:0 2", "pipe": "FIFO 0600 0:0 1",
	}
	if root {
		want["empty"] = "directory 01700 12:13 2"
	}
	for name, w := range want {
		if got := describe(t, image, name); got != w {
			t.Errorf("%s is %q, want %q", name, got, w)
		}
	}
	super := ask(t, image, "stats -h")
	for _, want := range []string{"godwit-root", uuid, "Block size:               4096", "Block count:              262144", "has_journal"} {
		if !strings.Contains(super, want) {
			t.Errorf("no %q in %s", want, super)
		}
	}
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != 1<<30 || used > 64<<20 {
		t.Errorf("the image has %d bytes, %d on the disk", info.Size(), used)
	}
	if progress.Len() == 0 {
		t.Error("no word about progress")
	}
	expectNothingElse(t, dir, image)
}

// TestWithoutPrivileges runs the other tests as a user who may do nothing.
func TestWithoutPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests run without privileges already")
	}
	dir, err := os.MkdirTemp("", "godwit-disk-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(dir, "test")
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(self, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=TestTar|TestDir|TestErrors", "-test.count=1")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestErrors(t *testing.T) {
	requireTools(t)
	dir := t.TempDir()
	file := func(name string, headers []*tar.Header) string {
		t.Helper()
		var b bytes.Buffer
		archive(t, &b, headers, map[string]string{"big": strings.Repeat("x", 64<<20), "../../escaped": "x", "link/x": "x", "a": "x", "a/b": "x", "down/x": "x"})
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	regular := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	good := file("good", []*tar.Header{regular("a")})
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no archive ", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "x.img")
	tests := []struct {
		name, source, image string
		options             Options
		want                string
	}{
		{"no source", filepath.Join(dir, "none"), image, Options{}, "no such file"},
		{"no archive", text, image, Options{}, "tar"},
		{"empty archive", file("empty", nil), image, Options{}, "empty"},
		{"size", good, image, Options{Size: 4096}, "between 8 MiB"},
		{"odd size", good, image, Options{Size: 64<<20 + 1}, "multiple"},
		{"too small", file("large", []*tar.Header{regular("big")}), image, Options{Size: 32 << 20}, "too much"},
		{"label", good, image, Options{Label: "seventeen letters"}, "longer than 16"},
		{"UUID", good, image, Options{UUID: "nonsense"}, "UUID"},
		{"image is a folder", good, dir, Options{}, "not a regular file"},
		{"nowhere", good, filepath.Join(dir, "none", "x.img"), Options{}, "no such file"},
		{"through a link", file("link", []*tar.Header{{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, regular("link/x")}), image, Options{}, "escapes"},
		{"through a link down", file("down", []*tar.Header{{Name: "down", Typeflag: tar.TypeSymlink, Linkname: "../.."}, regular("down/x")}), image, Options{}, "escapes"},
		{"file as a folder", file("folder", []*tar.Header{regular("a"), regular("a/b")}), image, Options{}, "a/b"},
		{"device number", file("device", []*tar.Header{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 65536}}), image, Options{}, "1:65536"},
		{"root is a file", file("root", []*tar.Header{regular("..")}), image, Options{}, "root"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Build(t.Context(), tt.source, tt.image, tt.options)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want something about %q", err, tt.want)
			}
			if _, err := os.Stat(image); err == nil {
				t.Error("there is an image")
			}
			expectNothingElse(t, dir)
		})
	}
	// Dots cannot lead out of the image.
	if err := Build(t.Context(), file("dots", []*tar.Header{regular("../../escaped")}), image, Options{}); err != nil {
		t.Error(err)
	} else if got := describe(t, image, "escaped"); got != "regular 0644 0:0 1" {
		t.Errorf("escaped is %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Build(ctx, good, image, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancel: %v", err)
	}
}

func TestNoTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := findTool("mkfs.ext4"); err == nil || !strings.Contains(err.Error(), "apt-get install e2fsprogs") {
		t.Error(err)
	}
	if _, err := findTool("mkfs.ext4", "/usr/sbin", "/sbin"); err != nil {
		testenv.Lacks(t, "%v", err)
	}
}
