package micro

import (
	"encoding/binary"
	"fmt"
)

// Driver is what the programs that drive a virtio device have in common. They
// find the device on PCI bus 0 by themselves and poll: interrupts are off
// (virtio 1.2 §2.7.7). References in this package's drivers are to that
// specification.
//
// A program needs RAM up to BufferStart and behind it as much as its requests
// in flight take.
type Driver struct {
	// Nth picks one of several devices of the same type: 0 is the one in the
	// lowest slot.
	Nth int
	// Indirect puts the descriptors of each request into a table of its own
	// (§2.7.5.3). EventIdx lets each side say when it wants to be told about
	// progress (§2.7.10). The device has to offer them.
	Indirect, EventIdx bool
	// AlwaysKick rings the doorbell for each batch of requests, whether the
	// device wants it or not.
	AlwaysKick bool
	// Stop ends the guest when the program is at its end, also a bad one.
	Stop Stop
}

// AnyStop ends a guest of godwit as well as one of QEMU that has an
// isa-debug-exit device (see DebugExit): what is not there ignores the write.
// QEMU's exit status is AnyStopStatus then.
func AnyStop() Stop { return append(PowerOff(), DebugExit(anyStopValue)...) }

// AnyStopStatus is unlike the status with which QEMU reports an error.
const (
	AnyStopStatus = 2*anyStopValue + 1
	anyStopValue  = 1
)

// Where drivers keep their things.
const (
	// driverStart is where variables, queues and headers begin. They come
	// with the program.
	driverStart = 0x40_0000
	// BufferStart is where the data of requests begins.
	BufferStart = 16 << 20
	// maxBuffers limits the data of all requests in flight together.
	maxBuffers = 256 << 20
)

// deviceType is the kind of a virtio device (§5).
type deviceType uint16

const (
	netDevice     deviceType = 1
	blockDevice   deviceType = 2
	entropyDevice deviceType = 4
	vsockDevice   deviceType = 19
)

// Feature bits (§6).
const (
	featureIndirect uint64 = 1 << 28
	featureEventIdx uint64 = 1 << 29
	featureVersion1 uint64 = 1 << 32
)

// Offsets in the common configuration structure (§4.1.4.3).
const (
	commonDeviceFeatureSelect = 0x00
	commonDeviceFeature       = 0x04
	commonDriverFeatureSelect = 0x08
	commonDriverFeature       = 0x0c
	commonMSIXVector          = 0x10
	commonStatus              = 0x14
	commonQueueSelect         = 0x16
	commonQueueSize           = 0x18
	commonQueueMSIXVector     = 0x1a
	commonQueueEnable         = 0x1c
	commonQueueNotifyOff      = 0x1e
	commonQueueDesc           = 0x20
	commonQueueDriver         = 0x28
	commonQueueDevice         = 0x30
	commonSize                = 0x38
)

// Device status bits (§2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
)

// driver is a program in the making. While it runs, R15 is ResultStart and RBP
// is driverStart; the other registers belong to the code at hand. Code that
// begin emits changes all of them.
type driver struct {
	Asm
	Driver
	area
	pciPart

	queues   []*queue
	failed   Label // with the status in RAX
	idles    Mem   // empty polls so far
	routines []routine
}

// routine is a subroutine that is emitted behind the main program.
type routine struct {
	label Label
	emit  func()
}

func newDriver(o Driver) *driver {
	d := &driver{Driver: o}
	d.failed = d.NewLabel()
	d.idles = d.variable()
	d.MovImm(R15, ResultStart)
	d.MovImm(RBP, driverStart)
	d.preparePCI()
	return d
}

// routine notes a subroutine to be called at the label. emit does not emit the
// return.
func (d *driver) routine(emit func()) Label {
	l := d.NewLabel()
	d.routines = append(d.routines, routine{l, emit})
	return l
}

// finish ends the program and returns it.
func (d *driver) finish() ([]byte, error) {
	d.MovImm(RAX, uint64(StatusDone))
	d.Bind(d.failed)
	d.Store(Quad, result(resultStatus), RAX)
	d.Stop.emit(&d.Asm)
	for len(d.routines) > 0 { // one may call for another
		r := d.routines[0]
		d.routines = d.routines[1:]
		d.Bind(r.label)
		r.emit()
		d.Ret()
	}
	code, err := d.Assemble()
	if err != nil {
		return nil, err
	}
	if room := BufferStart - driverStart; len(d.area) > room {
		return nil, fmt.Errorf("micro: queues and headers of %d bytes: want at most %d; fewer or smaller requests take less", len(d.area), room)
	}
	return Program{Code: code, Data: d.area, DataAddr: driverStart}.ELF()
}

// result is a result word.
func result(offset int32) Mem { return Mem{R15, offset} }

// failUnless ends the program with the status if c does not hold, and with the
// register, if one is given, as the detail.
func (d *driver) failUnless(c Cond, s Status, detail ...Reg) {
	ok := d.NewLabel()
	d.Jcc(c, ok)
	for _, r := range detail {
		d.Store(Quad, result(resultDetail), r)
	}
	d.MovImm(RAX, uint64(s))
	d.Jmp(d.failed)
	d.Bind(ok)
}

// begin finds the device and brings it to DRIVER_OK (§3.1.1) with the required
// features, and the optional ones if the device has them.
func (d *driver) begin(t deviceType, required, optional uint64) {
	d.findDevice(t)
	d.assignBARs()
	d.findRegions()
	d.needRegions()
	d.enableFunction()

	d.Load(Quad, RBX, d.regions[regionCommon])
	d.StoreImm(Byte, Mem{RBX, commonStatus}, 0)
	wait := d.Here()
	d.Load(Byte, RAX, Mem{RBX, commonStatus})
	d.Test(RAX, RAX)
	d.Jcc(NotEqual, wait)
	d.StoreImm(Byte, Mem{RBX, commonStatus}, statusAcknowledge)
	d.StoreImm(Byte, Mem{RBX, commonStatus}, statusAcknowledge|statusDriver)
	d.negotiate(required, optional)
	for _, q := range d.queues {
		d.enableQueue(q)
	}
	d.StoreImm(Byte, Mem{RBX, commonStatus}, statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK)
}

// negotiate agrees on features. RBX is the common configuration.
func (d *driver) negotiate(required, optional uint64) {
	required |= featureVersion1
	if d.Indirect {
		required |= featureIndirect
	}
	if d.EventIdx {
		required |= featureEventIdx
	}
	d.StoreImm(Long, Mem{RBX, commonDeviceFeatureSelect}, 1)
	d.Load(Long, RAX, Mem{RBX, commonDeviceFeature})
	d.Shl(RAX, 32)
	d.StoreImm(Long, Mem{RBX, commonDeviceFeatureSelect}, 0)
	d.Load(Long, RCX, Mem{RBX, commonDeviceFeature})
	d.Op(Or, RCX, RAX)
	d.MovImm(RAX, required)
	d.Mov(RDX, RCX)
	d.Op(And, RDX, RAX)
	d.Op(Cmp, RDX, RAX)
	d.failUnless(Equal, StatusFeatures, RCX)

	d.MovImm(RAX, required|optional)
	d.Op(And, RCX, RAX)
	d.Store(Quad, result(resultFeatures), RCX)
	d.StoreImm(Long, Mem{RBX, commonDriverFeatureSelect}, 0)
	d.Store(Long, Mem{RBX, commonDriverFeature}, RCX)
	d.Shr(RCX, 32)
	d.StoreImm(Long, Mem{RBX, commonDriverFeatureSelect}, 1)
	d.Store(Long, Mem{RBX, commonDriverFeature}, RCX)
	d.StoreImm(Byte, Mem{RBX, commonStatus}, statusAcknowledge|statusDriver|statusFeaturesOK)
	d.Load(Byte, RAX, Mem{RBX, commonStatus})
	d.TestImm(RAX, statusFeaturesOK)
	d.failUnless(NotEqual, StatusFeatures, RAX)
}

// enableQueue tells the device where the queue is (§4.1.5.1.3). RBX is the
// common configuration.
func (d *driver) enableQueue(q *queue) {
	d.StoreImm(Word, Mem{RBX, commonQueueSelect}, int32(q.index))
	d.Load(Word, RAX, Mem{RBX, commonQueueSize})
	d.OpImm(Cmp, RAX, int32(q.size))
	d.failUnless(AboveEqual, StatusQueue, RAX)
	d.StoreImm(Word, Mem{RBX, commonQueueSize}, int32(q.size))
	for _, part := range []struct {
		reg  int32
		addr uint64
	}{{commonQueueDesc, q.desc}, {commonQueueDriver, q.avail}, {commonQueueDevice, q.used}} {
		d.StoreImm(Long, Mem{RBX, part.reg}, int32(part.addr))
		d.StoreImm(Long, Mem{RBX, part.reg + 4}, 0)
	}
	d.Load(Word, RAX, Mem{RBX, commonQueueNotifyOff})
	d.Load(Quad, RCX, d.notifyMultiplier)
	d.Imul(RAX, RCX)
	d.OpMem(Add, RAX, d.regions[regionNotify])
	d.Store(Quad, q.notify, RAX)
	d.StoreImm(Word, Mem{RBX, commonQueueEnable}, 1)
}

// config leaves the address of the device configuration structure in RBX.
func (d *driver) config() {
	d.Load(Quad, RBX, d.regions[regionDevice])
	d.Test(RBX, RBX)
	d.failUnless(NotEqual, StatusNoRegions)
}

// idleChecks is how many empty polls there are between two looks at the device
// status, which cost an exit to the VMM each.
const idleChecks = 1 << 20

// idle is what a loop does when no queue has anything. It changes RAX and RBX.
func (d *driver) idle() {
	busy := d.NewLabel()
	d.Pause()
	d.OpMemImm(Add, Quad, d.idles, 1)
	d.Load(Quad, RAX, d.idles)
	d.TestImm(RAX, idleChecks-1)
	d.Jcc(NotEqual, busy)
	d.Load(Quad, RBX, d.regions[regionCommon])
	d.Load(Byte, RAX, Mem{RBX, commonStatus})
	d.OpImm(Cmp, RAX, statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK)
	d.failUnless(Equal, StatusNeedsReset, RAX)
	d.Bind(busy)
}

// addTo adds r to a result word. It changes RAX; r is another register.
func (d *driver) addTo(offset int32, r Reg) {
	d.Load(Quad, RAX, result(offset))
	d.Op(Add, RAX, r)
	d.Store(Quad, result(offset), RAX)
}

// now leaves the time stamp counter in RAX. It changes RDX.
func (d *driver) now() {
	d.Rdtsc()
	d.Shl(RDX, 32)
	d.Op(Or, RAX, RDX)
}

// stampTo stores the time stamp counter. It changes RAX and RDX.
func (d *driver) stampTo(m Mem) {
	d.now()
	d.Store(Quad, m, RAX)
}

// record adds RAX ticks to the histogram. It changes RAX, RCX and RDX.
func (d *driver) record() {
	d.Load(Quad, RDX, result(resultLatency))
	d.Op(Add, RDX, RAX)
	d.Store(Quad, result(resultLatency), RDX)
	const sub = 1 << histogramBits
	large := d.NewLabel()
	d.OpImm(Cmp, RAX, sub)
	d.Jcc(AboveEqual, large)
	d.MovImm(RAX, sub)
	d.Bind(large)
	d.Bsr(RCX, RAX)
	d.Mov(RDX, RCX)
	d.OpImm(Sub, RCX, histogramBits)
	d.ShrCL(RAX) // sub to 2*sub-1
	d.Shl(RDX, histogramBits)
	d.Op(Add, RDX, RAX)
	d.Shl(RDX, 3)
	d.Op(Add, RDX, R15)
	d.OpMemImm(Add, Quad, Mem{RDX, resultHistogram - 8*sub}, 1)
}

// restart forgets what was counted in a warm-up. It changes RAX, RCX and RDI.
func (d *driver) restart() {
	for _, off := range []int32{ResultCount, resultErrors, resultMismatches, resultBytes, resultKicks, resultDetail, resultLatency} {
		d.StoreImm(Quad, result(off), 0)
	}
	d.Lea(RDI, result(resultHistogram))
	d.MovImm(RAX, 0)
	d.MovImm(RCX, histogramBuckets)
	d.RepStosq()
}

// area is the memory from driverStart that comes with a program.
type area []byte

// alloc takes n bytes, aligned to a power of two, and returns their address.
func (m *area) alloc(n, align int) uint64 {
	start := (len(*m) + align - 1) &^ (align - 1)
	*m = append(*m, make([]byte, start+n-len(*m))...)
	return driverStart + uint64(start)
}

// variable takes a quad.
func (m *area) variable() Mem { return at(m.alloc(8, 8)) }

// at is the operand for an address in the area.
func at(addr uint64) Mem { return Mem{RBP, int32(addr - driverStart)} }

// bytes is the memory at an address.
func (m area) bytes(addr uint64) []byte { return m[addr-driverStart:] }

func (m area) put16(addr uint64, v uint16) { binary.LittleEndian.PutUint16(m.bytes(addr), v) }
func (m area) put32(addr uint64, v uint32) { binary.LittleEndian.PutUint32(m.bytes(addr), v) }
func (m area) put64(addr uint64, v uint64) { binary.LittleEndian.PutUint64(m.bytes(addr), v) }

// element is the operand for the element that the register index counts, of
// 1<<shift bytes, in an array of the area. It goes by way of the register by.
func (d *driver) element(by, index Reg, shift uint8, array uint64) Mem {
	d.Mov(by, index)
	if shift > 0 {
		d.Shl(by, shift)
	}
	d.Op(Add, by, RBP)
	return Mem{by, int32(array - driverStart)}
}
