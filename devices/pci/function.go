package pci

import (
	"encoding/binary"
	"fmt"
)

// FunctionConfig identifies a function.
type FunctionConfig struct {
	// Name shows in errors and as the name of the BARs' windows.
	Name string

	VendorID, DeviceID             uint16
	SubsystemVendorID, SubsystemID uint16
	// Class is base class, subclass and interface, 24 bits (appendix D).
	Class    uint32
	Revision uint8
}

// Function is one function of a device. It is set up by one goroutine; from
// the moment it is added to a Bus, that bus's lock guards it.
type Function struct {
	name   string
	config [ConfigSize]byte
	// writable has the bits that the guest can change set.
	writable [ConfigSize]byte
	bars     [bars]bar
	caps     []capability
	// capTail is the register with the pointer to the next capability, and
	// capNext where that can go.
	capTail, capNext int
	msix             *MSIX
	attached         bool
}

// Capability is an entry of a function's capability list (§6.7).
type Capability struct {
	ID uint8
	// Body is what follows the ID and the pointer to the next capability.
	Body []byte
	// Writable has a 1 for each bit of Body that the guest can change. It
	// may be shorter than Body, the rest is read-only; nil means all is.
	Writable []byte
	// BeforeRead is called before a guest reads size bytes at offset of the
	// body, and may change bytes there that are writable. AfterWrite is
	// called after a write. Both get the body in place and run with the
	// bus's lock held: they must not access configuration space. Either may
	// be nil.
	BeforeRead, AfterWrite func(body []byte, offset, size int)
}

// capability is one that has been added.
type capability struct {
	offset, size int // of the body
	beforeRead   func(body []byte, offset, size int)
	afterWrite   func(body []byte, offset, size int)
}

// capHeader is the length of the ID and next pointer before a body.
const capHeader = 2

// NewFunction makes a function without BARs and capabilities.
func NewFunction(c FunctionConfig) *Function {
	f := &Function{name: c.Name, capTail: regCapabilities, capNext: regFirstCapability}
	le := binary.LittleEndian
	le.PutUint16(f.config[regVendorID:], c.VendorID)
	le.PutUint16(f.config[regDeviceID:], c.DeviceID)
	f.config[regRevision] = c.Revision
	f.config[regClass] = byte(c.Class)
	f.config[regClass+1] = byte(c.Class >> 8)
	f.config[regClass+2] = byte(c.Class >> 16)
	le.PutUint16(f.config[regSubsystemVendor:], c.SubsystemVendorID)
	le.PutUint16(f.config[regSubsystemID:], c.SubsystemID)

	le.PutUint16(f.writable[regCommand:], commandKept)
	// Scratch registers: software of old keeps its findings in them.
	f.writable[regCacheLine] = 0xff
	f.writable[regInterruptLine] = 0xff
	return f
}

// Name is the name that the function was made with.
func (f *Function) Name() string { return f.name }

// AddCapability appends a capability to the function's list and returns the
// offset of its ID in configuration space.
func (f *Function) AddCapability(c Capability) (int, error) {
	if err := f.settable(); err != nil {
		return 0, err
	}
	if len(c.Writable) > len(c.Body) {
		return 0, fmt.Errorf("pci %s: capability %#x: mask of %d bytes for a body of %d", f.name, c.ID, len(c.Writable), len(c.Body))
	}
	at := f.capNext
	size := capHeader + len(c.Body)
	if size > legacySize-at {
		return 0, fmt.Errorf("pci %s: capability %#x of %d bytes: %w, %d are free", f.name, c.ID, size, ErrFull, legacySize-at)
	}
	f.config[at] = c.ID
	copy(f.config[at+capHeader:], c.Body)
	copy(f.writable[at+capHeader:], c.Writable)

	f.config[f.capTail] = byte(at)
	f.capTail = at + 1
	f.capNext = (at + size + 3) &^ 3 // a capability starts at a multiple of 4
	f.config[regStatus] |= statusCapabilities
	f.caps = append(f.caps, capability{at + capHeader, len(c.Body), c.BeforeRead, c.AfterWrite})
	return at, nil
}

func (f *Function) settable() error {
	if f.attached {
		return fmt.Errorf("pci %s: on a bus already, too late to change it", f.name)
	}
	return nil
}

// read serves a read of configuration space, which does not pass its end.
func (f *Function) read(reg int, data []byte) {
	for i := range f.caps {
		c := &f.caps[i]
		if at, n := c.overlap(reg, len(data)); n > 0 && c.beforeRead != nil {
			c.beforeRead(c.body(f), at, n)
		}
	}
	copy(data, f.config[reg:])
}

// write serves a write to configuration space, which does not pass its end.
func (f *Function) write(reg int, data []byte) {
	for i, b := range data {
		mask := f.writable[reg+i]
		f.config[reg+i] = f.config[reg+i]&^mask | b&mask
	}
	for i := range f.caps {
		c := &f.caps[i]
		if at, n := c.overlap(reg, len(data)); n > 0 && c.afterWrite != nil {
			c.afterWrite(c.body(f), at, n)
		}
	}
}

// overlap says which part of the body an access of n bytes at reg touches.
func (c *capability) overlap(reg, n int) (offset, size int) {
	start := max(reg, c.offset)
	end := min(reg+n, c.offset+c.size)
	return start - c.offset, end - start
}

func (c *capability) body(f *Function) []byte {
	return f.config[c.offset : c.offset+c.size : c.offset+c.size]
}
