package guest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseDepends(t *testing.T) {
	debian := `Package: linux-image-cloud-amd64
Source: linux-signed-amd64
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux for x86-64 cloud (meta-package)
`
	if got := imagePackage(parseDepends(debian)); got != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("Debian: %q", got)
	}
	ubuntu := "Depends: linux-modules-6.8.0-31-generic, linux-image-6.8.0-31-generic | linux-image-unsigned-6.8.0-31-generic, kmod\nRecommends: grub-pc\n"
	want := []string{"linux-modules-6.8.0-31-generic", "linux-image-6.8.0-31-generic", "kmod"}
	if got := parseDepends(ubuntu); !slices.Equal(got, want) {
		t.Errorf("Ubuntu: %q", got)
	}
	if got := imagePackage([]string{"linux-image-generic", "kmod"}); got != "" {
		t.Errorf("a metapackage was taken for an image: %q", got)
	}
}

func TestCacheDir(t *testing.T) {
	t.Setenv("GODWIT_CACHE", "/x/y")
	if dir, err := CacheDir(); err != nil || dir != "/x/y" {
		t.Errorf("%q, %v", dir, err)
	}
	t.Setenv("GODWIT_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/c")
	if dir, err := CacheDir(); err != nil || dir != "/c/godwit" {
		t.Errorf("%q, %v", dir, err)
	}
}

func TestCachedKernelOfAnEmptyCache(t *testing.T) {
	t.Setenv("GODWIT_CACHE", t.TempDir())
	_, err := CachedKernel()
	if !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), "godwit guest kernel") {
		t.Errorf("got %v", err)
	}
	if _, err := (Kernel{Path: "/nonexistent/vmlinuz"}).CachedImage(GuestImage); !errors.Is(err, ErrNotCached) {
		t.Errorf("image: %v", err)
	}
}

// makeRoot makes the files of a kernel as a package unpacks them.
func makeRoot(t *testing.T, version, modules string) string {
	t.Helper()
	root := t.TempDir()
	for file, text := range map[string]string{
		"boot/vmlinuz-" + version:              "kernel",
		"boot/config-" + version:               "CONFIG_X=y",
		modules + version + "/kernel/other.ko": "not wanted",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestStageKernel(t *testing.T) {
	for _, modules := range []string{"lib/modules/", "usr/lib/modules/"} {
		files, err := kernelIn(makeRoot(t, "6.1.0-test", modules))
		if err != nil {
			t.Fatal(err)
		}
		if files.version != "6.1.0-test" || !strings.Contains(files.modules, modules+"6.1.0-test") {
			t.Errorf("found %+v", files)
		}
		dir := filepath.Join(t.TempDir(), "staged")
		if err := files.stage(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "vmlinuz")); string(text) != "kernel" || err != nil {
			t.Errorf("vmlinuz: %q, %v", text, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "modules")); len(left) != 0 || err != nil {
			t.Errorf("modules: %v, %v", left, err)
		}
	}
	if _, err := kernelIn(t.TempDir()); err == nil {
		t.Error("a folder without a kernel was taken for one with")
	}
}

func TestReplaceDirAndLink(t *testing.T) {
	cache := t.TempDir()
	kernels := filepath.Join(cache, "kernels")
	for _, content := range []string{"old", "new"} {
		temp := filepath.Join(kernels, "temp")
		if err := os.MkdirAll(temp, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(temp, "vmlinuz"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := replaceDir(temp, filepath.Join(kernels, "1.2.3")); err != nil {
			t.Fatal(err)
		}
		if err := replaceLink("1.2.3", filepath.Join(kernels, "current")); err != nil {
			t.Fatal(err)
		}
		k, err := cachedKernel(cache)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(k.Path); string(text) != content || err != nil {
			t.Errorf("%q, %v", text, err)
		}
	}
}

func TestReplaceFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	for _, content := range []string{"one", "two"} {
		if err := ReplaceFile(file, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(file); string(text) != content {
			t.Errorf("%q", text)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUncompress(t *testing.T) {
	for ext, tool := range map[string]string{".gz": "gzip", ".xz": "xz", ".zst": "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Logf("%s is not installed", tool)
			continue
		}
		cmd := exec.Command(tool, "-c")
		cmd.Stdin = strings.NewReader("module")
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		from := filepath.Join(t.TempDir(), "m.ko"+ext)
		if err := os.WriteFile(from, packed, 0o644); err != nil {
			t.Fatal(err)
		}
		to := from + ".out"
		if err := uncompress(context.Background(), from, to); err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(to); !bytes.Equal(text, []byte("module")) {
			t.Errorf("%s: %q", tool, text)
		}
		if err := os.WriteFile(from, []byte("broken"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := uncompress(context.Background(), from, to); err == nil || !strings.Contains(err.Error(), tool) {
			t.Errorf("%s of a broken file: %v", tool, err)
		}
	}
}
