package uffd

import (
	"bytes"
	"context"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
)

func TestHugePages(t *testing.T) {
	const size = 8 << 20
	testenv.HugePages(t, size/hugePage)
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
