package micro

import (
	"cmp"
	"fmt"
	"math"
)

// VsockMode is what a Vsock does once it is connected.
type VsockMode int

// The modes.
const (
	// RoundTrip sends Size bytes and waits for as many from the host, again and
	// again. Times in the histogram are round trips.
	RoundTrip VsockMode = iota
	// SendStream sends packets of Size bytes as fast as the host takes them.
	SendStream
	// ReceiveStream takes what the host sends.
	ReceiveStream
)

// Vsock is a program that connects to a port of the host through a virtio socket
// device (§5.10), moves Count times Size bytes, and ends the connection.
type Vsock struct {
	Driver
	Mode VsockMode
	// Port is the host's, LocalPort the guest's.
	Port, LocalPort uint32
	// Size is at most 64 KiB.
	Size int
	// Count is the number of round trips or packets.
	Count uint64
	// Depth is how many packets of a stream to send are in flight, and how many
	// buffers there are to receive; 0 means 1.
	Depth int
	// BufferSize is how much one packet from the host can have; 0 means 4 KiB.
	BufferSize int
	// Verify sends Pattern of Seed and the offset in the stream, and compares
	// what comes with it. Size is a multiple of 8 then.
	Verify bool
	Seed   uint64
}

// struct virtio_vsock_hdr (§5.10.6).
const (
	vsockSourceCID       = 0
	vsockDestinationCID  = 8
	vsockSourcePort      = 16
	vsockDestinationPort = 20
	vsockLength          = 24
	vsockType            = 28
	vsockOp              = 30
	vsockFlags           = 32
	vsockBufAlloc        = 36
	vsockFwdCount        = 40
	vsockHeader          = 44

	vsockStream  = 1
	hostCID      = 2
	shutdownBoth = 3

	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
)

const (
	maxVsockPacket = 64 << 10
	// vsockWindow is how many bytes the host may send ahead. What arrives is
	// taken at once, so there is no such buffer.
	vsockWindow = 256 << 10
	// controlSlots is room to send packets without data.
	controlSlots = 4
	vsockEvents  = 4
)

func (v *Vsock) check() error {
	switch {
	case v.Mode < RoundTrip || v.Mode > ReceiveStream:
		return fmt.Errorf("micro: no vsock mode %d", v.Mode)
	case v.Size < 1 || v.Size > maxVsockPacket:
		return fmt.Errorf("micro: packets of %d bytes: want 1 to %d", v.Size, maxVsockPacket)
	case v.Depth < 1 || v.Depth > maxDepth:
		return fmt.Errorf("micro: %d packets in flight: want 1 to %d", v.Depth, maxDepth)
	case v.BufferSize < 1 || v.BufferSize > maxVsockPacket:
		return fmt.Errorf("micro: receive buffers of %d bytes: want 1 to %d", v.BufferSize, maxVsockPacket)
	case v.Verify && v.Size%8 != 0:
		return fmt.Errorf("micro: packets of %d bytes cannot be verified: want a multiple of 8", v.Size)
	case v.Indirect:
		return fmt.Errorf("micro: the vsock driver has no indirect tables")
	case v.Count < 1 || v.Count > math.MaxInt64/maxVsockPacket:
		return fmt.Errorf("micro: %d packets: want an end", v.Count)
	}
	return nil
}

// vsockProgram is a Vsock in the making. The subroutines keep R8, R9, R10 and
// R14.
type vsockProgram struct {
	*driver
	Vsock
	rx, tx *queue

	// Packet i to send has header i, descriptors i and slots+i, and buffer i.
	// Free is a stack of those not in flight.
	slots    int
	headers  uint64
	stride   int // between buffers to send
	free     uint64
	freeTop  Mem
	rxStart  uint64
	rxStride int

	// Counters of the connection (§5.10.6.3): bytes that each side has sent,
	// up to where the host was told of its own, and what it says of ours.
	sent, received, told    Mem
	peerBuffer, peerForward Mem
	connected, closed       Mem // flags; closed has the operation that did it
	creditAsked             Mem // flag

	service, sendPacket, reap Label
}

// ELF is the program. Result bytes are those that were sent or, by ReceiveStream,
// received.
func (v Vsock) ELF() ([]byte, error) {
	v.Depth = cmp.Or(v.Depth, 1)
	v.BufferSize = cmp.Or(v.BufferSize, 4096)
	if err := v.check(); err != nil {
		return nil, err
	}
	p := newVsockProgram(v)
	p.begin(vsockDevice, 0, 0)
	p.setCID()
	p.giveBuffers()
	p.connect()
	p.stampTo(result(ResultFirstTSC))
	p.MovImm(R14, v.Count)
	switch v.Mode {
	case RoundTrip:
		p.roundTrips()
	case SendStream:
		p.sendStream()
	case ReceiveStream:
		p.receiveStream()
	}
	p.stampTo(result(ResultLastTSC))
	p.disconnect()
	return p.finish()
}

func newVsockProgram(v Vsock) *vsockProgram {
	p := &vsockProgram{driver: newDriver(v.Driver), Vsock: v, slots: v.Depth + controlSlots}
	p.rx, p.tx = p.newQueue(0, v.Depth), p.newQueue(1, 2*p.slots)
	events := p.newQueue(2, vsockEvents)
	for i := range vsockEvents {
		p.putDescriptor(events.desc, i, buffer{p.alloc(8, 8), 8, true}, 0, 0)
	}
	p.headers = p.alloc(64*p.slots, 64)
	p.free = p.alloc(8*p.slots, 8)
	for _, m := range []*Mem{
		&p.freeTop, &p.sent, &p.received, &p.told, &p.peerBuffer, &p.peerForward,
		&p.connected, &p.closed, &p.creditAsked,
	} {
		*m = p.variable()
	}
	p.put64(driverStart+uint64(p.freeTop.Disp), uint64(p.slots))

	p.stride = (v.Size + 63) &^ 63
	for i := range p.slots {
		header := p.headers + uint64(64*i)
		p.put64(header+vsockDestinationCID, hostCID)
		p.put32(header+vsockSourcePort, v.LocalPort)
		p.put32(header+vsockDestinationPort, v.Port)
		p.put16(header+vsockType, vsockStream)
		p.put32(header+vsockBufAlloc, vsockWindow)
		p.putDescriptor(p.tx.desc, i, buffer{header, vsockHeader, false}, 0, p.slots+i)
		p.putDescriptor(p.tx.desc, p.slots+i, buffer{BufferStart + uint64(i*p.stride), 0, false}, 0, 0)
		p.put64(p.free+uint64(8*i), uint64(i))
	}
	p.rxStart = (BufferStart + uint64(p.slots*p.stride) + 4095) &^ 4095
	p.rxStride = (vsockHeader + v.BufferSize + 63) &^ 63
	for i := range v.Depth {
		p.putDescriptor(p.rx.desc, i, buffer{p.rxStart + uint64(i*p.rxStride), vsockHeader + v.BufferSize, true}, 0, 0)
	}
	p.service = p.routine(p.emitService)
	p.sendPacket = p.routine(p.emitSendPacket)
	p.reap = p.routine(p.emitReap)
	return p
}

// setCID writes the guest's address into all headers.
func (p *vsockProgram) setCID() {
	p.config()
	p.Load(Long, RAX, Mem{RBX, 0})
	p.Load(Long, RCX, Mem{RBX, 4})
	p.Shl(RCX, 32)
	p.Op(Or, RAX, RCX)
	p.MovImm(RSI, 0)
	next := p.Here()
	p.Store(Quad, p.element(RDX, RSI, 6, p.headers+vsockSourceCID), RAX)
	p.Inc(RSI)
	p.OpImm(Cmp, RSI, int32(p.slots))
	p.Jcc(Below, next)
}

// giveBuffers hands the buffers for packets and events to the device.
func (p *vsockProgram) giveBuffers() {
	for _, q := range []*queue{p.rx, p.queues[2]} {
		n := vsockEvents
		if q == p.rx {
			n = p.Depth
		}
		p.MovImm(RSI, 0)
		next := p.Here()
		p.push(q, RSI)
		p.Inc(RSI)
		p.OpImm(Cmp, RSI, int32(n))
		p.Jcc(Below, next)
		p.publish(q)
	}
}

// send sends a packet without data at once.
func (p *vsockProgram) sendControl(op, flags uint64) {
	p.MovImm(R11, op)
	p.MovImm(R12, 0)
	p.MovImm(R13, flags)
	p.Call(p.sendPacket)
	p.publish(p.tx)
}

// until serves the connection until done jumps to the label it gets. A closed
// connection ends the program, unless done looks at that first.
func (p *vsockProgram) until(done func(yes Label)) {
	yes := p.NewLabel()
	loop := p.Here()
	p.Call(p.service)
	done(yes)
	p.OpMemImm(Cmp, Quad, p.closed, 0)
	p.failUnless(Equal, StatusRefused)
	p.idle()
	p.Jmp(loop)
	p.Bind(yes)
}

func (p *vsockProgram) connect() {
	p.sendControl(opRequest, 0)
	p.until(func(yes Label) {
		p.OpMemImm(Cmp, Quad, p.connected, 0)
		p.Jcc(NotEqual, yes)
	})
	// A host whose buffer is smaller than a packet would never have room.
	p.Load(Quad, RAX, p.peerBuffer)
	p.OpImm(Cmp, RAX, int32(p.Size))
	p.failUnless(AboveEqual, StatusCredit, RAX)
}

// disconnect ends the connection (§5.10.6.5), or what is left of it.
func (p *vsockProgram) disconnect() {
	reset, end := p.NewLabel(), p.NewLabel()
	p.OpMemImm(Cmp, Quad, p.closed, 0)
	p.Jcc(NotEqual, reset)
	p.sendControl(opShutdown, shutdownBoth)
	p.until(func(yes Label) {
		p.OpMemImm(Cmp, Quad, p.closed, 0)
		p.Jcc(NotEqual, yes)
	})
	p.Bind(reset)
	p.OpMemImm(Cmp, Quad, p.closed, opReset)
	p.Jcc(Equal, end)
	p.sendControl(opReset, 0)
	p.Bind(end)
}

// roundTrips does R14 of them.
func (p *vsockProgram) roundTrips() {
	p.MovImm(R9, 0) // bytes to have received
	loop := p.Here()
	p.until(p.ifCredit)
	p.now()
	p.Mov(R8, RAX)
	p.sendData()
	p.publish(p.tx)
	p.OpImm(Add, R9, int32(p.Size))
	p.until(func(yes Label) {
		p.Load(Quad, RAX, p.received)
		p.Op(Cmp, RAX, R9)
		p.Jcc(AboveEqual, yes)
	})
	p.now()
	p.Op(Sub, RAX, R8)
	p.record()
	p.count()
	p.Dec(R14)
	p.Jcc(NotEqual, loop)
}

// creditPolls is how many times a stream without credit is polled before the host
// is asked for its state (§5.10.6.3): devices tell by themselves, most times.
const creditPolls = 1 << 14

// sendStream sends R14 packets, and waits until the device has taken them.
func (p *vsockProgram) sendStream() {
	loop, send, blocked, quiet := p.NewLabel(), p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.MovImm(R10, 0) // empty polls
	p.Bind(loop)
	p.Call(p.service)
	p.OpMemImm(Cmp, Quad, p.closed, 0)
	p.failUnless(Equal, StatusRefused)
	p.OpMemImm(Cmp, Quad, p.freeTop, controlSlots)
	p.Jcc(BelowEqual, blocked)
	p.ifCredit(send)
	p.Bind(blocked)
	p.publish(p.tx)
	p.Inc(R10)
	p.TestImm(R10, creditPolls-1)
	p.Jcc(NotEqual, quiet)
	p.sendControl(opCreditRequest, 0)
	p.Bind(quiet)
	p.idle()
	p.Jmp(loop)

	p.Bind(send)
	p.sendData()
	p.count()
	p.Dec(R14)
	p.Jcc(NotEqual, loop)
	p.publish(p.tx)
	p.until(func(yes Label) {
		p.OpMemImm(Cmp, Quad, p.freeTop, int32(p.slots))
		p.Jcc(Equal, yes)
	})
}

// receiveStream takes R14 times Size bytes.
func (p *vsockProgram) receiveStream() {
	p.MovImm(RAX, uint64(p.Size))
	p.Mov(R9, R14)
	p.Imul(R9, RAX)
	p.until(func(yes Label) {
		p.Load(Quad, RAX, p.received)
		p.Store(Quad, result(resultBytes), RAX)
		p.Op(Cmp, RAX, R9)
		p.Jcc(AboveEqual, yes)
	})
	p.Store(Quad, result(ResultCount), R14)
}

// ifCredit jumps if the host has room for a packet of data: what it has less
// what it has not taken yet, modulo 2^32. It changes RAX.
func (p *vsockProgram) ifCredit(yes Label) {
	p.Load(Long, RAX, p.peerForward)
	p.OpMem(Add, RAX, p.peerBuffer)
	p.OpMem(Sub, RAX, p.sent)
	p.Shl(RAX, 32) // a difference of 32-bit counters, with its sign
	p.MovImm(RDX, uint64(p.Size)<<32)
	p.Op(Cmp, RAX, RDX)
	p.Jcc(GreaterEq, yes)
}

// count counts a packet of data.
func (p *vsockProgram) count() {
	p.OpMemImm(Add, Quad, result(ResultCount), 1)
	p.OpMemImm(Add, Quad, result(resultBytes), int32(p.Size))
}
