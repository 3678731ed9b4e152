package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// Incoming is a guest that is to come. Its methods are called one at a time.
type Incoming interface {
	// Name is what the guest is called here.
	Name() string
	// Prepare builds the machine that the offer describes. It checks everything that
	// could fail later, and its error, which may be several joined ones, has all
	// reasons why the guest cannot come.
	Prepare(offer Offer) (*memory.Guest, error)
	// Disks are where the offer's disks go to, after Prepare. They are not used any more
	// when Load is called, nor when Destroy is.
	Disks() []IncomingDisk
	// Paged is called before Load if not all of the memory will have come then. When the
	// guest has ended, it calls the Paging's End, before it waits for its processors and
	// devices, which may wait for memory.
	Paged(p *Paging)
	// Missing is told, from any goroutine, why the guest that runs does not get memory
	// that it may wait for: for now, or, if lost, for good. Then it is to end.
	Missing(why error, lost bool)
	// Load puts the machine, whose memory has come, into a state.
	Load(state []byte) error
	// TakeLocks and DropLocks are about the disks.
	TakeLocks() error
	DropLocks() error
	// Run lets the guest run.
	Run() error
	// Destroy makes sure that the guest never runs here. It comes after Prepare,
	// failed or not, unless Run does, and may come twice.
	Destroy()
	// Died is closed when a guest that runs has ended.
	Died() <-chan struct{}
	// Tell is told how the migration stands.
	Tell(p handover.Phase, reason string)
}

// destination is a migration that comes in.
type destination struct {
	server   *Server
	in       Incoming
	offer    Offer
	acceptor stream.Acceptor
	// source is the certificate that the source has shown, see shown.
	source   string
	driver   *driver
	machine  handover.Destination
	receiver *stream.Receiver
	// paging is nil unless the guest may run before its memory is there.
	paging *Paging
	disks  incomingDisks
	// memory ends when no more memory is taken.
	memory  context.Context
	silence silence
	there   Times
	// told is set when the source was sent the times.
	told bool

	mu sync.Mutex
	// data counts the connections for memory that have come; served those whose memory,
	// or disk, is complete, and broken is what went wrong with one.
	data, served int
	broken       error
	changed      sync.Cond
	// stated is set when the state has come. closing is set when no more memory is
	// taken, and stopServing ends what takes it.
	stated      bool
	closing     bool
	stopServing context.CancelFunc
	serving     sync.WaitGroup

	// loading is held while the machine is loaded or destroyed; gone is the latter.
	loading sync.Mutex
	gone    bool
}

// run is the life of the migration, from its offer on. It returns when the machine has
// ended, or ctx.
func (d *destination) run(ctx context.Context, c *control) error {
	mem, err := d.in.Prepare(d.offer)
	// With all the other reasons, if there are some.
	err = errors.Join(err, d.server.Journal.MayCome(d.in.Name(), d.offer.Epoch))
	if err == nil && !d.offer.SharesMemory {
		d.receiver, err = stream.NewReceiver(mem, stream.ReceiverOptions{})
	}
	if err == nil && d.offer.PostCopy && !d.offer.SharesMemory {
		if err = checkPaging(mem); err == nil {
			d.paging = newPaging(ctx, d, mem)
			defer d.paging.hangUp(errPagingOver)
		}
	}
	if err == nil {
		d.disks, err = newIncomingDisks(d.offer.Disks, d.in.Disks())
	}
	var slot *handover.Slot
	if err == nil {
		slot, err = d.server.Journal.Acquire(handover.Key{VM: d.in.Name(), Role: handover.RoleDestination, ID: d.offer.ID})
	}
	if err != nil {
		d.in.Destroy()
		return errors.Join(err, c.sendJSON(frameAnswer, Answer{Host: d.server.Host, Reasons: reasons(err)}))
	}
	defer slot.Close()
	slot.Peer = c.conn.RemoteAddr().String()
	if d.offer.Peer != 0 {
		slot.Peer = fmt.Sprintf("process %d of this host", d.offer.Peer)
	}
	d.machine = handover.NewDestination(d.offer.ID, d.offer.Epoch)
	d.driver = newDriver(part{
		step: func(e handover.Event) (actions []handover.Action) {
			d.machine, actions = d.machine.Step(e)
			return actions
		},
		final:     func() bool { return d.machine.Final() },
		decided:   d.decided,
		slot:      slot,
		trace:     d.server.Trace,
		takeLocks: d.takeLocks, dropLocks: d.in.DropLocks,
		run: d.start, destroy: d.destroy, resume: func() {}, report: d.in.Tell,
	}, d.server.Waits)
	var serving context.Context
	serving, d.stopServing = context.WithCancel(ctx)
	defer d.stopServing()
	d.memory = serving
	d.silence.begin(d.server.Waits)
	d.server.ready(d)
	d.driver.attach(c)
	if err := c.sendJSON(frameAnswer, Answer{Host: d.server.Host, Shared: d.offer.SharesMemory, Leftover: d.disks.leftover()}); err != nil {
		_ = c.conn.Close() // which hear finds out
	}
	go d.hear(c)
	go d.silence.watch(serving, d.driver.post)
	go func() {
		select {
		case <-d.in.Died():
			d.driver.post(handover.Event{Kind: handover.GuestDied, Reason: "the guest has ended"})
		case <-d.driver.over:
		}
	}()
	err = d.driver.run(ctx, nil)
	d.driver.attach(nil)
	if d.machine.MayRun() {
		d.paging.wait(ctx)
	}
	if err != nil && !d.machine.MayRun() {
		// A source that asks will hear from the next process that it is refused.
		d.destroy()
	}
	return err
}

// decided is the driver's: who asks later is answered from the record, by whoever listens
// then.
func (d *destination) decided() bool {
	s := d.machine.State()
	return s == handover.DestinationOwner || s == handover.DestinationRefused
}

// destroy is the driver's. Nothing uses the machine's memory any more when it is gone.
func (d *destination) destroy() {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	d.changed.Broadcast()
	d.stopServing()
	d.serving.Wait()
	d.paging.End() // whom Load may wait for
	d.loading.Lock()
	defer d.loading.Unlock()
	d.gone = true
	d.in.Destroy()
}

// reasons takes a joined error apart.
func reasons(err error) []string {
	many, ok := err.(interface{ Unwrap() []error })
	// An error that wraps two others has words of its own around them.
	if !ok || err.Error() != errors.Join(many.Unwrap()...).Error() {
		return []string{err.Error()}
	}
	var all []string
	for _, e := range many.Unwrap() {
		all = append(all, reasons(e)...)
	}
	return all
}

// hear listens to the source.
func (d *destination) hear(c *control) {
	err := d.driver.listen(c, frameState, d.takeState)
	if d.driver.detach(c) {
		d.driver.post(handover.Event{Kind: handover.LinkLost, Reason: "the connection with the source was lost: " + err.Error()})
	}
}

// again takes another control connection of the source.
func (d *destination) again(conn net.Conn) {
	c := newControl(&heard{conn, &d.silence}, d.server.Trace)
	d.driver.attach(c)
	select {
	case <-d.driver.over:
		// There may have been nobody left to close it: the source dials again, and
		// finds whoever knows of the migration then.
		d.driver.attach(nil)
		return
	default:
	}
	d.driver.post(handover.Event{Kind: handover.LinkBack})
	d.hear(c)
}

// takeState has the state loaded when the last page has come, while the connection is
// listened to: that it was lost is to be known.
func (d *destination) takeState(state []byte) error {
	d.mu.Lock()
	again := d.stated
	d.stated = true
	d.mu.Unlock()
	if again {
		return errors.New("the source has sent a second state")
	}
	go func() {
		e := handover.Event{Kind: handover.StateLoaded}
		if err := d.load(state); err != nil {
			e = handover.Event{Kind: handover.Failed, Reason: err.Error()}
		}
		d.driver.post(e)
	}()
	return nil
}

// load waits for the last page, and block of a disk, and loads the state.
func (d *destination) load(state []byte) error {
	if err := d.awaitMemory(); err != nil {
		return err
	}
	d.silence.end()
	d.loading.Lock()
	defer d.loading.Unlock()
	if d.gone {
		return errCalledOff
	}
	began := time.Now()
	err := d.in.Load(state)
	d.there.Load = time.Since(began)
	return err
}

// awaitMemory waits for the last page, and block of a disk, that is to come before the
// state.
func (d *destination) awaitMemory() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	want := d.connections() + len(d.disks)
	for d.served < want && d.broken == nil && !d.closing {
		d.changed.Wait()
	}
	if d.served < want && d.broken == nil {
		return errCalledOff
	}
	return d.broken
}

// errCalledOff is why a guest is not loaded whose migration has ended meanwhile.
var errCalledOff = errors.New("the migration was called off")

// serve takes memory, or a disk, from a connection, until the source has sent all.
func (d *destination) serve(ctx context.Context, conn net.Conn, p stream.Preamble, in func()) {
	ready, err := d.acceptor.Accept(ctx, conn, p)
	in()
	if err != nil {
		return // the source knows; who did not get in is not the source
	}
	defer ready.Close()
	take := d.admit(p)
	if take == nil {
		return
	}
	err = take(d.memory, &heard{ready, &d.silence})
	d.serving.Done()
	d.mu.Lock()
	if err == nil {
		d.served++
	} else if d.broken == nil {
		d.broken = err
	}
	d.mu.Unlock()
	d.changed.Broadcast()
	if err != nil {
		d.driver.post(handover.Event{Kind: handover.Failed, Reason: err.Error()})
	}
}

// admit says what takes what comes on a connection: nil if nothing is to come there. Who
// takes it tells serving when it has.
func (d *destination) admit(p stream.Preamble) func(context.Context, net.Conn) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return nil
	}
	if p.Channel == stream.Disk {
		disk := d.disks.next(p.Index)
		if disk == nil {
			return nil
		}
		d.serving.Add(1)
		return disk.Serve
	}
	if d.data++; d.data > d.connections() {
		return nil
	}
	d.serving.Add(1)
	return d.receiver.Serve
}

// takeLocks is the driver's, and start, too: they note how long they took.
func (d *destination) takeLocks() error {
	began := time.Now()
	err := d.in.TakeLocks()
	d.there.Locks = time.Since(began)
	return err
}

func (d *destination) start() error {
	began := time.Now()
	err := d.in.Run()
	d.there.Run, d.there.Journal = time.Since(began), d.driver.wrote
	if err == nil {
		d.paging.start()
	}
	if d.told {
		return err
	}
	d.told = true
	// Before STARTED, which comes next. Without it the report is poorer, no more.
	if text, e := json.Marshal(d.there); e == nil {
		d.driver.mu.Lock()
		link := d.driver.link
		d.driver.mu.Unlock()
		if link != nil {
			_ = link.send(frameTimes, text)
		}
	}
	return err
}
