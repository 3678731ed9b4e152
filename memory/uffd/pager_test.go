package uffd

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

// TestOwnPager reads memory that this process brings. Each time that somebody waits for a
// page, the garbage collector stops the world.
func TestOwnPager(t *testing.T) {
	const size = 1 << 20
	fd := openFD(t, Options{})
	g := newGuest(t, fd, memory.Options{Size: size})
	m := newImage(size)
	m.asked = func(uint64) error {
		runtime.GC()
		return nil
	}
	s, _ := start(t, fd, Config{Mappings: Of(g), Source: m, Ahead: 4 * page})
	g.SetPager(memory.OwnPager)
	p := make([]byte, page+2)
	for at := uint64(page); at < size-page; at += 2 * page {
		// From the end of the page before to the beginning of the one behind.
		if err := g.Read(memory.GPA(at-1), p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, m.mem[at-1:at+page+1]) {
			t.Fatalf("the memory at %#x is not what the source has", at)
		}
	}
	last := memory.GPA(size - page)
	if n, err := g.Discard(last, page); n != 0 || err != nil {
		t.Errorf("%d bytes that may not go missing were given back: %v", n, err)
	}
	words := make([]uint64, size/page/64)
	if err := g.Present(words); err != nil || words[len(words)-1]>>63 != 1 {
		t.Errorf("a page that is still to come is none (%v)", err)
	}
	if err := g.Populate(last, page); err != nil {
		t.Fatal(err)
	}
	missing(t, s, 0)
	if err := s.Release(); err != nil {
		t.Fatal(err)
	}
	g.SetPager(memory.NoPager)
	if !bytes.Equal(g.Regions()[0].Mem, m.mem) {
		t.Error("the memory is not what the source has")
	}
	if n, err := g.Discard(last, page); n != page || err != nil {
		t.Errorf("%d bytes were given back after all had been brought: %v", n, err)
	}
}

// TestOtherPager gives pages back of memory that another server brings, which learns of it.
func TestOtherPager(t *testing.T) {
	const size = 1 << 20
	fd := openFD(t, Options{Removals: true})
	g := newGuest(t, fd, memory.Options{Size: size})
	start(t, fd, Config{Mappings: Of(g), Source: newImage(size), Ahead: page})
	g.SetPager(memory.OtherPager)
	first := func(n uint64) byte {
		v, err := g.View(memory.GPA(n*page), 1)
		if err != nil {
			t.Fatal(err)
		}
		return v[0]
	}
	if first(3) != 3 {
		t.Errorf("page 3 begins with %d", first(3))
	}
	if n, err := g.Discard(3*page, 2*page); n != 2*page || err != nil {
		t.Errorf("%d bytes were given back: %v", n, err)
	}
	if first(3) != 0 || first(4) != 0 || first(5) != 5 || !g.Dirty().Test(4) {
		t.Errorf("pages 3 to 5 begin with %d, %d, %d after two were given back", first(3), first(4), first(5))
	}
}
