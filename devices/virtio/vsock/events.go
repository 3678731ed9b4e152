package vsock

import (
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// resetStage is how far the transport reset event has come (§5.10.6.7).
type resetStage uint8

const (
	// resetNone: there is none to send, or the driver has seen it.
	resetNone resetStage = iota
	// resetWanted: it is to be sent when the driver gives a buffer for it.
	resetWanted
	// resetSent: the driver has it, and may not have looked yet. A packet
	// that came before the driver has looked could belong to a connection
	// which it then resets with the old ones.
	resetSent
)

// again is the stage when the device starts anew: what was sent is sent again,
// since what the driver did meanwhile was not seen.
func (s resetStage) again() resetStage {
	if s == resetSent {
		return resetWanted
	}
	return s
}

// eventSize is the size of struct virtio_vsock_event, whose only field is the
// number of the event: 0, transport reset.
const eventSize = 4

// serveEvents serves the event queue, and then the others, which may have been
// waiting for the driver to see the reset.
func (d *Device) serveEvents() {
	if d.failed {
		return
	}
	if err := d.announceReset(); err != nil {
		d.fail(err)
		return
	}
	d.serve()
}

// announceReset takes the reset event to its next stage if it can. A driver gives
// the buffer of an event back to the queue when it has done what the event asks
// for, so it has seen the reset when there is one buffer more than before.
func (d *Device) announceReset() error {
	q := d.drv.Queues[eventQueue]
	switch d.reset {
	case resetWanted:
		var event virtio.Chain
		ok, err := q.Pop(&event)
		for !ok && err == nil {
			var more bool
			if more, err = q.EnableKicks(); err != nil || !more {
				return err
			}
			ok, err = q.Pop(&event)
		}
		if err != nil {
			return err
		}
		if n := event.CopyIn(0, make([]byte, eventSize)); n < eventSize {
			return fmt.Errorf("buffer of %d bytes in the event queue, want %d", n, eventSize)
		}
		// Before the driver knows, so that none of its buffers is counted
		// too early.
		if d.unseen, err = available(q); err != nil {
			return err
		}
		q.Push(event.Head, eventSize)
		q.Notify()
		d.reset = resetSent
	case resetSent:
		n, err := available(q)
		if err != nil {
			return err
		}
		if n > d.unseen {
			d.reset = resetNone
		}
	}
	return nil
}

// available counts the chains of a queue, and has the driver kick when it adds
// one behind them.
func available(q *virtio.Queue) (n int, _ error) {
	var c virtio.Chain
	for {
		ok, err := q.Pop(&c)
		if err != nil {
			return 0, err
		}
		if ok {
			n++
			continue
		}
		more, err := q.EnableKicks()
		if err != nil {
			return 0, err
		}
		if !more {
			break
		}
	}
	for range n {
		q.Unpop()
	}
	return n, nil
}
