package virtiotest

import (
	"testing"

	"github.com/godwit-vmm/godwit/memory"
)

// Memory is the memory of a guest, with an allocator for the driver.
type Memory struct {
	*memory.Guest
	t    testing.TB
	next memory.GPA
}

// NewMemory makes guest memory of the given size in bytes, which is freed at
// the end of the test.
func NewMemory(t testing.TB, size uint64) *Memory {
	t.Helper()
	g, err := memory.New(memory.Options{Size: size, Name: "virtiotest"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Memory{Guest: g, t: t, next: memory.PageSize}
}

// Wrap is memory that somebody else made and frees. The driver takes what it
// needs from start on.
func Wrap(t testing.TB, g *memory.Guest, start memory.GPA) *Memory {
	return &Memory{Guest: g, t: t, next: start}
}

// For returns the same memory for another test, which allocates from where m is
// now: memory is made once for a fuzz target, and used by each of its runs. It
// is not cleared in between.
func (m *Memory) For(t testing.TB) *Memory { return &Memory{Guest: m.Guest, t: t, next: m.next} }

// Alloc returns n bytes that nobody else uses, at a multiple of align, which is
// a power of two. They lie in the region at address 0, are never freed, and may
// not be zero.
func (m *Memory) Alloc(n, align uint64) memory.GPA {
	m.t.Helper()
	at := (m.next + memory.GPA(align) - 1) &^ (memory.GPA(align) - 1)
	if !m.Contains(at, n) {
		m.t.Fatalf("no %d bytes left of the guest's memory: give the driver a larger one", n)
	}
	m.next = at + memory.GPA(n)
	return at
}

// Put copies p to newly allocated memory.
func (m *Memory) Put(p []byte) memory.GPA {
	m.t.Helper()
	at := m.Alloc(uint64(len(p)), 16)
	m.Set(at, p)
	return at
}

// Set copies p to gpa.
func (m *Memory) Set(gpa memory.GPA, p []byte) {
	m.t.Helper()
	if err := m.Write(gpa, p); err != nil {
		m.t.Fatal(err)
	}
}

// Get returns a copy of n bytes at gpa.
func (m *Memory) Get(gpa memory.GPA, n int) []byte {
	m.t.Helper()
	p := make([]byte, n)
	if err := m.Read(gpa, p); err != nil {
		m.t.Fatal(err)
	}
	return p
}
