package vsock

// ports name a connection. Every port is one of the guest's CID on one side and
// of HostCID on the other.
type ports struct{ host, guest uint32 }

// stage is how far a connection has come.
type stage uint8

const (
	// greeting: a host's program has connected and is to say which port it
	// wants. The connection has no ports yet.
	greeting stage = iota
	// connecting: the guest wants to reach a program of the host that has too
	// many others waiting.
	connecting
	// requested: the guest has been asked, or will be, and has not answered.
	requested
	// established: both sides can send.
	established
	// draining: the guest is through with the connection and has forgotten
	// it, and what it sent last waits for the socket to take it. The
	// connection has lost its ports.
	draining
	// dying: the socket is closed, the guest is owed opReset, and then the
	// connection is forgotten.
	dying
)

// owes says which packets the guest is to get.
type owes uint8

const (
	owesRequest owes = 1 << iota
	owesResponse
	owesReset
	owesShutdown
	owesCreditUpdate
	owesCreditRequest
)

// conn is a connection between a socket of the host and one of the guest. Only
// the device's loop uses it.
type conn struct {
	ports
	stage stage
	fd    int // of the host's socket; -1 when it is closed
	owes  owes
	credit

	// readable says that the socket may have something for the guest: it is
	// true from an event until a read would block.
	readable bool
	// burst is how many of the guest's buffers the next read is to fill:
	// more and more, as long as reads fill them.
	burst int
	// asked says that the guest was asked for credit and has not given any.
	asked bool
	// tries counts the attempts to connect.
	tries int
	// line is what a greeter has said so far.
	line []byte

	// pending is what the guest sent and the socket did not take. blocked
	// says that the loop waits for the socket to take more.
	pending ring
	blocked bool

	// What each side has said it will not do any more: guestDone by the
	// guest's opShutdown, hostDone by the state of the socket, and told is
	// what the guest knows of hostDone.
	guestDone, hostDone, hostTold shutdown
	// passedOn is what the socket knows of guestDone.
	passedOn shutdown

	// The connections that have something for the guest are in a list.
	listed     bool
	prev, next *conn
}

// wantsData tells whether data from the socket can go to the guest.
func (c *conn) wantsData() bool {
	return c.readable && c.stage == established && c.hostDone&noSend == 0 && c.guestDone&noReceive == 0
}

// busy tells whether there is something to put into the guest's buffers now.
func (c *conn) busy() bool {
	return c.owes != 0 || c.wantsData() && c.left() > 0
}

// list is a queue of connections that have something for the guest. A
// connection is in it once or not at all.
type list struct{ first, last *conn }

func (l *list) push(c *conn) {
	if c.listed {
		return
	}
	c.listed, c.prev, c.next = true, l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
}

func (l *list) remove(c *conn) {
	if !c.listed {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	c.listed, c.prev, c.next = false, nil, nil
}

// resets is a bounded queue of opReset packets that answer packets without a
// connection.
type resets struct {
	ring     [maxResets]address
	start, n int
}

// address is where a reset comes from and goes to. The guest chose the CID.
type address struct {
	ports
	cid uint64
}

func (r *resets) full() bool { return r.n == len(r.ring) }

// put adds one; the queue is not full.
func (r *resets) put(a address) {
	r.ring[(r.start+r.n)%len(r.ring)] = a
	r.n++
}

func (r *resets) take() address {
	a := r.ring[r.start]
	r.start = (r.start + 1) % len(r.ring)
	r.n--
	return a
}
