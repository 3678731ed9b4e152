package vsock

// credit is the flow control of one connection (§5.10.6.3). All counters wrap.
type credit struct {
	// To the guest: how much was sent, and what the guest last said of its
	// receive buffer: its size, and how much of what was sent has left it.
	sent, peerAlloc, peerForwarded uint32
	// From the guest: how much has gone to the host's socket, how much of
	// that the guest has been told, and the size of the buffer here.
	forwarded, told, alloc uint32
}

// left is how many bytes the guest can take. A guest that says it has taken
// more than it was sent gets nothing.
func (c *credit) left() uint32 {
	underWay := c.sent - c.peerForwarded
	if underWay >= c.peerAlloc {
		return 0
	}
	return c.peerAlloc - underWay
}

// hear takes in what any packet of the guest says of its buffer.
func (c *credit) hear(h *header) { c.peerAlloc, c.peerForwarded = h.bufAlloc, h.fwdCnt }

// tell says in a packet to the guest what its credit is.
func (c *credit) tell(h *header) {
	h.bufAlloc, h.fwdCnt = c.alloc, c.forwarded
	c.told = c.forwarded
}

// owed tells whether so much has been forwarded since the guest last heard of
// it that the guest may be waiting.
func (c *credit) owed() bool { return c.forwarded-c.told >= c.alloc/2 }
