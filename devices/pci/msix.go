package pci

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/memory"
)

// MSIXConfig says what MSI-X capability a function gets.
type MSIXConfig struct {
	// BAR is the base address register for table and pending bits. They
	// have it to themselves.
	BAR int
	// Vectors is the size of the table, 1 to 2048.
	Vectors int
	// Backend delivers the interrupts.
	Backend VectorBackend
}

// MaxVectors is the largest MSI-X table (§6.8.2.3).
const MaxVectors = 2048

const (
	msixEntry     = 16
	msixAddress   = 0
	msixUpper     = 4
	msixData      = 8
	msixControl   = 12
	msixMasked    = 1 << 0  // in an entry's control word
	msixEnable    = 1 << 15 // in the capability's control word
	msixMaskAll   = 1 << 14
	msixMinOffset = memory.PageSize / 2 // of the pending bits
)

// MSIX is the MSI-X capability of a function (§6.8.2): vectors that the guest
// gives a message each, and can mask one by one and all together. An interrupt
// of a masked vector is kept and delivered at unmasking.
type MSIX struct {
	backend VectorBackend
	vectors []vector
	// pending is the offset of the pending bit array in the BAR; the
	// table is at 0.
	pending uint64

	failures atomic.Uint64
	lastErr  atomic.Pointer[error]
}

// vector is an entry of the table. Each has its own lock, so that queues of a
// device which interrupt at the same time do not wait for each other.
type vector struct {
	mu      sync.Mutex
	address uint64
	data    uint32
	masked  bool
	enabled bool // MSI-X is on
	maskAll bool // for the whole function
	pending bool
	// armed says that the backend is ready to Fire.
	armed bool
}

func (v *vector) message() devices.MSI { return devices.MSI{Address: v.address, Data: v.data} }

// AddMSIX gives the function an MSI-X capability and the BAR for it.
func (f *Function) AddMSIX(c MSIXConfig) (*MSIX, error) {
	if f.msix != nil {
		return nil, fmt.Errorf("pci %s: it has MSI-X already", f.name)
	}
	if c.Vectors < 1 || c.Vectors > MaxVectors {
		return nil, fmt.Errorf("pci %s: %d MSI-X vectors: want 1 to %d", f.name, c.Vectors, MaxVectors)
	}
	// The lower half of the BAR is the table, the upper the pending bits.
	half := max(msixMinOffset, uint64(1)<<bits.Len(uint(c.Vectors*msixEntry-1)))
	m := &MSIX{backend: c.Backend, vectors: make([]vector, c.Vectors), pending: half}
	for i := range m.vectors {
		m.vectors[i].masked = true // out of reset
	}
	if err := f.AddBAR(BAR{Index: c.BAR, Size: 2 * half, Handler: (*msixTable)(m)}); err != nil {
		return nil, err
	}

	// Message control, then table and pending bits as offset and BAR number.
	body := make([]byte, 10)
	le := binary.LittleEndian
	le.PutUint16(body, uint16(c.Vectors-1))
	le.PutUint32(body[2:], uint32(c.BAR))
	le.PutUint32(body[6:], uint32(half)|uint32(c.BAR))
	_, err := f.AddCapability(Capability{
		ID:         CapabilityMSIX,
		Body:       body,
		Writable:   []byte{0, (msixEnable | msixMaskAll) >> 8},
		AfterWrite: func(body []byte, _, _ int) { m.control(le.Uint16(body)) },
	})
	if err != nil {
		return nil, err
	}
	f.msix = m
	return m, nil
}

// Notify interrupts the guest by the given vector. With MSI-X off, or for a
// vector that there is not, it does nothing. It may be called from any
// goroutine.
func (m *MSIX) Notify(n int) {
	if n < 0 || n >= len(m.vectors) {
		return
	}
	v := &m.vectors[n]
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.armed:
		m.note(m.backend.Fire(n))
	case v.enabled:
		v.pending = true
	}
}

// Vectors is the size of the table.
func (m *MSIX) Vectors() int { return len(m.vectors) }

// Failures counts the calls that the backend refused, and returns the last
// error.
func (m *MSIX) Failures() (uint64, error) {
	if err := m.lastErr.Load(); err != nil {
		return m.failures.Load(), *err
	}
	return 0, nil
}

func (m *MSIX) note(err error) {
	if err != nil {
		kept := err // so that no call without an error allocates
		m.lastErr.Store(&kept)
		m.failures.Add(1)
	}
}

// control takes over the message control word.
func (m *MSIX) control(word uint16) {
	for i := range m.vectors {
		v := &m.vectors[i]
		v.mu.Lock()
		v.enabled = word&msixEnable != 0
		v.maskAll = word&msixMaskAll != 0
		m.apply(i, v, false)
		v.mu.Unlock()
	}
}

// apply makes the backend follow the state of a vector, whose lock is held.
// The message has changed since the last time if changed says so.
func (m *MSIX) apply(n int, v *vector, changed bool) {
	if !v.enabled {
		v.pending = false
	}
	if !v.enabled || v.maskAll || v.masked {
		if v.armed {
			v.armed = false
			m.note(m.backend.Mask(n))
		}
		return
	}
	if v.armed && !changed {
		return
	}
	err := m.backend.Unmask(n, v.message())
	m.note(err)
	v.armed = err == nil
	if v.armed && v.pending {
		v.pending = false
		m.note(m.backend.Fire(n))
	}
}
