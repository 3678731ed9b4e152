package testenv

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hugePagePool says how many 2 MiB pages the host keeps for those who ask for them.
const hugePagePool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

// HugePages has the host keep n more huge pages of 2 MiB for the time of the test. The
// pool belongs to all: tests of other packages, in other processes, that want some wait
// until this test is over.
func HugePages(t testing.TB, n int) {
	t.Helper()
	release, err := lock(filepath.Join(os.TempDir(), "godwit-test-hugepages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	before, err := pool()
	if err != nil {
		Lacks(t, "no huge pages: %v", err)
		return
	}
	if err := setPool(before + n); err != nil {
		Lacks(t, "%d huge pages cannot be reserved: %v", n, err)
		return
	}
	t.Cleanup(func() {
		if err := setPool(before); err != nil {
			t.Error(err)
		}
	})
	if now, err := pool(); err != nil || now < before+n {
		Lacks(t, "the host has no room for %d more huge pages (%d, %v)", n, now-before, err)
	}
}

func pool() (int, error) {
	text, err := os.ReadFile(hugePagePool)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func setPool(n int) error {
	return os.WriteFile(hugePagePool, []byte(strconv.Itoa(n)), 0o644)
}

// lock waits for the lock on a file, which is made if need be and stays.
func lock(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The lock ends with the file.
	return func() { _ = f.Close() }, nil
}
