package uffd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/memory"
	"golang.org/x/sys/unix"
)

const page = memory.PageSize

// image is a source: each page begins with its number, and every tenth is zero.
type image struct {
	mem   []byte
	asked func(offset uint64) error // may be nil
}

func newImage(size int) *image {
	m := &image{mem: make([]byte, size)}
	for offset := 0; offset < size; offset += page {
		if n := offset / page; n%10 != 0 {
			binary.LittleEndian.PutUint64(m.mem[offset:], uint64(n))
			m.mem[offset+page-1] = 0xff
		}
	}
	return m
}

func (m *image) Page(_ context.Context, offset uint64) ([]byte, error) {
	if m.asked != nil {
		if err := m.asked(offset); err != nil {
			return nil, err
		}
	}
	if n := offset / page; n%10 == 0 {
		return nil, nil
	}
	return m.mem[offset:], nil
}

func openFD(t testing.TB, o Options) *FD {
	t.Helper()
	fd, err := Open(o)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, os.ErrNotExist) {
		testenv.Lacks(t, "no userfaultfd: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

// newGuest is memory that is registered.
func newGuest(t testing.TB, fd *FD, o memory.Options) *memory.Guest {
	t.Helper()
	g, err := memory.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	for _, m := range Of(g) {
		if err := fd.Register(m); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// start lets a server serve until the test ends, and returns its end.
func start(t testing.TB, fd *FD, c Config) (*Server, func() error) {
	t.Helper()
	s, err := NewServer(fd, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return s, stop
}

// look is what the memory holds, brought if need be.
func look(t testing.TB, mem []byte) []byte {
	t.Helper()
	if err := memory.Await(mem); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(mem)
}

// missing waits until n bytes are missing. Who waits for a page may go on before the
// server has made a note of it.
func missing(t testing.TB, s *Server, n uint64) {
	t.Helper()
	for end := time.Now().Add(time.Minute); s.Missing() != n; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are missing, want %d", s.Missing(), n)
		}
	}
}

func TestServe(t *testing.T) {
	const size = 4 << 20
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: size})
	m := newImage(size)
	s, stop := start(t, fd, Config{Mappings: Of(g), Source: m})
	mem := g.Regions()[0].Mem
	if got := s.Missing(); got != size {
		t.Errorf("%d bytes are missing at first", got)
	}
	// A fault brings what is behind it, too, but no more than the default.
	if got := look(t, mem[3*page:3*page+1]); got[0] != 3 {
		t.Errorf("page 3 begins with %d", got[0])
	}
	missing(t, s, size-DefaultAhead)
	if !s.Present(3*page) || s.Present(2*page) || !s.Present(18*page) || s.Present(19*page) {
		t.Error("other pages came than those behind the fault")
	}
	if !bytes.Equal(look(t, mem), m.mem) {
		t.Error("the memory is not what the source has")
	}
	missing(t, s, 0)
	if err := stop(); err != nil {
		t.Error(err)
	}
	st := s.Stats()
	if st.Faults < size/DefaultAhead || st.P50 <= 0 || st.P50 > st.P99 || st.P99 > st.Longest || st.Bytes+st.Zeros < size {
		t.Errorf("stats %+v", st)
	}
	if err := s.Release(); err != nil {
		t.Error(err)
	}
}

// TestPresent has pages that the source is not asked for.
func TestPresent(t *testing.T) {
	const size = 1 << 20
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: size})
	m := newImage(size)
	m.asked = func(offset uint64) error {
		if offset/page == 5 {
			return errors.New("asked for a page that is there")
		}
		return nil
	}
	words := make([]uint64, size/page/64)
	words[0] = 1 << 5
	s, _ := start(t, fd, Config{Mappings: Of(g), Source: m, Present: words})
	mem := g.Regions()[0].Mem
	if got := look(t, mem[4*page:7*page]); got[0] != 4 || got[page] != 0 || got[2*page] != 6 {
		t.Errorf("pages 4 to 6 begin with %d, %d, %d", got[0], got[page], got[2*page])
	}
	if err := s.Release(); err == nil {
		t.Error("memory that is missing is released")
	}
	// The rest is pushed.
	for offset := uint64(0); offset < size; offset += 8 * page {
		if err := s.Put(t.Context(), offset, m.mem[offset:offset+8*page]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Release(); err != nil || s.Missing() != 0 {
		t.Errorf("%d bytes are missing: %v", s.Missing(), err)
	}
	want := bytes.Clone(m.mem)
	clear(want[5*page : 6*page])
	if !bytes.Equal(mem, want) {
		t.Error("the memory is not what was pushed")
	}
	for _, err := range []error{
		s.Put(t.Context(), size, m.mem[:page]), s.Put(t.Context(), 1, m.mem[:page]), s.Put(t.Context(), 0, m.mem[:7]),
		s.Put(t.Context(), size-page, m.mem[:2*page]), s.PutZeros(t.Context(), ^uint64(0)&^(page-1), 2*page),
		s.Fetch(t.Context(), size, page),
	} {
		if err == nil {
			t.Error("pages that are none of the memory were taken")
		}
	}
}

func TestFetch(t *testing.T) {
	const size = 1 << 20
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: size})
	m := newImage(size)
	s, _ := start(t, fd, Config{Mappings: Of(g), Source: m})
	if err := s.Fetch(t.Context(), 7*page, page); err != nil || s.Missing() != size-page || !s.Present(7*page) {
		t.Errorf("after one page %d bytes are missing: %v", s.Missing(), err)
	}
	if err := s.PutZeros(t.Context(), 20*page, 2*page); err != nil || s.Missing() != size-3*page {
		t.Errorf("after two pages of zeros %d bytes are missing: %v", s.Missing(), err)
	}
	if err := s.Fetch(t.Context(), 0, size); err != nil || s.Missing() != 0 {
		t.Errorf("after all %d bytes are missing: %v", s.Missing(), err)
	}
	if err := s.Release(); err != nil {
		t.Fatal(err)
	}
	clear(m.mem[20*page : 22*page])
	if !bytes.Equal(g.Regions()[0].Mem, m.mem) {
		t.Error("the memory is not what the source has")
	}
}

// TestCrowd has pages faulted on, pushed and fetched at the same time. Now and then, when
// somebody waits for a page, the garbage collector stops the world.
func TestCrowd(t *testing.T) {
	const size, readers = 8 << 20, 8
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: size})
	m := newImage(size)
	m.asked = func(offset uint64) error {
		if offset%(size/8) == 0 {
			runtime.GC()
		}
		return nil
	}
	s, _ := start(t, fd, Config{Mappings: Of(g), Source: m, Ahead: 2 * page})
	mem := g.Regions()[0].Mem
	var wg sync.WaitGroup
	for i := range readers {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		wg.Go(func() {
			for range size / page {
				offset := random.Uint64N(size/page) * page
				p := mem[offset : offset+page]
				if err := memory.Await(p); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p, m.mem[offset:offset+page]) {
					t.Errorf("page %d is not what the source has", offset/page)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for offset := uint64(0); offset < size; offset += 4 * page {
			if err := s.Put(t.Context(), offset, m.mem[offset:offset+4*page]); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		if err := s.Fetch(t.Context(), 0, size); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	missing(t, s, 0)
}

// TestRemoved has pages given back, which are zero then and not the source's any more.
func TestRemoved(t *testing.T) {
	const size = 1 << 20
	fd := openFD(t, Options{Removals: true})
	g := newGuest(t, fd, memory.Options{Size: size})
	m := newImage(size)
	start(t, fd, Config{Mappings: Of(g), Source: m, Ahead: page})
	mem := g.Regions()[0].Mem
	if got := look(t, mem[3*page:4*page]); got[0] != 3 {
		t.Fatalf("page 3 begins with %d", got[0])
	}
	// Page 4 was never there.
	if err := unix.Madvise(mem[3*page:5*page], unix.MADV_REMOVE); err != nil {
		t.Fatal(err)
	}
	if got := look(t, mem[2*page:6*page]); got[0] != 2 || got[page] != 0 || got[2*page] != 0 || got[3*page] != 5 {
		t.Errorf("pages 2 to 5 begin with %d, %d, %d, %d", got[0], got[page], got[2*page], got[3*page])
	}
}

// TestSourceFails ends the server. Who waits for a page, or asks for one later, fails.
func TestSourceFails(t *testing.T) {
	const size = 1 << 20
	for _, test := range []struct {
		name string
		page func() ([]byte, error)
		want string
	}{
		{"error", func() ([]byte, error) { return nil, errors.New("no more pages") }, "offset 0x7000: no more pages"},
		{"half a page", func() ([]byte, error) { return make([]byte, page/2), nil }, "less than a page"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd := openFD(t, Options{})
			g := newGuest(t, fd, memory.Options{Size: size})
			mem := g.Regions()[0].Mem
			s, err := NewServer(fd, Config{Mappings: Of(g), Source: sourceFunc(test.page)})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Put(t.Context(), 3*page, bytes.Repeat([]byte{3}, page)); err != nil {
				t.Fatal(err)
			}
			waited := make(chan error, 1)
			go func() { waited <- memory.Await(mem[7*page : 8*page]) }()
			err = s.Serve(t.Context())
			if errors.Is(err, unix.EINVAL) {
				testenv.Lacks(t, "no poisoned pages: %v", err)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if err := <-waited; err == nil {
				t.Error("who waits gets something")
			}
			if err := memory.Await(mem[9*page : 10*page]); err == nil {
				t.Error("who comes later gets something")
			}
			if got := look(t, mem[3*page:4*page]); got[0] != 3 {
				t.Errorf("a page that was there begins with %d", got[0])
			}
			if err := s.Release(); err == nil {
				t.Error("memory that was given up is released")
			}
		})
	}
}

type sourceFunc func() ([]byte, error)

func (f sourceFunc) Page(context.Context, uint64) ([]byte, error) { return f() }

// TestPrivate serves private memory, two mappings with a gap.
func TestPrivate(t *testing.T) {
	const size = 1 << 20
	fd := openFD(t, Options{})
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	mappings := []Mapping{{addressOf(mem), 16 * page, 0, page}, {addressOf(mem[32*page:]), size - 32*page, 16 * page, page}}
	for _, m := range mappings {
		if err := fd.Register(m); err != nil {
			t.Fatal(err)
		}
	}
	m := newImage(size)
	s, stop := start(t, fd, Config{Mappings: mappings, Source: m})
	// Nothing comes along beyond the end of a mapping.
	if got := look(t, mem[15*page:16*page]); got[0] != 15 {
		t.Errorf("page 15 begins with %d", got[0])
	}
	missing(t, s, size-17*page)
	if got := look(t, mem[33*page:34*page]); got[0] != 17 {
		t.Errorf("page 33 begins with %d, want that of page 17", got[0])
	}
	if got := look(t, mem[20*page:21*page]); got[0] != 0 {
		t.Errorf("memory that is not registered begins with %d", got[0])
	}
	// Stop it before the memory is unmapped.
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestEnds stops a server that nobody asks for anything.
func TestEnds(t *testing.T) {
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: 1 << 20})
	s, err := NewServer(fd, Config{Mappings: Of(g), Source: newImage(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Serve(ctx); err != nil {
		t.Error(err)
	}
}
