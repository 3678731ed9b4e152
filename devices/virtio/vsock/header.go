package vsock

import "encoding/binary"

// The addresses that mean something (§5.10.4).
const (
	// HostCID is the context identifier of the host.
	HostCID = 2
	// MinCID and MaxCID bound those that a guest may have.
	MinCID = 3
	MaxCID = 1<<32 - 2
)

// headerSize is the size of struct virtio_vsock_hdr (§5.10.6).
const headerSize = 44

// header is struct virtio_vsock_hdr.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	length           uint32 // of the payload behind the header, in bytes
	kind             uint16 // of socket
	op               operation
	flags            shutdown
	bufAlloc, fwdCnt uint32 // see credit
}

// kindStream is the only kind of socket that there is (§5.10.6).
const kindStream = 1

// operation is what a packet is about (§5.10.6).
type operation uint16

const (
	opRequest operation = 1 + iota
	opResponse
	opReset
	opShutdown
	opData
	opCreditUpdate
	opCreditRequest
)

// shutdown are the flags of opShutdown: what the sender of the packet will not
// do any more (§5.10.6.5).
type shutdown uint32

const (
	noReceive shutdown = 1 << iota
	noSend
	noMore = noReceive | noSend
)

func (h *header) decode(b *[headerSize]byte) {
	le := binary.LittleEndian
	*h = header{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		length: le.Uint32(b[24:]),
		kind:   le.Uint16(b[28:]), op: operation(le.Uint16(b[30:])), flags: shutdown(le.Uint32(b[32:])),
		bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
}

func (h *header) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.length)
	le.PutUint16(b[28:], h.kind)
	le.PutUint16(b[30:], uint16(h.op))
	le.PutUint32(b[32:], uint32(h.flags))
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}
