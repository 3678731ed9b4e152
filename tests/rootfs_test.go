package tests

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/disk"
	"github.com/godwit-vmm/godwit/internal/lab"
)

// debianTree is the script that unpacks packages.
const debianTree = "../scripts/debian-tree"

// debianImage is an ext4 image with these Debian packages and all that they
// need, made by "godwit guest image" out of a tree and kept in the cache. It is
// for reading: see place.
func debianImage(t *testing.T, size uint64, packages ...string) string {
	t.Helper()
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(debianTree)
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256(fmt.Append(script, size, packages))
	image := filepath.Join(cache, "images", fmt.Sprintf("%x.img", key[:8]))
	if _, err := os.Stat(image); err == nil {
		return image
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("a Debian root file system needs %s", tool)
		}
	}
	tree := filepath.Join(t.TempDir(), "tree")
	if out, err := exec.Command(debianTree, append([]string{tree}, packages...)...).CombinedOutput(); err != nil {
		t.Skipf("packages for a root file system: %v\n%s", err, out)
	}
	if err := os.MkdirAll(filepath.Dir(image), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := disk.Build(t.Context(), tree, image, disk.Options{Size: size, Label: "debian"}); err != nil {
		t.Fatal(err)
	}
	return image
}

// place copies an image to where a runner finds it, for this test to write to,
// and returns its path there.
func place(t *testing.T, r runner, image string) string {
	t.Helper()
	switch r := r.(type) {
	case *emulated:
		return placeInLab(t, r, image)
	default:
		to := filepath.Join(t.TempDir(), "root.img") // a new folder each time
		if out, err := exec.Command("cp", "--sparse=always", image, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return to
	}
}

// placed numbers the files in emulated hosts.
var placed atomic.Int64

// placeInLab copies an image within an emulated host, where it stays once it is
// there: the way into a host is slow.
func placeInLab(t *testing.T, r *emulated, image string) string {
	t.Helper()
	pristine := "/tmp/pristine-" + filepath.Base(image)
	if status := inLab(t, r, nil, "test -e "+pristine); status != 0 {
		in, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		packed, w := io.Pipe()
		go func() {
			z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
			if err == nil {
				_, err = io.Copy(z, in)
				err = errors.Join(err, z.Close())
			}
			w.CloseWithError(err)
		}()
		script := fmt.Sprintf("gzip -f -d -c > %s.part && mv %[1]s.part %[1]s", pristine)
		if status := inLab(t, r, packed, script); status != 0 {
			t.Fatalf("%s: status %d", script, status)
		}
	}
	to := fmt.Sprintf("/tmp/image-%d", placed.Add(1))
	if status := inLab(t, r, nil, "cp "+pristine+" "+to); status != 0 {
		t.Fatalf("copy an image in the host: status %d", status)
	}
	t.Cleanup(func() { inLab(t, r, nil, "rm -f "+to) })
	return to
}

// inLab runs a shell script in an emulated host and gives its exit status.
func inLab(t *testing.T, r *emulated, stdin io.Reader, script string) int {
	t.Helper()
	var stderr bytes.Buffer
	// Not of the test: that one has ended when it cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), 2*bootTimeout)
	defer cancel()
	status, err := r.host.Run(ctx, lab.Cmd{Args: []string{"sh", "-c", script}, Stdin: stdin, Stderr: &stderr})
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, stderr.String())
	}
	if status != 0 && stderr.Len() > 0 {
		t.Logf("%s: %s", script, stderr.String())
	}
	return status
}
