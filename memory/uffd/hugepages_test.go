package uffd

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
)

func TestHugePages(t *testing.T) {
	const size = 8 << 20
	reserveHugePages(t, size/hugePage)
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: size, HugePages: true})
	m := newImage(size)
	s, _ := start(t, fd, Config{Mappings: Of(g), Source: evenPages{m}})
	mem := g.Regions()[0].Mem
	if got := look(t, mem[hugePage+3*page:hugePage+4*page]); got[0] != 515&0xff {
		t.Errorf("page 515 begins with %d", got[0])
	}
	missing(t, s, size-hugePage)
	if err := s.PutZeros(t.Context(), 0, hugePage); err != nil {
		t.Fatal(err)
	}
	clear(m.mem[:hugePage])
	if !bytes.Equal(look(t, mem), m.mem) {
		t.Error("the memory is not what the source has")
	}
	missing(t, s, 0)
	if err := s.Release(); err != nil {
		t.Error(err)
	}
}

const hugePage = 2 << 20

// evenPages is an image without nil for zeros.
type evenPages struct{ *image }

func (e evenPages) Page(_ context.Context, offset uint64) ([]byte, error) {
	return e.mem[offset:], nil
}

// reserveHugePages has the host reserve huge pages for the time of the test.
func reserveHugePages(t *testing.T, n int) {
	t.Helper()
	const pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	free, err := readNumber(pool + "free_hugepages")
	if err != nil {
		testenv.Lacks(t, "no huge pages: %v", err)
	}
	if free >= n {
		return
	}
	had, err := readNumber(pool + "nr_hugepages")
	if err == nil {
		err = writeNumber(pool+"nr_hugepages", had+n)
	}
	if err != nil {
		testenv.Lacks(t, "%d huge pages cannot be reserved: %v", n, err)
	}
	t.Cleanup(func() {
		if err := writeNumber(pool+"nr_hugepages", had); err != nil {
			t.Error(err)
		}
	})
	if free, err = readNumber(pool + "free_hugepages"); err != nil || free < n {
		testenv.Lacks(t, "%d huge pages are free, want %d: %v", free, n, err)
	}
}

func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func writeNumber(path string, n int) error {
	return os.WriteFile(path, []byte(strconv.Itoa(n)), 0o644)
}
